// SPDX-License-Identifier: GPL-2.0-only

//! The mirror in `sys` against the installed Xen headers, if there are any, and those
//! of an older Xen, if the lab has fetched it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;
use vmbeam_xen::sys;

/// Where `scripts/xen-tools.sh 4.17` leaves Debian 12's.
const OLD: &str = "../../build/xen-tools-4.17/out/root/usr/include";

#[test]
fn mirrors_the_headers() {
    compare("/usr/include");
}

#[test]
#[ignore = "wants make xen-tools-old"]
fn mirrors_older_headers() {
    compare(&format!("{}/{OLD}", env!("CARGO_MANIFEST_DIR")));
}

fn compare(include: &str) {
    if !Path::new(include).join("xenctrl.h").exists() {
        let built = std::env::var_os("VMBEAM_IN_SYSROOT").is_some();
        assert!(!built, "{include} has no headers of Xen");
        eprintln!("skipped: {include} has no headers of Xen");
        return;
    }
    let expected = [
        ("sizeof(xc_domaininfo_t)", size_of::<sys::DomainInfo>()),
        (
            "offsetof(xc_domaininfo_t, flags)",
            offset_of!(sys::DomainInfo, flags),
        ),
        (
            "offsetof(xc_domaininfo_t, tot_pages)",
            offset_of!(sys::DomainInfo, tot_pages),
        ),
        (
            "offsetof(xc_domaininfo_t, shared_info_frame)",
            offset_of!(sys::DomainInfo, shared_info_frame),
        ),
        (
            "offsetof(xc_domaininfo_t, max_vcpu_id)",
            offset_of!(sys::DomainInfo, max_vcpu_id),
        ),
        ("XEN_DOMINF_dying", sys::DOMINF_DYING as usize),
        ("XEN_DOMINF_hvm_guest", sys::DOMINF_HVM_GUEST as usize),
        ("XEN_DOMINF_shutdown", sys::DOMINF_SHUTDOWN as usize),
        ("XEN_DOMINF_paused", sys::DOMINF_PAUSED as usize),
        (
            "XEN_DOMINF_shutdownmask",
            sys::DOMINF_SHUTDOWN_MASK as usize,
        ),
        (
            "XEN_DOMINF_shutdownshift",
            sys::DOMINF_SHUTDOWN_SHIFT as usize,
        ),
        ("SHUTDOWN_suspend", sys::SHUTDOWN_SUSPEND as usize),
        (
            "XEN_DOMCTL_PFINFO_LTAB_MASK",
            sys::PFINFO_LTAB_MASK as usize,
        ),
        (
            "XEN_DOMCTL_PFINFO_LTABTYPE_MASK",
            sys::PFINFO_LTABTYPE_MASK as usize,
        ),
        ("XEN_DOMCTL_PFINFO_XTAB", sys::PFINFO_XTAB as usize),
        ("XEN_DOMCTL_PFINFO_BROKEN", sys::PFINFO_BROKEN as usize),
        ("sizeof(vcpu_guest_context_any_t)", sys::VCPU_CONTEXT_SIZE),
        (
            "offsetof(vcpu_guest_context_t, gdt_frames)",
            sys::VCPU_CONTEXT_GDT_FRAMES,
        ),
        (
            "offsetof(vcpu_guest_context_t, gdt_ents)",
            sys::VCPU_CONTEXT_GDT_ENTS,
        ),
        (
            "offsetof(start_info_t, shared_info)",
            sys::START_INFO_SHARED_INFO,
        ),
        ("sizeof(xen_cpuid_leaf_t)", size_of::<sys::CpuidLeaf>()),
        (
            "offsetof(xen_cpuid_leaf_t, d)",
            offset_of!(sys::CpuidLeaf, d),
        ),
        ("sizeof(xen_msr_entry_t)", size_of::<sys::MsrEntry>()),
        (
            "offsetof(xen_msr_entry_t, val)",
            offset_of!(sys::MsrEntry, val),
        ),
        ("XEN_CPUID_NO_SUBLEAF", sys::CPUID_NO_SUBLEAF as usize),
        (
            "XEN_SYSCTL_cpu_policy_pv_max",
            sys::CPU_POLICY_PV_MAX as usize,
        ),
        ("offsetof(xc_physinfo_t, cpu_khz)", sys::PHYSINFO_CPU_KHZ),
        ("sizeof(((xc_physinfo_t *)0)->cpu_khz)", 4),
        (
            "sizeof(xc_physinfo_t) > 512 ? sizeof(xc_physinfo_t) : 1024",
            sys::PHYSINFO_ROOM,
        ),
        (
            "__HYPERVISOR_event_channel_op",
            sys::HYPERVISOR_EVENT_CHANNEL_OP as usize,
        ),
        ("EVTCHNOP_send", sys::EVTCHNOP_SEND as usize),
        ("EVTCHNOP_status", sys::EVTCHNOP_STATUS as usize),
        (
            "EVTCHNSTAT_interdomain",
            sys::EVTCHNSTAT_INTERDOMAIN as usize,
        ),
        (
            "EVTCHN_FIFO_NR_CHANNELS - 1",
            sys::LAST_EVENT_CHANNEL as usize,
        ),
        ("sizeof(evtchn_send_t)", size_of::<sys::EventChannelSend>()),
        (
            "sizeof(evtchn_status_t)",
            size_of::<sys::EventChannelStatus>(),
        ),
        (
            "offsetof(evtchn_status_t, status)",
            offset_of!(sys::EventChannelStatus, status),
        ),
        (
            "offsetof(evtchn_status_t, u.interdomain.dom)",
            offset_of!(sys::EventChannelStatus, remote_dom),
        ),
        (
            "offsetof(evtchn_status_t, u.interdomain.port)",
            offset_of!(sys::EventChannelStatus, remote_port),
        ),
        ("XENVER_version", sys::XENVER_VERSION as usize),
        ("XENVER_extraversion", sys::XENVER_EXTRAVERSION as usize),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (c, exe) = (dir.path().join("xen.c"), dir.path().join("xen"));
    let mut source =
        String::from("#include <stddef.h>\n#include <stdio.h>\n#include <xenctrl.h>\n");
    source.push_str("#include <xenguest.h>\nint main(void) {\n");
    for (expr, _) in &expected {
        source.push_str(&format!(
            "printf(\"%llu\\n\", (unsigned long long)({expr}));\n"
        ));
    }
    source.push_str("return 0; }\n");
    std::fs::write(&c, source).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    assert!(Command::new(cc)
        .args(["-I", include])
        .arg("-o")
        .arg(&exe)
        .arg(&c)
        .status()
        .unwrap()
        .success());
    let out = String::from_utf8(Command::new(&exe).output().unwrap().stdout).unwrap();
    let actual: Vec<usize> = out.lines().map(|l| l.parse().unwrap()).collect();
    for ((expr, expected), actual) in expected.iter().zip(actual) {
        assert_eq!(actual, *expected, "{expr}");
    }
}

#[test]
fn without_xen_the_error_says_what_is_missing() {
    if Path::new("/dev/xen/privcmd").exists() {
        eprintln!("skipped: this machine runs Xen");
        return;
    }
    let e = vmbeam_xen::Xen::open().unwrap_err().to_string();
    assert!(e.contains("install xen-utils"), "{e}");
}
