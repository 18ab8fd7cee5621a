#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# xen.sh VERSION: the life of the packages of Xen in /deb/xen on this system, a copy of the
# sysroot that scripts/deb-test.sh made, which has Debian's: put in their place, upgraded,
# purged. Prints TAP. What they do is tried in the lab.

# shellcheck disable=SC2317  # the tests are called by name

set -uo pipefail

version=$1
# Debian's, which ours is built from.
base=${version%+vmbeam*}
# shellcheck source=tests/packages/try.sh
. "${0%/*}/try.sh"

# Those of the host and of the management VMs; the rest of Xen's source is libxen-dev and
# what apt adds.
mapfile -t packages < <(dpkg-query -W -f '${source:Package} ${db:Status-Status} ${Package}\n' |
	awk '$1 == "xen" && $2 == "installed" { print $3 }')
files=("${packages[@]/#/./}")
mkdir /tmp/next

in_place() {
	[ ${#packages[@]} -gt 10 ] || { echo "Debian's packages: ${packages[*]}"; return 1; }
	get --allow-downgrades "${files[@]/%/_${version}_amd64.deb}"
}

# every VERSION: the packages are of it, and the files what the packages say.
every() {
	[ "$(dpkg-query -W -f '${Version}\n' "${packages[@]}" | sort -u)" = "$1" ] || {
		dpkg-query -W "${packages[@]}"
		return 1
	}
	# The sysroot has no manual pages.
	! dpkg --verify "${packages[@]}" | grep -v ' /usr/share/man/'
}

patched() {
	local bin=/usr/lib/xen-4.20/bin lib=/usr/lib/x86_64-linux-gnu
	grep -q external-memory "$bin/xl" &&
		grep -q xc_domain_swap_frames "$lib/libxenctrl.so.4.20" &&
		grep -q "External pages" "$lib/libxenguest.so.4.20" &&
		zcat /boot/xen-4.20-amd64.gz >/tmp/xen && grep -q -F "$version" /tmp/xen
}

# In the hypervisor that is booted, not in a file beside it.
hypercall() {
	"${0%/*}/xen-config.sh" /tmp/xen >/tmp/config && grep -x CONFIG_MEM_SWAP=y /tmp/config
}

# All that the programs are linked against is there.
linked() {
	local program
	for program in /usr/lib/xen-4.20/bin/*; do
		! ldd "$program" 2>/dev/null | grep 'not found' || { echo "$program"; return 1; }
	done
}

# Debian's newest, if it is newer.
theirs() {
	local newest
	newest=$(apt-cache madison xen-hypervisor-4.20-amd64 | awk '/ Packages$/ { print $3; exit }')
	! dpkg --compare-versions "$newest" gt "$version" || echo "$newest"
}

sorted() {
	dpkg --compare-versions "$version" gt "$base" &&
		dpkg --compare-versions "$version" lt "${base/%[0-9]/9}"
}

described() {
	local package text newest
	newest=$(theirs)
	for package in "${packages[@]}"; do
		text=$(dpkg-query -W -f '${Description}' "$package" | tr -s ' \n' ' ')
		if [[ $text != *"This is $base of Debian with the patches of VMBeam."* ]] ||
			[[ -n $newest && $text != *"which was $newest when"*"it lacks: XSA-"* ]]; then
			echo "$package: $text"
			return 1
		fi
	done
}

# The program that is for the host, of the package beside these.
checked() {
	local text newest
	newest=$(theirs)
	dpkg-deb -x /deb/vmbeam_*.deb /tmp/vmbeam && text=$(/tmp/vmbeam/usr/bin/vmbeam check)
	grep "hypervisor's source" <<<"$text" || { echo "$text"; return 1; }
	if [ -n "$newest" ]; then
		grep -q "^WARNING .*: $version is older than Debian's $newest" <<<"$text"
	else
		grep -q "^ok .*: $version; apt knows no newer one" <<<"$text"
	fi
}

next_version() {
	local package
	for package in "${packages[@]}"; do
		higher "/deb/xen/${package}_${version}_amd64.deb" "$1" || return
	done
}

purged() {
	dpkg -L "${packages[@]}" | sort -u >/tmp/owned
	apt-get -q purge -y "${packages[@]}" && ! dpkg-query -W "${packages[@]}" 2>/dev/null |
		grep "$version"
}

# What has Xen in its name and belongs to no package.
unowned() {
	find /boot /etc /usr /var -iname '*xen*' -not -path '/var/lib/dpkg/*' \
		-not -path '/var/cache/*' -not -path '/var/lib/apt/*' | sort |
		while read -r file; do
			dpkg -S "$file" >/dev/null 2>&1 || echo "$file"
		done
}

# Files that they had, and whatever else of Xen belongs to no package now.
nothing_left() {
	local file left=0
	while read -r file; do
		[ -d "$file" ] || ! [ -e "$file" ] || { echo "$file"; left=1; }
	done </tmp/owned
	! comm -13 /tmp/unowned <(unowned) | grep . && return "$left"
}

nothing_starts
apt-get -q update >/deb/xen-installed.log 2>&1 || { tail -n 20 /deb/xen-installed.log; exit 1; }
unowned >/tmp/unowned
cd /deb/xen || exit 1

try "apt puts them in the place of Debian's" in_place
try 'all are of this version, and whole' every "$version"
try "their version sorts by that of Debian's source" sorted
try 'their descriptions say what they are built from' described
try "vmbeam check says whether Debian has a newer one" checked
try 'hypervisor, libraries and xl are the patched ones' patched
try 'the hypervisor is built with the hypercall' hypercall
try 'all libraries are there' linked
try 'make a higher version' next_version "$version.1"
cd /tmp/next || exit 1
try 'apt upgrades them' get "${files[@]/%/.deb}"
try 'all are of that version, and whole' every "$version.1"
try 'they can be purged' purged
try 'nothing is left' nothing_left
finish
