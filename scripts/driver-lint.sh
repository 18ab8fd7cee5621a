#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# driver-lint.sh KDIR OBJ: build the driver and its debug flavour with the kernel's
# own warnings and lints, W=1 and CLIPPY=1, and let rustdoc look at both. Whatever
# these print is a failure. Nothing is left but the objects, in OBJ and OBJ-debug.

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

[ $# = 2 ] || { echo "usage: driver-lint.sh KDIR OBJ" >&2; exit 1; }
kdir=$1 obj=$PWD/$2
printed=$(mktemp)
docs=$(mktemp -d)
trap 'rm -rf "$printed" "$docs"' EXIT
failed=0

# By the name that the tree was prepared with, or the kernel's makefiles complain.
cc=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\).*/\1/p' "$kdir/.config")

# document OBJ: with the flags that the compiler got, less those for its output.
# The kernel's makefiles do that for the kernel's own crates only.
document() {
	local flags=() flag
	eval "set -- $(sed -n 's/^savedcmd_[^ ]* := //p' "$1/drivers/vmbeam/.vmbeam_main.o.cmd")"
	for flag; do
		case $flag in
		OBJTREE=* | RUST_MODFILE=* | CLIPPY_CONF_DIR=*) export "${flag?}" ;;
		*rustc | *clippy-driver | --emit=* | -Zbinary_dep_depinfo=*) ;;
		--out-dir | drivers/vmbeam/) ;;
		*) flags+=("$flag") ;;
		esac
	done
	(cd "$kdir" && RUSTC_BOOTSTRAP=1 rustdoc -Dwarnings --document-private-items \
		--output "$docs" "${flags[@]}")
}

for flavour in '' -debug; do
	rm -rf "$obj$flavour"
	mkdir -p "$obj$flavour"
	make -s -C "$kdir" "CC=$cc" M="$PWD" MO="$obj$flavour" CLIPPY=1 W=1 CONFIG_DEBUG_INFO_BTF_MODULES= \
		${flavour:+VMBEAM_DEBUG=y} modules >>"$printed" 2>&1 || failed=1
	document "$obj$flavour" >>"$printed" 2>&1 || failed=1
	[ -e "$docs/vmbeam_main/index.html" ] || { echo "rustdoc left nothing" >>"$printed"; failed=1; }
	rm -rf "${docs:?}"/*
done
cat "$printed"
[ "$failed" = 0 ] && ! [ -s "$printed" ]
