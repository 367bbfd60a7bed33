#!/usr/bin/env bash
# The Debian package under a running systemd: a small Debian 12 in a container of its own, the package in it, what an operator does with it.
# Needs root, a network, and Debian's debootstrap and systemd-container; takes about three minutes. `make deb` first.
#   sudo scripts/try-deb.sh target/debian/undertone_*.deb
set -euo pipefail

# --- What runs in the container: this same script, as /root/try-deb.sh inside.
failed=0
check() { # TEXT COMMAND...
  local what=$1 && shift
  if "$@" >>/root/try-deb.log 2>&1; then echo "ok      $what"; else echo "FAILED  $what" && failed=$((failed + 1)); fi
}
config=/etc/undertone/undertone.toml
show() { systemctl show -P "$1" undertone; }
logged() { grep -e "$1" < <(journalctl -q -u undertone --no-pager); }
in_journal() { [ -n "$(journalctl -q --no-pager _SYSTEMD_UNIT=undertone.service _TRANSPORT=journal "$@")" ]; }
silent_about() { ! logged "$1"; }
took() { awk -v from="$2" -v to="$(date +%s.%N)" "BEGIN { printf \"        $1 after %.1f s\n\", to - from }"; }
within() { # SECONDS COMMAND...: until it succeeds
  local tries=$(($1 * 10)) && shift
  until "$@"; do ((tries-- > 0)) || return 1; sleep 0.1; done
}
restarted() { [ "$(show MainPID)" != "$1" ] && systemctl is-active undertone; }
refused() { ! timeout 1 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null; }
# Root mean square of samples: whether there is sound in a recording.
loudness() { tail -c +45 "$1" | od -An -v -td2 -w2 | awk '{ s += $1 * $1 } END { print int(sqrt(s / (NR + 1))) }'; }
as_loud() { local a b; a=$(loudness "$1") b=$(loudness "$2"); echo "$a $b"; [ $((2 * a)) -gt "$b" ] && [ "$a" -lt $((2 * b)) ]; }
samples() { tail -c +45 in.wav; } # Of 48 kHz, so the raw port hears them at half the pitch.
heard() { # FILE STREAM SENDER...: what a listener gets from one sender
  undertone listen "$1" --stream "$2" --timeout 20 & local listener=$! && shift 2
  sleep 1
  "$@" && wait $listener
}
codes() { heard heard.wav news undertone send in.wav --stream news && as_loud heard.wav in.wav; }
raw_port() { samples >/dev/tcp/127.0.0.1/7700; }
raw() { heard "$1" main raw_port && [ -s "$1" ]; } # Encoded by the daemon.
own_cores() {
  local task engines=0
  silent_about "engine\.pin" || return 1
  for task in /proc/"$(show MainPID)"/task/*; do
    [[ $(<"$task/comm") =~ ^engine-[0-9]+$ ]] || continue
    engines=$((engines + 1))
    grep -Eq '^Cpus_allowed_list:\s[0-9]+$' "$task/status" || return 1
  done
  [ $engines -gt 0 ]
}
recordings() { find /var/lib/undertone/ -name '*.utn' "$@"; }
a_recording_decodes() { undertone decode "$(recordings -print -quit)" recorded.wav && as_loud recorded.wav in.wav; }
nothing_left() {
  local left
  left=$(find / -xdev \( -path /root -o -path /var/log \) -prune -o -name '*undertone*' -print; grep -H undertone /etc/passwd /etc/group)
  echo "$left" && [ -z "$left" ]
}
reload_says() { systemctl reload undertone && within 5 logged "$1"; }
revived() { # SIGNAL WHAT
  local pid start && pid=$(show MainPID) && start=$(date +%s.%N)
  kill "$1" "$pid"
  check "$2, it is started again" within 60 restarted "$pid"
  took "serving again" "$start"
}
half_of() { [ "$(cat "$1" "$1" | wc -c)" -lt "$(wc -c <"$2")" ]; } # Or less.
same_config() { [ "$(md5sum <$config)" = "$1" ]; }

inside() {
  cd /root
  local pid start sum
  check "apt installs it and what it depends on" apt-get install -y ./undertone.deb
  check "the configuration is for root and the daemon" test "$(stat -c '%a %G' $config)" = "640 undertone"
  check "nothing runs before somebody enables it" test "$(systemctl is-enabled undertone undertone.socket | sort -u)" = disabled
  check "systemd finds no fault in the units" test -z "$(systemd-analyze verify undertone.service undertone.socket 2>&1)"
  check "systemctl enable --now" systemctl enable --now undertone
  check "it runs, and said that it is ready" test "$(show Type) $(show SubState) $(show StatusText)" = "notify running serving"
  echo "        ready after $((($(show ActiveEnterTimestampMonotonic) - $(show ExecMainStartTimestampMonotonic)) / 1000)) ms"
  check "its lines are in the journal" within 5 in_journal MESSAGE="engine ready"
  check "none of them is an error" silent_about "Error"
  if [ "$(nproc)" -gt 1 ]; then
    check "engine threads have cores of their own" own_cores
  else
    echo "-       not checked, for want of a second core: engine threads have cores of their own"
  fi
  check "exposure is at most 2.0" systemd-analyze security --no-pager --threshold=20 undertone
  echo "        $(systemd-analyze security --no-pager undertone | grep -o 'exposure.*: [0-9.]*')"
  check "a recording goes in and comes back" codes

  sed -i -e '/^\[http\]/,/^\[record\]/s/^listen = ""/listen = "127.0.0.1:7703"/' -e 's#^folder = ""#folder = "/var/lib/undertone"#' $config
  check "restart with a changed configuration" systemctl restart undertone
  check "undertone status" undertone status
  check "raw samples go in" raw first.utn
  check "they were recorded in the state folder" within 5 a_recording_decodes
  pid=$(show MainPID)
  sed -i 's/^kbps = 6.0/kbps = 1.5/' $config
  check "reload" reload_says "configuration reloaded"
  check "raw samples go in after the reload" raw second.utn
  check "at a rate less than half" half_of second.utn first.utn
  echo 'broken = "' >>$config
  check "reload of a broken file changes nothing" reload_says "the configuration stays as it was"
  sed -i '$d' $config
  check "all in the same process" test "$(show MainPID)" = "$pid"

  undertone listen cut.wav --stream long --timeout 60 >>try-deb.log 2>&1 & local listener=$!
  for _ in {1..20}; do samples; done | undertone send - --raw s16le:24000:1 --stream long >>try-deb.log 2>&1 & local sender=$!
  sleep 4
  start=$(date +%s.%N)
  check "stop while a stream is heard" systemctl stop undertone
  took stopped "$start"
  check "without being killed" test "$(show Result) $(show ExecMainStatus)" = "success 0"
  check "the listener got an end and has what was sent" wait $listener
  wait $sender || true # It was told that its stream ends here.
  check "with sound in it" as_loud cut.wav in.wav

  systemctl start undertone
  revived -KILL killed
  revived -STOP hanging
  check "by the watchdog" logged "Watchdog timeout"

  systemctl stop undertone
  check "nobody listens now" refused 7701
  check "the socket unit listens for it" systemctl enable --now undertone.socket
  check "and starts nothing" test "$(systemctl is-active undertone)" = inactive
  check "whoever connects is served" raw third.utn
  check "by the daemon that this started" systemctl is-active undertone
  (until [ -e restarted ]; do ! refused 7701 || echo refused; sleep 0.05; done) >refusals & local knocker=$!
  check "restart behind the socket" systemctl restart undertone
  touch restarted && wait $knocker
  check "refuses nobody" test ! -s refusals

  sum=$(md5sum <$config) pid=$(show MainPID)
  check "upgrade" apt-get install -y ./newer.deb
  check "the edited configuration stays" same_config "$sum"
  check "the new version runs" within 15 restarted "$pid"
  check "and is still enabled" systemctl is-enabled undertone undertone.socket

  check "remove" apt-get remove -y undertone
  check "it is stopped" refused 7701
  check "its configuration stays" same_config "$sum"
  check "purge" apt-get purge -y undertone
  check "recordings stay, with their owner" test "$(stat -c %U "$(recordings -print -quit)")" = undertone
  check "a fresh install" apt-get install -y ./undertone.deb
  check "runs" systemctl start undertone
  recordings -delete
  check "purge without recordings" apt-get purge -y undertone
  check "leaves nothing" nothing_left
  check "nothing else failed in this system" test "$(systemctl is-system-running)" = running
  [ $failed = 0 ] || { echo "--- logs" && tail -n 40 try-deb.log && journalctl --no-pager -n 60 && exit 1; }
}
if [ "${1:-}" = inside ]; then inside && exit; fi

# --- What runs outside.
package=${1:?usage: try-deb.sh PACKAGE.deb}
[ "$(id -u)" = 0 ] || { echo "try-deb: only root can start a container" >&2; exit 1; }
sound=/usr/share/sounds/alsa/Front_Center.wav
for need in debootstrap systemd-nspawn nsenter pgrep $sound; do
  [ -e "$need" ] || command -v "$need" >/dev/null \
    || { echo "try-deb: no $need: apt-get install debootstrap systemd-container util-linux procps alsa-utils" >&2; exit 1; }
done
work=$(mktemp -d /tmp/undertone-deb.XXXXXX)
container=
finish() {
  if [ -n "$container" ] && kill -TERM "$container" 2>/dev/null; then # Which shuts the system in it down.
    for _ in {1..200}; do kill -0 "$container" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$container" 2>/dev/null || true
  fi
  rm -rf --one-file-system "$work"
}
trap finish EXIT
quietly() { "$@" >"$work/log" 2>&1 || { tail "$work/log" >&2; exit 1; }; }
root=$work/root

echo "try-deb: a small Debian 12 in $root"
quietly debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$root" ${MIRROR:+"$MIRROR"}
install -m 644 "$package" "$root/root/undertone.deb"
cp $sound "$root/root/in.wav"
cp "$0" "$root/root/try-deb.sh"
# The same with a higher version, for the upgrade.
dpkg-deb -R "$package" "$work/newer"
sed -i 's/^Version: .*/&.1/' "$work/newer/DEBIAN/control"
dpkg-deb -Zgzip -z1 --root-owner-group -b "$work/newer" "$root/root/newer.deb" >/dev/null
# Fetched now: the container has a network of its own, so that its ports are not this machine's, and no way out.
quietly chroot "$root" sh -c 'apt-get update && apt-get install -y --download-only /root/undertone.deb'

# Where systemd does not run, nobody can be asked for a unit to put the container in.
alone=()
[ -d /run/systemd/system ] || alone=(--register=no --keep-unit)
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -b -D "$root" -M "undertone-deb-$$" --private-network "${alone[@]}" \
  </dev/null >"$work/console" 2>&1 &
container=$!
enter() { nsenter -t "$(pgrep -P $container -o)" -m -u -i -n -p -C env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
within 60 eval 'enter systemctl is-system-running 2>/dev/null | grep -q running' || { cat "$work/console" >&2; exit 1; }
enter bash /root/try-deb.sh inside
echo "try-deb: all is well"
