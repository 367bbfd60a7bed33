#!/usr/bin/env bash
# Licences, sources and duplicate versions of all dependencies (deny.toml), and advisories where their database can be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
[ "$(cargo deny --version 2>/dev/null)" = "cargo-deny $version" ] || {
  echo "deny: installing cargo-deny $version"
  cargo install -q --locked cargo-deny --version "$version"
}
cargo deny --locked --all-features check bans licenses sources
