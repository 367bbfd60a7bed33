#!/usr/bin/env bash
# Makes the environment of the training recipe (PyTorch takes gigabytes) and prints its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
# One of the packages is compiled (pesq).
[ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || bash scripts/install.sh python3-dev >&2
bash scripts/install.sh g++ >&2
mapfile -t needs < <(python3 - <<'PY'
import tomllib
project = tomllib.load(open("models/pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PY
)
exec bash scripts/venv.sh undertone-recipe "${needs[@]}"
