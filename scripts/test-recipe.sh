#!/usr/bin/env bash
# Tests of the training recipe, in an environment of their own outside the checkout (PyTorch takes gigabytes).
set -euo pipefail
cd "$(dirname "$0")/.."

key=$(sha256sum models/pyproject.toml | cut -c1-12)
venv="${XDG_CACHE_HOME:-$HOME/.cache}/undertone-recipe/venv-$key"
if [ ! -e "$venv/complete" ]; then
  echo "test-recipe: making $venv"
  rm -rf "$venv"
  python3 -m venv "$venv" || {
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends python3-venv python3-dev gcc g++ >/dev/null
    python3 -m venv "$venv"
  }
  "$venv/bin/pip" install -q --disable-pip-version-check $("$venv/bin/python" - <<'PY'
import shlex, tomllib
print(shlex.join(tomllib.load(open("models/pyproject.toml", "rb"))["project"]["dependencies"]).replace("'", ""))
PY
)
  touch "$venv/complete"
fi
cd models
OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests
