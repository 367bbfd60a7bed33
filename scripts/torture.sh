#!/usr/bin/env bash
# Tortures a daemon and prints what was lost: 50 kills of a recording daemon, then minutes of hostile clients beside three
# good streams while the disk is full, the disk hangs, and NATS is killed. Fails if more is lost than docs/reliability.md
# states. `scripts/torture.sh [BINARY] [MINUTES] [KILLS] [PARTS]`; needs Linux, a C compiler, nats-server, and for the full disk
# the right to mount a tmpfs (as root, or by a user namespace).
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/undertone}")
if [ "$(id -u)" != 0 ] && [ -z "${UNDERTONE_TORTURE_INSIDE:-}" ]; then
  export UNDERTONE_TORTURE_INSIDE=1
  exec unshare --user --map-root-user --mount "$0" "$binary" "${@:2}"
fi
export PATH="$PATH:/usr/sbin"
command -v nats-server > /dev/null || { echo "nats-server is missing (scripts/setup.sh installs it)"; exit 1; }
ulimit -n 4096
folder=$(mktemp -d)
trap 'mountpoint -q "$folder/disk" && umount "$folder/disk"; rm -rf "$folder"' EXIT
mkdir "$folder/disk"
mount -t tmpfs -o size=80m none "$folder/disk"
# A disk that hangs: calls that write to recordings wait while the file $HANG is there.
cat > "$folder/hang.c" << 'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int recording(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return strstr(path, "/disk/") != NULL;
}
static void hang(int fd) {
  const char *flag = getenv("HANG");
  if (!flag || access(flag, F_OK) != 0 || !recording(fd)) return;
  while (access(flag, F_OK) == 0) usleep(20000);
}
ssize_t write(int fd, const void *bytes, size_t n) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "write");
  hang(fd);
  return real(fd, bytes, n);
}
int fdatasync(int fd) {
  static int (*real)(int);
  if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
  hang(fd);
  return real(fd);
}
C
cc -shared -fPIC -O1 -o "$folder/hang.so" "$folder/hang.c" -ldl
python3 scripts/torture.py "$binary" "$folder" "${2:-10}" "${3:-50}" "${4:-kills coder beside}"
