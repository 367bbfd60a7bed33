#!/usr/bin/env bash
# The codec for browsers, target/web/undertone.wasm: built anew only when its sources or the compiler have changed. Needs the compiler's
# target wasm32-unknown-unknown, which rustup installs, and nothing else.
#   scripts/web.sh [--if-possible]        with it, a machine that cannot build it goes without: pages then get samples
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
target=wasm32-unknown-unknown
out=target/web
mkdir -p "$out"

sources=$(find src proto build.rs Cargo.toml bindings/Cargo.toml bindings/Cargo.lock bindings/web/Cargo.toml bindings/web/src scripts/web.sh \
  -type f ! -path 'src/service/*' ! -path 'src/cli/*' | LC_ALL=C sort | xargs sha256sum)
version=$({ echo "$sources"; rustc --version; } | sha256sum | cut -c1-16)
[ "$(cat "$out/version" 2>/dev/null)" = "$version" ] && [ -s "$out/undertone.wasm" ] && exit 0

if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ] && ! { command -v rustup >/dev/null && rustup target add "$target"; }; then
  echo "web: the compiler has no target $target, and rustup cannot install it" >&2
  rm -f "$out/undertone.wasm"
  echo none >"$out/version"
  [ "${1:-}" = --if-possible ] && exit 0
  exit 1
fi
echo "web: building the codec for browsers"
# The variable takes the place of flags for this machine (a linker of its own, say) that a configuration of cargo may hold.
RUSTFLAGS=-Ctarget-feature=+simd128 CARGO_TARGET_DIR=bindings/target CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
  CARGO_PROFILE_RELEASE_STRIP=symbols "$cargo" build -q --release --locked --manifest-path bindings/Cargo.toml -p undertone-web --lib --target "$target"
cp "bindings/target/$target/release/undertone_web.wasm" "$out/undertone.wasm"
echo "$version" >"$out/version"
echo "web: $out/undertone.wasm, $(stat -c %s "$out/undertone.wasm") bytes"
