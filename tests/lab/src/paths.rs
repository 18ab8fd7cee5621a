// SPDX-License-Identifier: GPL-2.0-only

//! Where things are. The harness runs in the sysroot with the project at `/src`.

use std::path::PathBuf;

/// A file under `build/`.
pub fn build(name: &str) -> PathBuf {
    PathBuf::from("/src/build").join(name)
}

/// Directory of the images.
pub fn images() -> PathBuf {
    build("images")
}

/// One image.
pub fn image(name: &str) -> PathBuf {
    images().join(format!("{name}.cpio"))
}

/// A program of the Cargo workspace.
pub fn target(name: &str) -> PathBuf {
    build("target/release").join(name)
}

/// A file of the packages of our programs, which `scripts/deb.sh` leaves.
pub fn packaged(path: &str) -> PathBuf {
    build("deb/contents").join(path.trim_start_matches('/'))
}

/// A file that goes into an image as it is.
pub fn lab_sources(name: &str) -> PathBuf {
    PathBuf::from("/src/tests/lab/images").join(name)
}

/// Debian's kernel, uncompressed.
pub fn vmlinux() -> PathBuf {
    build("kernel/vmlinux")
}

/// Modules of Debian's kernel.
pub fn modules() -> PathBuf {
    build("kernel/modules")
}

/// The patched host hypervisor.
pub fn xen() -> PathBuf {
    build("xen/out/xen")
}

/// The patched host hypervisor with assertions.
pub fn xen_debug() -> PathBuf {
    build("xen/out-debug/xen")
}

/// Xen's policy for FLASK, without the permission of guests to swap with each other.
pub fn policy_apart() -> PathBuf {
    build("xen/out-debug/policy-apart")
}

/// The same with a defect, made by `scripts/xen-mutant.sh`.
pub fn xen_mutant() -> PathBuf {
    build("xen/mutant/xen")
}

/// The defects.
pub fn mutants() -> PathBuf {
    PathBuf::from("/src/tests/stress/mutants.txt")
}

/// Directory of drivers with defects.
pub fn driver_mutants() -> PathBuf {
    build("mutants-driver")
}

/// Debian's hypervisor, which lacks the hypercall.
pub fn stock_xen() -> PathBuf {
    images().join("xen-stock")
}

/// The hypervisor series' own test.
pub fn mem_swap_test() -> PathBuf {
    build("xen/out/test-mem-swap")
}

/// The toolstack of the guest management VMs.
pub fn toolstack(name: &str) -> PathBuf {
    build("xen-tools/out").join(name)
}

/// The same of the guest hypervisor that is there to be replaced.
pub fn old_toolstack() -> PathBuf {
    build("xen-tools-4.17/out")
}

/// The driver.
pub fn driver() -> PathBuf {
    build("driver/vmbeam.ko")
}

/// The same with its debug options.
pub fn debug_driver() -> PathBuf {
    build("driver/vmbeam-debug.ko")
}

/// The driver as DKMS built it from the package.
pub fn dkms_driver() -> PathBuf {
    build("deb/vmbeam.ko")
}

/// The patched hypervisor of the packages that `scripts/deb-xen.sh` builds.
pub fn packaged_xen() -> PathBuf {
    build("deb/xen/xen")
}

/// A file of the toolstack of these packages.
pub fn packaged_toolstack(path: &str) -> PathBuf {
    build("deb/xen/root").join(path)
}

/// Programs that record trace events, unpacked.
pub fn trace_tools() -> PathBuf {
    build("trace-tools/root")
}

/// The driver's selftests.
pub fn kselftests() -> [PathBuf; 5] {
    [
        "vmbeam_test",
        "vmbeam_half",
        "vmbeam_fault",
        "vmbeam_turns",
        "vmbeam_modes",
    ]
    .map(|name| build("kselftest").join(name))
}

/// The program of `tests/driver`, and the caller that is built for 64 and for 32
/// bits.
pub fn driver_tests() -> [PathBuf; 3] {
    [
        target("driver-tests"),
        build("kselftest/compat64"),
        build("kselftest/compat32"),
    ]
}

/// Directory of the logs.
pub fn logs() -> PathBuf {
    build("logs")
}

/// Directory of the sockets and disks of a running lab.
pub fn run() -> PathBuf {
    build("run")
}

/// Directory of the reports.
pub fn reports() -> PathBuf {
    build("report")
}
