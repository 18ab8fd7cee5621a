#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# deb-dkms.sh [install]: build vmbeam-dkms_*.deb into build/deb/, and look at it with
# lintian. With `install` also install it as a user would, on a copy of the sysroot
# with the lab's kernel, upgrade it, leave the module that DKMS built then in build/deb/,
# and purge it.
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
version=$(sed -n 's/^vmbeam-dkms (\(.*\)).*/\1/p' packaging/dkms/debian/changelog | head -n1)
release=$(cat build/kernel/release)

# package STAGE VERSION: build the package of that version in build/deb/STAGE, which leaves
# it beside that directory.
package() {
	local stage=$out/$1
	rm -rf "$stage"
	mkdir -p "$stage/scripts" "$stage/packaging/dkms"
	cp -r Kbuild drivers rust packaging/dkms/debian packaging/dkms/modules-load.conf "$stage/"
	cp scripts/rust-metadata.sh "$stage/scripts/"
	cp packaging/dkms/dkms.conf packaging/dkms/prepare "$stage/packaging/dkms/"
	sed -i "1s/(.*)/($2)/" "$stage/debian/changelog"
	# shellcheck disable=SC2016  # expanded by the inner shell
	over sh -c 'cd "/deb/$1" && exec dpkg-buildpackage -us -uc -b' sh "$1" >"$out/build.log" 2>&1 ||
		{ tail -n 20 "$out/build.log"; die "dpkg-buildpackage failed"; }
}

# get FILE VERSION: install that package with apt, and look whether DKMS has built and installed
# the module, of that version and no other.
get() {
	over apt-get -qq install -y --reinstall --allow-downgrades \
		--no-install-recommends "/deb/$1" \
		>>"$out/install.log" 2>&1 ||
		{ tail -n 40 "$out/install.log"; die "the package could not be installed"; }
	local status
	status=$(over dkms status -m vmbeam)
	! grep -v "^vmbeam/$2, " <<<"$status" || die "DKMS has another version than $2"
	grep -q "^vmbeam/$2, $release,.*: installed" <<<"$status" ||
		die "DKMS did not install the module, see $out/install.log; its status: $status"
}

step "vmbeam-dkms: $version"
packaging_tools
package stage "$version"
step_done
over lintian --allow-root --fail-on error,warning "/deb/vmbeam-dkms_${version}_all.deb"
[ "${1:-}" = install ] || exit 0

step "vmbeam-dkms: apt install, with the packages of $release"
# shellcheck disable=SC2016  # expanded by the inner shell
over sh -c 'printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
	exec apt-get -qq install -y --no-install-recommends -t trixie-backports \
		"linux-headers-$1" "linux-source-$2" linux-headers-amd64 linux-source' sh \
	"$release" "$(echo "$release" | cut -d. -f1,2)" >"$out/install.log" 2>&1 ||
	{ tail -n 40 "$out/install.log"; die "the kernel's packages could not be installed"; }
get "vmbeam-dkms_${version}_all.deb" "$version"
step_done

step "vmbeam-dkms: apt upgrade"
next=$version.1
mkdir -p "$out/next"
package next/stage "$next"
get "next/vmbeam-dkms_${next}_all.deb" "$next"
# shellcheck disable=SC2016  # expanded by the inner shell
over sh -c '[ ! -e "/usr/src/vmbeam-$1" ] && [ ! -e "/var/lib/dkms/vmbeam/$1" ]' sh "$version" ||
	die "the upgrade left sources or a build of $version"
built=$(find "$out/upper/usr/lib/modules/$release" -name 'vmbeam.ko*')
case $built in
*$'\n'*) die "DKMS left more than one module: $built" ;;
'') die "DKMS left no module" ;;
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
