#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# installed.sh VERSION: the life of the packages in /deb on this system, which is a copy
# that scripts/deb-test.sh made: installed, used, upgraded, removed, purged; and the
# examples that vmbeam has. Prints TAP.

# shellcheck disable=SC2317  # the tests are called by name

set -uo pipefail

version=$1
# shellcheck source=tests/packages/try.sh
. "${0%/*}/try.sh"

# Every file with its contents, but for what apt and dpkg note about themselves.
files() {
	find / -xdev \( -path /deb -o -path /var/cache -o -path /var/log -o -path /var/lib/apt \
		-o -path /var/lib/dpkg -o -path /tmp -o -path /root -o -path /proc \
		-o -path /sys -o -path /dev -o -path /run \) -prune \
		-o -type f -exec sha256sum {} + -o -printf '%y %p %l\n' | sort
}

versions() {
	local program
	for program in vmbeam vmbeamd vmbeam-agent; do
		[ "$("$program" --version)" = "$program $version" ] || return
	done
}

# man PAGE SECTION, without a warning of groff, whole.
page() {
	local text
	text=$(MANWIDTH=80 man --warnings -E UTF-8 "$2" "$1" 2>&1 >/tmp/page) || return
	[ -z "$text" ] || { echo "$1($2): $text"; return 1; }
	grep -q '^SEE ALSO' /tmp/page || { echo "$1($2): cut off"; return 1; }
}

manual() {
	local command commands
	commands=$(vmbeam --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 }
		on && /^  [a-z]/ && $1 != "help" { print $1 }')
	[ "$(wc -w <<<"$commands")" -gt 8 ] || { echo "commands: $commands"; return 1; }
	for command in $commands; do
		page "vmbeam-$command" 1 || return
	done
	page vmbeam 1 && page vmbeamd 8 && page vmbeam-agent 8 && page vmbeamd.toml 5
}

# What bash offers after `vmbeam mig`, and that the others' files are there.
completion() {
	bash -c '. /usr/share/bash-completion/bash_completion
		. /usr/share/bash-completion/completions/vmbeam
		COMP_WORDS=(vmbeam mig) COMP_CWORD=1
		_vmbeam vmbeam mig vmbeam
		[ "${COMPREPLY[*]}" = migrate ]' &&
		grep -q '^#compdef vmbeam' /usr/share/zsh/vendor-completions/_vmbeam &&
		grep -q 'complete -c vmbeam' /usr/share/fish/vendor_completions.d/vmbeam.fish
}

configuration() {
	cp /usr/share/doc/vmbeam/examples/vmbeamd.toml /etc/vmbeam/ && vmbeamd --check-config &&
		echo 'wrong' >/tmp/wrong.toml && ! vmbeamd --check-config --config /tmp/wrong.toml
}

# systemd says nothing about them, with their programs and manual pages there.
units() {
	local text
	text=$(systemd-analyze verify --man=yes vmbeamd.service vmbeam-agent.service 2>&1) &&
		! grep vmbeam <<<"$text"
}

# Only what says so is there: the daemon is not.
directories() {
	rm -rf /run/vmbeam
	systemd-tmpfiles --create vmbeam.conf && [ "$(stat -c %a:%U /run/vmbeam/agents)" = 700:root ]
}

# says UNIT LINE...: it has each of these lines.
says() {
	local line
	for line in "${@:2}"; do
		grep -qx -- "$line" "/usr/lib/systemd/system/$1" || { echo "$1: no $line"; return 1; }
	done
}

# Debian's units are what orders the start of xenstored and of host VMs.
order() {
	says vmbeamd.service 'After=xen.service .*' 'Before=xendomains.service' 'Restart=always' \
		'StartLimitIntervalSec=0' 'Type=notify' && says vmbeam-agent.service 'After=xen.service .*' &&
		says xendomains.service.d/vmbeam.conf 'After=vmbeam-agent.service' \
			'ExecCondition=/usr/sbin/vmbeam-agent --may-start'
}

enabled() {
	[ "$(systemctl is-enabled vmbeamd vmbeam-agent | sort | uniq -c | xargs)" = '2 enabled' ]
}

upgraded() {
	[ "$(dpkg-query -W -f '${Version}\n' vmbeam vmbeam-agent | sort -u)" = "$1" ] &&
		[ -e /etc/vmbeam/vmbeamd.toml ] && enabled
}

next_version() {
	local package
	for package in vmbeam vmbeam-agent; do
		higher "/deb/${package}_${version}_amd64.deb" "$1" || return
	done
}

removed() {
	apt-get -q remove -y vmbeam vmbeam-agent || return
	[ -e /etc/vmbeam/vmbeamd.toml ] || { echo 'the configuration is gone'; return 1; }
	[ -e /var/lib/vmbeam/job ] || { echo 'the journal is gone'; return 1; }
	! command -v vmbeam vmbeamd vmbeam-agent
}

purged() {
	apt-get -q purge -y vmbeam vmbeam-agent && ! dpkg-query -W vmbeam vmbeam-agent 2>/dev/null
}

nothing_left() {
	files >/tmp/after
	diff /tmp/before /tmp/after
}

# shellcheck source=tests/packages/fleet.sh
. "${0%/*}/fleet.sh"

nothing_starts
# A user has the manual pages that the sysroot lacks.
rm -f /etc/dpkg/dpkg.cfg.d/*
{
	apt-get -q update && get systemd man-db groff bash-completion ansible-core
} >/deb/installed.log 2>&1 || { tail -n 20 /deb/installed.log; exit 1; }
files >/tmp/before
mkdir /tmp/next

try 'apt installs them' get "/deb/vmbeam_${version}_amd64.deb" "/deb/vmbeam-agent_${version}_amd64.deb"
try 'the programs are of this version' versions
try 'every command has a manual page that groff does not complain about' manual
try 'shell completions' completion
try 'the example is a configuration' configuration
try 'systemd accepts the units' units
try 'the units are enabled' enabled
try "the directory of the agents' sockets does not need the daemon" directories
try 'the units come in the right order, and always again' order
fleet
# As the daemon would.
mkdir -p /var/lib/vmbeam
touch /var/lib/vmbeam/job
try 'make a higher version' next_version "$version.1"
try 'apt upgrades them' get /tmp/next/vmbeam.deb /tmp/next/vmbeam-agent.deb
try 'with the configuration as it was' upgraded "$version.1"
try 'removal leaves the configuration and the journal, and no program' removed
try 'they can be purged' purged
try 'nothing is left' nothing_left
finish
