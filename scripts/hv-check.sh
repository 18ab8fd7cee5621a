#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Check the hypervisor patches: the series is complete, and so are those for other
# bases (hv-series.sh tries them on one); the former applies to the pristine
# source without fuzz or whitespace errors, is formatted as Xen expects it, and
# the hypervisor builds after each single patch, with assertions and for release,
# both with FLASK and its policy, and as the PV shim, which has no HVM; after the last one the
# policy knows the new permission, and the tests build.
# `hv-check.sh quick` builds all of it only after a patch that others' sources are generated
# from, and for release and as the PV shim after the last one alone; after the others it compiles
# what the series changes anywhere, which is where they could break each other first.
# One line per check, `ok` or `not ok`; exit status 0 if all are ok.
#
# The outcome is remembered: a run with the same inputs repeats its lines.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

patches=hypervisor-patches
dir=build/xen/check
src=$dir/src
log=$dir/build.log
result=$dir/result

# report STATUS TEXT
report() {
	if [ "$1" = 0 ]; then
		echo "ok - $2"
	else
		echo "not ok - $2"
	fi
}

# check TEXT COMMAND...
check() {
	local text=$1 rc=0
	shift
	"$@" >>"$log" 2>&1 || rc=$?
	report "$rc" "$text"
	return "$rc"
}

# complete DIRECTORY: its series has all patches that are there; it may name others elsewhere.
complete() {
	diff <(series "$1" | grep -v / | sort) <(cd "$1" && ls -- *.patch)
}

# for_base DIRECTORY: of the series for another base. Patches that are as for the main one
# are named where they are, the others are all there, each made from one that is still as it
# was: its hash is in UPSTREAM.
for_base() {
	local patch

	for patch in $(series "$1"); do
		[ -e "$1/$patch" ] || { echo "there is no $patch"; return 1; }
	done
	complete "$1" || return
	diff <(sed -n 's,^sha256: .*/,,p' "$1/UPSTREAM") <(cd "$1" && ls -- *.patch) || return
	sed -n 's/^sha256: //p' "$1/UPSTREAM" | (cd "$1" && sha256sum --quiet -c) || return
	for patch in "$1"/*.patch; do
		formatted "$patch" || { echo "$patch is not formatted"; return 1; }
	done
}

formatted() {
	local subject
	subject=$(sed -n 's/^Subject: \[PATCH\] //p' "$1")
	[ -n "$subject" ] && [ ${#subject} -le 72 ] &&
		grep -q '^[a-z][a-z0-9/-]*\(, [a-z]*\)\?: ' <<<"$subject" &&
		grep -q '^Signed-off-by: .*<.*@.*>$' "$1" &&
		! sed '/^diff /,$d' "$1" | grep -q '.\{76,\}'
}

# Whether the hypervisor is another one with this patch.
builds() {
	grep -q '^+++ b/\(xen\|tools/flask\)/' "$patches/$1"
}

# New files say under which licence they are; some kinds never do in Xen.
licensed() {
	local f
	while read -r f; do
		case $f in
		*.c | *.h) head -n 1 "$src/$f" | grep -q SPDX-License-Identifier ||
			{ echo "$f has no licence"; return 1; } ;;
		esac
	done < <(sed -n '/^--- \/dev\/null$/{n;s,^+++ b/,,p}' "$1")
}

# Whether nothing is generated from what this patch changes, there is a build to go on from,
# and what the next ones need is not this one's.
objects_suffice() {
	[ "$mode" = quick ] && [ "$1" != "$last" ] && [ -e "$dir/obj-y/xen" ] &&
		! grep -Eq '^\+\+\+ b/xen/(include/public/|xsm/flask/policy/|.*(Kconfig|Makefile)$)' \
			"$patches/$1"
}

# The objects there are by now of sources that the series changes. A source that it adds comes
# with its Makefile; some are included by others.
objects() {
	local c
	sed -n 's,^+++ b/xen/\(.*\)\.c$,\1.o,p' "$patches"/*.patch | sort -u | while read -r c; do
		[ ! -e "$dir/obj-y/$c" ] || echo "$c"
	done
}

# The part that runs inside the sysroot. Objects are kept from patch to patch. Those that are named
# are compiled one after the other: Xen's Makefile starts a make for each of them, and two in one
# directory read what the other one is writing.
# build_hypervisor y|n|shim [OBJECT...]: with assertions, for release, or as the PV shim.
build_hypervisor() {
	local obj=$dir/obj-$1 kind=$1 jobs=1

	shift
	[ $# -gt 0 ] || jobs=$(nproc)
	mkdir -p "$obj"
	[ "$kind" != shim ] || cp "$src/xen/arch/x86/configs/pvshim_defconfig" "$obj/.config"
	[ -e "$obj/.config" ] || {
		echo "CONFIG_DEBUG=$kind"
		# Nobody debugs these, and they are compiled sooner without.
		echo "CONFIG_DEBUG_INFO=n"
		printf 'CONFIG_%s=y\n' EXPERT XSM XSM_FLASK XSM_FLASK_POLICY
	} >"$obj/.config"
	# Not before there is such an option, as it would be dropped.
	[ "$kind" = shim ] || ! grep -q '^config MEM_SWAP$' "$src/xen/arch/x86/Kconfig" ||
		grep -q MEM_SWAP=y "$obj/.config" || echo CONFIG_MEM_SWAP=y >>"$obj/.config"
	make -C "$PWD/$src/xen" "O=$PWD/$obj" olddefconfig &&
		make -C "$PWD/$src/xen" "O=$PWD/$obj" "-j$jobs" "$@"
}

# The policy in the hypervisor, which checkpolicy has compiled: it would refuse a
# permission that is not among the access vectors.
policy() {
	grep -q '^[[:space:]]*allow dom0_t { domU_t domU_t }:mmu swap_frames;' \
		"$dir/obj-n/xsm/flask/policy.conf" &&
		grep -q '^[[:space:]]*allow domU_t domU_t:mmu swap_with;' \
			"$dir/obj-n/xsm/flask/policy.conf" &&
		grep -aq swap_frames "$dir/obj-n/xsm/flask/policy.bin" &&
		grep -aq swap_with "$dir/obj-n/xsm/flask/policy.bin"
}

case ${1:-} in
--hypervisor)
	shift
	build_hypervisor "$@"
	exit
	;;
esac
mode=${1:-}

key=$({
	echo "$mode"
	cat scripts/hv-check.sh scripts/xen.sh scripts/xen-source.sh build/sysroot.stamp
	cat "$patches/series" "$patches/UPSTREAM" "$patches"/*.patch
	# Of the series for other bases, which are not applied here.
	tail -n +1 "$patches"/*/UPSTREAM "$patches"/*/series "$patches"/*/*.patch \
		"$patches"/*/toolstack/*
} | sha256sum | cut -d' ' -f1)

if [ "$(head -n 1 "$result" 2>/dev/null)" = "$key" ]; then
	tail -n +2 "$result"
	exit 0
fi

rm -rf "$dir"
mkdir -p "$dir"
# What is checked is what the key was made from, also if it is edited meanwhile.
cp -r "$patches" "$dir/patches"
patches=$dir/patches

main() {
	local version p last base objects

	last=$(series "$patches" | while read -r p; do
		if builds "$p"; then echo "$p"; fi
	done | tail -n 1)
	version=$(scripts/xen-source.sh version)

	check "series lists all patches" complete "$patches" || true
	# The toolstack's are built by xen-tools.sh.
	for base in "$patches"/toolstack*; do
		check "${base##*/}: series lists all patches" complete "$base" || true
	done
	for p in "$patches"/toolstack*/*.patch; do
		check "${p#"$patches"/}: format" formatted "$p" || true
	done
	for base in "$patches"/*/{,toolstack/}UPSTREAM; do
		base=${base%/*}
		check "${base#"$patches"/}: series follows the main one, format" for_base "$base" || true
	done
	check "pristine source of Xen $version" \
		scripts/xen-source.sh unpack "$src" || return 0
	# It is compared with the hash there when it is fetched.
	if grep -qx "version: $version" "$patches/UPSTREAM"; then
		report 0 "base is the one in UPSTREAM"
	else
		report 0 "base is the one in UPSTREAM # SKIP it applies to a newer one, which is built"
	fi

	for p in $(series "$patches"); do
		check "$p: format" formatted "$patches/$p" || true
		check "$p: applies" apply_patch "$src" "$patches/$p" --whitespace=error-all || return 0
		check "$p: licences" licensed "$patches/$p" || true

		builds "$p" || continue
		if objects_suffice "$p"; then
			mapfile -t objects < <(objects)
			check "$p: what the series changes compiles, debug" scripts/in-sysroot.sh \
				scripts/hv-check.sh --hypervisor y "${objects[@]}" || return 0
			continue
		fi
		check "$p: hypervisor builds, debug" scripts/in-sysroot.sh \
			scripts/hv-check.sh --hypervisor y || return 0
		[ "$mode" != quick ] || [ "$p" = "$last" ] || continue
		check "$p: hypervisor builds, release" scripts/in-sysroot.sh \
			scripts/hv-check.sh --hypervisor n || return 0
		check "$p: PV shim builds" scripts/in-sysroot.sh \
			scripts/hv-check.sh --hypervisor shim || return 0
	done

	check "FLASK policy with the new permission" policy || true
	check "tests build" scripts/in-sysroot.sh scripts/xen.sh \
		--test "$src" || true
}

main | tee "$dir/lines"
if grep -q '^not ok' "$dir/lines"; then
	echo "hv-check.sh: see $log" >&2
	exit 1
fi
{ echo "$key"; cat "$dir/lines"; } >"$result"
