#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Take both series to another version of Debian's Xen 4.20 by three-way merges, build them,
# run the harness and hv-check.sh, and print one table of what needs a hand.
#
#   hv-rebase.sh            the newest version whose source the archive has
#   VERSION=  a certain one      FROM=  a directory of source packages instead
#   RESUME=y  go on after conflicts were resolved in build/xen/rebase/repo
#
# Everything is made in build/xen/rebase; how to take it over is said at the end:
#   repo     a git repository with the tags `base`, `new` and a branch for each series on
#            `new`, conflicts committed with their markers
#   patches  the new series and the new UPSTREAM
#   tree     a copy of what builds Xen, with these
#   table    what was printed, and *.log
#
# Exit status 0 only if there is nothing to do but take it over.

set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

work=build/xen/rebase
dl=$work/dl
# shellcheck source=scripts/xen-archive.sh
. scripts/xen-archive.sh

patches=hypervisor-patches
repo=$work/repo
tree=$work/tree
harness=$PWD/build/target/release/hv-harness

in_repo() {
	git -c safe.directory='*' -c user.name=rebase -c user.email=rebase@localhost.invalid \
		-c core.editor=true -c advice.mergeConflict=false -C "$repo" "$@"
}

# row RESULT TEXT: of the table.
row() {
	printf '%-10s %s\n' "$1" "$2" | tee -a "$work/table"
}

# Fetches it, and says in $work/version which one it is.
fetch() {
	local version problem

	mkdir -p "$dl"
	offer "$pinned" "$1" >"$dl/offered"
	while IFS=$'\t' read -r version problem; do
		[ -z "$2" ] || [ "$version" = "$2" ] || continue
		if [ -z "$problem" ]; then
			echo "$version" >"$work/version"
			break
		fi
		row missing "$version: $problem"
	done <"$dl/offered"
	[ -e "$work/version" ] || die "there is no source of ${2:-a version above $pinned}"

	if have "$(archive "$pinned")" "$pinned_hash"; then
		return
	elif [ -e "build/xen/dl/$(archive "$pinned")" ]; then
		cp "build/xen/dl/$(archive "$pinned")" "$dl/"
	elif [ -n "$1" ]; then
		cp "$1/$(archive "$pinned")" "$dl/" 2>/dev/null || true
	else
		get_pinned "$(archive "$pinned")" "$pinned_hash" || true
	fi
	have "$(archive "$pinned")" "$pinned_hash" ||
		die "there is no source of $pinned, from which the series are to be taken away"
}

# commit_source VERSION TAG: as the child of what is there.
commit_source() {
	in_repo rm -rqf --ignore-unmatch .
	tar -C "$repo" --strip-components=1 -xf "$dl/$(archive "$1")"
	in_repo add -A -f
	in_repo commit -q --allow-empty -m "Xen $1"
	in_repo tag "$2"
}

# merge SERIES BRANCH: a row for each patch, how it got there.
merge() {
	local name commit how said

	in_repo checkout -q -b "old-$2" base
	for name in $(series "$1"); do
		in_repo am -q --whitespace=nowarn "$PWD/$1/$name" ||
			die "$name does not apply to $pinned; mend the series first (make hv-check)"
	done
	in_repo checkout -q -b "$2" new
	for name in $(series "$1"); do
		# Both lists are in the same order.
		commit=$(in_repo rev-list --reverse "base..old-$2" |
			sed -n "$(series "$1" | grep -n -x -F "$name" | cut -d: -f1)p")
		how=merged
		if said=$(in_repo apply --check -v "$PWD/$1/$name" 2>&1); then
			how=clean
			! grep -q 'offset' <<<"$said" || how=offset
		fi
		if ! in_repo cherry-pick --allow-empty "$commit" >>"$work/merge.log" 2>&1; then
			how="CONFLICT"
			said=$(in_repo diff --name-only --diff-filter=U | tr '\n' ' ')
			if [ -z "$said" ]; then
				in_repo diff --quiet HEAD || die "see $work/merge.log"
				row 'in there' "$2: $name, which the new version has already"
				in_repo cherry-pick --skip
				continue
			fi
			name+=": $said"
			in_repo add -A -f
			in_repo cherry-pick --continue >>"$work/merge.log"
		fi
		row "$how" "$2: $name"
	done
}

# export_series BRANCH DIRECTORY: remarks in `series` stay before the patch of that subject.
export_series() {
	local line name remarks='' old=$PWD/$2/series
	local -A before=()

	rm -f "$tree/$2"/*.patch "$tree/$2/series"
	in_repo format-patch -q --zero-commit --no-signature --no-numbered --no-stat -N \
		-o "$PWD/$tree/$2" "new..$1"
	while IFS= read -r line; do
		case $line in
		'' | '#'*) remarks+=$line$'\n' ;;
		*)
			# The first ones are about the series.
			if [ ! -e "$tree/$2/series" ]; then
				printf %s "$remarks" >"$tree/$2/series"
			else
				before[${line#*-}]=$remarks
			fi
			remarks=
			;;
		esac
	done <"$old"
	(cd "$tree/$2" && find . -name '*.patch' -maxdepth 1 -printf '%f\n' | sort) |
		while read -r name; do
			printf '%s%s\n' "${before[${name#*-}]:-}" "$name"
		done >>"$tree/$2/series"
}

hash_of() {
	sha256sum "$dl/$1" | cut -d' ' -f1
}

# A copy of what builds Xen, as it would be when this was taken over.
copy_tree() {
	local version=$1 commit

	rm -rf "$tree"
	mkdir -p "$tree/build/xen/dl" "$tree/tests"
	cp -r scripts "$patches" "$tree/"
	[ ! -e tests/hypervisor ] || cp -r tests/hypervisor "$tree/tests/"
	cp build/sysroot.stamp "$tree/build/"
	cp "$dl/$(archive "$version")" "$dl/$(packaging "$version")" "$tree/build/xen/dl/"
	echo "make hv-rebase" >"$tree/build/xen/dl/asked"
	: >"$tree/build/xen/dl/offered"
	export_series hypervisor $patches
	export_series toolstack $patches/toolstack
	commit=$(sed -n 's/.*-g\([0-9a-f]*\)-.*/\1/p' <<<"$version")
	sed -i -e "s/^version: .*/version: $version/" \
		-e "s/^commit: .*/commit: ${commit:-not in the version}/" \
		-e "s/^sha256: .*/sha256: $(hash_of "$(archive "$version")")  $(archive "$version")/" \
		-e "s/^packaging: .*/packaging: $(hash_of "$(packaging "$version")")  $(packaging "$version")/" \
		"$tree/$upstream"
	rm -rf "$work/patches"
	mkdir -p "$work/patches/toolstack"
	cp "$tree/$patches"/{UPSTREAM,series,*.patch} "$work/patches/"
	cp "$tree/$patches/toolstack"/* "$work/patches/toolstack/"
}

# prove NAME COMMAND...: in the copy.
prove() {
	local name=$1
	shift
	if (cd "$tree" && unset XEN_ARCHIVE && "$@") >"$work/$name.log" 2>&1; then
		row ok "$name"
	else
		row FAILED "$name: see $work/$name.log"
	fi
}

# unresolved BRANCH: whether there are conflict markers.
unresolved() {
	in_repo grep -q -E '^(<{7}|>{7}) ' "$1" --
}

try_harness() {
	scripts/harness.sh && "$harness" check
}

prove_all() {
	local version=$1

	if unresolved hypervisor; then
		row 'not tried' "hypervisor, harness and hv-check, since there are conflicts"
	else
		prove hypervisor scripts/xen.sh
		prove harness try_harness
		prove hv-check scripts/hv-check.sh
	fi
	if unresolved toolstack; then
		row 'not tried' "toolstack, since there are conflicts"
	else
		prove toolstack scripts/xen-tools.sh
	fi
	prove deb-xen-patches scripts/xen-source.sh fits "$version"
}

# inside DIRECTORY VERSION RESUME
inside() {
	local version

	if [ -z "$3" ]; then
		fetch "$1" "$2"
		version=$(cat "$work/version")
		step "Both series, from $pinned to $version"
		mkdir "$repo"
		in_repo init -q -b sources
		commit_source "$pinned" base
		commit_source "$version" new
		merge "$patches" hypervisor
		merge "$patches/toolstack" toolstack
		step_done
	else
		version=$(cat "$work/version")
		: >"$work/table"
	fi
	copy_tree "$version"
	step "Built and tried with $version"
	prove_all "$version"
	step_done
}

verdict() {
	printf '\nBoth series, from %s to %s:\n\n' "$pinned" "$(cat $work/version)"
	cat "$work/table"
	echo
	if grep -qE '^(CONFLICT|not tried)' "$work/table"; then
		cat <<-TEXT
		Conflicts are committed with their markers in $repo, on the branches hypervisor
		and toolstack: resolve them with \`git rebase -i new\` there. Then: make hv-rebase RESUME=y
		TEXT
		exit 1
	fi
	cat <<-TEXT
	To take it over:
	    rm $patches/{,toolstack/}*.patch && cp -r $work/patches/. $patches/
	Then make check, and Documentation/hypercall.rst says for which base the series is.
	TEXT
	! grep -q '^FAILED' "$work/table" || exit 1
}

case ${1:-} in
--inside)
	inside "$2" "$3" "$4"
	exit
	;;
esac
if [ -z "${RESUME:-}" ]; then
	rm -rf $work
	mkdir -p $work
	: >$work/table
	if [ -n "${FROM:-}" ]; then
		[ -d "$FROM" ] || die "FROM: there is no directory $FROM"
		cp -rL "$FROM" $work/from
	fi
else
	[ -e $repo ] || die "there is nothing to resume"
fi
from=
[ ! -e $work/from ] || from=$work/from
scripts/in-sysroot.sh scripts/hv-rebase.sh --inside "$from" "${VERSION:-}" "${RESUME:-}"
verdict
