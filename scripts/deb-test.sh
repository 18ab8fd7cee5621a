#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb-test.sh: install the packages of the programs with apt on a copy of the sysroot,
# as a user would, upgrade, remove and purge them, and try the examples. Prints TAP. The packages are those
# that scripts/deb.sh left.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

[ -e "$deb/programs.key" ] || die "run scripts/deb.sh first"
version=$(sed -n '1s/^vmbeam (\(.*\)).*/\1/p' packaging/vmbeam/debian/changelog)

rm -rf "$deb/test"
overlay "$deb/test"
rm -rf "$deb/tests"
cp -r tests/packages "$deb/tests"
over bash /deb/tests/installed.sh "$version"
