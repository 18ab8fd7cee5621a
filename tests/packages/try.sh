# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the tests of the packages share. To be sourced.

number=0
failed=0

# try NAME COMMAND...: show what it printed only if it failed.
try() {
	local name=$1 text
	shift
	number=$((number + 1))
	if text=$("$@" 2>&1); then
		echo "ok $number - $name"
	else
		printf '%s\n' "$text" | tail -n 30
		echo "not ok $number - $name"
		failed=1
	fi
}

finish() {
	echo "1..$number"
	exit "$failed"
}

get() {
	apt-get -q install -y --no-install-recommends "$@"
}

# higher FILE VERSION: what the next version would be, the same package with a higher
# number, in /tmp/next.
higher() {
	local name version
	name=$(dpkg-deb -f "$1" Package)
	version=$(dpkg-deb -f "$1" Version)
	dpkg-deb -R "$1" "/tmp/next/$name" &&
		sed -i "s/$version/$2/g" "/tmp/next/$name/DEBIAN/control" &&
		dpkg-deb -Znone -b "/tmp/next/$name" "/tmp/next/$name.deb" &&
		rm -r "/tmp/next/$name"
}

# What is started by installing would be started on the machine that runs the tests.
nothing_starts() {
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
}
