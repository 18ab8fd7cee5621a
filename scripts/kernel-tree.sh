#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel-tree.sh: put the driver into the kernel's own source, as a patch to it would, and
# build it there with W=1. A warning is a failure. Works on an overlay of build/kernel/kdir,
# and leaves the patch, with its cover letter, in build/kernel-tree/.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

out=build/kernel-tree
config=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' build/kernel/kdir/.config)

step "kernel-tree: the driver in drivers/xen/vmbeam"
rm -rf "$out"
mkdir -p "$out"/{upper,work,tree}
# shellcheck disable=SC2016  # expanded by the inner shell
scripts/in-sysroot.sh bash -c '
	set -euo pipefail
	out=/src/$1 cc=$2
	# An overlay cannot be on another one, which the project may be on.
	mount -t tmpfs -o size=4g tmpfs "$out/work"
	mkdir "$out/work/upper" "$out/work/work"
	mount -t overlay overlay -o \
		"lowerdir=/src/build/kernel/kdir,upperdir=$out/work/upper,workdir=$out/work/work" \
		"$out/tree"
	# Whoever calls this from inside the sysroot goes on there.
	trap "cd /; umount $out/tree $out/work" EXIT
	cd "$out/tree"

	cp -r /src/drivers/vmbeam drivers/xen/vmbeam
	mv drivers/xen/vmbeam/include/uapi/linux/vmbeam.h include/uapi/linux/
	rm -r drivers/xen/vmbeam/include drivers/xen/vmbeam/cover-letter.txt
	sed -i "s,^endmenu,source \"drivers/xen/vmbeam/Kconfig\"\n\n&," drivers/xen/Kconfig
	printf "obj-\$(CONFIG_XEN_VMBEAM)\t\t+= vmbeam/\n" >>drivers/xen/Makefile
	sed -i "s,^0xC0  00-0F  linux/usb/iowarrior.h,0xBB  80-8A  uapi/linux/vmbeam.h                                        Swap of memory of two Xen domains\n                                                                       <mailto:xen-devel@lists.xenproject.org>\n&," \
		Documentation/userspace-api/ioctl/ioctl-number.rst
	sed -i "s,^XFS FILESYSTEM,XEN VMBEAM DRIVER\nL:\txen-devel@lists.xenproject.org (moderated for non-subscribers)\nL:\trust-for-linux@vger.kernel.org\nS:\tMaintained\nF:\tdrivers/xen/vmbeam/\nF:\tinclude/uapi/linux/vmbeam.h\n\n&," MAINTAINERS

	scripts/config --module XEN_VMBEAM
	make -s "CC=$cc" "HOSTCC=$cc" olddefconfig
	grep -x CONFIG_XEN_VMBEAM=m .config
	make -s "CC=$cc" "HOSTCC=$cc" -j"$(nproc)" modules_prepare >"$out/prepare.log" 2>&1
	make "CC=$cc" "HOSTCC=$cc" W=1 drivers/xen/vmbeam/vmbeam.o 2>"$out/warnings" >"$out/build.log"
	make -s "CC=$cc" "HOSTCC=$cc" headers_install INSTALL_HDR_PATH="$out/work/headers" >/dev/null
	grep -q "struct vmbeam_commit" "$out/work/headers/include/linux/vmbeam.h"

	cd "$out"
	for file in drivers/xen/Kconfig drivers/xen/Makefile MAINTAINERS \
		Documentation/userspace-api/ioctl/ioctl-number.rst include/uapi/linux/vmbeam.h \
		$(cd tree && find drivers/xen/vmbeam -name "[A-Za-z]*.[rch]*" -o -name Kbuild -o -name Kconfig); do
		case $file in *.o | *.cmd | *.mod) continue ;; esac
		old=/src/build/kernel/kdir/$file
		[ -e "$old" ] || old=/dev/null
		diff -u --label "a/$file" --label "b/$file" "$old" "tree/$file" || [ $? = 1 ]
	done >vmbeam.patch
' sh "$out" "${config:-gcc}"
cp drivers/vmbeam/cover-letter.txt "$out/"
if [ -s "$out/warnings" ]; then
	cat "$out/warnings" >&2
	die "the build in the kernel's tree printed warnings"
fi
step_done
echo "$(grep -c '^+++' "$out/vmbeam.patch") files, $(grep -c '^+' "$out/vmbeam.patch") lines: $out/vmbeam.patch"
echo "1..1"
echo "ok 1 - the driver builds in the kernel's tree, without a warning"
