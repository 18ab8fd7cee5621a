#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Does the series also apply to the Xen of another Debian suite, and build?
#
#   hv-suite.sh [SUITE]    sid, if none is named
#
# The lines and the exit status are those of hv-series.sh. Not part of `make check`: what
# is in that suite changes from day to day.

set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:-sid}
dir=build/xen/suite-$suite
rm -rf "$dir"
scripts/suite-xen.sh source "$suite" "$dir"
echo "Xen $(cat "$dir/version") of $suite; the series is made for $(sed -n 's/^version: //p' hypervisor-patches/UPSTREAM)"
exec scripts/hv-series.sh "$dir/src"
