#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# module.sh KDIR: build vmbeam.ko against a kernel tree with Rust metadata,
# named relative to the project, and leave it in build/driver/.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

kdir=$1
step "module: vmbeam.ko"
mkdir -p build/driver/obj
scripts/in-sysroot.sh make -s -C "$kdir" M=/src MO=/src/build/driver/obj \
	CONFIG_DEBUG_INFO_BTF_MODULES= modules
cp build/driver/obj/drivers/vmbeam/vmbeam.ko build/driver/vmbeam.ko
step_done
