#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Does a series apply to another tree of Xen, and does the hypervisor build then?
#
#   hv-series.sh BASE [SERIES]
#
# BASE is a checkout, of which $REV counts (HEAD), or a directory without a repository.
# SERIES is a directory with a `series`, hypervisor-patches if none is named; the one in its
# toolstack/ is tried as well. A series may name patches of another directory, as those do
# that are for another base and share most with the main one.
#
# One line per patch, `ok` or `not ok`, also after one that does not apply, which is then
# left out. Compiled is what all patches apply to, if the checkout is complete. Exit status
# 0 if nothing failed. BASE is not changed.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

work=build/xen/series
src=$work/src
log=$work/build.log

# copy BASE: leaves out what a partial clone does not have, and lists it.
copy() {
	local base=$1 rev=${REV:-HEAD} exclude=()
	local git=(git -c 'safe.directory=*' -C "$base")
	export GIT_NO_LAZY_FETCH=1

	if ! [ -e "$base/.git" ] && ! [ -e "$base/HEAD" ]; then
		cp -r "$base/." "$src"
		echo "$base"
		return
	fi
	"${git[@]}" ls-tree -r "$rev" | awk '{ print $3 }' |
		"${git[@]}" cat-file --batch-check='%(objectname)' |
		awk '$2 == "missing" { print $1 }' |
		grep -F -f - <("${git[@]}" ls-tree -r "$rev") | cut -f2 >"$work/absent" || true
	mapfile -t exclude < <(sed 's/^/:(exclude,literal)/' "$work/absent")
	"${git[@]}" archive "$rev" -- . "${exclude[@]}" | tar -C "$src" -x
	echo "$("${git[@]}" rev-parse --short=10 "$rev") of $base"
}

# copy_series DIRECTORY TO: what it names, wherever that is.
copy_series() {
	local patch

	mkdir -p "$2"
	for patch in $(series "$1"); do
		[ -e "$1/$patch" ] || die "$1/series names $patch, which there is not"
		cp "$1/$patch" "$2/"
	done
	series "$1" | sed 's,.*/,,' >"$2/series"
}

complete() {
	local file
	[ ! -s "$work/absent" ] || return
	for file in Config.mk config/x86_64.mk xen/Makefile xen/Kconfig \
		xen/tools/kconfig/Makefile xen/arch/x86/Makefile xen/include/public/xen.h; do
		[ -e "$src/$file" ] || return
	done
}

# try_series DIRECTORY: prints a line each.
try_series() {
	local patch why bad=0

	for patch in $(series "$1"); do
		if why=$(apply_patch "$src" "$1/$patch" 2>&1); then
			echo "ok - $patch"
		else
			echo "not ok - $patch"
			echo "    ${why//$'\n'/$'\n'    }"
			bad=1
		fi
	done
	return "$bad"
}

compiled() {
	if [ "$1" != 0 ]; then
		echo "ok - the hypervisor builds # SKIP not all patches apply"
	elif ! complete; then
		echo "ok - the hypervisor builds # SKIP the checkout is not complete"
	elif scripts/xen.sh --hypervisor "$src" "$work/obj" >"$log" 2>&1; then
		echo "ok - the hypervisor builds"
	else
		tail -n 20 "$log" | sed 's/^/    /'
		echo "not ok - the hypervisor builds: see $log"
		return 1
	fi
}

# The part that runs inside the sysroot.
inside() {
	local rc=0 bad=0

	try_series "$1" || bad=1
	rc=$bad
	[ ! -e "$1/toolstack/series" ] || try_series "$1/toolstack" || rc=1
	compiled "$bad" || rc=1
	return "$rc"
}

case ${1:-} in
--inside)
	inside "$work/patches"
	exit
	;;
'') die "usage: hv-series.sh BASE [SERIES]; with make: BASE=path to a tree of Xen" ;;
esac
[ -d "$1" ] || die "there is no directory $1"
patches=${2:-hypervisor-patches}
[ -e "$patches/series" ] || die "there is no $patches/series"

rm -rf $work
mkdir -p $src
copy_series "$patches" $work/patches
[ ! -e "$patches/toolstack/series" ] ||
	copy_series "$patches/toolstack" $work/patches/toolstack
echo "$patches on $(copy "$(realpath "$1")")"
scripts/in-sysroot.sh scripts/hv-series.sh --inside
