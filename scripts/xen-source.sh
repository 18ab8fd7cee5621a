#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The source of Xen that everything is built from.
#
#   xen-source.sh version     fetch it if needed, print its version
#   xen-source.sh unpack DIR  the pristine source in DIR
#   xen-source.sh debian DIR  that of Debian's package, its patches not applied
#
# It is the one in hypervisor-patches/UPSTREAM, as long as the Debian mirror has
# the archive: a point release of Debian replaces the package, at once in the
# index, later or never in the pool of every mirror, and must not break a build
# in either case. Should the archive be gone, it is the current package's.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

dl=build/xen/dl
chosen=$dl/version
upstream=hypervisor-patches/UPSTREAM
pinned=$(sed -n 's/^version: //p' "$upstream")
pinned_hash=$(sed -n 's/^sha256: \([0-9a-f]*\) .*/\1/p' "$upstream")
pinned_packaging=$(sed -n 's/^packaging: \([0-9a-f]*\) .*/\1/p' "$upstream")

# archive VERSION: the name that Debian gives the upstream source.
archive() {
	echo "xen_${1%-*}.orig.tar.xz"
}

# packaging VERSION: the same of what Debian adds to it.
packaging() {
	echo "xen_$1.debian.tar.xz"
}

# have FILE SHA256
have() {
	[ -e "$dl/$1" ] && echo "$2  $dl/$1" | sha256sum --check --status
}

# get URL FILE SHA256, inside the sysroot.
get() {
	/usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root \
		-o Acquire::Retries=5 \
		download-file "$1" "$dl/$2" "SHA256:$3" >/dev/null 2>&1 &&
		have "$2" "$3"
}

# pool FILE SHA256: from where the mirror keeps all versions.
pool() {
	local uri

	# shellcheck disable=SC2016  # apt expands it
	uri=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' | head -n 1)
	get "${uri%/}/pool/main/x/xen/$1" "$1" "$2"
}

# indexed VERSION FILE: the .dsc itself is not needed, apt knows the hashes from
# the signed index.
indexed() {
	local url hash

	read -r url _ _ hash < <(apt-get source --print-uris "xen=$1" \
		2>/dev/null | grep -F " $2 ") &&
		get "${url//\'/}" "$2" "${hash#SHA256:}"
}

# The parts that run inside the sysroot.
fetch() {
	local version

	if pool "$(archive "$pinned")" "$pinned_hash"; then
		echo "$pinned" >"$chosen"
		return
	fi

	version=$(apt-cache madison xen | awk '/Sources/ { print $3; exit }')
	[ -n "$version" ] || die "the package index has no source of Xen"
	indexed "$version" "$(archive "$version")" ||
		die "the mirror has the source neither of Xen $pinned nor of $version"
	echo "$version" >"$chosen"
}

fetch_packaging() {
	local file

	file=$(packaging "$1")
	if [ "$1" = "$pinned" ]; then
		pool "$file" "$pinned_packaging"
	else
		indexed "$1" "$file"
	fi || die "the mirror does not have $file"
}

# What was fetched once stays, for builds that can be repeated.
version() {
	local version

	if have "$(archive "$pinned")" "$pinned_hash"; then
		echo "$pinned"
		return
	fi
	version=$(cat "$chosen" 2>/dev/null || true)
	if [ -z "$version" ] || [ ! -e "$dl/$(archive "$version")" ]; then
		mkdir -p "$dl"
		scripts/in-sysroot.sh scripts/xen-source.sh --fetch >&2
		version=$(cat "$chosen")
	fi
	echo "$version"
}

# Debian's own patches are left out: they move paths of the tools and change
# the banner, not the hypervisor.
unpack() {
	local version

	version=$(version)
	rm -rf "$1" "$1.tmp"
	mkdir -p "$1.tmp"
	tar -C "$1.tmp" --strip-components=1 -xf "$dl/$(archive "$version")"
	mv "$1.tmp" "$1"
}

# The archive of an earlier version may be there without its packaging.
debian() {
	local version

	version=$(version)
	if [ "$version" != "$pinned" ] || ! have "$(packaging "$version")" "$pinned_packaging"; then
		scripts/in-sysroot.sh scripts/xen-source.sh --fetch-packaging "$version"
	fi
	unpack "$1"
	tar -C "$1" -xf "$dl/$(packaging "$version")"
}

case ${1:-} in
version) version ;;
unpack) unpack "$2" ;;
debian) debian "$2" ;;
--fetch) fetch ;;
--fetch-packaging) fetch_packaging "$2" ;;
*) die "usage: xen-source.sh version | unpack DIR | debian DIR" ;;
esac
