// SPDX-License-Identifier: GPL-2.0-only

//! Structures and constants of the Xen toolstack's interface, as far as they
//! are used. Those that differ between versions are checked at run time; a
//! test compares all of them with the installed headers.

use std::mem::{offset_of, size_of};

/// `xc_domaininfo_t`, that is `struct xen_domctl_getdomaininfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(
    missing_docs,
    reason = "the names are those of the C structure, which documents them"
)]
pub struct DomainInfo {
    pub domain: u16,
    pub pad1: u16,
    pub flags: u32,
    pub tot_pages: u64,
    pub max_pages: u64,
    pub outstanding_pages: u64,
    pub shr_pages: u64,
    pub paged_pages: u64,
    pub shared_info_frame: u64,
    pub cpu_time: u64,
    pub nr_online_vcpus: u32,
    pub max_vcpu_id: u32,
    pub ssidref: u32,
    pub handle: [u8; 16],
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub pad2: [u8; 7],
    pub arch_config: [u32; 2],
}

const _: () = assert!(size_of::<DomainInfo>() == 112);
const _: () = assert!(offset_of!(DomainInfo, shared_info_frame) == 48);
const _: () = assert!(offset_of!(DomainInfo, max_vcpu_id) == 68);

/// `XEN_DOMINF_dying`
pub const DOMINF_DYING: u32 = 1 << 0;
/// `XEN_DOMINF_hvm_guest`
pub const DOMINF_HVM_GUEST: u32 = 1 << 1;
/// `XEN_DOMINF_shutdown`
pub const DOMINF_SHUTDOWN: u32 = 1 << 2;
/// `XEN_DOMINF_paused`
pub const DOMINF_PAUSED: u32 = 1 << 3;
/// `XEN_DOMINF_shutdownmask`
pub const DOMINF_SHUTDOWN_MASK: u32 = 255;
/// `XEN_DOMINF_shutdownshift`
pub const DOMINF_SHUTDOWN_SHIFT: u32 = 16;
/// `SHUTDOWN_suspend`
pub const SHUTDOWN_SUSPEND: u8 = 2;

/// `XEN_DOMCTL_PFINFO_LTAB_MASK`
pub const PFINFO_LTAB_MASK: u64 = 0xf << 28;
/// `XEN_DOMCTL_PFINFO_LTABTYPE_MASK`
pub const PFINFO_LTABTYPE_MASK: u64 = 0x7 << 28;
/// `XEN_DOMCTL_PFINFO_XTAB`: not a page of this domain.
pub const PFINFO_XTAB: u64 = 0xf << 28;
/// `XEN_DOMCTL_PFINFO_BROKEN`
pub const PFINFO_BROKEN: u64 = 0xd << 28;
/// Most frames that one `xc_get_pfn_type_batch()` takes.
pub const PFN_TYPE_BATCH: usize = 1024;

/// `sizeof(vcpu_guest_context_any_t)`
pub const VCPU_CONTEXT_SIZE: usize = 5168;
/// `offsetof(vcpu_guest_context_t, gdt_frames)`: 16 frames of 8 bytes.
pub const VCPU_CONTEXT_GDT_FRAMES: usize = 4832;
/// `offsetof(vcpu_guest_context_t, gdt_ents)`
pub const VCPU_CONTEXT_GDT_ENTS: usize = 4960;
/// Descriptors of 8 bytes in one page.
pub const GDT_ENTS_PER_FRAME: u64 = 512;

/// `offsetof(start_info_t, shared_info)`: a machine address.
pub const START_INFO_SHARED_INFO: usize = 40;
/// Start of `start_info_t.magic`.
pub const START_INFO_MAGIC: &[u8] = b"xen-3.0-x86";

/// `xen_cpuid_leaf_t`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are those of the C structure, which documents them"
)]
pub struct CpuidLeaf {
    pub leaf: u32,
    /// [`CPUID_NO_SUBLEAF`] if the leaf has none.
    pub subleaf: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub d: u32,
}

/// `xen_msr_entry_t`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are those of the C structure, which documents them"
)]
pub struct MsrEntry {
    pub idx: u32,
    pub flags: u32,
    pub val: u64,
}

/// `XEN_CPUID_NO_SUBLEAF`
pub const CPUID_NO_SUBLEAF: u32 = u32::MAX;
/// `XEN_SYSCTL_cpu_policy_pv_max`
pub const CPU_POLICY_PV_MAX: u32 = 2;

/// `offsetof(xc_physinfo_t, cpu_khz)`: 4 bytes.
pub const PHYSINFO_CPU_KHZ: usize = 24;
/// More than `sizeof(xc_physinfo_t)` of any version.
pub const PHYSINFO_ROOM: usize = 1024;
/// `XEN_CPUID_TSC_MODE_DEFAULT`: native where the frequency is that of the processor.
pub const TSC_MODE_DEFAULT: u32 = 0;

/// `__HYPERVISOR_event_channel_op`
pub const HYPERVISOR_EVENT_CHANNEL_OP: u32 = 32;
/// `EVTCHNOP_send`
pub const EVTCHNOP_SEND: u32 = 4;
/// `EVTCHNOP_status`
pub const EVTCHNOP_STATUS: u32 = 5;
/// `EVTCHNSTAT_interdomain`
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// No domain has more event channels: `EVTCHN_FIFO_NR_CHANNELS`.
pub const LAST_EVENT_CHANNEL: u32 = (1 << 17) - 1;

/// An argument of `event_channel_op`: made of integers, without pointers.
pub trait EventChannelArgument: Copy {}

/// `evtchn_send_t`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "as above")]
pub struct EventChannelSend {
    pub port: u32,
}

impl EventChannelArgument for EventChannelSend {}

/// `evtchn_status_t`, as far as it is used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "as above")]
pub struct EventChannelStatus {
    pub dom: u16,
    pub pad1: u16,
    pub port: u32,
    pub status: u32,
    pub vcpu: u32,
    /// If [`EVTCHNSTAT_INTERDOMAIN`], `u.interdomain.dom`.
    pub remote_dom: u16,
    pub pad2: u16,
    /// If [`EVTCHNSTAT_INTERDOMAIN`], `u.interdomain.port`.
    pub remote_port: u32,
}

const _: () = assert!(size_of::<EventChannelStatus>() == 24);
const _: () = assert!(offset_of!(EventChannelStatus, remote_dom) == 16);
const _: () = assert!(offset_of!(EventChannelStatus, remote_port) == 20);

impl EventChannelArgument for EventChannelStatus {}

/// `XENVER_version`
pub const XENVER_VERSION: i32 = 0;
/// `XENVER_extraversion`
pub const XENVER_EXTRAVERSION: i32 = 1;
/// The M2P is mapped in pieces of this many bytes.
pub const M2P_CHUNK: usize = 2 << 20;
