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

# Print the version, and leave the pristine source in $2. Inside the sysroot.
fetch() {
	local suite=$1 dir=$PWD/$2 options mirror records version file hash

	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	# shellcheck disable=SC2016  # apt expands it
	mirror=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' | head -n 1)
	echo "deb-src $mirror $suite main" >"$dir/sources.list"
	options=(-q -o "Dir::Etc::SourceList=$dir/sources.list"
		-o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache"
		-o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false)
	apt-get "${options[@]}" update >/dev/null
	records=$(apt-cache "${options[@]}" --only-source showsrc xen)
	version=$(sed -n 's/^Version: //p' <<<"$records" | head -n 1)
	[ -n "$version" ] || die "$suite has no source of Xen"
	file=xen_${version%-*}.orig.tar.xz
	# Of the lines that end in the file's name, that with the SHA-256.
	hash=$(awk -v file="$file" '$3 == file && length($1) == 64 { print $1; exit }' \
		<<<"$records")
	/usr/lib/apt/apt-helper "${options[@]}" download-file \
		"${mirror%/}/pool/main/x/xen/$file" "$dir/$file" "SHA256:$hash" >/dev/null
	mkdir "$dir/src"
	tar -C "$dir/src" --strip-components=1 -xf "$dir/$file"
	echo "$version" >"$dir/version"
}

case ${1:-} in
--fetch)
	fetch "$2" "$3"
	exit
	;;
esac

suite=${1:-sid}
dir=build/xen/suite-$suite
rm -rf "$dir"
scripts/in-sysroot.sh scripts/hv-suite.sh --fetch "$suite" "$dir"
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
