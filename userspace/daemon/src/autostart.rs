// SPDX-License-Identifier: GPL-2.0-only

//! Whether a host VM that boots may start its guests: not one that lives in another host VM
//! by now, or is on its way, or would be started by another one as well. An agent that begins
//! is told as soon as that is known; until then nothing is started there.

use crate::definitions::{autostart, follow, is_defined, may_start, put_aside};
use crate::host_vm::HostVm;
use crate::preflight::{is_alive, take};
use crate::shared::Shared;
use crate::side::Side;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::Guest;

/// How often to look for agents that are not told yet.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait after a failure, at most.
const PAUSE: Duration = Duration::from_secs(15);
/// How long an agent may be away in the middle of this.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an agent was told last.
#[derive(Debug, Default)]
struct Told {
    /// In which conversation, and what.
    last: Option<(u64, bool)>,
    /// Not before.
    again: Option<Instant>,
    pause: Duration,
}

fn has(guests: &[Guest], name: &str) -> bool {
    guests.iter().any(|g| g.name == name && is_alive(g))
}

impl Shared {
    /// Tell all agents, until the daemon stops.
    pub(crate) fn watch_autostart(&self) {
        let mut told: HashMap<&str, Told> = HashMap::new();
        while !self.is_stopping() {
            for vm in &self.host_vms {
                let name = &*vm.config.name;
                let known = told.entry(name).or_default();
                let allowed = !self.maintenance.has(name);
                let due = known.again.is_none_or(|at| Instant::now() >= at);
                match vm.conversation() {
                    Some(number) if known.last != Some((number, allowed)) && due => {
                        self.tell(vm, allowed, number, known);
                    }
                    _ => {}
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    fn tell(&self, vm: &HostVm, allowed: bool, number: u64, known: &mut Told) {
        let name = &*vm.config.name;
        let result = match allowed {
            true => self.release(vm),
            false => Side::take(vm).and_then(|mut side| may_start(&mut side, false)),
        };
        match result {
            Ok(()) => {
                info!(host_vm = name, allowed, "told whether it may start guests");
                self.held.set(name, None);
                *known = Told {
                    last: Some((number, allowed)),
                    ..Told::default()
                };
            }
            Err(why) => {
                known.pause = PAUSE.min(2 * known.pause.max(LOOK));
                known.again = Some(Instant::now() + known.pause);
                if self.held.set(name, Some(&why)) {
                    warn!(host_vm = name, "it may not start guests yet: {why}");
                }
            }
        }
    }

    /// Let a host VM start its guests, if none of them may be anywhere else.
    fn release(&self, vm: &HostVm) -> Result<(), String> {
        let name = &*vm.config.name;
        let (mine, guests) = {
            let mut side = Side::take(vm)?;
            let mine = autostart(&mut side)?;
            (mine, side.talk(|l| l.guests())?)
        };
        let mine: Vec<_> = mine.into_iter().filter(|g| !has(&guests, g)).collect();
        let mut starts = mine.clone();
        let others = self.host_vms.iter().filter(|o| o.config.name != name);
        for other in others.filter(|_| !mine.is_empty()) {
            if other.is_down() {
                continue;
            }
            let there = &*other.config.name;
            // What is on its way is in neither, or in both.
            self.jobs.free(name, there).map_err(|e| e.message)?;
            let (guests, theirs) = {
                let mut side = Side::take(other)
                    .map_err(|e| format!("the guests of host VM {there} are not known: {e}"))?;
                (side.talk(|l| l.guests())?, autostart(&mut side)?)
            };
            for guest in &mine {
                if has(&guests, guest) {
                    belongs_to(guest, vm, other)?;
                    starts.retain(|g| g != guest);
                } else if theirs.contains(guest) {
                    return Err(format!(
                        "host VMs {name} and {there} would both start guest {guest}; remove one of the two entries (/etc/xen/auto)"
                    ));
                }
            }
        }
        // What is not known is as it ever was.
        let memory = (!starts.is_empty()).then(|| vm.memory());
        if memory.is_some_and(|m| m.is_ok_and(|m| !m.is_backed())) {
            return Err(format!(
                "host VM {name} has less memory than its guest hypervisor believes, and may die of guests that start there; give it all of it (`xl mem-set`), or remove their entries (/etc/xen/auto)"
            ));
        }
        may_start(&mut Side::take(vm)?, true)
    }
}

/// A guest runs in another host VM than the one that would start it: what is written down of
/// it belongs there, unless that has something of its own.
fn belongs_to(guest: &str, vm: &HostVm, other: &HostVm) -> Result<(), String> {
    let (mut from, mut to) = take((vm, other)).map_err(|e| e.message)?;
    let deadline = Instant::now() + PATIENCE;
    let here = from.talk(|l| l.guests())?;
    let there = to.talk(|l| l.guests())?;
    // It may have moved since.
    if has(&here, guest) || !has(&there, guest) {
        return Err(format!("guest {guest} is on its way"));
    }
    warn!(
        guest,
        "host VM {} would start it, and it runs in {}",
        from.name(),
        to.name()
    );
    if !is_defined(guest, &mut to, deadline)? {
        follow(guest, &mut from, &mut to, deadline)?;
    }
    put_aside(guest, &mut from, deadline)
}
