#!/usr/bin/env bash
# Puts header, libraries and the pkg-config file in place: install.sh TARGET_FOLDER PREFIX
set -euo pipefail
target=$1 prefix=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
install -D -m 644 "$here/include/undertone.h" "$prefix/include/undertone.h"
install -D -m 755 "$target/libundertone.so" "$prefix/lib/libundertone.so"
install -D -m 644 "$target/libundertone.a" "$prefix/lib/libundertone.a"
install -d "$prefix/lib/pkgconfig"
sed "s#@prefix@#$prefix#; s#@version@#$version#" "$here/undertone.pc.in" >"$prefix/lib/pkgconfig/undertone.pc"
echo "installed to $prefix"
