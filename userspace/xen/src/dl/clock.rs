// SPDX-License-Identifier: GPL-2.0-only

//! Whether guests read the processor's own clock, the TSC.

use super::Xen;
use crate::error::Error;
use crate::sys;

/// Leaf of CPUID that tells, in edx, of a TSC whose frequency does not change.
const POWER: u32 = 0x8000_0007;
const INVARIANT_TSC: u32 = 1 << 8;

impl Xen {
    /// The frequency, in kHz, that a guest's TSC must have here to be the processor's: at any other
    /// one it is emulated. Nothing if all are, since the processor's may change.
    pub fn tsc_khz(&self) -> Result<Option<u32>, Error> {
        let mut leaves = self.cpu_policy(None)?.leaves.into_iter();
        if !leaves.any(|l| l.leaf == POWER && l.d & INVARIANT_TSC != 0) {
            return Ok(None);
        }
        // 8-aligned, as the structure is, with room for what later versions add.
        let mut info = [0u64; sys::PHYSINFO_ROOM / 8];
        // SAFETY: room for more than the structure that the library writes.
        let rc = unsafe { (self.ctrl.xc_physinfo)(self.xch.as_ptr(), info.as_mut_ptr().cast()) };
        if rc != 0 {
            return Err(Error::last("xc_physinfo"));
        }
        // The lower half of it: the offset is a multiple of 8.
        Ok(Some(info[sys::PHYSINFO_CPU_KHZ / 8] as u32))
    }

    /// The frequency of a guest's TSC, in kHz. Nothing if the guest was created with another
    /// `tsc_mode` than the default one, so that it is emulated everywhere or nowhere.
    pub fn guest_tsc_khz(&self, domid: u32) -> Result<Option<u32>, Error> {
        let (mut mode, mut khz, mut incarnation, mut ns) = (0, 0, 0, 0);
        // SAFETY: a plain call on an open handle, that writes one number behind each pointer.
        let rc = unsafe {
            (self.ctrl.xc_domain_get_tsc_info)(
                self.xch.as_ptr(),
                domid,
                &mut mode,
                &mut ns,
                &mut khz,
                &mut incarnation,
            )
        };
        if rc != 0 {
            return Err(Error::last("xc_domain_get_tsc_info"));
        }
        Ok((mode == sys::TSC_MODE_DEFAULT).then_some(khz))
    }
}
