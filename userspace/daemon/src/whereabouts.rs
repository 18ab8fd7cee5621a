// SPDX-License-Identifier: GPL-2.0-only

//! What is said of a guest that is back where it was. That it was let run does not mean that it
//! does: it may have crashed before, or shut down.

use crate::execute::{Executor, Work};
use crate::preflight::is_alive;
use vmbeam_agent_protocol::GuestState;

impl Executor<'_> {
    /// What became of the guest, which is at the source.
    pub(crate) fn at_source(&mut self, work: &Work) -> String {
        let vm = self.from.name().to_owned();
        let domid = work.record.from.guest;
        let Ok(guests) = self.from.talk(|l| l.guests()) else {
            return format!("the guest is in {vm}");
        };
        let state = guests.iter().find(|g| Some(g.domid) == domid);
        match state.map(|g| g.state) {
            // Xen keeps the end of a queue of events, and the guest's memory the queue.
            Some(GuestState::Running) if self.was_away => format!(
                "the guest runs in {vm}; if its network or a disk is silent there, restart it: an event may have been lost while its memory was in {}",
                self.to.name()
            ),
            Some(GuestState::Running) => format!("the guest runs in {vm}"),
            Some(GuestState::Paused) => format!("the guest is in {vm}, and paused"),
            Some(GuestState::Shutdown) => {
                format!("the guest has crashed or shut down, and is in {vm} as it is")
            }
            Some(GuestState::Dying) | None => {
                format!("the guest has ended, and is not in {vm} any more")
            }
        }
    }

    /// What became of a guest that is lost to its migration. Its toolstack acts when a guest
    /// ends, as its configuration says.
    pub(crate) fn lost(&mut self, work: &Work) -> String {
        let from = &work.record.from;
        let is_up = self.ended && self.from.vm.still_runs(from.host_domid) == Ok(true);
        let guests = match is_up {
            true => self.from.talk(|l| l.guests()).ok(),
            false => None,
        };
        let (name, vm) = (&work.record.guest, &from.host_vm);
        match guests {
            None => "the guest was lost with its host VM".into(),
            Some(guests) if guests.iter().any(|g| g.name == *name && is_alive(g)) => {
                format!("the guest has restarted by itself in {vm}")
            }
            Some(_) => format!("the guest has ended by itself in {vm}"),
        }
    }
}
