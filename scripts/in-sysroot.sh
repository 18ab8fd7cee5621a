#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# in-sysroot.sh COMMAND [ARGUMENT...]: run a command inside the sysroot, with
# the project at /src. It gets mount and PID namespaces of its own, so that
# nothing that it started or mounted outlives it.

set -euo pipefail
# Already inside: the scripts may call each other.
[ -z "${VMBEAM_IN_SYSROOT:-}" ] || exec "$@"

top=$(cd "$(dirname "$0")/.." && pwd)
root=$top/build/sysroot
[ -d "$root" ] || { echo "in-sysroot.sh: no sysroot; run scripts/sysroot.sh" >&2; exit 1; }

# Certificates of this machine, so that cargo trusts what the machine trusts.
certs=/etc/ssl/certs/ca-certificates.crt

# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --pid --fork --kill-child -- /bin/bash -c '
	set -euo pipefail
	top=$1 root=$2 certs=$3
	shift 3
	mount --make-rprivate /
	mount --rbind /dev "$root/dev"
	mount -t sysfs sysfs "$root/sys"
	mount -t proc proc "$root/proc"
	mount -t tmpfs tmpfs "$root/tmp"
	mkdir -p "$root/src"
	mount --rbind "$top" "$root/src"
	for f in /etc/resolv.conf /etc/hosts "$certs"; do
		[ -e "$f" ] || continue
		[ -e "$root$f" ] || touch "$root$f"
		mount --bind "$f" "$root$f"
	done
	exec chroot "$root" /usr/bin/env -i \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		TERM="${TERM:-dumb}" CARGO_HOME=/src/build/cargo \
		CARGO_TARGET_DIR=/src/build/target \
		GUEST_MIB="${GUEST_MIB:-}" CI="${CI:-}" VMBEAM_IN_SYSROOT=1 \
		VMBEAM_STARTED="${VMBEAM_STARTED:-}" \
		/bin/sh -c "cd /src && exec \"\$@\"" sh "$@"
' in-sysroot "$top" "$root" "$certs" "$@"
