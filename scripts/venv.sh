#!/usr/bin/env bash
# Makes a Python environment with these packages outside the checkout, unless it is there, and prints its folder.
#   scripts/venv.sh NAME REQUIREMENT...
# There is one for each set of requirements, so that checkouts share it.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 && shift
key=$(printf '%s\n' "$@" | sha256sum | cut -c1-12)
venv="${XDG_CACHE_HOME:-$HOME/.cache}/$name/venv-$key"
if [ ! -e "$venv/complete" ]; then
  echo "venv: making $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv" >/dev/null 2>&1 || {
    bash scripts/install.sh python3-venv=none >&2
    python3 -m venv "$venv"
  }
  "$venv/bin/pip" install -q --disable-pip-version-check "$@" >&2
  touch "$venv/complete"
fi
echo "$venv"
