#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# xen-mutant.sh NAME [LIST]: build the hypervisor with assertions and with the defect of
# that name in tests/stress/mutants.txt, or in another list, from the source that `make
# xen-debug` left. Result: build/xen/mutant/xen.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

pristine=build/xen/src-debug/xen
dir=build/xen/mutant

list=${2:-tests/stress/mutants.txt}
# The last column of either list is the defect.
IFS=$'\t' read -r name file mutant < \
	<(awk -F'\t' -v OFS='\t' -v name="$1" '$1 == name { print $1, $2, $NF }' "$list") ||
	die "there is no mutant $1 in $list"
path=arch/x86/mm/$file.c
[ -e "$pristine/$path" ] || path=$file.c

# Objects are kept from mutant to mutant.
key=$(cat build/xen/out-debug/.key)
if [ "$(cat $dir/.key 2>/dev/null)" != "$key" ]; then
	rm -rf $dir
	mkdir -p $dir
	cp -r build/xen/src-debug $dir/src
	cp build/xen/out-debug/xen.config $dir/.config
	echo "$key" >$dir/.key
fi
cp -r $pristine/arch/x86/mm $dir/src/xen/arch/x86/
cp $pristine/xsm/flask/*.c $dir/src/xen/xsm/flask/
sed -E "$mutant" "$pristine/$path" >"$dir/src/xen/$path"
! cmp -s "$pristine/$path" "$dir/src/xen/$path" || die "$name changes nothing"

step "Xen with $name (log: $dir/build.log)"
mkdir -p $dir/obj
[ -e $dir/obj/.config ] || cp $dir/.config $dir/obj/
make -C "$PWD/$dir/src/xen" "O=$PWD/$dir/obj" "-j$(nproc)" \
	XEN_VENDORVERSION=-vmbeam XEN_WHOAMI=vmbeam \
	XEN_BUILD_HOST=lab XEN_DOMAIN=localhost >$dir/build.log 2>&1 || {
	tail -n 30 $dir/build.log
	die "$name does not build"
}
cp $dir/obj/xen $dir/xen
step_done
