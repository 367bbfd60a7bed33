#!/usr/bin/env bash
# The oldest Rust that Cargo.toml promises. Where rustup has that version, everything is checked with it. Where it has not, no
# dependency may ask for more, and clippy (incompatible_msrv) refuses what the standard library got later.
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
installed=$(rustup toolchain list 2>/dev/null | grep -o "^${oldest}[^ ]*" | head -n 1 || true)
if [ -n "$installed" ]; then
  cargo "+$installed" check -q --locked --all-targets
  echo "msrv: checked with Rust $oldest"
  exit 0
fi
cargo metadata --locked --format-version 1 | python3 -c '
import json, sys
oldest = tuple(map(int, sys.argv[1].split(".")))
needs = {p["name"]: p["rust_version"] for p in json.load(sys.stdin)["packages"] if p["rust_version"]}
newer = {n: v for n, v in needs.items() if tuple(map(int, v.split(".")))[: len(oldest)] > oldest}
if newer:
    sys.exit("msrv: these want more than Rust " + sys.argv[1] + ": " + ", ".join(f"{n} {v}" for n, v in newer.items()))
print(f"msrv: Rust {sys.argv[1]} is not installed; none of the {len(needs)} packages that name a version wants more")
' "$oldest"
