#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make the Debian 13 sysroot in which everything is built and from which the
# lab's images are taken. The machine itself may be Debian 12 or 13: only
# mmdebstrap comes from it.
#
# The sysroot is keyed by this file: change the package list and the next run
# makes a new one.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

suite=trixie

packages=(
	# compilers and build tools
	build-essential bc bison flex python3 cpio rsync kmod zstd xz-utils
	libelf-dev libssl-dev checkpolicy pahole file
	rustc cargo rust-src rustfmt rust-clippy bindgen libclang-dev
	# style gates and sources
	shellcheck git ca-certificates dpkg-dev perl codespell
	# Xen, as Debian ships it: guest hypervisor and toolstack of the lab
	xen-hypervisor-4.20-amd64 xen-utils-4.20 xenstore-utils libxen-dev
	qemu-system-xen uuid-dev zlib1g-dev libyajl-dev acpica-tools
	# the lab
	qemu-system-x86 busybox-static iproute2 socat util-linux dropbear-bin
	# machines with Intel's EPT, which start from a disk
	bochs bochs-term bochsbios vgabios grub-pc-bin grub-common xorriso mtools
)

stamp=build/sysroot.stamp
key=$(sha256sum "$0" | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
	exit 0
fi

step "sysroot: Debian $suite"
need mmdebstrap debian-archive-keyring ca-certificates

# Use the mirror that this machine already uses, so that a local mirror or a
# proxy configured for apt is honoured.
# shellcheck disable=SC2016  # apt expands these
mirror=$(apt-get indextargets \
	--format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
	awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
[ -n "$mirror" ] || die "no Debian mirror in the apt configuration of this machine"

mkdir -p build
# Its security archive, where it has one for this suite.
# shellcheck disable=SC2016  # apt expands these
security=$(apt-get indextargets \
	--format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
	awk -F'|' '$1 == "Debian" && $2 == "Debian-Security" { print $3; exit }')
if [ -n "$security" ] && ! /usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root \
	download-file "${security%/}/dists/$suite-security/InRelease" build/InRelease \
	>/dev/null 2>&1; then
	echo "sysroot.sh: $security has no $suite-security, so it is left out" >&2
	security=
fi

rm -rf build/sysroot build/sysroot.tmp build/InRelease
include=$(IFS=,; echo "${packages[*]}")
# In a mount namespace of its own: what it mounts of this machine goes with it, however it ends.
unshare --mount mmdebstrap --quiet --variant=apt --include="$include" \
	--aptopt='Acquire::Retries "5"' \
	--aptopt='APT::Install-Recommends "false"' \
	--aptopt="APT::Default-Release \"/^$suite(|-security|-updates)\$/\"" \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--skip=cleanup/apt/lists \
	"$suite" build/sysroot.tmp - <<SOURCES
deb $mirror $suite main
deb $mirror $suite-updates main
deb $mirror $suite-backports main
deb-src $mirror $suite main
deb-src $mirror $suite-updates main
${security:+deb $security $suite-security main
deb-src $security $suite-security main}
SOURCES
mkdir -p build/sysroot.tmp/src
mv build/sysroot.tmp build/sysroot
echo "$key" >"$stamp"

step_done
