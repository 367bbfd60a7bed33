#!/usr/bin/env bash
# Installs Debian packages, as root or with sudo.
set -euo pipefail
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
echo "installing $*"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
