#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Debian's perf, trace-cmd and bpftrace, unpacked in build/trace-tools/root, for the
# VM in which the driver's trace events are tried with them. They and what they
# need beyond the sysroot are too large to be there for everybody.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

out=build/trace-tools
key=$(cat "$0" build/sysroot.stamp | sha256sum | cut -d' ' -f1)
if [ "$(cat $out/.key 2>/dev/null)" = "$key" ]; then
	exit 0
fi

step "perf, trace-cmd, bpftrace"
rm -rf $out
mkdir -p $out/archives/partial $out/root
scripts/in-sysroot.sh sh -c "
	apt-get -qq update
	apt-get -qq install -y --no-install-recommends --download-only \
		-o Dir::Cache::archives=/src/$out/archives linux-perf trace-cmd bpftrace
	for package in $out/archives/*.deb; do
		dpkg-deb -x \"\$package\" $out/root
	done" >$out/log 2>&1 || {
	tail -n 20 $out/log
	die "they cannot be fetched"
}
rm -r $out/archives
echo "$key" >$out/.key
step_done
