#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Take Debian's own kernel from trixie-backports, unmodified, and make what its
# headers package lacks: the metadata of the Rust crates, which out-of-tree
# Rust modules are compiled against.
#
# Leaves under build/kernel/:
#   release   the kernel's release string
#   vmlinux   the stock image, uncompressed (a nested hypervisor would otherwise
#             decompress it under emulation)
#   modules/  the stock modules
#   kdir/     the tree to name as KDIR
#
# KERNEL_RELEASE pins a release, for example 7.3.4+deb13-amd64.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

in_sysroot=scripts/in-sysroot.sh
out=build/kernel

release=${KERNEL_RELEASE:-$(
	"$in_sysroot" apt-cache depends linux-headers-amd64/trixie-backports |
		sed -n 's/.*Depends: linux-headers-\([0-9].*\)/\1/p' | head -n1
)}
[ -n "$release" ] || die "no kernel in trixie-backports: apt in the sysroot lists none"
version=$("$in_sysroot" apt-cache show "linux-headers-$release" |
	sed -n 's/^Version: //p' | head -n1)
[ -n "$version" ] || die "no package linux-headers-$release; set KERNEL_RELEASE to one that exists"
series=$(echo "$release" | cut -d. -f1,2)
flavour=${release##*-}
common=${release%-*}-common

key=$({ cat "$0"; echo "$release $version"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$key" ]; then
	exit 0
fi

step "kernel: Debian's $release ($version)"
rm -rf "$out"
mkdir -p "$out/debs" "$out/root"
kbuild=$("$in_sysroot" apt-cache depends "linux-headers-$release" |
	sed -n 's/.*Depends: \(linux-kbuild-[^ ]*\)/\1/p' | head -n1)
"$in_sysroot" sh -c 'cd /src/build/kernel/debs && exec apt-get -qq -o APT::Sandbox::User=root download "$@"' sh \
	"linux-binary-$release=$version" "linux-modules-$release=$version" \
	"linux-headers-$release=$version" "linux-headers-$common=$version" \
	"$kbuild=$version" "linux-source-$series=$version"
for deb in "$out"/debs/*.deb; do
	dpkg-deb -x "$deb" "$out/root"
done
step_done

step "kernel: unpack the source"
mkdir -p "$out/kdir"
tar -xf "$out/root/usr/src/linux-source-$series.tar.xz" -C "$out/kdir" --strip-components=1
headers=$out/root/usr/src/linux-headers-$release
cp "$headers/.config" "$headers/Module.symvers" "$out/kdir/"
ln -s "root/usr/lib/modules/$release" "$out/modules"
"$in_sysroot" "/src/$out/kdir/scripts/extract-vmlinux" "/src/$out/modules/vmlinuz" \
	>"$out/vmlinux"
echo "$release" >"$out/release"
step_done

step "kernel: regenerate the Rust metadata (flavour $flavour)"
"$in_sysroot" make -s -C "/src/$out/kdir" "KERNELRELEASE=$release" -j"$(nproc)" \
	modules_prepare >"$out/prepare.log" 2>&1 ||
	{ tail -n 20 "$out/prepare.log" >&2; die "modules_prepare failed, see $out/prepare.log"; }
# A tool that is missing here turns options off, and structures change with them.
differ=$(diff <(grep -v '^CONFIG_CC_VERSION_TEXT=' "$headers/.config") \
	<(grep -v '^CONFIG_CC_VERSION_TEXT=' "$out/kdir/.config") | grep '^[<>] *[^# ]' || true)
[ -z "$differ" ] || die "the configuration is not Debian's any more: $differ"
for crate in kernel bindings macros pin_init; do
	ls "$out"/kdir/rust/lib"$crate".* >/dev/null 2>&1 ||
		die "modules_prepare left no rust/lib$crate, see $out/prepare.log"
done
rm -rf "$out/debs" "$out/root/usr/src"
echo "$key" >"$out/stamp"
step_done
