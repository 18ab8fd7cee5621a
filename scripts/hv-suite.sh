#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Does the series also apply to the Xen of another Debian suite?
#
#   hv-suite.sh [SUITE]    sid, if none is named
#
# One line per patch, `ok` or `not ok`; exit status 0 if all apply. Not part of
# `make check`: what is in that suite changes from day to day.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

suite=${1:-sid}
dir=build/xen/suite-$suite
rm -rf "$dir"
scripts/suite-xen.sh source "$suite" "$dir"
echo "Xen $(cat "$dir/version") of $suite; the series is made for $(sed -n 's/^version: //p' hypervisor-patches/UPSTREAM)"

bad=0
for series in hypervisor-patches/series hypervisor-patches/toolstack/series; do
	while read -r patch; do
		case $patch in '' | '#'*) continue ;; esac
		# Without a repository around it, git takes paths from where it is started.
		if GIT_CEILING_DIRECTORIES=$PWD/$dir git -C "$dir/src" apply \
			"$PWD/${series%/*}/$patch"; then
			echo "ok - $patch"
		else
			echo "not ok - $patch"
			bad=1
		fi
	done <"$series"
done
exit "$bad"
