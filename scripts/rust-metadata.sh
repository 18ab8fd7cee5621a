#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# rust-metadata.sh HEADERS SOURCE OUT: make a kernel tree that Rust modules can be
# built against.
#
#   HEADERS  directory of the headers of the kernel, with .config and
#            Module.symvers: /usr/src/linux-headers-RELEASE
#   SOURCE   archive with the source of the same version:
#            /usr/src/linux-source-SERIES.tar.xz
#   OUT      where the tree goes; whatever is there is removed
#
# Debian's headers package has no metadata of the kernel's Rust crates. It can
# only be made with the compiler that built the kernel: the names of its symbols
# depend on the compiler's version. vmbeam-dkms runs this before it builds.

set -euo pipefail

die() {
	printf '%s: error: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

[ $# = 3 ] || die "usage: rust-metadata.sh HEADERS SOURCE OUT"
headers=$1 source=$2 out=$3
config=$headers/.config

# value OPTION: what the kernel was configured with, without quotes.
value() {
	sed -n "s/^CONFIG_$1=//p" "$config" | tr -d '"'
}

[ -e "$config" ] || die "$config is missing: install the headers of the kernel"
[ "$(value RUST)" = y ] || die "this kernel was built without CONFIG_RUST"
for tool in rustc bindgen pahole flex bison bc python3 make; do
	command -v "$tool" >/dev/null || die "$tool is not installed"
done
wanted=$(value RUSTC_VERSION_TEXT) have=$(rustc --version)
[ "$have" = "$wanted" ] ||
	die "the kernel was built with '$wanted', this is '$have': install that compiler"
wanted=$(value BINDGEN_VERSION_TEXT) have=$(bindgen --version)
[ "$have" = "$wanted" ] || die "the kernel was built with '$wanted', this is '$have'"

release=$(cat "$headers/include/config/kernel.release" 2>/dev/null || true)
[ -n "$release" ] || release=$(basename "$headers" | sed 's/^linux-headers-//')
gcc=$(value CC_VERSION_TEXT | cut -d' ' -f1)
command -v "$gcc" >/dev/null || gcc=gcc

rm -rf "$out"
mkdir -p "$out"
# What modules_prepare never reads: two thirds of the archive. Anchored, because
# rust/helpers has directories of the same names.
top=$(basename "$source" .tar.xz)
tar -xf "$source" -C "$out" --strip-components=1 --anchored --wildcards \
	--exclude="$top/Documentation/*/*" --exclude="$top/sound/*.[ch]" \
	--exclude="$top/drivers/*.c" --exclude="$top/fs/*.c" --exclude="$top/net/*.c" \
	--exclude="$top/tools/testing/*" --exclude="$top/tools/perf/*"
cp "$config" "$headers/Module.symvers" "$out/"
make -s -C "$out" "KERNELRELEASE=$release" "CC=$gcc" "HOSTCC=$gcc" -j"$(nproc)" \
	modules_prepare >"$out/prepare.log" 2>&1 ||
	{ tail -n 20 "$out/prepare.log" >&2; die "modules_prepare failed, see $out/prepare.log"; }

# A tool that is missing here turns options off, and structures change with them.
differ=$(diff <(grep -v '^CONFIG_CC_VERSION_TEXT=' "$config") \
	<(grep -v '^CONFIG_CC_VERSION_TEXT=' "$out/.config") | grep '^[<>] *[^# ]' || true)
[ -z "$differ" ] || die "the configuration is not the kernel's any more: $differ"
for crate in kernel bindings macros pin_init; do
	compgen -G "$out/rust/lib$crate.*" >/dev/null ||
		die "modules_prepare left no rust/lib$crate, see $out/prepare.log"
done
