// SPDX-License-Identifier: GPL-2.0-only

//! Which guest is the one that was just restored.

use crate::error::HvError;
use crate::hypervisor::Hypervisor;
use vmbeam_agent_protocol::{AgentErrorCode, GuestState, Uuid};

/// The only guest with the UUID that is expected, or, if that is not known, with this name.
pub(crate) fn restored<H: Hypervisor>(
    hypervisor: &H,
    name: &str,
    expected: Option<Uuid>,
) -> Result<u32, HvError> {
    let mut guests = hypervisor.guests()?;
    // One that goes away may have had this name, and this UUID.
    guests.retain(|g| g.state != GuestState::Dying);
    match expected {
        Some(_) => {
            let uuids = hypervisor.uuids()?;
            let of = |domid| uuids.iter().find(|u| u.0 == domid).map(|u| u.1);
            guests.retain(|g| of(g.domid) == expected);
        }
        None => guests.retain(|g| g.name == name),
    }
    let known_by = expected.map_or_else(|| name.to_owned(), |uuid| uuid.to_string());
    let wrong = |message| HvError {
        code: AgentErrorCode::Toolstack,
        message,
    };
    match guests[..] {
        [ref only] => Ok(only.domid),
        [] => Err(wrong(format!(
            "the guest was restored, but not as {known_by}"
        ))),
        _ => Err(wrong(format!("several guests are {known_by}"))),
    }
}
