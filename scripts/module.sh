#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# module.sh KDIR [debug]: build vmbeam.ko against a kernel tree with Rust
# metadata, named relative to the project, and leave it in build/driver/. With
# "debug" build the flavour for tests instead, vmbeam-debug.ko.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

kdir=$1
flavour=${2:+-$2}
obj=build/driver/obj$flavour
step "module: vmbeam$flavour.ko"
mkdir -p "$obj"
scripts/in-sysroot.sh make -s -C "$kdir" M=/src "MO=/src/$obj" \
	CONFIG_DEBUG_INFO_BTF_MODULES= ${2:+VMBEAM_DEBUG=y} modules
cp "$obj/drivers/vmbeam/vmbeam.ko" "build/driver/vmbeam$flavour.ko"
step_done
