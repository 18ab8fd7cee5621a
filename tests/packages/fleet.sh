# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# The examples for many hosts: the Ansible playbook, with the program and with reports of
# it (reports/, which a test of the program writes), and the units of systemd. Sourced
# by installed.sh.

# shellcheck disable=SC2317  # the tests are called by name

examples=/usr/share/doc/vmbeam/examples
reports=${0%/*}/reports

# host_vm FILE: a configuration of host VM A.
host_vm() {
	printf '%s\n' 'name = "A"' 'memory = 512' >"$1"
}

# playbook [OPTION...]: run it on two hosts, which both are this one.
playbook() {
	cat >/tmp/hosts <<-'HOSTS'
	[xen]
	one
	two
	[xen:vars]
	ansible_connection=local
	ansible_become=false
	ansible_python_interpreter=/usr/bin/python3
	HOSTS
	host_vm /tmp/A.cfg
	ANSIBLE_NOCOLOR=1 ansible-playbook -i /tmp/hosts "$examples/rejuvenate.yml" \
		-e host_vm=A -e config=/tmp/A.cfg "$@"
}

# reporting LOOK STATUS RUN STATUS [OPTION...]: run it with a vmbeam that gives these reports,
# and notes how often it was asked.
reporting() {
	mkdir -p /tmp/reporting
	: >/tmp/calls
	cat >/tmp/reporting/vmbeam <<-PROGRAM
	#!/bin/sh
	echo "\$*" >>/tmp/calls
	case \$* in
	*' A --config /tmp/A.cfg --dry-run --json') cat $reports/$1; exit $2 ;;
	*' A --config /tmp/A.cfg --json') cat $reports/$3; exit $4 ;;
	esac
	exit 2
	PROGRAM
	chmod +x /tmp/reporting/vmbeam
	PATH=/tmp/reporting:$PATH playbook "${@:5}" >/tmp/playbook.txt 2>&1
}

# The real program accepts what the playbook says, and there is no daemon.
playbook_fits() {
	local way
	playbook --syntax-check || return
	for way in rejuvenate replace; do
		! playbook -e way=$way >/tmp/playbook.txt 2>&1 || return
		grep -q 'cannot reach vmbeamd' /tmp/playbook.txt || { cat /tmp/playbook.txt; return 1; }
	done
}

# both_hosts COMMAND LOOK RUN [OPTION...]
both_hosts() {
	reporting "$2" 0 "$3" 0 "${@:4}" && [ "$(grep -c "^$1 A" /tmp/calls)" = 4 ] &&
		grep -q 'Fake 1.0 -> Fake 2.0' /tmp/playbook.txt && return
	cat /tmp/playbook.txt
	return 1
}

# stops CALLS TEXT LOOK STATUS RUN STATUS [OPTION...]: at the first host, after so many calls,
# and says why.
stops() {
	! reporting "${@:3}" && [ "$(wc -l </tmp/calls)" = "$1" ] &&
		grep -q "$2" /tmp/playbook.txt && return
	cat /tmp/playbook.txt
	return 1
}

timer() {
	local text command status way
	cp "$examples"/vmbeam-rejuvenate@.* /etc/systemd/system/ || return
	if ! text=$(systemd-analyze verify --man=yes vmbeam-rejuvenate@A.service \
		vmbeam-rejuvenate@A.timer 2>&1) || grep vmbeam <<<"$text"; then
		echo "$text"
		return 1
	fi
	command=$(sed -n 's/^ExecStart=//p' "$examples/vmbeam-rejuvenate@.service")
	rm /etc/systemd/system/vmbeam-rejuvenate@.*
	mkdir -p /etc/xen
	host_vm /etc/xen/A.cfg
	for way in rejuvenate replace; do
		text=${command//%i/A}
		text=$(${text//\$WAY/$way} 2>&1)
		status=$?
		# It got as far as the daemon, which is not there: the arguments are right.
		if [ "$status" != 1 ] || ! grep -q 'cannot reach vmbeamd' <<<"$text"; then
			echo "$status: $text"
			return 1
		fi
	done
	rm /etc/xen/A.cfg
}

# The device model of the new host VM is in the unit's group: the unit must not end it, and
# a restart of vmbeamd must not end the unit.
survives() {
	local unit=$examples/vmbeam-rejuvenate@.service
	grep -qx 'KillMode=process' "$unit" && grep -qx 'Wants=vmbeamd.service' "$unit" &&
		! grep -E '^(Requires|BindsTo|PartOf|RemainAfterExit)=' "$unit"
}

fleet() {
	try 'the playbook is right, and the program understands it' playbook_fits
	try 'it does one host after the other' both_hosts rejuvenate look.json done.json
	try 'the same with replacements' \
		both_hosts replace replace-look.json replace-done.json -e way=replace
	try 'it stops where a new host VM was of no use' \
		stops 2 'ended at create' replace-look.json 0 replace-undone.json 4 -e way=replace
	try 'it stops if something is in the way' \
		stops 1 'second does not run' blocked.json 3 done.json 0
	try 'it stops where a host VM does not come back' \
		stops 2 'ended at create' look.json 0 stuck.json 5
	try 'it stops if the command fails' stops 2 'FAILED' look.json 0 done.json 1
	try 'systemd accepts the timer and what it starts, and that reaches for the daemon' timer
	try 'the host VM that it has created outlives it' survives
}
