# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the build scripts share: progress lines with times, and installing what
# a fresh machine lacks. To be sourced, not run.

# step TEXT: say what happens now; step_done says how long it took.
step() {
	_step=$1
	_step_start=$SECONDS
	printf '==> %s\n' "$_step"
}

step_done() {
	printf '    %s: done in %d s\n' "$_step" $((SECONDS - _step_start))
}

die() {
	printf '%s: error: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# need PACKAGE...: install the Debian packages of these that are missing.
need() {
	local missing=() p
	for p in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null |
			grep -qx installed || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "run as root, or install: ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
		--no-install-recommends "${missing[@]}" >/dev/null
}

# series DIRECTORY: the patches that its `series` names, in order.
series() {
	sed -e '/^#/d' -e '/^$/d' "$1/series"
}

# What a script that builds Xen exits with when the compiler said no.
does_not_build=3

# build_or_reject VERSION REASON COMMAND...: false if it does not build and another version
# of Xen has been chosen, with which to start again. The fault can be this machine's or the
# series': so where the version does not build either that the series are made for, that is
# an error, and nothing is held against the newer ones.
build_or_reject() {
	local version=$1 reason=$2 rc=0
	shift 2
	"$@" || rc=$?
	[ "$rc" != 0 ] || return 0
	[ "$rc" = "$does_not_build" ] || exit "$rc"
	scripts/xen-source.sh reject "$version" "$reason" || die "Xen $version: $reason"
	return 1
}

# apply_patch DIRECTORY PATCH [OPTION...]: all of it or nothing, and without fuzz. With a
# repository around the directory git would take paths from there.
apply_patch() {
	local directory=$1 patch
	patch=$(realpath "$2")
	shift 2
	GIT_CEILING_DIRECTORIES=$(realpath "$directory/..") \
		git -C "$directory" apply "$@" "$patch"
}
