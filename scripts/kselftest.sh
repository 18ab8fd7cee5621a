#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the driver's selftests into build/kselftest/.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

step "kselftest: the tests of the driver"
scripts/in-sysroot.sh make -s -C tests/kselftest KDIR=/src/build/kernel/kdir \
	OUTPUT=/src/build/kselftest
step_done
