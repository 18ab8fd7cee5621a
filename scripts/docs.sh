#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Documentation/ as HTML, by Debian's Sphinx, in build/docs/html. A warning is an error.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

mkdir -p build/docs
# Of the packages' index that the sysroot has, as in deb.sh.
scripts/in-sysroot.sh sh -c 'command -v sphinx-build >/dev/null ||
	exec apt-get -qq install -y --no-install-recommends python3-sphinx' >build/docs/log 2>&1 ||
	{ tail -n 20 build/docs/log; die "cannot install python3-sphinx; see build.rst, The sysroot"; }
scripts/in-sysroot.sh sphinx-build -q -W --keep-going -d build/docs/doctrees \
	-b html Documentation build/docs/html
# The report of the measurements is a page of its own, to which bench.rst links. (Sphinx would put it
# in the place of the first page.)
cp -r Documentation/bench-run build/docs/html/
echo "build/docs/html/index.html"
