#!/bin/sh
# The libraries of Debian's arm64 that a cross build needs, unpacked below DIR. Nothing is installed and root is not needed:
# apt-get keeps its lists of that architecture in DIR too.
#
#   scripts/sysroot-arm64.sh DIR
set -eu
dir=${1:?usage: sysroot-arm64.sh DIR}
wanted="libyaml-dev libjansson-dev libpcre2-dev libutf8proc-dev libcmocka-dev"

[ "$(cat "$dir/complete" 2>/dev/null)" = "$wanted" ] && exit 0
rm -rf "$dir"
mkdir -p "$dir/lists/partial" "$dir/packages"
dir=$(cd "$dir" && pwd)
log=$dir/log
apt() {
    "$@" -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$dir/lists" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= 2>>"$log"
}
failed() {
    tail -n 5 "$log" >&2
    echo "sysroot-arm64.sh: $1 (the last lines of $log are above)" >&2
    exit 1
}

echo "fetching arm64 libraries: $wanted"
apt apt-get update >>"$log" || failed "no lists of Debian's arm64"
# with what the -dev packages link to; the C library comes with the cross compiler
libraries=$(for p in $wanted; do apt apt-cache depends --important "$p"; done | awk '$1 == "Depends:" && $2 ~ /^lib/ && $2 !~ /^libc6/ { print $2 }' | sort -u)
(cd "$dir/packages" && apt apt-get download $wanted $libraries >>"$log") || failed "packages could not be downloaded"
for p in "$dir"/packages/*.deb; do dpkg-deb -x "$p" "$dir" 2>>"$log" || failed "$p could not be unpacked"; done
rm -rf "$dir/lists" "$dir/packages"
echo "$wanted" >"$dir/complete"
