#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb-test.sh [xen]: install the packages of the programs with apt on a copy of the sysroot,
# as a user would, upgrade, remove and purge them, and try the examples. With `xen` those
# of Xen. Prints TAP. The packages are those that scripts/deb.sh and scripts/deb-xen.sh
# left.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

case ${1:-} in
'')
	[ -e "$deb/programs.key" ] || die "run scripts/deb.sh first"
	test=installed copy=test
	version=$(sed -n '1s/^vmbeam (\(.*\)).*/\1/p' packaging/vmbeam/debian/changelog)
	;;
xen)
	[ -e "$deb/xen/.key" ] || die "run scripts/deb-xen.sh first"
	test=xen copy=test-xen
	version=$(cat "$deb/xen/version")
	;;
*) die "usage: deb-test.sh [xen]" ;;
esac

rm -rf "${deb:?}/$copy"
overlay "$deb/$copy"
rm -rf "$deb/tests"
cp -r tests/packages "$deb/tests"
cp scripts/xen-config.sh "$deb/tests/"
over bash "/deb/tests/$test.sh" "$version"
