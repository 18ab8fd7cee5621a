// SPDX-License-Identifier: GPL-2.0-only

//! What FLASK, Xen's mandatory access control, says to a swap of frames. This wants a
//! hypervisor that enforces a policy.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::swap::Run;
use crate::swap::Swapper;
use crate::swap::CHECK;
use crate::xen;
use crate::xen::Buffer;
use crate::xen::PAGE;

/// `__HYPERVISOR_xsm_op`
const XSM_OP: u64 = 27;
const LOAD: u32 = 1;
const GETENFORCE: u32 = 2;
const CONTEXT_TO_SID: u32 = 4;
/// Bytes of the structure.
const STRUCTURE: usize = 64;

/// The type that Xen's own policy has for guests: such a one may swap with another.
const GUEST: &str = "system_u:system_r:domU_t";
/// Guests that talk to dom0 only: the policy does not let dom0 swap their frames.
const ISOLATED: &str = "system_u:system_r:isolated_domU_t";
const REFUSED: i64 = -(Errno::EACCES as i64);
/// The frame of each domain.
const GFN: u64 = 0x100;

/// A test; it may want a policy that lets dom0 swap frames of guests, but none of them with
/// another.
type Test = fn(&Path) -> Result<String>;

/// The tests.
pub const TESTS: [(&str, Test); 3] = [
    ("flask: two guests swap", |_| pair([GUEST, GUEST], 0)),
    (
        "flask: refused with a domain that the caller may not swap with",
        |_| {
            pair([GUEST, ISOLATED], REFUSED)?;
            pair([ISOLATED, GUEST], REFUSED)
        },
    ),
    (
        "flask: refused for two that the caller may swap, but not with each other",
        |policy| {
            load(&fs::read(policy).with_context(|| policy.display().to_string())?)?;
            pair([GUEST, GUEST], REFUSED)
        },
    ),
];

/// Check and swap a frame of two new domains with these labels; the call's result must be this.
fn pair(labels: [&str; 2], expected: i64) -> Result<String> {
    ensure!(
        operation(GETENFORCE, &[])?.0 == 1,
        "no policy is enforced: this wants flask=enforcing"
    );
    let mut domids = [0; 2];
    for (domid, label) in domids.iter_mut().zip(labels) {
        *domid = control::create_as(sid(label)?, 1)?;
        control::populate(*domid, 0, &[GFN])?;
    }
    let run = Run {
        a: GFN,
        b: GFN,
        nr: 1,
    };
    let swapper = Swapper::new(1)?;
    let outcomes = [CHECK, 0].map(|flags| swapper.call(domids[0], domids[1], flags, &[run]));
    for domid in domids {
        control::destroy(domid)?;
    }
    let [checked, swapped] = outcomes;
    let (checked, swapped) = (checked?, swapped?);
    ensure!(
        checked.rc == expected && swapped.rc == expected,
        "{labels:?}: the check said {}, the swap {}, not {}",
        control::error(checked.rc),
        control::error(swapped.rc),
        control::error(expected)
    );
    let pairs = u64::from(expected == 0);
    ensure!(
        swapped.swapped == pairs,
        "{} pairs were swapped, not {pairs}",
        swapped.swapped
    );
    Ok(format!("{labels:?}: {}", control::error(expected)))
}

/// An operation of FLASK; its result, and the structure as it comes back.
fn operation(command: u32, union: &[u8]) -> Result<(i64, [u8; STRUCTURE])> {
    let mut op = [0; STRUCTURE];
    op[..4].copy_from_slice(&command.to_le_bytes());
    op[4..8].copy_from_slice(&1u32.to_le_bytes());
    op[8..8 + union.len()].copy_from_slice(union);
    let rc = xen::call(XSM_OP, 0, &mut op, false)?;
    ensure!(rc >= 0, "FLASK operation {command}: {}", control::error(rc));
    Ok((rc, op))
}

/// The hypervisor's number of a label.
fn sid(label: &str) -> Result<u32> {
    let text = Buffer::new(1)?;
    text.put(0, label.as_bytes());
    let mut union = [0; 16];
    union[4..8].copy_from_slice(&u32::try_from(label.len())?.to_le_bytes());
    union[8..].copy_from_slice(&text.address().to_le_bytes());
    let (_, op) = operation(CONTEXT_TO_SID, &union).with_context(|| label.to_owned())?;
    Ok(u32::from_le_bytes([op[8], op[9], op[10], op[11]]))
}

/// Have another policy from now on.
fn load(policy: &[u8]) -> Result<()> {
    let buffer = Buffer::new(policy.len().div_ceil(PAGE))?;
    buffer.put(0, policy);
    let mut union = [0; 16];
    union[..8].copy_from_slice(&buffer.address().to_le_bytes());
    union[8..12].copy_from_slice(&u32::try_from(policy.len())?.to_le_bytes());
    operation(LOAD, &union).map(drop)
}
