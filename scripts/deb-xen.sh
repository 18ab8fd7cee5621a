#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb-xen.sh: build Debian's packages of Xen with both series of hypervisor-patches/
# added to Debian's own, into build/deb/xen/. What is built differs from Debian's
# packages by these patches, the version, and what the descriptions say of both.
# deb-xen.sh lint: also look for errors with lintian that Debian's packages do not have.
#
# Debian's rules build the hypervisor, the tools and their manual pages together, so
# all packages of the architecture are there; those with debugging symbols are not kept.
# What is needed for that goes into an overlay on the sysroot. A run with the same inputs
# does nothing.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

patches=hypervisor-patches
out=$deb/xen
work=$deb/xen-build
stage=$work/stage
base=$(scripts/xen-source.sh version)
version=$base+vmbeam1
newest=$(scripts/xen-source.sh show newest)
lacks=$(scripts/xen-source.sh show lacks)

prepare() {
	step "Xen: what its packages are built with"
	overlay "$work"
	rm -rf "$stage"
	mkdir -p "$stage"
	scripts/xen-source.sh debian "${stage#"$PWD/"}/source"
	if [ ! -e "$work/tools" ]; then
		over sh -c 'apt-get -qq update && exec apt-get -qq build-dep -y \
			--no-install-recommends /deb/xen-build/stage/source' >"$work/tools.log" 2>&1 || {
			tail -n 20 "$work/tools.log"
			die "cannot install what Xen is built with"
		}
		touch "$work/tools"
	fi
	step_done
}

add_patches() {
	local series name patch
	for series in $patches $patches/toolstack; do
		name=vmbeam-${series##*/}
		mkdir "$stage/source/debian/patches/$name"
		while read -r patch; do
			case $patch in '' | '#'*) continue ;; esac
			cp "$series/$patch" "$stage/source/debian/patches/$name/"
			echo "$name/$patch"
		done <"$series/series" >>"$stage/source/debian/patches/series"
	done
	echo CONFIG_MEM_SWAP=y >>"$stage/source/debian/xen-kconfig"
	sed -e "s/@version@/$version/" -e "s/@base@/$base/" packaging/xen/debian/changelog |
		cat - "$stage/source/debian/changelog" >"$stage/changelog"
	mv "$stage/changelog" "$stage/source/debian/changelog"
	describe >"$stage/description"
	# After the last line of each description.
	awk -v add="$(cat "$stage/description")" '
		inside && !/^ / { print add; inside = 0 }
		/^Description:/ { inside = 1 }
		{ print }
		END { if (inside) print add }' "$stage/source/debian/control" >"$stage/control"
	mv "$stage/control" "$stage/source/debian/control"
	rm "$stage/description"
}

# What the packages' descriptions say besides.
describe() {
	echo " ."
	fmt -w 76 <<-TEXT | sed 's/^/ /'
	This is $base of Debian with the patches of VMBeam.
	TEXT
	[ -n "$newest" ] || return 0
	echo " ."
	fmt -w 76 <<-TEXT | sed 's/^/ /'
	It is older than Debian's own package, which was $newest
	when this one was built. Security updates that it lacks: $lacks.
	TEXT
}

compile() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	over sh -c 'cd /deb/xen-build/stage/source &&
		DEB_BUILD_OPTIONS="noautodbgsym parallel=$(nproc)" exec dpkg-buildpackage -us -uc -B' \
		>"$work/build.log" 2>&1 || {
		tail -n 30 "$work/build.log"
		return "$does_not_build"
	}
}

build() {
	local package

	step "Xen: packages of $version (log: build/deb/xen-build/build.log)"
	add_patches
	build_or_reject "$base" "Debian's packages of it do not build with the series" compile ||
		exec scripts/deb-xen.sh "$@"
	rm -rf "$out" "$stage/source" "$stage"/*-dbg_*.deb
	# For the lab, which boots the hypervisor and runs the tools of the packages.
	for package in xen-hypervisor-4.20-amd64 xen-utils-4.20 libxenmisc4.20; do
		dpkg-deb -x "$stage/${package}_${version}_amd64.deb" "$stage/root"
	done
	zcat "$stage/root/boot/xen-4.20-amd64.gz" >"$stage/xen"
	# Debian's rules could take their options from elsewhere by now.
	scripts/xen-config.sh "$stage/xen" | grep -qx CONFIG_MEM_SWAP=y ||
		die "the packaged hypervisor is built without CONFIG_MEM_SWAP"
	echo "$version" >"$stage/version"
	echo "$key" >"$stage/.key"
	mv "$stage" "$out"
	step_done
}

# errors DIRECTORY: which packages have which.
errors() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	over sh -c 'exec lintian --allow-root --fail-on none --tag-display-limit 0 "/deb/$1"/*.deb' \
		sh "$1" | sed -n 's/^E: \([^ ]*\): \([^ ]*\).*/\1 \2/p' | sort -u
}

lint() {
	local names

	step "lintian: Xen, beside Debian's packages"
	packaging_tools
	rm -rf "$deb/xen-debian"
	mkdir "$deb/xen-debian"
	mapfile -t names < <(cd "$out" && printf '%s\n' ./*.deb | sed 's|^\./||; s/_.*//')
	# shellcheck disable=SC2016  # expanded by the inner shell
	over sh -c 'cd /deb/xen-debian && exec apt-get -qq -o APT::Sandbox::User=root download "$@"' \
		sh "${names[@]}"
	errors xen-debian >"$work/errors-debian"
	errors xen >"$work/errors"
	! comm -13 "$work/errors-debian" "$work/errors" | grep . ||
		die "lintian finds these in our packages only"
	touch "$out/.linted"
	step_done
}

key=$({
	echo "$version"
	echo "$newest $lacks"
	declare -f add_patches describe compile build
	cat scripts/xen-source.sh packaging/xen/debian/changelog build/sysroot.stamp
	cat $patches/series $patches/*.patch $patches/toolstack/*
} | sha256sum | cut -d' ' -f1)

if [ "$(cat "$out/.key" 2>/dev/null)" != "$key" ]; then
	prepare
	build "$@"
fi
if [ "${1:-}" = lint ] && [ ! -e "$out/.linted" ]; then
	lint
fi
scripts/xen-source.sh notice
