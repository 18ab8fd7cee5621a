// SPDX-License-Identifier: GPL-2.0-only

//! A domain, as the hypervisor knows it.

use crate::sys;

/// What the hypervisor says about a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub domid: u32,
    /// Hardware virtual machine, not PV.
    pub hvm: bool,
    /// Being torn down.
    pub dying: bool,
    /// Has shut down, for this reason (`SHUTDOWN_*` of Xen).
    pub shutdown: Option<u8>,
    /// Paused by the toolstack.
    pub paused: bool,
    /// Pages that it owns.
    pub pages: u64,
    /// Pages that it may own.
    pub max_pages: u64,
    /// Frame of its shared info page.
    pub shared_info_frame: u64,
    /// Highest vCPU number, if it has vCPUs.
    pub max_vcpu: Option<u32>,
    /// The cpupool that it is in.
    pub cpupool: u32,
    /// Its UUID, which the toolstack gave it.
    pub uuid: [u8; 16],
}

impl From<&sys::DomainInfo> for DomainInfo {
    fn from(raw: &sys::DomainInfo) -> Self {
        Self {
            domid: raw.domain.into(),
            hvm: raw.flags & sys::DOMINF_HVM_GUEST != 0,
            dying: raw.flags & sys::DOMINF_DYING != 0,
            // Eight bits.
            shutdown: (raw.flags & sys::DOMINF_SHUTDOWN != 0).then_some(
                ((raw.flags >> sys::DOMINF_SHUTDOWN_SHIFT) & sys::DOMINF_SHUTDOWN_MASK) as u8,
            ),
            paused: raw.flags & sys::DOMINF_PAUSED != 0,
            pages: raw.tot_pages,
            max_pages: raw.max_pages,
            shared_info_frame: raw.shared_info_frame,
            uuid: raw.handle,
            max_vcpu: (raw.max_vcpu_id != u32::MAX).then_some(raw.max_vcpu_id),
            cpupool: raw.cpupool,
        }
    }
}
