# SPDX-License-Identifier: GPL-2.0-only
#
# VMBeam. `make help` lists the targets.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/bash
export VMBEAM_STARTED ?= $(shell date +%s)
# A directory of source packages of Xen to build from instead of Debian's archive.
export XEN_ARCHIVE

in_sysroot := scripts/in-sysroot.sh
lab := $(in_sysroot) build/target/release/lab

# A prepared kernel tree to build the driver against; see
# Documentation/build.rst for another kernel than the lab's.
KDIR ?= build/kernel/kdir

.DEFAULT_GOAL := help

## demo: swap a guest VM's memory between two nested systems, verify and time it
.PHONY: demo
demo: images
	@scripts/xen-source.sh notice
	@$(lab) demo

## demo-rejuvenate: replace the guest hypervisor under three running guest VMs
.PHONY: demo-rejuvenate
demo-rejuvenate: images xen-tools-old
	@$(lab) rejuvenate

## demo-replace: replace a host VM under three running guest VMs
.PHONY: demo-replace
demo-replace: images xen-tools-old
	@$(lab) replace

## check: run every test; the last line is the verdict
.PHONY: check
check: images harness xen-debug
	@$(lab) check $(GROUPS)

## races: races, fuzzing and latency of the hypercall, long form (ARGS=), with bounds of time
.PHONY: races
races: images xen-debug
	@$(lab) races $(if $(ARGS),"$(ARGS)")

## races-mutants: defects in the hypervisor that the races must find (MUTANT=)
.PHONY: races-mutants
races-mutants: images xen-debug
	@$(lab) mutants $(MUTANT)

## ept-mutants: defects in the hypervisor that must be found on Intel's EPT (MUTANT=)
.PHONY: ept-mutants
ept-mutants: images xen-debug
	@$(lab) mutants --ept $(MUTANT)

## driver-mutants: defects in the driver that its tests must find (MUTANT=, LANES=)
.PHONY: driver-mutants
driver-mutants: userspace kernel kselftest
	@$(lab) driver-mutants $(if $(LANES),--lanes $(LANES)) $(MUTANT)

## check-long: the same with the long forms of the tests that have one
.PHONY: check-long
check-long: images harness xen-debug deb-programs deb-dkms-install deb-xen xen-tools-old trace-tools installed-disks
	@$(lab) check --long $(GROUPS)

## installed-disks: the disks of Debian hosts and management VMs for the group `installed`
.PHONY: installed-disks
installed-disks: images deb-programs deb-dkms deb-xen
	@scripts/installed.sh

## coverage: which lines of the driver its tests reach, in a plain VM
.PHONY: coverage
coverage: images
	@$(lab) coverage

## lab: boot the whole topology and leave it open to you
.PHONY: lab
lab: images
	@$(lab) open

## lab-soak: boot the whole topology N times (default 10) and count failures
.PHONY: lab-soak
N ?= 10
lab-soak: images
	@$(lab) soak $(N)

## images: build everything and the images of the lab's machines
.PHONY: images
images: userspace module module-debug kselftest xen xen-tools
	@scripts/deb.sh
	@$(lab) images

## sysroot: make the Debian 13 sysroot in which everything is built
.PHONY: sysroot
sysroot:
	@scripts/sysroot.sh

## kernel: fetch Debian's kernel and regenerate its Rust metadata
.PHONY: kernel
kernel: sysroot
	@scripts/kernel.sh

## xen: fetch Debian's Xen source, apply hypervisor-patches/, build it
.PHONY: xen
xen: sysroot
	@scripts/xen.sh

## xen-tools: build the toolstack of the guest management VMs
.PHONY: xen-tools
xen-tools: sysroot
	@scripts/xen-tools.sh

## xen-tools-old: the same for Xen 4.17, which the maintenance job replaces
.PHONY: xen-tools-old
xen-tools-old: sysroot
	@scripts/xen-tools.sh 4.17

## xen-debug: the same hypervisor with assertions, for races
.PHONY: xen-debug
xen-debug: sysroot
	@XEN_DEBUG=y scripts/xen.sh

## module: build vmbeam.ko (KDIR= names another prepared kernel tree)
.PHONY: module
module: kernel
	@scripts/module.sh $(KDIR)

## module-debug: build vmbeam-debug.ko, the driver with faults on request
.PHONY: module-debug
module-debug: kernel
	@scripts/module.sh $(KDIR) debug

## kernel-tree: the driver as a patch to the kernel, built in its source without a warning
.PHONY: kernel-tree
kernel-tree: kernel
	@scripts/kernel-tree.sh

## deb: build all packages into build/deb/ and run lintian on them
.PHONY: deb
deb: deb-programs deb-dkms deb-xen

## deb-programs: vmbeam and vmbeam-agent alone
.PHONY: deb-programs
deb-programs: userspace
	@scripts/deb.sh lint

## deb-xen: Debian's packages of Xen with our patches, and lintian on them
.PHONY: deb-xen
deb-xen: sysroot
	@scripts/deb-xen.sh lint

## deb-test: install, upgrade and remove the packages but the driver's, on a copy
.PHONY: deb-test
deb-test: deb-programs deb-xen
	@scripts/deb-test.sh
	@scripts/deb-test.sh xen

## deb-dkms: build vmbeam-dkms_*.deb into build/deb/ and run lintian on it
.PHONY: deb-dkms
deb-dkms: kernel
	@scripts/deb-dkms.sh

## deb-dkms-install: also install it with apt beside the lab's kernel
.PHONY: deb-dkms-install
deb-dkms-install: kernel
	@scripts/deb-dkms.sh install

## deb-dkms-test: and load what DKMS built, in a plain VM and on the patched Xen
.PHONY: deb-dkms-test
deb-dkms-test: images deb-dkms-install
	@$(lab) load build/deb/vmbeam.ko

## trace-tools: fetch perf, trace-cmd and bpftrace for a test of check-long
.PHONY: trace-tools
trace-tools: sysroot
	@scripts/trace-tools.sh

## kernel-matrix: build the driver for the kernel of another suite: SUITE=sid
.PHONY: kernel-matrix
SUITE ?= sid
kernel-matrix:
	@scripts/kernel-matrix.sh $(SUITE)

## kselftest: build the driver's selftest
.PHONY: kselftest
kselftest: kernel
	@scripts/kselftest.sh

## userspace: build vmbeam, vmbeamd, vmbeam-agent and the lab
.PHONY: userspace
userspace: sysroot
	@scripts/userspace.sh

## model: check the state machine of migrations: what can go wrong at every command
.PHONY: model
model: sysroot
	@$(in_sysroot) scripts/model.sh

## report-check: whether the report's page can be read, at three widths, by Chromium
.PHONY: report-check
report-check: userspace
	@scripts/report-check.sh

## docs: the documentation as HTML, in build/docs/html
.PHONY: docs
docs: sysroot
	@scripts/docs.sh

## style: formatting, lints, documentation of the code
.PHONY: style
style: kernel
	@$(in_sysroot) scripts/style.sh

## harness: build the hypervisor harness (user space, no boot)
.PHONY: harness
harness: xen userspace
	@scripts/harness.sh

## hv-property: random swaps in the harness: SEED=, OPS=, ARGS=--ept
.PHONY: hv-property
SEED ?= 1
OPS ?= 1000000
hv-property: harness
	@$(in_sysroot) build/target/release/hv-harness property --seed $(SEED) --ops $(OPS) $(ARGS)

## bench-hv: time the hypercall on this CPU, without a boot, against its targets
.PHONY: bench-hv
bench-hv: harness
	@$(in_sysroot) build/target/release/hv-harness bench --verdict

## bench: measure everything, in the lab and without; build/report/bench/index.html
.PHONY: bench
bench: images harness
	@rm -rf build/report/bench build/report/bench-hv.json
	@rc=0; for part in "lab bench" "hv-harness bench" "bench scale" "bench lists" \
			"bench pause" "bench report"; do \
		$(in_sysroot) build/target/release/$$part || rc=1; \
	done; [ $$rc = 0 ] || echo "bench: FAILED in part, see above"; exit $$rc

## hv-check: the patch series applies and every patch builds
.PHONY: hv-check
hv-check: xen
	@$(in_sysroot) scripts/hv-check.sh

## hv-suite: does the series apply to another suite's Xen? (SUITE=, sid)
.PHONY: hv-suite
SUITE ?= sid
hv-suite: sysroot
	@scripts/hv-suite.sh $(SUITE)

## hv-series: does the series apply to a tree of Xen? (BASE=path, REV=, SERIES=directory)
.PHONY: hv-series
hv-series: sysroot
	@REV="$(REV)" scripts/hv-series.sh "$(BASE)" $(SERIES)

## hv-rebase: take both series to a newer Xen 4.20, by merging (VERSION=, FROM=directory)
.PHONY: hv-rebase
hv-rebase: sysroot userspace
	@VERSION="$(VERSION)" FROM="$(FROM)" RESUME="$(RESUME)" scripts/hv-rebase.sh

## clean: remove what was built, but keep the sysroot
.PHONY: clean
clean:
	rm -rf build/target build/driver build/kselftest build/images build/xen-tools \
		build/xen-tools-4.17/out build/xen-tools-4.17/src build/harness build/logs build/run build/report \
		build/deb build/docs build/mutants-driver build/kernel-tree build/matrix
	find build/xen -mindepth 1 -maxdepth 1 ! -name dl -exec rm -rf {} +

## distclean: remove everything that was built
.PHONY: distclean
distclean:
	rm -rf build

## help: this list
.PHONY: help
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F': ' '{ printf "  make %-16s %s\n", $$1, $$2 }'
	@echo
	@echo "  GUEST_MIB=512 make demo   another guest VM size, 256 to 1024"
