#!/usr/bin/env bash
# Runs every target for so many seconds (600 unless told); stops at the first crash.
set -euo pipefail
cd "$(dirname "$0")/.."
for target in wire container payload session config playout datagram wav packet; do
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="${1:-600}" -max_len=4096 -print_final_stats=1
done
