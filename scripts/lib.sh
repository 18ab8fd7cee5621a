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
