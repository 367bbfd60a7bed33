#!/usr/bin/env bash
# Installs those of these Debian packages that are missing, as root or with sudo.
#   scripts/install.sh PACKAGE[=WHAT]...       WHAT: the program or file that shows that it is there, if not of the package's name
set -euo pipefail
missing=()
for need in "$@"; do
  what=${need#*=}
  [ -e "$what" ] || command -v "$what" >/dev/null 2>&1 || missing+=("${need%%=*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
echo "installing ${missing[*]}"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
