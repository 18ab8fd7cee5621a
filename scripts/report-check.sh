#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Can the report's page be read? It is made anew of the samples in Documentation/bench-run and
# looked at in headless Chromium, at the width of a screen, a tablet and a telephone: no text is
# cut off, none lies on another one or on a line, nothing is wider than the window. TAP.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

out=build/report-check
rm -rf $out
mkdir -p build
cp -r Documentation/bench-run $out
# Of the packages' index that the sysroot has, as in deb.sh.
scripts/in-sysroot.sh sh -c 'command -v chromium >/dev/null ||
	exec apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core' \
	>$out/log 2>&1 ||
	{ tail -n 20 $out/log; die "cannot install chromium; see build.rst, The sysroot"; }
scripts/in-sysroot.sh build/target/release/bench report --again $out >>$out/log
{
	cat $out/index.html
	echo '<script>'
	cat tests/bench/layout.js
	echo '</script>'
} >$out/check.html

failed=0
number=0
for width in 1280 768 390; do
	number=$((number + 1))
	# A window is at least 500 wide, but for the frame of a page.
	echo "<iframe src=check.html style='width:${width}px;height:4000px;border:0'></iframe>" \
		>$out/$width.html
	text=$(scripts/in-sysroot.sh timeout 120 chromium --headless --no-sandbox --disable-gpu \
		--allow-file-access-from-files --window-size=1400,4200 --virtual-time-budget=5000 \
		--dump-dom "file:///src/$out/$width.html" 2>>$out/log) || true
	echo "$text" | sed -n '/LAYOUT/,/END/p'
	case $text in
	*"LAYOUT $width 1"[0-9]" charts 0 wrong"*) echo "ok $number - the report, $width wide" ;;
	*) echo "not ok $number - the report, $width wide"; failed=1 ;;
	esac
done
echo "1..$number"
exit "$failed"
