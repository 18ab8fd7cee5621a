#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# xen-config.sh FILE: the options that a hypervisor was built with. It has them inside,
# compressed, for whoever asks it (CONFIG_HYPFS_CONFIG), so that this looks at what would be
# booted, not at a file that lies beside it.

set -euo pipefail

while IFS=: read -r offset _; do
	# What follows in the file is no part of it, which gzip takes for a mistake.
	text=$(tail -c "+$((offset + 1))" "$1" | gzip -dc 2>/dev/null | tr -d '\0') || :
	if [[ $text == *CONFIG_X86_64=y* ]]; then
		echo "$text"
		exit 0
	fi
done < <(LC_ALL=C grep -aobP '\x1f\x8b\x08' "$1")
echo "$1: no hypervisor with its configuration inside" >&2
exit 1
