#!/usr/bin/env bash
# Everything in one folder for machines without packages or containers: target/dist/undertone, and the same as undertone-VERSION-MACHINE-linux.tar.gz
# beside it. Run by `make dist` after the build; the same files give the same archive.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
out=target/dist
folder=$out/undertone
rm -rf "$folder"
# The folder is a prefix like /usr/local: bin, lib and share find each other wherever it lies.
"${MAKE:-make}" --no-print-directory -s install DESTDIR="$folder" PREFIX=
objcopy --strip-debug "$folder/bin/undertone"
mkdir -p "$folder/share/doc/undertone"
mv "$folder/etc/undertone" "$folder/share/undertone/etc"
mv "$folder/etc/systemd/system/undertone.service" "$folder/share/undertone/"
rm -r "${folder:?}/etc"
cp README.md LICENSE CHANGELOG.md SECURITY.md "$folder/share/doc/undertone/"
cp target/onnxruntime/LICENSE "$folder/share/doc/undertone/onnxruntime-LICENSE"
cp target/onnxruntime/ThirdPartyNotices.txt "$folder/share/doc/undertone/onnxruntime-ThirdPartyNotices.txt"
archive=undertone-$version-$(uname -m)-linux.tar.gz
when=$(git log -1 --format=%ct 2>/dev/null || echo 0)
tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$when" -cf - undertone | gzip -9n >"$out/$archive"
echo "dist: $out/$archive, $(stat -c %s "$out/$archive") bytes"
