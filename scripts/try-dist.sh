#!/usr/bin/env bash
# What `make dist` packed, tried from a folder of its own, read-only, with an empty environment, and as nobody if root runs this.
#   scripts/try-dist.sh target/dist/undertone-*.tar.gz
set -euo pipefail
archive=$(realpath "${1:?an archive of \`make dist\`}")
work=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
tar -C "$work" -xzf "$archive"
mkdir "$work/own"
as=()
if [ "$(id -u)" = 0 ]; then
  chown -R nobody "$work/own"
  as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
fi
chmod 755 "$work"
in_its_place() { cd / && exec "${as[@]}" env -i PATH=/usr/bin:/bin "$work/undertone/bin/undertone" "$@"; }
undertone() { (in_its_place "$@"); }
say() { echo "try-dist: $*"; }
# Root mean square of the samples of a recording.
loudness() { tail -c +45 "$1" | od -An -v -td2 -w2 | awk '{ s += $1 * $1 } END { print int(sqrt(s / (NR + 1))) }'; }
as_loud() {
  local a b
  a=$(loudness "$1") b=$(loudness "$2")
  say "$(basename "$1") is as loud as the original ($a, $b)" && [ $((2 * a)) -gt "$b" ] && [ "$a" -lt $((2 * b)) ]
}
voice=/usr/share/sounds/alsa/Front_Center.wav

undertone model verify >/dev/null && say "the model is whole"
undertone encode "$voice" "$work/own/a.utn" --kbps 3
undertone decode "$work/own/a.utn" "$work/own/a.wav"
as_loud "$work/own/a.wav" "$voice"
port=$((20000 + RANDOM % 10000))
sed -e "s/127.0.0.1:7701/127.0.0.1:$port/" -e "s/127.0.0.1:7703/127.0.0.1:$((port + 1))/" \
  -e "s/127.0.0.1:7700/127.0.0.1:$((port + 2))/" -e "s/127.0.0.1:7702/127.0.0.1:$((port + 3))/" \
  "$work/undertone/share/undertone/etc/undertone.toml" >"$work/own/undertone.toml"
in_its_place serve --config "$work/own/undertone.toml" 2>"$work/own/log" & # the program itself, so that it can be ended
daemon=$!
for _ in $(seq 100); do undertone status --from "127.0.0.1:$((port + 1))" --timeout 2 >/dev/null 2>&1 && break; sleep 0.1; done
undertone status --from "127.0.0.1:$((port + 1))" >/dev/null && say "the daemon serves"
undertone listen "$work/own/b.wav" --from "127.0.0.1:$port" --timeout 20 &
listener=$!
sleep 1
undertone send "$voice" --to "127.0.0.1:$port"
wait $listener
as_loud "$work/own/b.wav" "$voice"
say "passed"
