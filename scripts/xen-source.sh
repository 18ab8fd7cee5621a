#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The source of Xen that everything is built from.
#
#   xen-source.sh version       choose and fetch it if needed, print its version
#   xen-source.sh unpack DIR    the pristine source in DIR
#   xen-source.sh debian DIR    that of Debian's package, its patches not applied
#   xen-source.sh notice        which one it is, and if it is not the newest: why not, and
#                               which security updates it lacks
#   xen-source.sh show FIELD    version, newest or lacks, as the choice recorded it
#   xen-source.sh fits VERSION  whether both series apply to a version that was fetched
#   xen-source.sh reject VERSION REASON
#                               choose another one from now on; fails if there is none
#
# It is the newest source of Debian's 4.20 that the archive has and that both series of
# hypervisor-patches/ apply to. Only if there is none, it is the one that the series are
# made for (hypervisor-patches/UPSTREAM). XEN_ARCHIVE names a directory of source packages
# to take instead of the archive.
#
# What the archive had is in build/xen/dl/offered, and asked once; what was chosen from
# that is in build/xen/dl/choice. Both stay, and what was fetched, for builds that can be
# repeated, with or without a network.

set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

dl=build/xen/dl
# shellcheck source=scripts/xen-archive.sh
. scripts/xen-archive.sh

patches=hypervisor-patches
try=build/xen/try

series_key() {
	cat $patches/series $patches/*.patch $patches/toolstack/* | sha256sum | cut -d' ' -f1
}

# What the choice depends on.
choice_key() {
	{
		cat "$upstream" "$dl/offered" "$dl/refused" 2>/dev/null || true
		series_key
		cat scripts/xen-source.sh scripts/xen-archive.sh
	} | sha256sum | cut -d' ' -f1
}

show() {
	sed -n "s/^$1: //p" "$dl/choice"
}

unpack_version() {
	rm -rf "$2" "$2.tmp"
	mkdir -p "$2.tmp"
	tar -C "$2.tmp" --strip-components=1 -xf "$dl/$(archive "$1")"
	mv "$2.tmp" "$2"
}

# applied SERIES DIRECTORY: without fuzz, as dpkg-source does it. Says which does not.
applied() {
	local p

	for p in $(series "$1"); do
		patch -d "$2" -p1 -F0 -s -f --no-backup-if-mismatch <"$1/$p" >/dev/null || {
			echo "${1##*/}/$p does not apply$3"
			return 1
		}
	done
}

# misfit VERSION: whether something does not apply, and what. First as `make xen` and `make
# xen-tools` apply it, then as `make deb-xen` does.
misfit() {
	! {
		unpack_version "$1" "$try" &&
			applied "$patches" "$try" '' && unpack_version "$1" "$try" &&
			applied "$patches/toolstack" "$try" '' && unpack_version "$1" "$try" &&
			tar -C "$try" -xf "$dl/$(packaging "$1")" &&
			applied "$try/debian/patches" "$try" ', which is one of Debian' &&
			applied "$patches" "$try" ' after those of Debian' &&
			applied "$patches/toolstack" "$try" ' after those of Debian'
	}
}

# take VERSION REASONS: record the choice.
take() {
	local newest lacks=''

	newest=$(head -n 1 "$dl/offered" | cut -f1)
	if [ -n "$newest" ] && [ "$newest" != "$1" ]; then
		lacks=$(advisories "$1" <"$dl/changelog")
		[ -s "$dl/changelog" ] || lacks="not known, since its changelog could not be had"
		lacks=${lacks:-none that its changelog names}
	else
		newest=
	fi
	cat >"$dl/choice.tmp" <<-CHOICE
	key: $(choice_key)
	version: $1
	asked: $(cat "$dl/asked")
	newest: $newest
	lacks: $lacks
	$(sed -n 's/..*/why: &/p' <<<"$2")
	CHOICE
	mv "$dl/choice.tmp" "$dl/choice"
	echo "$1" >"$dl/version"
}

# The part that runs inside the sysroot. It needs no network if `offered` is there and
# the source was fetched.
# choose [DIRECTORY]
choose() {
	local version problem key reasons=''

	mkdir -p "$dl"
	if [ ! -e "$dl/offered" ] || [ -n "${1:-}" ]; then
		offer "$pinned" "${1:-}" >"$dl/offered.tmp"
		version=$(head -n 1 "$dl/offered.tmp" | cut -f1)
		: >"$dl/changelog"
		[ -z "$version" ] || changelog "$version" "${1:-}" >"$dl/changelog" || true
		mv "$dl/offered.tmp" "$dl/offered"
		rm -rf "$dl/lists"
	fi
	touch "$dl/refused"
	key=$(series_key)
	while IFS=$'\t' read -r version problem; do
		problem=${problem:-$(sed -n "s/^$key $version //p" "$dl/refused")}
		[ -n "$problem" ] || problem=$(misfit "$version") || true
		if [ -z "$problem" ]; then
			rm -rf "$try"
			take "$version" "$reasons"
			return
		fi
		reasons+="$version: $problem"$'\n'
	done <"$dl/offered"
	rm -rf "$try"

	if ! have "$(archive "$pinned")" "$pinned_hash"; then
		ask
		get_pinned "$(archive "$pinned")" "$pinned_hash" || die \
			"there is no source of Xen $release to build:
$pinned: the mirror does not have it, for which the series are made
${reasons}Make the series fit a newer one with make hv-rebase, or name a directory that has
source packages: XEN_ARCHIVE=DIRECTORY"
	fi
	take "$pinned" "$reasons"
}

version() {
	mkdir -p "$dl"
	if [ -n "${XEN_ARCHIVE:-}" ]; then
		[ -d "$XEN_ARCHIVE" ] || die "XEN_ARCHIVE: there is no directory $XEN_ARCHIVE"
		rm -rf "$dl/from"
		cp -rL "$XEN_ARCHIVE" "$dl/from"
		flock "$dl/lock" scripts/in-sysroot.sh scripts/xen-source.sh --choose "$dl/from" >&2
		rm -rf "$dl/from"
	elif [ ! -e "$dl/offered" ] || [ "$(show key 2>/dev/null)" != "$(choice_key)" ] ||
		[ ! -e "$dl/$(archive "$(show version)")" ]; then
		flock "$dl/lock" scripts/in-sysroot.sh scripts/xen-source.sh --choose >&2
	fi
	show version
}

# Debian's own patches are left out: they move paths of the tools and change
# the banner, not the hypervisor.
unpack() {
	unpack_version "$(version)" "$1"
}

debian() {
	local version

	version=$(version)
	if [ "$version" = "$pinned" ] && ! have "$(packaging "$version")" "$pinned_packaging"; then
		scripts/in-sysroot.sh scripts/xen-source.sh --fetch-packaging
	fi
	unpack_version "$version" "$1"
	tar -C "$1" -xf "$dl/$(packaging "$version")"
}

fetch_packaging() {
	ask
	get_pinned "$(packaging "$pinned")" "$pinned_packaging" ||
		die "the mirror does not have $(packaging "$pinned")"
}

notice() {
	local version newest

	version=$(version)
	newest=$(show newest)
	if [ -z "$newest" ]; then
		echo "Xen is built from $version, the newest of Debian's $release by $(show asked)."
		return
	fi
	cat <<-NOTICE
	Xen is built from $version, which is NOT the newest of Debian's $release.
	    missing security updates: $(show lacks)
	    (Debian's changelog of $newest: $dl/changelog)
	$(show why | sed 's/^/    not taken: /')
	    To ask the archive again: rm $dl/offered. If a patch does not apply, or it does not
	    build: make hv-rebase.
	NOTICE
}

# Whether it is the version's fault that it does not build cannot be known before the
# one that is known to build was tried.
reject() {
	if [ "$1" = "$pinned" ]; then
		rm -f "$dl/refused"
		return 1
	fi
	echo "$(series_key) $1 $2" >>"$dl/refused"
	echo "Xen $1: $2. The next older source is taken instead." >&2
}

case ${1:-} in
version) version ;;
unpack) unpack "$2" ;;
debian) debian "$2" ;;
notice) notice ;;
show) version >/dev/null && show "$2" ;;
fits) if misfit "$2"; then exit 1; fi ;;
reject) reject "$2" "$3" ;;
--choose) choose "${2:-}" ;;
--fetch-packaging) fetch_packaging ;;
*) die "usage: xen-source.sh version | unpack DIR | debian DIR | notice | show FIELD |
       fits VERSION | reject VERSION REASON" ;;
esac
