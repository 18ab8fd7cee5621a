#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel-matrix.sh SUITE: build the driver for the kernel that a suite of Debian
# has now, with that suite's compilers, as vmbeam-dkms would on such a host, and let
# clippy and rustdoc look at it. Whatever is printed is a failure. The root with the
# suite's packages is kept in build/matrix/SUITE/.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

[ $# = 1 ] || die "usage: kernel-matrix.sh SUITE"
suite=$1
out=$PWD/build/matrix/$suite
packages=(
	build-essential bc bison flex kmod python3 xz-utils libelf-dev libssl-dev openssl pahole
	rustc rust-clippy rust-src bindgen linux-headers-amd64 linux-source
)

if [ "$(cat "$out/root.stamp" 2>/dev/null)" != "${packages[*]}" ]; then
	step "matrix: the compilers and the kernel of $suite"
	need mmdebstrap debian-archive-keyring
	# The mirror that this machine uses.
	# shellcheck disable=SC2016  # apt expands these
	mirror=$(apt-get indextargets \
		--format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
		awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
	[ -n "$mirror" ] || die "no Debian mirror in the apt configuration of this machine"
	rm -rf "$out"
	mkdir -p "$out"
	# A mirror that stands still for weeks will do.
	mmdebstrap --quiet --variant=apt --include="$(IFS=,; echo "${packages[*]}")" \
		--aptopt='Acquire::Retries "5"' --aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		"$suite" "$out/root" "deb $mirror $suite main"
	echo "${packages[*]}" >"$out/root.stamp"
	step_done
fi

# inside COMMAND...: run it in that root, with the project at /src.
inside() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	unshare --mount --pid --fork --kill-child -- /bin/bash -c '
		set -euo pipefail
		top=$1 root=$2
		shift 2
		mount --make-rprivate /
		mount --rbind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mkdir -p "$root/src"
		mount --bind "$top" "$root/src"
		touch "$root/etc/resolv.conf"
		mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
		exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
			HOME=/root LANG=C.UTF-8 "$@"
	' matrix "$PWD" "$out/root" "$@"
}

headers=$(find "$out/root/usr/src" -maxdepth 1 -name 'linux-headers-*-amd64' | sort -V | tail -n1)
[ -n "$headers" ] || die "$suite has no linux-headers-amd64"
release=${headers##*/linux-headers-}
series=$(echo "$release" | sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p')
build=/src/build/matrix/$suite

if [ "$(cat "$out/tree.stamp" 2>/dev/null)" != "$release" ]; then
	step "matrix: Rust metadata of $suite's $release"
	inside /src/scripts/rust-metadata.sh "/usr/src/linux-headers-$release" \
		"/usr/src/linux-source-$series.tar.xz" "$build/tree"
	echo "$release" >"$out/tree.stamp"
	step_done
fi

step "matrix: vmbeam.ko for $release, with $(inside rustc --version)"
inside /src/scripts/driver-lint.sh "$build/tree" "build/matrix/$suite/obj" \
	>"$out/module.log" 2>&1 || {
	tail -n 60 "$out/module.log"
	die "the driver is not clean for $release, see build/matrix/$suite/module.log"
}
inside modinfo -F vermagic "$build/obj/drivers/vmbeam/vmbeam.ko"
step_done
