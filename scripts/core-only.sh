#!/usr/bin/env bash
# The pure core must not depend on a runtime, a protocol, an inference engine or a sound device.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$(cargo tree --locked --no-default-features --features portable --edges normal --prefix none)
if found=$(grep -E '^(tokio|prost|ort|cpal|symphonia|opus-decoder) ' <<<"$tree"); then
  echo "core-only: the core depends on:" >&2
  echo "$found" >&2
  exit 1
fi
echo "core-only: $(sort -u <<<"$tree" | wc -l) packages, none of tokio, prost, ort, cpal"
