#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Which source of Xen is built (scripts/xen-source.sh), and how the series get to another
# one (scripts/hv-rebase.sh, scripts/hv-series.sh): on a project with small patches, small
# sources and directories of these as the archive. What compiles is replaced by what notes
# that it was asked. Prints TAP. To be run in the sysroot.

# shellcheck disable=SC2317  # the tests are called by name

set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
[ -n "${VMBEAM_IN_SYSROOT:-}" ] || { echo "base.sh: run it by scripts/in-sysroot.sh" >&2; exit 1; }
# shellcheck source=tests/packages/try.sh
. tests/packages/try.sh
# shellcheck source=tests/base/project.sh
. tests/base/project.sh

# source_is VERSION NEWEST: what is taken, and whether it says that there is a newer one.
source_is() {
	[ "$(scripts/xen-source.sh version)" = "$1" ] &&
		[ "$(scripts/xen-source.sh show newest)" = "$2" ] && return
	cat build/xen/dl/choice
	return 1
}

says() {
	scripts/xen-source.sh notice >"$top/notice"
	grep -q -F -e "$1" "$top/notice" || { cat "$top/notice"; return 1; }
}

nothing_newer() {
	from pinned && source_is "$pinned" '' && says "$pinned, the newest"
}

newer_is_taken() {
	from newer && source_is 4.20.4-0+deb13u1 '' && scripts/xen-source.sh unpack out &&
		grep -q 'new line' out/xen/a.c
}

# Nothing is asked again: the archive may be gone.
stays() {
	newer_is_taken && rm -r "$XEN_ARCHIVE" && unset XEN_ARCHIVE &&
		source_is 4.20.4-0+deb13u1 '' && [ ! -e "$top/asked" ]
}

packaged() {
	from newer && scripts/xen-source.sh debian out && [ -e out/debian/changelog ]
}

without_source() {
	from missing && source_is "$pinned" 4.20.6-0+deb13u1 && says 'NOT the newest' &&
		says 'does not have xen_4.20.6.orig.tar.xz'
}

# Those that its changelog names as fixed after the pinned one, and no others.
lacks() {
	from missing && says 'missing security updates: XSA-905 XSA-906 XSA-907' &&
		[ "$(scripts/xen-source.sh show lacks)" = 'XSA-905 XSA-906 XSA-907' ]
}

damaged() {
	from newer && echo >>"$XEN_ARCHIVE/xen_4.20.4.orig.tar.xz" &&
		source_is "$pinned" 4.20.4-0+deb13u1 && says 'as its .dsc names it'
}

misfit() {
	from conflict && source_is "$pinned" 4.20.5-0+deb13u1 &&
		says 'hypervisor-patches/0002-xen-b-change.patch does not apply'
}

# Two lines of context differ, which patch(1) would let pass.
fuzz() {
	from context && source_is "$pinned" 4.20.7-0+deb13u1 && says 'does not apply'
}

only_after_debians() {
	from debian && source_is "$pinned" 4.20.8-0+deb13u1 && says 'after those of Debian'
}

next_best() {
	from newer conflict missing && source_is 4.20.4-0+deb13u1 4.20.6-0+deb13u1 &&
		says 'not taken: 4.20.6' && says 'not taken: 4.20.5' &&
		[ "$(scripts/xen-source.sh show lacks)" = 'XSA-906 XSA-907' ]
}

other_releases() {
	from newer && sed 's/4\.20\.4/4.21.0/' "$XEN_ARCHIVE/xen_4.20.4-0+deb13u1.dsc" \
		>"$XEN_ARCHIVE/xen_4.21.0-0+deb13u1.dsc" && source_is 4.20.4-0+deb13u1 ''
}

# As a failed build does it.
rejected() {
	from newer && scripts/xen.sh >"$top/log" 2>&1 && grep -q 'built 4.20.4' "$top/calls" &&
		: >"$top/calls" && touch "$top/no-4.20.4" && scripts/xen.sh >"$top/log" 2>&1 &&
		grep -q "built $pinned" "$top/calls" && source_is "$pinned" 4.20.4-0+deb13u1 &&
		says 'not taken: 4.20.4-0+deb13u1: it does not build'
}

# Then it is not the newer one's fault.
neither_builds() {
	from newer && touch "$top/no-4.20.4" "$top/no-4.20.3" && ! scripts/xen.sh >"$top/log" 2>&1 &&
		grep -q 'error: Xen 4.20.3' "$top/log" && source_is 4.20.4-0+deb13u1 ''
}

changed_series() {
	rejected && sed -i 's/^Subject: /&again /' hypervisor-patches/0002-*.patch &&
		source_is 4.20.4-0+deb13u1 ''
}

# There is neither, and no network.
nothing_at_all() {
	from conflict && rm build/xen/dl/*.orig.tar.xz && sed -i 's/^sha256: ..../sha256: 0000/' \
		hypervisor-patches/UPSTREAM && ! scripts/xen-source.sh version >"$top/log" 2>&1 &&
		grep -q '0002-xen-b-change.patch does not apply' "$top/log" &&
		grep -q 'make hv-rebase' "$top/log" && return
	cat "$top/log"
	return 1
}

no_network() {
	project && unset XEN_ARCHIVE && source_is "$pinned" '' && says 'could not be asked'
}

# rebase STATUS [ASSIGNMENT...]
rebase() {
	local want=$1 rc=0
	shift
	env FROM="$XEN_ARCHIVE" "$@" scripts/hv-rebase.sh >"$top/rebase" 2>&1 || rc=$?
	[ "$rc" = "$want" ] || { echo "status $rc"; cat "$top/rebase" build/xen/rebase/*.log; return 1; }
}

# in_table ROW: it is there.
in_table() {
	grep -q -E "^$1" build/xen/rebase/table || { cat build/xen/rebase/table; return 1; }
}

rebased() {
	from newer && rebase 0 && in_table 'offset +hypervisor: 0001' &&
		in_table 'clean +hypervisor: 0002' && in_table 'clean +toolstack: 0001' &&
		in_table 'ok +hypervisor$' && in_table 'ok +harness' && in_table 'ok +hv-check' &&
		in_table 'ok +toolstack$' && in_table 'ok +deb-xen-patches' &&
		grep -q 'hv-check 4.20.4' "$top/calls"
}

# With the command that it prints.
taken_over() {
	rebased && cp -r hypervisor-patches "$top/before" || return
	bash -c "$(grep '^ *rm hypervisor-patches' "$top/rebase")" || return
	grep -q '^version: 4.20.4-0+deb13u1$' hypervisor-patches/UPSTREAM &&
		diff "$top/before/series" hypervisor-patches/series || return
	rm -r build/xen/dl && mkdir -p build/xen/dl &&
		cp "$XEN_ARCHIVE"/*4.20.4*.xz build/xen/dl/ &&
		source_is 4.20.4-0+deb13u1 '' && scripts/xen-source.sh unpack out &&
		patch -d out -p1 -F0 <hypervisor-patches/0001-xen-a-change.patch >"$top/log" &&
		! grep offset "$top/log"
}

rebase_without_source() {
	from missing && rebase 1 && grep -q 'does not have xen_4.20.6.orig.tar.xz' "$top/rebase" &&
		grep -q 'there is no source of a version above' "$top/rebase"
}

rebase_named() {
	from newer conflict missing && rebase 0 VERSION=4.20.4-0+deb13u1 &&
		in_table 'offset +hypervisor: 0001' && from newer &&
		rebase 1 VERSION=4.20.5-0+deb13u1 &&
		grep -q 'there is no source of 4.20.5' "$top/rebase"
}

rebase_merges() {
	from context && rebase 0 && in_table 'merged +hypervisor: 0002' && in_table 'ok +hypervisor$'
}

rebase_conflicts() {
	from conflict && rebase 1 && in_table 'CONFLICT +hypervisor: 0002.*xen/b.c' &&
		in_table 'clean +hypervisor: 0003' && in_table 'not tried +hypervisor' &&
		in_table 'ok +toolstack$' && ! grep -q hv-check "$top/calls"
}

resolved() {
	rebase_conflicts && cd build/xen/rebase/repo && git checkout -q hypervisor~1 &&
		sed -i -e '/^<<<<<<<\|^=======\|^>>>>>>>/d' xen/b.c &&
		git "${me[@]}" commit -q --amend --all --no-edit &&
		git "${me[@]}" rebase -q --onto HEAD hypervisor~1 hypervisor &&
		cd ../../../.. && rebase 0 RESUME=y && in_table 'ok +hypervisor$' &&
		grep -q 'hv-check 4.20.5' "$top/calls"
}

already_there() {
	from upstreamed && rebase 0 && in_table 'in there +hypervisor: 0002' &&
		[ ! -e build/xen/rebase/tree/hypervisor-patches/0003-xen-c-change.patch ] &&
		grep -q '^0002-xen-c-change.patch' build/xen/rebase/tree/hypervisor-patches/series &&
		grep -q '^# why it stays' build/xen/rebase/tree/hypervisor-patches/series
}

does_not_build() {
	from newer && touch "$top/no-4.20.4" && rebase 1 && in_table 'FAILED +hypervisor:'
}

# tried BASE: what hv-series.sh says about a tree.
tried() {
	scripts/hv-series.sh "$@" >"$top/series"
}

series_applies() {
	project && tree "$pinned" && complete "$top/tree" && tried "$top/tree" &&
		[ "$(grep -c '^ok - 000' "$top/series")" = 4 ] &&
		grep -q '^ok - the hypervisor builds$' "$top/series" && grep -q compiled "$top/calls"
}

series_goes_on() {
	project && tree conflict && complete "$top/tree" && ! tried "$top/tree" &&
		grep -q '^not ok - 0002' "$top/series" && grep -q '^ok - 0003' "$top/series" &&
		grep -q 'SKIP not all patches apply' "$top/series"
}

series_on_checkout() {
	project && tree "$pinned" && cd "$top/tree" && git init -q && git add -A &&
		git "${me[@]}" commit -q -m tree && echo broken >xen/b.c && cd "$OLDPWD" &&
		tried "$top/tree" && grep -q 'SKIP the checkout is not complete' "$top/series" &&
		grep -qx broken "$top/tree/xen/b.c"
}

series_of_a_directory() {
	project && tree conflict && cp -r hypervisor-patches "$top/other" &&
		sed -i 's/^0002.*//' "$top/other/series" && tried "$top/tree" "$top/other" &&
		! grep -q 0002 "$top/series"
}

# One that shares patches with another and has a patch of its own in place of one. All of its
# toolstack's are those of the other.
series_of_another_base() {
	project && tree conflict && complete "$top/tree" && mkdir -p hypervisor-patches/new/toolstack &&
		sed 's/three/trois/' hypervisor-patches/0002-*.patch \
			>hypervisor-patches/new/0002-xen-b-change.patch &&
		sed -e '/^#/d' -e 's,^,../,' -e 's,../0002.*,0002-xen-b-change.patch,' \
			hypervisor-patches/series >hypervisor-patches/new/series &&
		sed 's,^,../../toolstack/,' hypervisor-patches/toolstack/series \
			>hypervisor-patches/new/toolstack/series &&
		tried "$top/tree" hypervisor-patches/new &&
		[ "$(grep -c '^ok - 000' "$top/series")" = 4 ] &&
		grep -q '^ok - the hypervisor builds$' "$top/series"
}

series_without_a_patch() {
	project && tree "$pinned" && mkdir hypervisor-patches/new &&
		echo ../0009-none.patch >hypervisor-patches/new/series &&
		! scripts/hv-series.sh "$top/tree" hypervisor-patches/new >"$top/series" 2>&1 &&
		grep -q 'new/series names ../0009-none.patch' "$top/series"
}

try 'no newer source: the pinned one, and it is the newest' nothing_newer
try 'a newer source that the series applies to is taken' newer_is_taken
try 'what was chosen stays when the archive is gone' stays
try 'its packaging is there too' packaged
try 'a newer source that is missing: the pinned one, and it says so' without_source
try 'the security updates that it lacks are named' lacks
try 'a source with another hash than the index has is not taken' damaged
try 'a newer source that a patch does not apply to: the pinned one' misfit
try 'nor one that a patch applies to with fuzz' fuzz
try 'nor one that the packages could not be built from' only_after_debians
try 'the newest of several that fits' next_best
try 'only 4.20' other_releases
try 'one that does not build is not taken' rejected
try 'unless the pinned one does not build either' neither_builds
try 'it is tried again with another series' changed_series
try 'no source at all: says what to do' nothing_at_all
try 'without a network: the pinned one, and it says so' no_network
try 'hv-rebase: table, builds, harness, hv-check' rebased
try 'hv-rebase: can be taken over with the command that it prints' taken_over
try 'hv-rebase: a source that is missing' rebase_without_source
try 'hv-rebase: a version that is named' rebase_named
try 'hv-rebase: merges where the context changed' rebase_merges
try 'hv-rebase: a conflict, and the rest of the series' rebase_conflicts
try 'hv-rebase: goes on when it is resolved' resolved
try 'hv-rebase: a patch that the new version has' already_there
try 'hv-rebase: says that it does not build' does_not_build
try 'hv-series: applies and is compiled' series_applies
try 'hv-series: goes on after a patch that does not apply' series_goes_on
try 'hv-series: a checkout, which is not changed' series_on_checkout
try 'hv-series: another series' series_of_a_directory
try 'hv-series: one that shares patches with another' series_of_another_base
try 'hv-series: one that names a patch which is not there' series_without_a_patch
rm -rf "$top"
finish
