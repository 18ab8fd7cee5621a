// SPDX-License-Identifier: GPL-2.0-only

//! Which host VMs and which guest a record is about. Numbers are given again, and names are for
//! people: what has a UUID is known by it, and a domain of the host by the number that the
//! hypervisor never gives to another one.

use crate::boot::is_another;
use crate::driver::Driver;
use crate::execute::{Executor, Work};
use crate::journal::Record;
use crate::preflight::is_alive;
use std::collections::HashMap;
use vmbeam_agent_protocol::{Guest, GuestState, Uuid};
use vmbeam_migration::Side as Where;

/// From now on the driver takes no other domains for those of a record of this boot.
pub(crate) fn expect(driver: &dyn Driver, record: &Record) {
    let places = [&record.from, &record.to].into_iter();
    for place in places.filter(|_| !is_another(&record.boot)) {
        if let Some(id) = place.host_id {
            driver.expect(place.host_domid, id);
        }
    }
}

/// The only one of these guests that this is true of.
fn only(
    guests: &[Guest],
    host_vm: &str,
    what: &str,
    is: impl Fn(&Guest) -> bool,
) -> Result<Option<Guest>, String> {
    let mut found = guests.iter().filter(|g| is_alive(g) && is(g));
    match (found.next(), found.next()) {
        (Some(a), Some(b)) => Err(format!(
            "host VM {host_vm} has several guests with {what}, for example {} and {}; destroy the one that does not belong there",
            a.domid, b.domid
        )),
        (first, _) => Ok(first.cloned()),
    }
}

impl Executor<'_> {
    /// The guest of a record on this side, if it is there: by its number, which must have its
    /// UUID, or, if its number is not known, by that.
    pub(crate) fn found(&mut self, work: &Work, side: Where) -> Result<Option<Guest>, String> {
        let guests = self.guests(side)?;
        let deadline = self.deadline;
        let uuids = self.side(side).insist(deadline, |l| l.uuids())?;
        let place = work.place(side);
        let (name, expected) = (&work.record.guest, work.record.guest_uuid);
        let its_uuid = |g: &Guest| is_it(&uuids, g, expected);
        let host_vm = &place.host_vm;
        if let Some(domid) = place.guest {
            let same = |g: &&Guest| g.domid == domid && is_alive(g) && its_uuid(g) != Some(false);
            return Ok(guests.iter().find(same).cloned());
        }
        // A guest that was being restored when the daemon ended has no number in the journal.
        if let (Some(uuid), false) = (expected, uuids.is_empty()) {
            let what = format!("UUID {uuid}");
            return only(&guests, host_vm, &what, |g| its_uuid(g) == Some(true));
        }
        let what = format!("the name {name}");
        if let Some(guest) = only(&guests, host_vm, &what, |g| g.name == *name)? {
            return Ok(Some(guest));
        }
        match guests.iter().find(|g| is_unread(g)) {
            Some(guest) if guest.state != GuestState::Running => Err(format!(
                "the name of guest {} of host VM {host_vm} cannot be read; it may be {name}",
                guest.domid
            )),
            _ => Ok(None),
        }
    }
}

/// Whether this is what an agent says that cannot read a guest's name.
pub(crate) fn is_unread(guest: &Guest) -> bool {
    guest.name == format!("domain-{}", guest.domid)
}

/// Whether a guest has this UUID, if both are known.
fn is_it(uuids: &HashMap<u32, Uuid>, guest: &Guest, expected: Option<Uuid>) -> Option<bool> {
    Some(*uuids.get(&guest.domid)? == expected?)
}
