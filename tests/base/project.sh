# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# A project with small patches, and sources of a small Xen for it. Sourced by base.sh.

# shellcheck disable=SC2015,SC2016,SC2317  # the stubs expand it; called by what the tests call

pinned=4.20.3-0+deb13u1
real=$PWD
top=$(mktemp -d)
me=(-c user.name=Test -c user.email=test@localhost.invalid -c core.editor=true)

# Nothing of this is to depend on a network.
mkdir "$top/bin"
for name in apt-get apt-cache; do
	printf '#!/bin/sh\necho "%s $*" >>%s/asked\nexit 100\n' "$name" "$top" >"$top/bin/$name"
	chmod +x "$top/bin/$name"
done
PATH=$top/bin:$PATH

# lines FILE: with a word in the middle, which the patches change.
lines() {
	mkdir -p "${1%/*}"
	printf '%s\n' "${1##*/}" 2 3 4 5 6 three 8 9 10 11 12 13 >"$1"
}

# tree VERSION: in $top/tree, Xen as that version has it.
tree() {
	rm -rf "$top/tree"
	lines "$top/tree/xen/a.c"
	lines "$top/tree/xen/b.c"
	lines "$top/tree/xen/c.c"
	lines "$top/tree/tools/t.c"
	case $1 in
	4.20.4*) sed -i '1i new line' "$top/tree/xen/a.c" ;;
	4.20.5* | conflict) sed -i 's/three/trois/' "$top/tree/xen/b.c" ;;
	4.20.7*) sed -i 's/^9$/nine/' "$top/tree/xen/b.c" ;;
	4.20.9*) sed -i 's/three/three b/' "$top/tree/xen/b.c" ;;
	esac
}

# complete DIRECTORY: with all that hv-series.sh looks for.
complete() {
	local file
	for file in Config.mk config/x86_64.mk xen/Makefile xen/Kconfig \
		xen/tools/kconfig/Makefile xen/arch/x86/Makefile xen/include/public/xen.h; do
		mkdir -p "$(dirname "$1/$file")"
		touch "$1/$file"
	done
}

# The changelog up to that version. A remark about an advisory does not count.
changelog_of() {
	local n
	for n in 7 6 5 4 3; do
		[[ 4.20.$n < "$1" ]] || continue
		printf 'xen (4.20.%s-0+deb13u1) trixie-security; urgency=medium\n\n' "$n"
		printf '  * New version\n    - something\n      XSA-90%s CVE-2026-1\n' $((n + 1))
		printf '    - XSA-800 does not concern Debian\n\n -- A <a@b.c>  Tue, 03 Nov 2026 21:11:50 +0100\n\n'
	done
}

# package VERSION: a source package in the archive of that name.
package() {
	local version=$1 orig=xen_${1%-*}.orig.tar.xz debian=xen_$1.debian.tar.xz file

	cd "$top" || return
	tree "$version"
	mv tree "xen-$version"
	tar -cJf "$XEN_ARCHIVE/$orig" "xen-$version"
	rm -r "xen-$version"
	rm -rf debian
	mkdir -p debian/patches
	changelog_of "$version" >debian/changelog
	: >debian/patches/series
	case $version in
	4.20.8*)
		# One that takes away what ours changes.
		printf -- '--- a/tools/t.c\n+++ b/tools/t.c\n@@ -6,3 +6,3 @@\n 6\n-three\n+7\n 8\n' \
			>debian/patches/one.patch
		echo one.patch >debian/patches/series
		;;
	esac
	tar -cJf "$XEN_ARCHIVE/$debian" debian
	{
		printf 'Source: xen\nVersion: %s\nChecksums-Sha256:\n' "$version"
		for file in "$orig" "$debian"; do
			printf ' %s %s %s\n' "$(sha256sum "$XEN_ARCHIVE/$file" | cut -d' ' -f1)" \
				"$(stat -c %s "$XEN_ARCHIVE/$file")" "$file"
		done
	} >"$XEN_ARCHIVE/xen_$version.dsc"
	cd "$OLDPWD" || return
}

# Its source is gone, but there is a package that was built from it.
without() {
	local version=$1 root=$top/deb doc=usr/share/doc/xen-hypervisor-common

	package "$version"
	rm "$XEN_ARCHIVE"/xen_"${version%-*}"*.tar.xz
	rm -rf "$root"
	mkdir -p "$root/DEBIAN" "$root/$doc"
	changelog_of "$version" | gzip >"$root/$doc/changelog.Debian.gz"
	printf '%s\n' 'Package: xen-hypervisor-common' "Version: $version" 'Architecture: amd64' \
		'Maintainer: A <a@b.c>' 'Description: test' >"$root/DEBIAN/control"
	dpkg-deb --root-owner-group -b "$root" \
		"$XEN_ARCHIVE/xen-hypervisor-common_${version}_amd64.deb" >/dev/null
}

# stored NAME: what that archive has, made once.
stored() {
	local XEN_ARCHIVE=$top/stored/$1

	[ ! -d "$XEN_ARCHIVE" ] || return 0
	mkdir -p "$XEN_ARCHIVE"
	case $1 in
	pinned) package "$pinned" ;;
	newer) package 4.20.4-0+deb13u1 ;;
	conflict) package 4.20.5-0+deb13u1 ;;
	missing) without 4.20.6-0+deb13u1 ;;
	context) package 4.20.7-0+deb13u1 ;;
	debian) package 4.20.8-0+deb13u1 ;;
	upstreamed) package 4.20.9-0+deb13u1 ;;
	*) return 1 ;;
	esac
}

# from ARCHIVE...: a new project, and a directory with these as its archive.
from() {
	local name

	project
	export XEN_ARCHIVE=$top/archive
	rm -rf "$XEN_ARCHIVE"
	mkdir "$XEN_ARCHIVE"
	for name in pinned "$@"; do
		stored "$name" && cp "$top/stored/$name"/* "$XEN_ARCHIVE/" || return
	done
}

# patch_of DIRECTORY NUMBER FILE: of one word.
patch_of() {
	local letter=${3##*/}
	letter=${letter%.c}
	cd "$top/tree" || return
	sed -i "s/three/three $letter/" "$3"
	git "${me[@]}" commit -q -a -m "${3%%/*}: $letter: change"
	git format-patch -q --zero-commit --no-signature --no-numbered --no-stat -N -1 \
		--start-number "$2" -o "$1"
	cd "$OLDPWD" || return
}

# stub SCRIPT LINE...: in place of one that builds.
stub() {
	local name=$1
	shift
	printf '%s\n' '#!/bin/bash' "$@" >"$top/template/$name"
	chmod +x "$top/template/$name"
}

# project: a new one, and go there.
project() {
	rm -rf "$top"/{project,calls,asked,other,before} "$top"/no-*
	: >"$top/calls"
	[ -d "$top/template" ] || template
	cp -r "$top/template" "$top/project"
	cd "$top/project" || return
}

template() {
	local p=$top/template name

	mkdir -p "$p/scripts" "$p/hypervisor-patches/toolstack" "$p/build/target/release" \
		"$p/build/xen/dl"
	touch "$p/build/sysroot.stamp"
	for name in lib in-sysroot xen-archive xen-source hv-rebase hv-series; do
		cp "$real/scripts/$name.sh" "$p/scripts/"
	done

	tree "$pinned"
	(cd "$top/tree" && git init -q && git add -A && git "${me[@]}" commit -q -m base)
	patch_of "$p/hypervisor-patches" 1 xen/a.c
	patch_of "$p/hypervisor-patches" 2 xen/b.c
	patch_of "$p/hypervisor-patches" 3 xen/c.c
	patch_of "$p/hypervisor-patches/toolstack" 1 tools/t.c
	(cd "$p/hypervisor-patches" && printf '# The series.\n%s\n%s\n# why it stays\n%s\n' 0*.patch >series &&
		cd toolstack && printf '%s\n' 0*.patch >series)

	stored pinned
	cp "$top/stored/pinned"/*.xz "$p/build/xen/dl/"
	printf 'version: %s\ncommit: none\nsha256: %s\npackaging: %s\n' "$pinned" \
		"$(sha256sum "$p/build/xen/dl/xen_4.20.3.orig.tar.xz" | sed 's|/.*/||')" \
		"$(sha256sum "$p/build/xen/dl/xen_$pinned.debian.tar.xz" | sed 's|/.*/||')" \
		>"$p/hypervisor-patches/UPSTREAM"

	# What asks the compiler: it says no if a file forbids the version.
	stub scripts/xen.sh '. scripts/lib.sh' \
		"[ \"\${1:-}\" != --hypervisor ] || { echo compiled >>$top/calls; exit 0; }" \
		"compile() { [ ! -e $top/no-\${version%-*} ] || return \$does_not_build; }" \
		'version=$(scripts/xen-source.sh version)' \
		'build_or_reject "$version" "it does not build" compile || exec scripts/xen.sh' \
		"echo built \$version >>$top/calls"
	stub scripts/xen-tools.sh "echo tools >>$top/calls"
	stub scripts/harness.sh "echo harness >>$top/calls"
	stub build/target/release/hv-harness '[ "$1" = check ]'
	stub scripts/hv-check.sh "echo hv-check \$(scripts/xen-source.sh version) >>$top/calls"
}
