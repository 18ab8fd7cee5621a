#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the Cargo workspace: VMBeam's programs and the lab's.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

step "userspace: vmbeam, vmbeamd, vmbeam-agent, the lab"
scripts/in-sysroot.sh cargo build --quiet --release --locked --workspace \
	--manifest-path userspace/Cargo.toml
step_done
