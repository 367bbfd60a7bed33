#!/usr/bin/env bash
# The codec for browsers under node: what it makes of codes and of sound is what this machine makes, bit for bit. Part of `make test-web`.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
bash scripts/install.sh nodejs=node
bash scripts/web.sh
for script in src/service/web/*.js bindings/web/tests/*.js; do
  node --check "$script"
done
cd bindings
"$cargo" fmt --check
"$cargo" clippy -q --release --locked -p undertone-web --all-targets -- -D warnings
"$cargo" test -q --release --locked -p undertone-web -- --include-ignored
