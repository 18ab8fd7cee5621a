#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb.sh: build the packages of the programs, vmbeam and vmbeam-agent, into build/deb/.
# deb.sh lint: also look at them with lintian.
#
# The programs are those that cargo built, with its lock file; debhelper only packs
# them, with the manual pages and completions that vmbeam-manual makes. A run with the
# same inputs does nothing.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

programs=(vmbeam vmbeamd vmbeam-agent)
built=build/target/release
version=$(sed -n '1s/^vmbeam (\(.*\)).*/\1/p' packaging/vmbeam/debian/changelog)
stage=build/deb/programs

key=$({
	cat scripts/deb.sh build/sysroot.stamp "$built/vmbeam-manual"
	find packaging/vmbeam packaging/systemd packaging/examples -type f -print0 |
		sort -z | xargs -0 cat
	cat userspace/daemon/vmbeamd.toml "${programs[@]/#/$built/}"
} | sha256sum | cut -d' ' -f1)

if [ "$(cat "$deb/programs.key" 2>/dev/null)" != "$key" ]; then
	step "vmbeam, vmbeam-agent: $version"
	rm -rf "$stage" "$deb"/vmbeam_* "$deb"/vmbeam-agent_* "$deb/contents"
	mkdir -p "$stage/programs" "$stage/xendomains" "$deb/contents"
	cp -r packaging/vmbeam/debian packaging/examples "$stage/"
	cp packaging/systemd/vmbeamd.service "$stage/debian/vmbeam.vmbeamd.service"
	cp packaging/systemd/vmbeam-agent.service "$stage/debian/"
	cp packaging/systemd/xendomains-vmbeam.conf "$stage/xendomains/vmbeam.conf"
	cp "${programs[@]/#/$built/}" "$stage/programs/"
	cp userspace/daemon/vmbeamd.toml "$stage/examples/"
	# Of the packages' index that the sysroot has: a newer one could name another kernel.
	scripts/in-sysroot.sh sh -c 'command -v dh >/dev/null ||
		exec apt-get -qq install -y --no-install-recommends debhelper' >"$deb/programs.log" 2>&1 ||
		{ tail -n 20 "$deb/programs.log"; die "cannot install debhelper; see build.rst, The sysroot"; }
	scripts/in-sysroot.sh "$built/vmbeam-manual" "$stage/manual"
	# shellcheck disable=SC2016  # expanded by the inner shell
	scripts/in-sysroot.sh sh -c 'cd "$1" && exec dpkg-buildpackage -us -uc -b' sh "$stage" \
		>>"$deb/programs.log" 2>&1 ||
		{ tail -n 20 "$deb/programs.log"; die "dpkg-buildpackage failed"; }
	# For the lab's images, which have what is shipped.
	for package in vmbeam vmbeam-agent; do
		dpkg-deb -x "$deb/${package}_${version}_amd64.deb" "$deb/contents"
	done
	rm -rf "$stage"
	echo "$key" >"$deb/programs.key"
	step_done
fi
[ "${1:-}" = lint ] || exit 0

step "lintian: vmbeam, vmbeam-agent"
packaging_tools
over lintian --allow-root --fail-on error,warning "/deb/vmbeam_${version}_amd64.deb" \
	"/deb/vmbeam-agent_${version}_amd64.deb"
step_done
