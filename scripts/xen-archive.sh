# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What Debian's archive has of Xen's source, or a directory in its place, which holds
# what `apt-get source --download-only xen` leaves. To be sourced after lib.sh, not run;
# what is fetched goes to $dl. Asking the archive works in the sysroot only.
# shellcheck disable=SC2034,SC2154  # dl comes from whoever sources this, the rest goes there

# The releases that the series are meant for.
release=4.20

upstream=hypervisor-patches/UPSTREAM
pinned=$(sed -n 's/^version: //p' "$upstream")
pinned_hash=$(sed -n 's/^sha256: \([0-9a-f]*\) .*/\1/p' "$upstream")
pinned_packaging=$(sed -n 's/^packaging: \([0-9a-f]*\) .*/\1/p' "$upstream")

# archive VERSION: the name that Debian gives the upstream source.
archive() {
	echo "xen_${1%-*}.orig.tar.xz"
}

# packaging VERSION: the same of what Debian adds to it.
packaging() {
	echo "xen_$1.debian.tar.xz"
}

# have FILE SHA256
have() {
	[ -e "$dl/$1" ] && echo "$2  $dl/$1" | sha256sum --check --status
}

# newer VERSION THAN
newer() {
	dpkg --compare-versions "$1" gt "$2"
}

# Of the sysroot's, but asked again: that one's index stays as it was when it was made.
# Without a network it is all that there is.
ask() {
	apt=(-q -o "Dir::State::Lists=$PWD/$dl/lists" -o APT::Sandbox::User=root
		-o Acquire::Retries=3)
	rm -rf "$dl/lists"
	mkdir -p "$dl"
	cp -r /var/lib/apt/lists "$dl/lists"
	if apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update >/dev/null 2>&1; then
		date -u +'the archive, asked on %Y-%m-%d' >"$dl/asked"
	else
		echo "the sysroot's package index, since the archive could not be asked" \
			>"$dl/asked"
	fi
}

# get FILE SHA256 DIRECTORY...: from whichever of the mirror's archives has it there.
get() {
	local file=$1 hash=$2 uri path

	! have "$file" "$hash" || return 0
	shift 2
	while read -r uri; do
		for path in "$@"; do
			! /usr/lib/apt/apt-helper "${apt[@]}" download-file \
				"${uri%/}/$path/$file" "$dl/$file" "SHA256:$hash" \
				>/dev/null 2>&1 || return 0
		done
	done < <(targets)
	return 1
}

targets() {
	# shellcheck disable=SC2016  # apt expands it
	apt-get "${apt[@]}" indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' | sort -u
}

# get_pinned FILE SHA256: mirrors keep some versions that the index names no longer.
get_pinned() {
	get "$1" "$2" pool/main/x/xen pool/updates/main/x/xen
}

# The sources in the index, if there are any: VERSION FILE SHA256 DIRECTORY.
indexed() {
	{ apt-cache "${apt[@]}" showsrc --only-source xen 2>/dev/null || true; } | awk '
		/^Version:/ { version = $2 }
		/^Directory:/ { directory = $2 }
		NF == 3 && length($1) == 64 { sum[$3] = $1 }
		/^$/ {
			for (file in sum)
				print version, file, sum[file], directory
			delete sum
		}'
}

# The same of a directory's .dsc files.
described() {
	find "$1" -name 'xen_*.dsc' -exec awk '/^Version:/ { version = $2 }
		NF == 3 && length($1) == 64 { print version, $3, $1, FILENAME }' {} +
}

# candidates FLOOR: of the versions in the input those that count, newest first.
candidates() {
	sort -u | while read -r version; do
		case $version in
		"$release".*) ! newer "$version" "$1" || echo "$version" ;;
		esac
	done | perl -MDpkg::Version -e \
		'print sort { version_compare($b =~ s/\n//r, $a =~ s/\n//r) } <STDIN>'
}

# offer FLOOR [DIRECTORY]: fetch what there is above that version, newest first. One line
# each: the version, a tab, and what is missing, if anything is.
offer() {
	local floor=$1 directory=${2:-} sources version file hash paths problem

	if [ -n "$directory" ]; then
		echo "the directory that XEN_ARCHIVE named" >"$dl/asked"
		sources=$(described "$directory")
	else
		ask
		sources=$(indexed)
	fi
	{
		awk '{ print $1 }' <<<"$sources"
		if [ -z "$directory" ]; then
			{ apt-cache "${apt[@]}" madison "xen-hypervisor-$release-amd64" || true; } |
				awk '/ Packages$/ { print $3 }'
		fi
	} | candidates "$floor" | while read -r version; do
		problem=
		for file in "$(archive "$version")" "$(packaging "$version")"; do
			hash=$(awk -v f="$file" '$2 == f { print $3; exit }' <<<"$sources")
			mapfile -t paths < <(awk -v f="$file" '$2 == f { print $4 }' <<<"$sources")
			if [ -z "$hash" ]; then
				problem="the archive lists no $file"
			elif [ -n "$directory" ]; then
				cp "$directory/$file" "$dl/$file" 2>/dev/null && have "$file" "$hash" ||
					problem="the directory does not have $file, as its .dsc names it"
			else
				get "$file" "$hash" "${paths[@]}" </dev/null ||
					problem="the mirror does not have $file, which its index lists"
			fi
			[ -z "$problem" ] || break
		done
		printf '%s\t%s\n' "$version" "$problem"
	done
}

# changelog VERSION [DIRECTORY]: Debian's, from wherever it can be had.
changelog() {
	local version=$1 directory=${2:-} name=xen-hypervisor-common deb
	local installed=/usr/share/doc/xen-hypervisor-$release-amd64/changelog.Debian.gz

	if [ -e "$dl/$(packaging "$version")" ]; then
		tar -xOf "$dl/$(packaging "$version")" debian/changelog
		return
	fi
	if [ -z "$directory" ]; then
		if [ "$(zcat $installed 2>/dev/null | sed -n '1s/.*(\(.*\)).*/\1/p')" = "$version" ]; then
			zcat "$installed"
			return
		fi
		directory=$dl
		(cd "$dl" && apt-get "${apt[@]}" download "$name=$version") >/dev/null 2>&1 || {
			apt-get "${apt[@]}" changelog "$name=$version" 2>/dev/null
			return
		}
	fi
	# Names have no colon.
	deb=$(find "$directory" -name "${name}_${version/:/%3a}_*.deb" -print -quit)
	[ -n "$deb" ] && dpkg-deb --fsys-tarfile "$deb" |
		tar -xO "./usr/share/doc/$name/changelog.Debian.gz" | zcat
}

# advisories VERSION: of a changelog in the input, the advisories that were answered after
# that version. Those that it names in a remark do not start a line.
advisories() {
	local line version

	while IFS= read -r line; do
		case $line in
		'xen ('*)
			version=${line#xen (}
			newer "${version%%)*}" "$1" || break
			;;
		*) grep -E '^ +XSA-[0-9]' <<<"$line" | grep -oE 'XSA-[0-9]+' || true ;;
		esac
	done | sort -u -V | tr '\n' ' ' | sed 's/ $//'
}
