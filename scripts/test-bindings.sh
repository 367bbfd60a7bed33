#!/usr/bin/env bash
# The C library and the Python package: built, tried, tested. Installs what they need (valgrind; maturin, NumPy, pytest outside the
# checkout), and needs no ONNX Runtime.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
model=$PWD/models/undertone-24k-v2
bash scripts/install.sh gcc=cc libc6-dev=none pkg-config valgrind

echo "bindings: C"
(
  cd bindings
  "$cargo" fmt --check
  "$cargo" build --release --locked -p undertone-capi
  "$cargo" test -q --release --locked -p undertone-capi
)
target=bindings/target/release
out=$target/capi
bash bindings/c/install.sh "$target" "$PWD/$out" >/dev/null
export PKG_CONFIG_PATH=$PWD/$out/lib/pkgconfig
# shellcheck disable=SC2046
cc -std=c11 -O1 -g -Wall -Wextra -Werror bindings/c/example/roundtrip.c -o "$out/roundtrip" $(pkg-config --cflags --libs undertone) -lm
# shellcheck disable=SC2046
cc -std=c11 -O1 -Wall -Wextra -Werror $(pkg-config --cflags undertone) bindings/c/example/roundtrip.c -o "$out/roundtrip-static" \
  "$out/lib/libundertone.a" -lm -lpthread -ldl
"$out/roundtrip-static" "$model"
LD_LIBRARY_PATH=$out/lib valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite "$out/roundtrip" "$model"

echo "bindings: Python"
# Beside the tools a package that is built anew; the environment has a folder of its own for each set of tools.
venv=$(bash scripts/venv.sh undertone-bindings maturin==1.16.0 numpy==2.2.6 pytest==8.4.2)
PATH="$venv/bin:$PATH" CARGO_TARGET_DIR=$PWD/bindings/target "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-build-isolation \
  --force-reinstall ./bindings/python
"$venv/bin/python" -m pytest -q -p no:cacheprovider bindings/python/tests
"$venv/bin/python" bindings/python/examples/codes.py "$model"
