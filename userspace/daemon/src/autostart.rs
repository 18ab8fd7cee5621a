// SPDX-License-Identifier: GPL-2.0-only

//! Whether a host VM that boots may start its guests: not one that lives in another host VM
//! by now, or is on its way, or would be started by another one as well. An agent that begins
//! is told as soon as that is known; until then nothing is started there.

use crate::definitions::{autostart, definition, follow, may_start, put_aside, text_of, uuid_of};
use crate::host_vm::HostVm;
use crate::preflight::{is_alive, take};
use crate::shared::Shared;
use crate::side::Side;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_agent_protocol::Guest;
use vmbeam_control_protocol::JobReport;

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

fn touches(job: &JobReport, host_vm: &str) -> bool {
    [&*job.from.host_vm, &*job.to.host_vm].contains(&host_vm)
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
                    // Its agent has something else to do, and may be told something else after that.
                    Some(_) if self.jobs.moves(u64::MAX, |j| touches(j, name)).is_some() => {}
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

    /// Whether no guest comes to this host VM or leaves it, and none of these is on its way or
    /// has been since that job: it may have been in no host VM that was asked then.
    fn stay(&self, host_vm: &str, guests: &[String], since: u64) -> Result<(), String> {
        self.jobs.calm(host_vm).map_err(|e| e.message)?;
        let moves = |j: &JobReport| touches(j, host_vm) || guests.contains(&j.from.guest);
        match self.jobs.moves(since, moves) {
            None => Ok(()),
            Some(JobReport { from, to, .. }) => Err(format!(
                "guest {} of host VM {} is moved to {} meanwhile",
                from.guest, from.host_vm, to.host_vm
            )),
        }
    }

    /// Let a host VM start its guests, if none of them may be anywhere else.
    fn release(&self, vm: &HostVm) -> Result<(), String> {
        let name = &*vm.config.name;
        let since = self.jobs.last();
        self.stay(name, &[], since)?;
        let (mine, guests) = {
            let mut side = Side::take(vm)?;
            let mine = autostart(&mut side)?;
            (mine, side.talk(|l| l.guests())?)
        };
        let mine: Vec<_> = mine.into_iter().filter(|g| !has(&guests, g)).collect();
        self.stay(name, &mine, since)?;
        let mut starts = mine.clone();
        let others = self.host_vms.iter().filter(|o| o.config.name != name);
        for other in others.filter(|_| !mine.is_empty()) {
            if other.is_off() {
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
        // No guest leaves it or comes without its agent.
        let mut side = Side::take(vm)?;
        self.stay(name, &mine, since)?;
        may_start(&mut side, true)
    }
}

/// A guest runs in another host VM than the one that would start it: what is written down of
/// it belongs there, if it is of the same guest. Nobody but a person knows that if both have written
/// down something else, and no UUID tells.
fn belongs_to(guest: &str, vm: &HostVm, other: &HostVm) -> Result<(), String> {
    let (mut from, mut to) = take((vm, other)).map_err(|e| e.message)?;
    let deadline = Instant::now() + PATIENCE;
    let here = from.talk(|l| l.guests())?;
    let there = to.talk(|l| l.guests())?;
    let runs = there.iter().find(|g| g.name == guest && is_alive(g));
    // It may have moved since.
    let Some(runs) = runs.filter(|_| !has(&here, guest)) else {
        return Err(format!("guest {guest} is on its way"));
    };
    let has = to.talk(|l| l.uuids())?.get(&runs.domid).copied();
    let mine = from.insist(deadline, |l| definition(l, guest))?;
    let theirs = to.insist(deadline, |l| definition(l, guest))?;
    let (a, b) = (from.name(), to.name());
    let known = uuid_of(&mine).zip(has);
    match (known, text_of(&mine).zip(text_of(&theirs))) {
        (Some((mine, has)), _) if mine != has => {
            return Err(format!(
                "guest {guest} runs in host VM {b} with UUID {has}, and in host VM {a} it has UUID {mine}; rename one of the two, or remove the entry in {a} (/etc/xen/auto) if it is the same guest"
            ));
        }
        (None, Some((mine, theirs))) if mine != theirs => {
            return Err(format!(
                "guest {guest} runs in host VM {b}, and is written down otherwise in host VM {a}; if these are two guests, rename one, and otherwise remove the entry in {a} (/etc/xen/auto)"
            ));
        }
        _ => {}
    }
    warn!(guest, "host VM {a} would start it, and it runs in {b}");
    if theirs.is_empty() {
        follow(guest, &mut from, &mut to, deadline)?;
    }
    put_aside(guest, &mut from, deadline)
}
