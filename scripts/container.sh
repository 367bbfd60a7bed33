#!/usr/bin/env bash
# A container image of the daemon, undertone:VERSION, by whichever builder is there. `make dist` first.
#   scripts/container.sh [BASE]        BASE: an image with Debian 12 (debian:12-slim)
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
arguments=(--build-arg "BASE=${1:-debian:12-slim}" -f packaging/Containerfile -t "undertone:$version")
for builder in podman buildah docker; do
  command -v $builder >/dev/null || continue
  # Health checks are not part of the OCI format.
  case $builder in docker) format=() ;; *) format=(--format docker) ;; esac
  exec $builder build "${format[@]}" "${arguments[@]}" .
done
echo "container: none of podman, buildah and docker is installed; docs/install.md has the archive that needs none" >&2
exit 1
