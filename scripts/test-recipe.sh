#!/usr/bin/env bash
# The training recipe: lints, types, that it installs as a package, its tests.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(bash scripts/recipe-env.sh)
cd models
"$venv/bin/ruff" check --no-cache
"$venv/bin/mypy" --cache-dir "$venv/mypy"

# As somebody else would have it: without this folder, only what the package contains.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r pyproject.toml undertone_recipe "$work"
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$work/installed" "$work"
(cd / && PYTHONPATH="$work/installed" "$venv/bin/python" -m undertone_recipe train --help >/dev/null)

OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE "$venv/bin/python" -m pytest -q -p no:cacheprovider tests
