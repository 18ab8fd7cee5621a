#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the toolstack of the guest management VMs: the source that
# scripts/xen-source.sh chooses, with hypervisor-patches/toolstack/ applied. Only
# what the patches change is taken from it; everything else is Debian's.
#
#   xen-tools.sh        Debian 13's Xen 4.20, in build/xen-tools/out
#   xen-tools.sh 4.17   Debian 12's, in build/xen-tools-4.17/out, for a guest
#                       hypervisor that is to be replaced
#
# Results:
#   xl, libxl-save-helper              programs
#   libxenguest.so.*, libxenlight.so.*
#   verify-stream, xen/migration/      checker of migration streams
#   root/                              only of 4.17: Debian's packages, unpacked,
#                                      since the sysroot has those of 4.20
#
# A run with the same inputs does nothing.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

release=${1:-4.20}
case $release in
4.20) suffix= ;;
4.17) suffix=-4.17 ;;
*) die "usage: xen-tools.sh [4.17]" ;;
esac

base=build/xen-tools$suffix
out=$base/out
src=$base/src
log=$base/build.log
patches=hypervisor-patches/toolstack$suffix

# What the lab takes of Debian's packages of 4.17.
packages_4_17=(xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils libxen-dev
	libxenmisc4.17 libxencall1 libxendevicemodel1 libxenevtchn1
	libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4
	libxentoolcore1 libxentoollog1)

# Everything below up to the main part runs inside the sysroot.

# The paths are those of Debian's package, of which the rest remains. The full
# configure script asks for everything that any of the tools could want.
configure_tools() {
	sed -e 's/@[A-Za-z0-9_]*@//' \
		-e 's/^\(AWK  *:=\).*/\1 awk/' \
		-e 's/^\(PERL  *:=\).*/\1 perl/' \
		-e 's/^\(PYTHON  *:=\).*/\1 python3/' \
		-e 's/^\(IASL  *:=\).*/\1 iasl/' \
		-e 's/^\(CONFIG_LIBNL  *:=\).*/\1 n/' \
		-e 's/^\(FILE_OFFSET_BITS  *:=\).*/\1 64/' \
		-e 's/^\(ZLIB_CFLAGS  *:=\).*/\1 -DHAVE_ZLIB/' \
		-e 's/^\(ZLIB_LIBS  *:=\).*/\1 -lz/' \
		"$src/config/Tools.mk.in" >"$src/config/Tools.mk"
	cat >"$src/config/Paths.mk" <<-PATHS
	prefix := /usr
	sbindir := /usr/sbin
	libdir := /usr/lib
	includedir := /usr/include
	PATHS
	cat >"$src/tools/config.h" <<-CONFIG
	#define LIBEXEC_BIN "/usr/lib/xen-$release/bin"
	#define XENFIRMWAREDIR "/usr/lib/xen-$release/boot"
	#define XEN_CONFIG_DIR "/etc/xen"
	#define XEN_SCRIPT_DIR "/etc/xen/scripts"
	#define XEN_RUN_DIR "/var/run/xen"
	#define XEN_RUN_STORED "/var/run/xenstored"
	#define XEN_LOG_DIR "/var/log/xen"
	#define XEN_LIB_DIR "/var/lib/xen"
	#define XEN_LOCK_DIR "/var/lock"
	#define XEN_DUMP_DIR "/var/lib/xen/dump"
	#define HAVE_YAJL_YAJL_VERSION_H 1
	#define HAVE_UTMP_H 1
	#define QEMU_XEN_PATH "/usr/libexec/xen-qemu-system-i386"
	#define SEABIOS_PATH "/usr/share/seabios/bios-256k.bin"
	#define OVMF_PATH "/usr/share/ovmf/OVMF.fd"
	#define STUBDOM_QMP_PROXY_PATH "/usr/bin/vchan-socket-proxy"
	CONFIG
}

build_tools() {
	local dir

	configure_tools
	make -C "$src/tools/include" || return
	for dir in toolcore toollog call evtchn gnttab foreignmemory \
		devicemodel hypfs ctrl guest store; do
		make -C "$src/tools/libs/$dir" "-j$(nproc)" \
			"libxen$dir.so" || return
	done
	make -C "$src/tools/libs/light" "-j$(nproc)" \
		libxenlight.so libxl-save-helper || return
	make -C "$src/tools/libs/util" "-j$(nproc)" libxlutil.so || return
	make -C "$src/tools/xl" "-j$(nproc)" xl
}

# inside VERSION
inside() {
	local p

	step "Xen $1: toolstack of the guest management VMs (log: $log)"
	[ "$release" = 4.17 ] || scripts/xen-source.sh unpack "$src"
	while read -r p; do
		case $p in '' | '#'*) continue ;; esac
		patch -d "$src" -p1 --no-backup-if-mismatch -s \
			<"$patches/$p" || die "$p does not apply"
	done <"$patches/series"

	build_tools >"$log" 2>&1 || {
		tail -n 30 "$log"
		exit "$does_not_build"
	}

	rm -rf "$out.tmp"
	mkdir -p "$out.tmp"
	cp "$src/tools/xl/xl" "$src/tools/libs/light/libxl-save-helper" \
		"$src/tools/libs/guest/libxenguest.so.$release" \
		"$src/tools/libs/light/libxenlight.so.$release" "$out.tmp/"
	cp "$src/tools/python/scripts/verify-stream-v2" "$out.tmp/verify-stream"
	mkdir "$out.tmp/xen"
	cp -r "$src/tools/python/xen/__init__.py" \
		"$src/tools/python/xen/util.py" \
		"$src/tools/python/xen/migration" "$out.tmp/xen/"

	[ "$release" != 4.17 ] || cp -a "$base/root" "$out.tmp/root"

	# Only now, so that nobody has to do without while this was running.
	rm -rf "$out"
	mv "$out.tmp" "$out"
	step_done
}

case ${2:-} in
--inside)
	inside "$3"
	exit 0
	;;
esac

key=$({
	[ "$release" = 4.17 ] || scripts/xen-source.sh version
	cat scripts/xen-tools.sh scripts/xen-source.sh scripts/suite-xen.sh
	cat hypervisor-patches/toolstack/* "$patches"/*
} | sha256sum | cut -d' ' -f1)

if [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
	exit 0
fi

mkdir -p "$base"
if [ "$release" = 4.17 ]; then
	step "Xen 4.17: Debian 12's source and packages"
	scripts/suite-xen.sh source bookworm "$base"
	scripts/suite-xen.sh packages bookworm "$base" "${packages_4_17[@]}"
	version=$(cat "$base/version")
	step_done
	scripts/in-sysroot.sh scripts/xen-tools.sh 4.17 --inside "$version"
else
	version=$(scripts/xen-source.sh version)
	# The hypervisor is then to be of the same source again.
	build_or_reject "$version" "the toolstack does not build with its series" \
		scripts/in-sysroot.sh scripts/xen-tools.sh 4.20 --inside "$version" || {
		[ ! -e build/xen/out ] || scripts/xen.sh
		exec scripts/xen-tools.sh
	}
	scripts/xen-source.sh notice
fi
echo "$key" >"$out/.key"
