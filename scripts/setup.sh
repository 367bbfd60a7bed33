#!/usr/bin/env bash
# Installs what undertone needs on a Debian machine and fetches the pinned ONNX Runtime library into target/.
# Run by `make setup`; safe to run again. Arguments are further tools to install, such as cmake for `make bench`.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.24.4
case "$(uname -m)" in
  x86_64) platform=manylinux_2_28_x86_64 sha256=e54ad52e61d2d4618dcff8fa1480ac66b24ee2eab73331322db1049f11ccf330 ;;
  aarch64) platform=manylinux_2_28_aarch64 sha256=046ff290045a387676941a02a8ae5c3ebec6b4f551ae228711968c4a69d8f6b7 ;;
  *) echo "setup: no ONNX Runtime wheel is pinned for $(uname -m)" >&2; exit 1 ;;
esac

# ALSA's headers and its recordings: sound devices, and something to try it with.
bash scripts/install.sh gcc pkg-config libasound2-dev=/usr/include/alsa/asoundlib.h unzip python3-pip=pip3 \
  alsa-utils=/usr/share/sounds/alsa/Front_Center.wav "$@"

if ! command -v cargo >/dev/null 2>&1; then
  echo "setup: no cargo found; install Rust 1.92 or newer from https://rustup.rs and run this again" >&2
  exit 1
fi

library=target/onnxruntime/libonnxruntime.so
if [ "$(cat target/onnxruntime/version 2>/dev/null)" != "$version" ] || [ ! -s "$library" ] || [ ! -s target/onnxruntime/LICENSE ]; then
  echo "setup: fetching ONNX Runtime $version"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.11 --abi cp311 --platform "$platform" -d "$work" "onnxruntime==$version"
  wheel=$(echo "$work"/onnxruntime-*.whl)
  if ! echo "$sha256  $wheel" | sha256sum --check --status; then
    echo "setup: $(basename "$wheel") has SHA-256 $(sha256sum "$wheel" | cut -d' ' -f1), expected $sha256" >&2
    exit 1
  fi
  mkdir -p target/onnxruntime
  unzip -o -q -j "$wheel" "onnxruntime/capi/libonnxruntime.so.$version" -d "$work"
  unzip -o -q -j "$wheel" onnxruntime/LICENSE onnxruntime/ThirdPartyNotices.txt -d target/onnxruntime
  mv "$work/libonnxruntime.so.$version" "$library"
  echo "$version" > target/onnxruntime/version
fi
