#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the host hypervisor: the Xen source that scripts/xen-source.sh chooses,
# with hypervisor-patches/ applied, and the test program that comes with the
# patches. Where it does not build, the next older source is taken.
#
# Results, in build/xen/out (build/xen/out-debug with XEN_DEBUG=y):
#   xen            the hypervisor, for a multiboot loader or `qemu -kernel`
#   xen-syms       the same with symbols
#   test-mem-swap  the test program, linked statically
#   xen.config     its configuration
#   policy-apart   with XEN_DEBUG=y, a policy for tests of FLASK
#
# XEN_DEBUG=y builds with CONFIG_DEBUG, that is with assertions, and with FLASK. A run with the
# same inputs only says which source it is.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

base=build/xen
patches=hypervisor-patches

# Everything below up to the main part runs inside the sysroot.

# The few settings that the libraries need. The full configure script asks for
# everything that any of the tools could want.
configure_tools() {
	sed -e 's/@[A-Za-z0-9_]*@//' \
		-e 's/^\(AWK  *:=\).*/\1 awk/' \
		-e 's/^\(PERL  *:=\).*/\1 perl/' \
		-e 's/^\(PYTHON  *:=\).*/\1 python3/' \
		-e 's/^\(FILE_OFFSET_BITS  *:=\).*/\1 64/' \
		"$1/config/Tools.mk.in" >"$1/config/Tools.mk"
	cat >"$1/config/Paths.mk" <<-PATHS
	prefix := /usr
	libdir := /usr/lib
	includedir := /usr/include
	LIBEXEC_BIN := /usr/libexec/xen/bin
	XEN_RUN_DIR := /run/xen
	XEN_LOG_DIR := /var/log/xen
	XEN_LIB_DIR := /var/lib/xen
	XEN_LOCK_DIR := /run/lock
	PATHS
	: >"$1/tools/config.h"
}

# build_hypervisor SOURCE OBJECTS DEBUG
build_hypervisor() {
	local make=(make -C "$PWD/$1/xen" "O=$PWD/$2" "-j$(nproc)"
		XEN_VENDORVERSION=-vmbeam XEN_WHOAMI=vmbeam
		XEN_BUILD_HOST=lab XEN_DOMAIN=localhost)

	mkdir -p "$2"
	printf 'CONFIG_%s\n' "DEBUG=$3" MEM_SWAP=y >"$2/.config"
	# That with assertions is also tested with a policy.
	[ "$3" = n ] || printf 'CONFIG_%s=y\n' EXPERT XSM XSM_FLASK XSM_FLASK_POLICY >>"$2/.config"
	"${make[@]}" olddefconfig
	"${make[@]}"
}

# build_test SOURCE: libxenctrl and what it needs, then the program.
build_test() {
	local lib

	configure_tools "$1"
	make -C "$1/tools/include"
	for lib in toolcore toollog call foreignmemory gnttab evtchn \
		devicemodel ctrl; do
		make -C "$1/tools/libs/$lib" "-j$(nproc)" "libxen$lib.a"
	done
	make -C "$1/tools/tests/mem-swap" test-mem-swap.o
	gcc -static -o "$1/tools/tests/mem-swap/test-mem-swap" \
		"$1/tools/tests/mem-swap/test-mem-swap.o" \
		-Wl,--start-group "$1"/tools/libs/*/*.a -Wl,--end-group
}

# build_policy SOURCE OBJECTS OUT: the policy that is in the hypervisor, but no guest may swap
# with another.
build_policy() {
	local dir=$PWD/$2/policy-apart

	mkdir -p "$dir"
	sed '/:mmu swap_with;/d' "$2/xsm/flask/policy.conf" >"$dir/policy.conf"
	! cmp -s "$2/xsm/flask/policy.conf" "$dir/policy.conf" || return
	make -C "$1/tools/flask/policy" -f Makefile.common \
		FLASK_BUILD_DIR="$dir" POLICY_FILENAME="$dir/policy.bin"
	cp "$dir/policy.bin" "$3"
}

# hypervisor_key VERSION DEBUG: what the hypervisor alone is made from. Most
# changes of the series are to tests and documentation.
hypervisor_key() {
	local p

	{
		echo "$1 $2"
		declare -f build_hypervisor build_policy
		while read -r p; do
			case $p in '' | '#'*) continue ;; esac
			grep -q '^+++ b/xen/' "$patches/$p" || continue
			sed '1,/^diff /d' "$patches/$p"
		done <"$patches/series"
	} | sha256sum | cut -d' ' -f1
}

# inside VERSION DEBUG OUT
inside() {
	local src=$base/src obj=$base/obj key p

	[ "$2" = n ] || src=$base/src-debug obj=$base/obj-debug
	key=$(hypervisor_key "$1" "$2")

	step "Xen $1: source"
	scripts/xen-source.sh unpack "$src"
	while read -r p; do
		case $p in '' | '#'*) continue ;; esac
		patch -d "$src" -p1 --no-backup-if-mismatch -s \
			<"$patches/$p" || die "$p does not apply"
	done <"$patches/series"
	step_done

	rm -rf "$3.tmp"
	mkdir -p "$3.tmp"
	if [ "$(cat "$3/.hypervisor" 2>/dev/null)" = "$key" ]; then
		cp "$3/xen" "$3/xen-syms" "$3/xen.config" "$3/.hypervisor" "$3.tmp/"
		[ "$2" = n ] || cp "$3/policy-apart" "$3.tmp/"
	else
		step "Xen $1: hypervisor, CONFIG_DEBUG=$2 (log: $base/build.log)"
		rm -rf "$obj"
		build_hypervisor "$src" "$obj" "$2" >"$base/build.log" 2>&1 || {
			tail -n 30 "$base/build.log"
			exit "$does_not_build"
		}
		cp "$obj/xen" "$obj/xen-syms" "$3.tmp/"
		cp "$obj/.config" "$3.tmp/xen.config"
		[ "$2" = n ] || build_policy "$src" "$obj" "$3.tmp/policy-apart" >>"$base/build.log" 2>&1 ||
			die "the policy cannot be made, see $base/build.log"
		echo "$key" >"$3.tmp/.hypervisor"
		step_done
	fi

	if [ -d "$src/tools/tests/mem-swap" ]; then
		step "Xen $1: libxenctrl and test-mem-swap"
		build_test "$src" >>"$base/build.log" 2>&1 || {
			tail -n 30 "$base/build.log"
			exit "$does_not_build"
		}
		cp "$src/tools/tests/mem-swap/test-mem-swap" "$3.tmp/"
		step_done
	fi

	# Only now, so that nobody has to do without while this was running.
	rm -rf "$3"
	mv "$3.tmp" "$3"
}

case ${1:-} in
--inside)
	shift
	inside "$@"
	exit 0
	;;
--test)
	# For hv-check.sh, which has a source of its own.
	build_test "$2"
	exit 0
	;;
--hypervisor)
	# For hv-series.sh: SOURCE OBJECTS.
	build_hypervisor "$2" "$3" n
	exit 0
	;;
esac

debug=${XEN_DEBUG:-n}
case $debug in
n) out=$base/out ;;
y) out=$base/out-debug ;;
*) die "XEN_DEBUG is y or n" ;;
esac

version=$(scripts/xen-source.sh version)

key=$({
	echo "$version $debug"
	cat scripts/xen.sh scripts/xen-source.sh "$patches/series"
	while read -r p; do
		case $p in '' | '#'*) continue ;; esac
		cat "$patches/$p"
	done <"$patches/series"
} | sha256sum | cut -d' ' -f1)

if [ "$(cat "$out/.key" 2>/dev/null)" != "$key" ]; then
	mkdir -p "$base"
	build_or_reject "$version" "it does not build with the series (CONFIG_DEBUG=$debug)" \
		scripts/in-sysroot.sh scripts/xen.sh --inside "$version" "$debug" "$out" ||
		exec scripts/xen.sh
	echo "$key" >"$out/.key"
fi
scripts/xen-source.sh notice
