#!/usr/bin/env bash
# The token model and the coding that rests on it, on an emulated 64-bit ARM: the same frequencies, the same bytes.
# Needs Debian's qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross; takes about ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do
  command -v "$tool" >/dev/null || { echo "other-cpu: no $tool: apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2; exit 1; }
done
rustup target add "$target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
cargo test --locked --no-default-features --target "$target" --test tokens "$@"
