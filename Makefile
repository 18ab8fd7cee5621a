# SPDX-License-Identifier: GPL-2.0-only
#
# VMBeam. `make help` lists the targets.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/bash
export VMBEAM_STARTED ?= $(shell date +%s)

in_sysroot := scripts/in-sysroot.sh
lab := $(in_sysroot) build/target/release/lab

# A prepared kernel tree to build the driver against; see
# Documentation/build.rst for another kernel than the lab's.
KDIR ?= build/kernel/kdir

.DEFAULT_GOAL := help

## demo: swap a guest VM's memory between two nested systems, verify and time it
.PHONY: demo
demo: images
	@$(lab) demo

## check: run every test; the last line is the verdict
.PHONY: check
check: images
	@$(lab) check $(GROUPS)

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
images: userspace module kselftest xen
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

## module: build vmbeam.ko (KDIR= names another prepared kernel tree)
.PHONY: module
module: kernel
	@scripts/module.sh $(KDIR)

## kselftest: build the driver's selftest
.PHONY: kselftest
kselftest: kernel
	@scripts/kselftest.sh

## userspace: build vmbeam, vmbeamd, vmbeam-agent and the lab
.PHONY: userspace
userspace: sysroot
	@scripts/userspace.sh

## style: formatting, lints, documentation of the code
.PHONY: style
style: kernel
	@$(in_sysroot) scripts/style.sh

## hv-check: the patch series applies and every patch builds
.PHONY: hv-check
hv-check: xen
	@$(in_sysroot) scripts/hv-check.sh

## clean: remove what was built, but keep the sysroot
.PHONY: clean
clean:
	rm -rf build/target build/driver build/kselftest build/images \
		build/xen build/logs build/run build/report

## distclean: remove everything that was built
.PHONY: distclean
distclean:
	rm -rf build

## help: this list
.PHONY: help
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F': ' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo
	@echo "  GUEST_MIB=512 make demo   another guest VM size, 256 to 1024"
