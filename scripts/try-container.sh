#!/usr/bin/env bash
# The container image, built from a Debian that debootstrap makes (no registry is asked) and tried with its root read-only.
# Needs root, Debian's archive, buildah, debootstrap and systemd-container. `make dist` first.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
work=$(mktemp -d)
daemon='' container=''
stop() {
  [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
  [ -z "$container" ] || { buildah umount "$container" && buildah rm "$container"; } >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap stop EXIT
say() { echo "try-container: $*"; }

if ! buildah inspect --type image localhost/undertone-base >/dev/null 2>&1; then
  debootstrap --variant=minbase bookworm "$work/root" >/dev/null
  base=$(buildah from scratch)
  buildah copy -q "$base" "$work/root" / >/dev/null
  buildah commit -q --rm "$base" localhost/undertone-base >/dev/null
fi
buildah build --format docker -q --build-arg BASE=localhost/undertone-base -f packaging/Containerfile -t "undertone:$version" . >/dev/null
say "built"
settings=$(buildah inspect --type image --format '{{.Docker.Config.User}} {{.Docker.Config.Healthcheck.Test}} {{.Docker.Config.Entrypoint}} {{.Docker.Config.Cmd}}' "undertone:$version")
say "user, check and command: $settings"
[[ $settings == 10001:10001\ *status*serve* ]]
container=$(buildah from "undertone:$version")
root=$(buildah mount "$container")
mkdir "$work/data" && chown 10001:10001 "$work/data"
# The root as a runtime mounts it with --read-only, the command and user as the image says.
inside=(systemd-nspawn -q --register=no --keep-unit --read-only --directory="$root" --bind="$work/data:/var/lib/undertone" --as-pid2 --user=undertone
  --setenv=PATH=/opt/undertone/bin:/usr/bin:/bin --chdir=/var/lib/undertone)
"${inside[@]}" --console=pipe undertone serve --config /etc/undertone/undertone.toml >"$work/log" 2>&1 &
daemon=$!
undertone=target/dist/undertone/bin/undertone
for _ in $(seq 200); do $undertone status --timeout 2 >/dev/null 2>&1 && break; sleep 0.1; done
$undertone status >/dev/null && say "serves as another user from a read-only root"
uid=$(ps -o uid= -C undertone | sort -u | tr -d ' \n')
[ "$uid" = 10001 ] && say "runs as $uid"
voice=/usr/share/sounds/alsa/Front_Center.wav
$undertone listen "$work/heard.wav" --timeout 20 & listener=$!
sleep 1
$undertone send "$voice"
wait $listener
[ "$(stat -c %s "$work/heard.wav")" -gt 40000 ] && say "heard $(stat -c %s "$work/heard.wav") bytes"
say "passed"
