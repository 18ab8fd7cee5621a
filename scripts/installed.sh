#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# installed.sh: the disks of the lab's group `installed`, in build/deb/installed/: real
# Debian 13, made by mmdebstrap from the archive that the sysroot is from.
#
#   host.img       a host before the operator guide's first step on it: Debian's Xen, GRUB,
#                  systemd. Of our packages it has vmbeam-dkms only, since under emulation it
#                  would build the driver for hours.
#   mgmt.img       a management VM, as it is before the guide's step in it
#   packages.tar   what the guide says to copy, for the host and for the management VMs
#
# A run with the same inputs does nothing. Needs what scripts/deb.sh, deb-xen.sh and
# deb-dkms.sh leave.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/overlay.sh
. scripts/overlay.sh

out=$deb/installed
files=tests/lab/images/installed
release=$(cat build/kernel/release)
common=(
	systemd-sysv dbus udev kmod iproute2 e2fsprogs procps less
	"linux-image-$release" initramfs-tools zstd
	xen-utils-4.20 xenstore-utils
)
host=(
	grub-pc fdisk socat
	xen-hypervisor-4.20-amd64 xen-hypervisor-common qemu-system-xen
	dkms build-essential
)

# debian NAME PACKAGE...: the tree of one of them in build/deb/installed/NAME.
debian() {
	local name=$1 include
	shift
	include=$(IFS=,; echo "$*")
	rm -rf "${out:?}/$name" "$out/$name.tmp"
	mkdir -p "$out"
	# shellcheck disable=SC2016  # expanded by mmdebstrap's shell
	grep '^deb ' build/sysroot/etc/apt/sources.list |
		unshare --mount mmdebstrap --quiet --variant=minbase --include="$include" \
			--aptopt='Acquire::Retries "5"' \
			--aptopt='APT::Install-Recommends "false"' \
			--dpkgopt='path-exclude=/usr/share/man/*' \
			--dpkgopt='path-exclude=/usr/share/locale/*' \
			--setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
			--setup-hook="copy-in $files/both/etc/apt/preferences.d/kernel /etc/apt/preferences.d" \
			--skip=cleanup/apt/lists \
			trixie "$out/$name.tmp" -
	mv "$out/$name.tmp" "$out/$name"
}

# in_tree NAME COMMAND...: run it there, as `over` does.
in_tree() {
	local root=$out/$1
	shift
	# shellcheck disable=SC2016  # expanded by the inner shell
	unshare --mount --propagation private --pid --fork --kill-child -- /bin/bash -c '
		set -euo pipefail
		root=$1 deb=$2
		shift 2
		mount --rbind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mkdir "$root/tmp/deb"
		mount --bind "$deb" "$root/tmp/deb"
		touch "$root/tmp/resolv.conf"
		[ -e "$root/etc/resolv.conf" ] || touch "$root/etc/resolv.conf"
		mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
		exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
			HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
	' in_tree "$root" "$deb" "$@"
}

# driver: vmbeam-dkms, as the guide's second step would install it, and its module.
driver() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	in_tree host sh -c 'apt-get -qq update && exec apt-get -qq install -y --no-install-recommends \
		"linux-headers-$1" "linux-source-$2" linux-headers-amd64 linux-source \
		/tmp/deb/vmbeam-dkms_*.deb' sh "$release" "$(cut -d. -f1,2 <<<"$release")" \
		>"$out/driver.log" 2>&1 || { tail -n 20 "$out/driver.log"; die "vmbeam-dkms cannot be installed"; }
	in_tree host dkms status -m vmbeam | grep -q "$release,.*: installed" ||
		die "DKMS did not install the module: build/deb/installed/driver.log"
}

# put NAME: what the lab adds to one of them.
put() {
	local tree=$out/$1
	cp -r --no-preserve=ownership "$files/both/." "$files/$1/." "$tree/"
	install -m 755 build/target/release/labtool "$tree/usr/local/bin/labtool"
	in_tree "$1" systemctl -q enable lab.service
	# For a person at the console, to whom nobody gave a password.
	in_tree "$1" passwd -q -d root
}

# The management VM: xl loads its hypervisor and kernel, so the host has them.
host_vms() {
	local generator masks=$out/mgmt/etc/systemd/system-generators
	# systemd gives all of them together 90 s, which nested emulation can exceed; and
	# none but these two has anything to do there.
	mkdir -p "$masks"
	for generator in "$out"/mgmt/usr/lib/systemd/system-generators/*; do
		case ${generator##*/} in
		systemd-fstab-generator | systemd-getty-generator) ;;
		*) ln -sf /dev/null "$masks/${generator##*/}" ;;
		esac
	done
	in_tree host systemctl -q enable lab-port@lab.A.service lab-port@lab.B.service
	local dir=$out/host/var/lib/host-vms
	mkdir -p "$dir" "$out/host/etc/xen/auto" "$out/mgmt/boot/guest"
	in_tree mgmt update-initramfs -u -k "$release" >"$out/initramfs.log" 2>&1 ||
		{ tail -n 20 "$out/initramfs.log"; die "the management VM has no initramfs"; }
	cp "$out/mgmt/boot/initrd.img-$release" "$dir/initrd.img"
	cp build/kernel/vmlinux "$dir/vmlinux"
	# That of Debian, which stays when the host's is replaced.
	zcat "$out/host/boot/xen-4.20-amd64.gz" >"$dir/xen"
	sed -e 's/\<A\>/B/g' -e 's/^cpus = .*/cpus = "2"/' "$out/host/etc/xen/A.cfg" \
		>"$out/host/etc/xen/B.cfg"
	cp build/kernel/vmlinux build/images/guest.cpio "$out/mgmt/boot/guest/"
	# The lab reads what a guest prints.
	grep -q '^XENCONSOLED_ARGS' "$out/mgmt/etc/default/xen" ||
		echo 'XENCONSOLED_ARGS=--log=guest' >>"$out/mgmt/etc/default/xen"
}

# loader: the first grub.cfg, as update-grub would write it, which needs a disk to be there.
# The packages of the guide write the next one.
loader() {
	local boot=$out/host/boot
	mkdir -p "$boot/grub/i386-pc"
	cp "$out"/host/usr/lib/grub/i386-pc/*.{mod,lst} "$boot/grub/i386-pc/"
	# shellcheck disable=SC2016  # expanded by the inner shell
	in_tree host sh -c '. /etc/default/grub
		cat >/boot/grub/grub.cfg <<GRUB
insmod part_msdos
insmod ext2
search --no-floppy --label host --set=root
multiboot2 /boot/xen-4.20-amd64.gz placeholder $GRUB_CMDLINE_XEN
module2 /boot/vmlinuz-$1 placeholder root=LABEL=host ro $GRUB_CMDLINE_LINUX_XEN_REPLACE
module2 /boot/initrd.img-$1
boot
GRUB
		grub-mkimage -O i386-pc -p "(hd0,msdos1)/boot/grub" -o /boot/grub/i386-pc/core.img \
			biosdisk part_msdos ext2' sh "$release"
}

# disk NAME MIB: a file system in an image; that of the host is behind room for a boot
# loader, which is put there as grub-install does it.
disk() {
	local room=0
	[ "$1" != host ] || room=1
	truncate -s 0 "$out/$1.img.tmp"
	truncate -s "$2M" "$out/$1.img.tmp"
	# shellcheck disable=SC2016  # expanded by the inner shell
	in_tree "$1" sh -euc 'image=/tmp/deb/installed/$1.img.tmp
		apt-get clean
		rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d
		# Else the first boot does what the packages have done.
		touch /etc/.updated /var/.updated
		mkdir /tmp/tree
		mount --bind / /tmp/tree
		mke2fs -q -t ext4 -L "$1" -m 0 -E "offset=$((1048576 * $3)),nodiscard" \
			-d /tmp/tree "$image" "$((1024 * ($2 - $3)))k"
		[ "$3" = 1 ] || exit 0
		echo "2048,,83,*" | sfdisk -q "$image"
		dd if=/usr/lib/grub/i386-pc/boot.img of="$image" bs=440 count=1 conv=notrunc status=none
		dd if=/boot/grub/i386-pc/core.img of="$image" bs=512 seek=1 conv=notrunc status=none' \
		sh "$1" "$2" "$room"
	mv "$out/$1.img.tmp" "$out/$1.img"
}

# packages: what the guide says to copy, in two directories.
packages() {
	local dir=$out/packages file
	rm -rf "$dir"
	mkdir -p "$dir/host" "$dir/mgmt"
	cp "$deb"/vmbeam_*.deb "$deb"/vmbeam-dkms_*.deb "$deb"/xen/xen-hypervisor-4.20-amd64_*.deb \
		"$dir/host/"
	cp "$deb"/vmbeam-agent_*.deb "$deb"/xen/{xen-utils-4.20,xen-utils-common,xenstore-utils}_*.deb \
		"$deb"/xen/libxen*.deb "$dir/mgmt/"
	rm "$dir"/mgmt/libxen-dev_*.deb
	tar -C "$dir" --owner=0 --group=0 -cf "$out/packages.tar" .
}

# key FILE...: of these inputs and of this script.
key() {
	cat scripts/installed.sh build/sysroot.stamp build/kernel/release "$@" | sha256sum | cut -d' ' -f1
}

# made KEY NAME: whether it is of this key.
made() {
	[ "$(cat "$out/$2.key" 2>/dev/null)" = "$1" ]
}

for file in "$deb"/vmbeam_*.deb "$deb"/vmbeam-dkms_*.deb "$deb"/xen/.key; do
	[ -e "$file" ] || die "$file is not there: make deb-programs deb-dkms deb-xen"
done
mkdir -p "$out"

trees=$(key $files/both/etc/apt/preferences.d/kernel "$deb"/vmbeam-dkms_*.deb)
if ! made "$trees" trees; then
	step "installed: Debian 13 for a host, and for management VMs"
	debian host "${common[@]}" "${host[@]}"
	debian mgmt "${common[@]}"
	step_done
	step "installed: apt install vmbeam-dkms on the host (log: build/deb/installed/driver.log)"
	driver
	step_done
	echo "$trees" >"$out/trees.key"
fi
mapfile -t inputs < <(find $files -type f | sort)
disks=$(key "$out/trees.key" "${inputs[@]}" build/target/release/labtool build/images/guest.cpio)
if ! made "$disks" disks; then
	step "installed: their disks"
	put host
	put mgmt
	host_vms
	loader
	disk mgmt 2048
	disk host 6144
	echo "$disks" >"$out/disks.key"
	step_done
fi
packages
