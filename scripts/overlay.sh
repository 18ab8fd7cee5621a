# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Running things on a copy of the sysroot that may be changed: an overlay on it, which
# is kept. To be sourced after lib.sh, not run. Works in the sysroot as well.

# The packages that are built; /deb inside.
deb=$PWD/build/deb

# overlay DIRECTORY: what `over` works on from now on. One that was made on another
# sysroot is of no use any more.
overlay() {
	_overlay=$1
	if ! [ "$_overlay/made" -nt build/sysroot.stamp ]; then
		rm -rf "${_overlay:?}/upper" "$_overlay/work" "$_overlay/tools"
		mkdir -p "$deb" "$_overlay/upper" "$_overlay/work" "$_overlay/root"
		touch "$_overlay/made"
	fi
}

# over COMMAND...: run it there, in mount and PID namespaces of its own. One at a time:
# an overlay that is mounted twice gets I/O errors.
over() {
	local private=(--propagation private)
	# Mounts are private in the sysroot already, whose / cannot be made so.
	[ -z "${VMBEAM_IN_SYSROOT:-}" ] || private=(--propagation unchanged)
	# shellcheck disable=SC2016  # expanded by the inner shell
	flock "$_overlay/lock" unshare --mount "${private[@]}" --pid --fork --kill-child -- /bin/bash -c '
		set -euo pipefail
		top=$1 overlay=$2 deb=$3
		shift 3
		mount -t overlay overlay -o \
			"lowerdir=$top/build/sysroot,upperdir=$overlay/upper,workdir=$overlay/work" \
			"$overlay/root"
		mount --rbind /dev "$overlay/root/dev"
		mount -t proc proc "$overlay/root/proc"
		mount -t tmpfs tmpfs "$overlay/root/tmp"
		mkdir -p "$overlay/root/deb"
		mount --bind "$deb" "$overlay/root/deb"
		mount --bind /etc/resolv.conf "$overlay/root/etc/resolv.conf"
		exec chroot "$overlay/root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
			HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
	' over "$PWD" "$_overlay" "$deb" "$@"
}

# packaging_tools: on the overlay build/deb from now on, which has debhelper, DKMS, lintian.
packaging_tools() {
	overlay "$deb"
	[ ! -e "$deb/tools" ] || return 0
	# The program alone conflicts with all of systemd, which a sysroot may have by now.
	# shellcheck disable=SC2016  # expanded by the inner shell
	over sh -c 'sysusers=$(command -v systemd-sysusers >/dev/null ||
			echo systemd-standalone-sysusers)
		apt-get -qq update && exec apt-get -qq install -y --no-install-recommends \
			debhelper dh-dkms dkms lintian man-db groff $sysusers' \
		>"$deb/tools.log" 2>&1 || {
		tail -n 20 "$deb/tools.log"
		die "cannot install debhelper, dkms, lintian"
	}
	touch "$deb/tools"
}
