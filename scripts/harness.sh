#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the hypervisor harness: Xen's own source files, as the hypervisor is
# made from them, with its headers, configuration and compiler flags, linked
# with a shim into shared libraries that a program can load.
#
# Results, in build/harness:
#   tested.so      with Xen's assertions, locks reported to the harness
#   timed.so       as the hypervisor is built for production
#   mutants/*.so   with one defect each (tests/hypervisor/mutants.txt)
#
# A run with the same inputs does nothing.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

shim=tests/hypervisor/shim
out=build/harness
src=build/xen/src/xen
obj=build/xen/obj
swap=arch/x86/mm/mem-swap

# What is compiled from Xen, unchanged.
files=(
	"$swap"
	arch/x86/mm/p2m arch/x86/mm/p2m-basic arch/x86/mm/p2m-pt
	arch/x86/mm/p2m-ept arch/x86/mm/p2m-pod arch/x86/mm/paging arch/x86/mm/nested
	arch/x86/mm/hap/hap arch/x86/mm arch/x86/x86_64/mm arch/x86/bitops
	common/bitmap common/pdx common/rangeset common/rwlock
	common/spinlock common/vsprintf
	lib/ctype lib/strlen lib/strnlen lib/strlcpy lib/strcmp
)

# The compiler's flags for mem-swap.c, as Xen's build has recorded them.
xen_flags() {
	sed -n 's/^cmd_[^ ]* := gcc //p' "$obj/arch/x86/mm/.mem-swap.o.cmd" |
		sed -E "s/-MMD -MP -MF [^ ]+//; s/ -c .*//; s/'-D__OBJECT_LABEL__=[^']*'//"
}

# compile DIR FILE [FLAG...]: one of Xen's files or of the shim's.
compile() {
	local dir=$1 file=$2 object
	shift 2
	object=$dir/$(basename "${file%.*}").o
	case $file in arch/x86/x86_64/mm.c) object=$dir/mm64.o ;; esac
	[ -e "$file" ] || file=$top/$src/$file
	(cd "$obj" && gcc "${flags[@]}" -include "$top/$shim/harness.h" \
		-I "$top/$shim" -iquote "$top/$src/arch/x86/mm" "$@" \
		-c -o "$object" "$file")
}

# link DIR RESULT [FLAG...]: everything in DIR. What is missing becomes traps:
# addresses that no access survives, so that reaching one is a failure that can
# be named, and never a wrong answer.
link() {
	local dir=$1 result=$2 missing
	shift 2
	rm -f "$dir/traps.o"
	ld -r -o "$dir.all" "$dir"/*.o
	missing=$(nm -u "$dir.all" | awk '$2 !~ /^(__real_|__per_cpu_(start|data_end)|shim_(traps_|trap_names|nr_traps))/ { print $2 }')
	rm "$dir.all"
	{
		echo '.section .traps, "aw", @nobits'
		echo '.balign 4096'
		echo '.globl shim_traps_start; .hidden shim_traps_start; shim_traps_start:'
		for name in $missing; do
			echo ".globl $name; .hidden $name; $name: .skip 64"
		done
		echo '.balign 4096'
		echo '.globl shim_traps_end; .hidden shim_traps_end; shim_traps_end:'
		echo '.section .rodata'
		echo '.globl shim_trap_names; .hidden shim_trap_names; shim_trap_names:'
		for name in $missing; do
			echo ".asciz \"$name\""
		done
		echo '.balign 4'
		echo '.globl shim_nr_traps; .hidden shim_nr_traps; shim_nr_traps:'
		echo ".long $(wc -w <<<"$missing")"
		echo '.section .note.GNU-stack, "", @progbits'
	} >"$dir/traps.s"
	gcc -c -o "$dir/traps.o" "$dir/traps.s"
	gcc -shared -nostdlib -o "$result" "$@" "$dir"/*.o \
		-Wl,-T,"$shim/percpu.lds" -Wl,-z,noexecstack -Wl,--no-warnings
}

inside() {
	local file lock mutant name like build how
	local tested=(-UNDEBUG -DCONFIG_DEBUG=1)
	local wraps=()

	top=$PWD
	read -ra flags <<<"$(xen_flags)"
	[ "${#flags[@]}" -gt 10 ] || die "no record of how Xen was compiled"

	rm -rf $out
	mkdir -p $out/tested $out/timed $out/mutants
	for lock in {spin,rspin,nrspin}_{lock,unlock}; do
		wraps+=("-Wl,--wrap=_$lock")
	done

	step "hypervisor harness"
	for file in "${files[@]}"; do
		compile "$top/$out/tested" "$file.c" "${tested[@]}"
		compile "$top/$out/timed" "$file.c"
	done
	for file in api heap pod stubs; do
		compile "$top/$out/tested" "$top/$shim/$file.c" "${tested[@]}"
		compile "$top/$out/timed" "$top/$shim/$file.c"
	done
	compile "$top/$out/tested" "$top/$shim/locks.c" "${tested[@]}"
	for file in tested timed; do
		gcc -c -o "$out/$file/entry.o" "$shim/entry.S"
	done
	link $out/tested $out/tested.so "${wraps[@]}"
	link $out/timed $out/timed.so

	# One defect each. The rest, with its traps, is as in tested.so, or in timed.so where
	# what is looked for is what happens without assertions.
	while IFS=$'\t' read -r name file mutant; do
		case $name in '' | '#'*) continue ;; esac
		sed -E "$mutant" "$src/arch/x86/mm/$file.c" >"$out/mutants/$name.c"
		# Not applicable any more: the test program says so.
		! cmp -s "$src/arch/x86/mm/$file.c" "$out/mutants/$name.c" || continue
		like=tested build=("${tested[@]}") how=("${wraps[@]}")
		case $name in broken-*) like=timed build=() how=() ;; esac
		mkdir -p "$out/mutants/$name"
		cp $out/$like/*.o "$out/mutants/$name/"
		compile "$top/$out/mutants/$name" "$top/$out/mutants/$name.c" "${build[@]}" \
			-iquote "$top/$src/arch/x86/mm/$(dirname "$file")" -Wno-error
		mv "$out/mutants/$name/$name.o" "$out/mutants/$name/${file##*/}.o"
		gcc -shared -nostdlib -o "$out/mutants/$name.so" "${how[@]}" \
			"$out/mutants/$name"/*.o -Wl,-T,"$shim/percpu.lds" -Wl,--no-warnings
		rm -r "${out:?}/mutants/$name"
	done <tests/hypervisor/mutants.txt
	step_done
}

case ${1:-} in
--inside)
	inside
	exit 0
	;;
esac

key=$(cat build/xen/out/.key "$0" $shim/* tests/hypervisor/mutants.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat $out/.key 2>/dev/null)" = "$key" ]; then
	exit 0
fi
scripts/in-sysroot.sh scripts/harness.sh --inside
echo "$key" >$out/.key
