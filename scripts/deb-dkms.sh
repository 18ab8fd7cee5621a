#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb-dkms.sh [install]: build vmbeam-dkms_*.deb into build/deb/, and look at it with
# lintian. With `install` also install it as a user would, on a copy of the sysroot
# with the lab's kernel, leave the module that DKMS built in build/deb/, and purge it.
#
# What this needs beyond the sysroot (debhelper, dkms, lintian, the kernel's
# packages) goes into an overlay on it, which is kept in build/deb/.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

out=$deb
stage=$out/stage
version=$(sed -n 's/^vmbeam-dkms (\(.*\)).*/\1/p' packaging/dkms/debian/changelog | head -n1)
release=$(cat build/kernel/release)

step "vmbeam-dkms: $version"
rm -rf "$stage"
mkdir -p "$stage/scripts" "$stage/packaging/dkms"
cp -r Kbuild drivers rust packaging/dkms/debian packaging/dkms/modules-load.conf "$stage/"
cp scripts/rust-metadata.sh "$stage/scripts/"
cp packaging/dkms/dkms.conf packaging/dkms/prepare "$stage/packaging/dkms/"
packaging_tools
over sh -c 'cd /deb/stage && exec dpkg-buildpackage -us -uc -b' >"$out/build.log" 2>&1 ||
	{ tail -n 20 "$out/build.log"; die "dpkg-buildpackage failed"; }
step_done
over lintian --allow-root --fail-on error,warning "/deb/vmbeam-dkms_${version}_all.deb"
[ "${1:-}" = install ] || exit 0

step "vmbeam-dkms: apt install, with the packages of $release"
# shellcheck disable=SC2016  # expanded by the inner shell
over sh -c 'printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
	apt-get -qq install -y --no-install-recommends -t trixie-backports \
		"linux-headers-$1" "linux-source-$2" linux-headers-amd64 linux-source &&
	exec apt-get -qq install -y --reinstall --no-install-recommends \
		"/deb/vmbeam-dkms_$3_all.deb"' sh \
	"$release" "$(echo "$release" | cut -d. -f1,2)" "$version" >"$out/install.log" 2>&1 ||
	{ tail -n 40 "$out/install.log"; die "the package could not be installed"; }
over dkms status -m vmbeam -v "$version" -k "$release" | grep -q installed ||
	die "DKMS did not install the module, see $out/install.log"
built=$(find "$out/upper/usr/lib/modules" -name 'vmbeam.ko*' | head -n1)
[ -n "$built" ] || die "DKMS left no module"
case $built in
*.xz) xz -dc "$built" >"$out/vmbeam.ko" ;;
*) cp "$built" "$out/vmbeam.ko" ;;
esac
step_done

step "vmbeam-dkms: purge"
over apt-get -qq purge -y vmbeam-dkms >"$out/purge.log" 2>&1 ||
	{ tail -n 40 "$out/purge.log"; die "the package could not be purged"; }
# The user group stays, as Debian wants it: files of users may belong to it.
left=$(over find /usr /etc /var /boot -path /var/cache -prune -o -path /var/log -prune -o \
	-iname '*vmbeam*' -print)
[ -z "$left" ] || die "the purged package left: $left"
step_done
