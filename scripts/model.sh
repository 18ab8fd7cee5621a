#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Check the state machine of migrations as a model; the last line is the verdict. To be run in
# the sysroot: `make model`.

set -euo pipefail
cd "$(dirname "$0")/.."

if text=$(cargo test --quiet --locked --manifest-path userspace/Cargo.toml \
	-p vmbeam-migration --test model -- --nocapture --test-threads=1 2>&1); then
	printf '%s\n' "$text" | grep -E '^  |states, [0-9]+ violations'
else
	printf '%s\n' "$text"
	exit 1
fi
