#!/usr/bin/env bash
# Makes the environment of the training recipe outside the checkout (PyTorch takes gigabytes) and prints its folder.
# One for each set of dependencies in models/pyproject.toml, so that checkouts share it.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t needs < <(python3 - <<'PY'
import tomllib
project = tomllib.load(open("models/pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PY
)
key=$(printf '%s\n' "${needs[@]}" | sha256sum | cut -c1-12)
venv="${XDG_CACHE_HOME:-$HOME/.cache}/undertone-recipe/venv-$key"
if [ ! -e "$venv/complete" ]; then
  echo "recipe-env: making $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv" >/dev/null 2>&1 || {
    scripts/install.sh python3-venv python3-dev gcc g++ >&2
    python3 -m venv "$venv"
  }
  "$venv/bin/pip" install -q --disable-pip-version-check "${needs[@]}" >&2
  touch "$venv/complete"
fi
echo "$venv"
