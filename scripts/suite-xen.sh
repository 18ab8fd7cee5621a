#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Fetch the Xen of another Debian suite than the sysroot's, from the mirror that
# the sysroot uses.
#
#   suite-xen.sh source SUITE DIR             the pristine source in DIR/src
#   suite-xen.sh packages SUITE DIR NAME...   packages, unpacked in DIR/root
#
# DIR/version has the version.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

what=$1 suite=$2 dir=$3
shift 3

# Everything below runs inside the sysroot. Its own packages must not count, nor
# the suite that it prefers.
options=(-q -o "Dir::Etc::SourceList=/src/$dir/apt/sources.list"
	-o Dir::Etc::SourceParts=/dev/null -o Dir::State::status=/dev/null
	-o "Dir::State::Lists=/src/$dir/apt/lists" -o "Dir::Cache=/src/$dir/apt/cache"
	-o APT::Default-Release= -o APT::Sandbox::User=root
	-o Acquire::Check-Valid-Until=false -o Acquire::Retries=5)

update() {
	mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
	# shellcheck disable=SC2016  # apt expands it
	mirror=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' | head -n 1)
	printf '%s main\n' "deb $mirror $suite" "deb-src $mirror $suite" \
		>"$dir/apt/sources.list"
	apt-get "${options[@]}" update >/dev/null
}

fetch_source() {
	local records version file hash

	records=$(apt-cache "${options[@]}" --only-source showsrc xen)
	version=$(sed -n 's/^Version: //p' <<<"$records" | head -n 1)
	[ -n "$version" ] || die "$suite has no source of Xen"
	file=xen_${version%-*}.orig.tar.xz
	# Of the lines that end in the file's name, that with the SHA-256.
	hash=$(awk -v file="$file" '$3 == file && length($1) == 64 { print $1; exit }' \
		<<<"$records")
	/usr/lib/apt/apt-helper "${options[@]}" download-file \
		"${mirror%/}/pool/main/x/xen/$file" "$dir/$file" "SHA256:$hash" >/dev/null
	rm -rf "$dir/src"
	mkdir "$dir/src"
	tar -C "$dir/src" --strip-components=1 -xf "$dir/$file"
	echo "$version" >"$dir/version"
}

fetch_packages() {
	local deb

	rm -rf "$dir/debs" "$dir/root"
	mkdir -p "$dir/debs"
	(cd "$dir/debs" && apt-get "${options[@]}" download "$@" >/dev/null)
	for deb in "$dir"/debs/*.deb; do
		dpkg-deb -x "$deb" "$dir/root"
	done
}

if [ -z "${VMBEAM_IN_SYSROOT:-}" ]; then
	exec scripts/in-sysroot.sh scripts/suite-xen.sh "$what" "$suite" "$dir" "$@"
fi
update
case $what in
source) fetch_source ;;
packages) fetch_packages "$@" ;;
*) die "usage: suite-xen.sh source|packages SUITE DIR [NAME...]" ;;
esac
