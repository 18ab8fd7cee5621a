#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The style gates, as TAP. To be run in the sysroot: `make style`.

# shellcheck disable=SC2317  # the gates are called by name

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

number=0
failed=0

# gate NAME COMMAND...: run it; show what it printed only if it failed.
gate() {
	local name=$1 text
	shift
	number=$((number + 1))
	if text=$("$@" 2>&1); then
		echo "ok $number - $name"
	else
		printf '%s\n' "$text" | tail -n 40
		echo "not ok $number - $name"
		failed=1
	fi
}

kdir=build/kernel/kdir
mapfile -t files < <(git -c safe.directory='*' ls-files --cached --others --exclude-standard)

matching() {
	printf '%s\n' "${files[@]}" | grep -E "$1"
}

format_userspace() {
	cargo fmt --manifest-path userspace/Cargo.toml --all --check
}

format_driver() {
	matching '^(drivers|rust)/.*\.rs$' |
		xargs rustfmt --edition 2021 --config-path "$kdir/.rustfmt.toml" --check
}

clippy_userspace() {
	cargo clippy --quiet --locked --manifest-path userspace/Cargo.toml \
		--workspace --all-targets -- -D warnings
}

doc_userspace() {
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps \
		--document-private-items --workspace --manifest-path userspace/Cargo.toml
}

lint_driver() {
	scripts/driver-lint.sh "$kdir" build/driver/obj-lint
}

small_driver_files() {
	matching '^(drivers|rust)/.*\.(rs|c)$' | xargs wc -l |
		awk '$2 != "total" && $1 > 400 { print $2 ": " $1 " lines"; bad = 1 } END { exit bad }'
}

small_programs() {
	matching '^(userspace|tests)/.*\.rs$' | xargs wc -l |
		awk '$2 != "total" && $1 > 600 { print $2 ": " $1 " lines"; bad = 1 } END { exit bad }'
}

# Modules at the top of each crate below these directories and what they use: an order of them
# exists if there is no cycle, and tsort prints it otherwise. Programs in bin/ are one file each.
no_import_cycles() {
	local uses=$PWD/scripts/module-uses.awk dir bad=0
	for dir; do
		(cd "$dir" && find . -name '*.rs' ! -path './bin/*' -printf '%P\n' | sort |
			xargs awk -f "$uses" | tsort >/dev/null) || {
			echo "$dir: the modules above use each other"
			bad=1
		}
	done
	return "$bad"
}

no_panics_in_driver() {
	! matching '^drivers/.*\.rs$' |
		xargs grep -nE '\.unwrap\(\)|\.expect\(|\b(panic|todo|unimplemented|unreachable)!'
}

# The kernel's own vector code is the exception; alloc.rs keeps it in one place.
no_panics_in_object() {
	local text
	text=$(objdump -dr --no-show-raw-insn build/driver/obj-lint/drivers/vmbeam/vmbeam_main.o) || return 1
	echo "$text" | awk '
		/^[0-9a-f]+ <.*>:$/ { name = $2; functions++ }
		/R_X86_64.*panic/ && name !~ /vmbeam_main5alloc|5alloc4kvec/ { print name, $NF; bad = 1 }
		END { exit bad || !functions }'
}

shell_scripts() {
	{
		matching '\.sh$'
		printf '%s\n' .ci/run packaging/dkms/prepare
		matching '^tests/lab/images/[^/]*$'
	} | xargs shellcheck -x
}

checkpatch() {
	# Headers of trace events have a form of their own, and ENOSYS is what
	# a hypervisor says to an operation that it doesn't know.
	matching '^(drivers|tests/kselftest)/.*\.[ch]$' | grep -v '_trace\.h$' | xargs "$kdir/scripts/checkpatch.pl" \
		--root="$kdir" --no-tree --quiet --terse --file --strict --ignore SPDX_LICENSE_TAG,ENOSYS
}

# The programs are not installed where this runs. The daemon's exposure, in tenths,
# is bounded; the agent runs what sets up networks and disks, so its is not.
systemd_units() {
	local dir unit rc=0
	dir=$(mktemp -d) || return 1
	for unit in packaging/systemd/*.service; do
		sed 's|^ExecStart=.*|ExecStart=/bin/true|' "$unit" >"$dir/${unit##*/}"
	done
	systemd-analyze verify --man=no "$dir"/*.service || rc=1
	systemd-analyze security --no-pager --offline=true --threshold=30 \
		"$dir/vmbeamd.service" || rc=1
	rm -r "$dir"
	return "$rc"
}

spdx() {
	local bad=0 file
	for file in "${files[@]}"; do
		case $file in
		LICENSES/* | Documentation/bench-run/* | *.patch | *.lock | *.json | *.svg | *.png | hypervisor-patches/series | hypervisor-patches/UPSTREAM | */cover-letter.txt | */.gitignore | .gitignore | packaging/*/debian/*) continue ;;
		esac
		head -n 5 "$file" | grep -q SPDX-License-Identifier || {
			echo "$file: no SPDX line"
			bad=1
		}
	done
	return "$bad"
}

spelling() {
	matching '\.(rst|md|rs|c|h|sh)$' | xargs codespell --ignore-words-list=crate,fo,inh,inout,ser
}

nothing_built_is_tracked() {
	! matching '\.(ko|o|rmeta|rlib|deb|cmd|mod\.c)$'
}

gate 'rustfmt: userspace and lab' format_userspace
gate 'rustfmt: driver, in the style of the kernel' format_driver
gate 'clippy: userspace and lab, warnings denied' clippy_userspace
gate 'rustdoc: userspace and lab, warnings denied' doc_userspace
gate 'driver, both flavours: rustdoc, lints and warnings of the kernel, W=1 and CLIPPY=1' lint_driver
gate 'driver: no file over 400 lines' small_driver_files
gate 'userspace and tests: no file over 600 lines' small_programs
gate 'driver: no module uses one that uses it' no_import_cycles drivers/vmbeam
gate 'userspace and tests: no module uses one that uses it' no_import_cycles userspace/*/src tests/*/src rust/*/src
gate 'driver: no call that panics' no_panics_in_driver
gate 'driver: no reference to panics in the object file' no_panics_in_object
gate 'shellcheck' shell_scripts
gate 'checkpatch --strict' checkpatch
gate 'systemd units: verified, and the daemon confined' systemd_units
gate 'Documentation: pages without a warning of Sphinx' scripts/docs.sh
gate 'SPDX line in every file' spdx
gate 'codespell' spelling
gate 'nothing that was built is tracked' nothing_built_is_tracked
echo "1..$number"
exit $failed
