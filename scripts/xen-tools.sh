#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the toolstack of the guest management VMs: the source that
# scripts/xen-source.sh fetches, with hypervisor-patches/toolstack/ applied. Only
# what the patches change is taken from it; everything else is Debian's.
#
# Results, in build/xen-tools/out:
#   xl, libxl-save-helper                  programs
#   libxenguest.so.4.20, libxenlight.so.4.20
#   verify-stream, xen/migration/          checker of migration streams
#
# A run with the same inputs does nothing.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

base=build/xen-tools
out=$base/out
src=$base/src
log=$base/build.log
patches=hypervisor-patches/toolstack

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
	#define LIBEXEC_BIN "/usr/lib/xen-4.20/bin"
	#define XENFIRMWAREDIR "/usr/lib/xen-4.20/boot"
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
	scripts/xen-source.sh unpack "$src"
	while read -r p; do
		case $p in '' | '#'*) continue ;; esac
		patch -d "$src" -p1 --no-backup-if-mismatch -s \
			<"$patches/$p" || die "$p does not apply"
	done <"$patches/series"

	build_tools >"$log" 2>&1 || {
		tail -n 30 "$log"
		die "the toolstack does not build"
	}

	rm -rf "$out.tmp"
	mkdir -p "$out.tmp"
	cp "$src/tools/xl/xl" "$src/tools/libs/light/libxl-save-helper" \
		"$src/tools/libs/guest/libxenguest.so.4.20" \
		"$src/tools/libs/light/libxenlight.so.4.20" "$out.tmp/"
	cp "$src/tools/python/scripts/verify-stream-v2" "$out.tmp/verify-stream"
	mkdir "$out.tmp/xen"
	cp -r "$src/tools/python/xen/__init__.py" \
		"$src/tools/python/xen/util.py" \
		"$src/tools/python/xen/migration" "$out.tmp/xen/"

	# Only now, so that nobody has to do without while this was running.
	rm -rf "$out"
	mv "$out.tmp" "$out"
	step_done
}

case ${1:-} in
--inside)
	inside "$2"
	exit 0
	;;
esac

version=$(scripts/xen-source.sh version)

key=$({
	echo "$version"
	cat scripts/xen-tools.sh scripts/xen-source.sh "$patches"/*
} | sha256sum | cut -d' ' -f1)

if [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
	exit 0
fi

mkdir -p "$base"
scripts/in-sysroot.sh scripts/xen-tools.sh --inside "$version"
echo "$key" >"$out/.key"
