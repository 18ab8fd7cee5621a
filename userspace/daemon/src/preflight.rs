// SPDX-License-Identifier: GPL-2.0-only

//! What is in the way of a migration: all that can be found out before anything is done to
//! the guest.

use crate::clock;
use crate::driver::Driver;
use crate::exchange::{both, refused, GoOn, SwapError, REGARDLESS};
use crate::host_vm::HostVm;
use crate::inspection::looked_at;
use crate::link::{Patience, Reading};
use crate::memory::Both;
use crate::side::Side;
use std::collections::HashMap;
use vmbeam_agent_protocol::{Facts, Guest, GuestKind, GuestState, Uuid};
use vmbeam_control_protocol::{
    needed_mib, no_room, HostMemory, MigrateRequest, Mode, PlanReport, PlannedGuest,
};

pub(crate) fn mib(pages: u64) -> u64 {
    pages.div_ceil(256)
}

/// What is being torn down is no guest any more, whatever it was.
pub(crate) fn is_alive(guest: &Guest) -> bool {
    guest.state != GuestState::Dying
}

/// The guest of this name. Two of one name are none: whoever asks must say which.
pub(crate) fn named<'a>(
    guests: &'a [Guest],
    name: &str,
    host_vm: &str,
) -> Result<&'a Guest, String> {
    let same: Vec<_> = guests
        .iter()
        .filter(|g| g.name == name && is_alive(g))
        .collect();
    match same[..] {
        [only] => Ok(only),
        [] => Err(format!(
            "host VM {host_vm} has no guest named {name}; `vmbeam list` shows which there are"
        )),
        _ => {
            let mut domids: Vec<_> = same.iter().map(|g| g.domid).collect();
            domids.sort_unstable();
            let domids: Vec<_> = domids.iter().map(u32::to_string).collect();
            Err(format!(
                "host VM {host_vm} has several guests named {name} (domains {}); rename all but one, by `xl rename DOMID NAME` there",
                domids.join(", ")
            ))
        }
    }
}

/// A guest that may migrate, or what is in its way.
pub(crate) struct Checked<'a> {
    pub(crate) from: Side<'a>,
    pub(crate) to: Side<'a>,
    /// How its memory gets there.
    pub(crate) mode: Mode,
    /// What both host VMs have of the host's memory.
    pub(crate) memory: Both,
    pub(crate) domids: (u32, u32),
    /// The hypervisor's ids of both host VMs, if it was asked.
    pub(crate) ids: Option<[u64; 2]>,
    pub(crate) guest: Guest,
    /// The guest's UUID, if its agent tells UUIDs.
    pub(crate) uuid: Option<Uuid>,
    pub(crate) blockers: Vec<String>,
    /// Why its copy cannot be made while it runs, if so.
    pub(crate) unstaged: Option<String>,
    /// What is not in the way.
    pub(crate) warnings: Vec<String>,
    /// Its host VM starts it at boot.
    pub(crate) starts: bool,
}

/// Everything that can be found out without touching the guest, for as long as it is to be gone on
/// with. Both agents are talked to with this patience from then on.
pub(crate) fn check<'a>(
    driver: &dyn Driver,
    host_vms: (&'a HostVm, &'a HostVm),
    request: &MigrateRequest,
    (patience, go_on): (&Patience, GoOn<'_>),
) -> Result<Checked<'a>, SwapError> {
    look(driver, host_vms, request, (patience, go_on)).map_err(|e| e.because(go_on()))
}

fn look<'a>(
    driver: &dyn Driver,
    host_vms: (&'a HostVm, &'a HostVm),
    request: &MigrateRequest,
    (patience, go_on): (&Patience, GoOn<'_>),
) -> Result<Checked<'a>, SwapError> {
    let (mut from, mut to) = take_within(host_vms, patience)?;
    let memory = Both::ask(from.vm, to.vm, go_on);
    go_on()?;
    let mode = memory.chosen(driver, request.mode);
    let (domids, ids) = domids(driver, (&mut from, &mut to), mode)?;
    let inventory = Inventory::of(&mut from, &mut to)?;
    go_on()?;
    let mut warnings = inventory.warnings(from.name(), to.name());
    let Inventory {
        here, there, uuids, ..
    } = inventory;
    let name = &request.from.guest;
    let guest = named(&here.0, name, from.name()).map_err(refused)?.clone();
    let mut blockers = blockers_of(to.name(), &guest, &there);
    blockers.extend(closed(to.vm));
    let uuid = uuids.0.get(&guest.domid).copied();
    let here_too = (&guest, from.name(), &*here.0);
    blockers.extend(same_uuid(here_too, to.name(), &there.0, &uuids));
    let facts = ((from.name(), &here.1), (to.name(), &there.1));
    blockers.extend(blockers_of_pair(mode, facts.0, facts.1));
    let unstaged = unstaged(mode, facts.0, facts.1);
    let needs = format!("guest {name} needs");
    let room = no_room(to.name(), &needs, needed_mib(guest.pages), there.1.free_mib);
    blockers.extend(room);
    blockers.extend(memory.in_the_way(driver, (from.name(), to.name()), mode));
    blockers.extend(no_reserve(to.name(), &guest, mode, memory.to()));
    let looked = looked_at(&mut from, &mut to, &guest, mode);
    blockers.extend(looked.blockers);
    warnings.extend(looked.warnings);
    go_on()?;
    if let Some(uuid) = uuid.filter(|_| !request.dry_run) {
        to.talk(|l| l.expect(uuid)).map_err(refused)?;
    }
    Ok(Checked {
        from,
        to,
        mode,
        memory,
        domids,
        ids,
        guest,
        uuid,
        blockers,
        unstaged,
        warnings,
        starts: looked.starts,
    })
}

/// Why guests of two host VMs are suspended before their copy is made.
fn unstaged(mode: Mode, from: (&str, &Facts), to: (&str, &Facts)) -> Option<String> {
    if mode == Mode::Copy {
        return Some("a copy is made of a guest that is suspended".into());
    }
    let old = [from, to].into_iter().find(|(_, facts)| !facts.stages)?.0;
    Some(format!(
        "the toolstack of host VM {old} lacks `xl save --staged` and `xl restore --staged`; install one with the patches of hypervisor-patches/toolstack to have the guest stand still for less time"
    ))
}

/// Why a guest cannot migrate whatever the destination has room for.
fn blockers_of(to: &str, guest: &Guest, (guests, facts): &(Vec<Guest>, Facts)) -> Vec<String> {
    let name = &guest.name;
    let mut blockers = Vec::new();
    if guest.kind != GuestKind::Pv {
        blockers.push(format!(
            "guest {name} is not a PV guest; only PV guests can be migrated so far: shut it down, and start it in {to}"
        ));
    }
    if guest.state != GuestState::Running {
        blockers.push(format!(
            "guest {name} does not run, and only a guest that runs can suspend itself; unpause it, or shut it down"
        ));
    }
    if guests.iter().any(|g| g.name == *name && is_alive(g)) {
        blockers.push(format!(
            "host VM {to} has a guest named {name} already; rename or shut down one of them"
        ));
    }
    if guest.kind == GuestKind::Pv {
        blockers.extend(other_cpu(to, guest, facts));
    }
    blockers
}

/// Other guests with the UUID of this one, in whichever host VM. Recovery, and the agent that
/// restores it, could take one of them for it.
fn same_uuid(
    (guest, from, here): (&Guest, &str, &[Guest]),
    to: &str,
    there: &[Guest],
    uuids: &(HashMap<u32, Uuid>, HashMap<u32, Uuid>),
) -> Vec<String> {
    let Some(uuid) = uuids.0.get(&guest.domid) else {
        return Vec::new();
    };
    let same =
        |g: &&Guest, uuids: &HashMap<u32, Uuid>| is_alive(g) && uuids.get(&g.domid) == Some(uuid);
    let others = here
        .iter()
        .filter(|g| g.domid != guest.domid && same(g, &uuids.0))
        .map(|g| (from, g));
    let others = others.chain(there.iter().filter(|g| same(g, &uuids.1)).map(|g| (to, g)));
    let name = &guest.name;
    others
        .map(|(vm, other)| {
            format!(
                "guest {name} has the same UUID as guest {} (domain {}) of host VM {vm}; shut down one of them, and give it another `uuid`",
                other.name, other.domid
            )
        })
        .collect()
}

/// Why a guest would find another processor there than it has booted on.
fn other_cpu(to: &str, guest: &Guest, there: &Facts) -> Option<String> {
    let name = &guest.name;
    let Some(cpu) = guest.cpu else {
        return Some(format!(
            "the guest hypervisor does not tell which CPU features guest {name} has; look into the log of the agent"
        ));
    };
    let missing = cpu.missing_in(&there.cpu);
    let first = missing.first()?;
    let features = match missing.len() - 1 {
        0 => first.to_string(),
        n => format!("{first} and {n} more"),
    };
    Some(format!(
        "host VM {to} lacks CPU features that guest {name} may use: {features}; give both host VMs the same `cpuid`"
    ))
}

/// Why a destination that has less memory than it believes cannot take a guest.
fn no_reserve(to: &str, guest: &Guest, mode: Mode, memory: Option<HostMemory>) -> Vec<String> {
    let who = format!("guest {}", guest.name);
    memory.map_or_else(Vec::new, |memory| {
        memory.in_the_way(to, &who, guest.pages, mode)
    })
}

/// Why nothing may arrive.
fn closed(to: &HostVm) -> Option<String> {
    let name = &to.config.name;
    to.is_in_maintenance().then(|| {
        format!("host VM {name} is in maintenance, and takes no guests; end that by `vmbeam maintenance {name} off`")
    })
}

/// Why guests of two host VMs cannot migrate whatever they are.
fn blockers_of_pair(mode: Mode, from: (&str, &Facts), to: (&str, &Facts)) -> Vec<String> {
    [from, to]
        .into_iter()
        .filter(|_| mode.is_external())
        .filter_map(|(vm, facts)| Some(format!("host VM {vm}: {}", facts.problem.as_ref()?)))
        .collect()
}

/// Both agents, in the order of the names: of two opposite migrations, one gets
/// both.
pub(crate) fn take<'a>(
    host_vms: (&'a HostVm, &'a HostVm),
) -> Result<(Side<'a>, Side<'a>), SwapError> {
    take_within(host_vms, &Patience::default())
}

fn take_within<'a>(
    (from, to): (&'a HostVm, &'a HostVm),
    patience: &Patience,
) -> Result<(Side<'a>, Side<'a>), SwapError> {
    let take = |vm: &'a HostVm| Side::take_within(vm, patience.clone()).map_err(refused);
    if from.config.name < to.config.name {
        let from = take(from)?;
        Ok((from, take(to)?))
    } else {
        let to = take(to)?;
        Ok((take(from)?, to))
    }
}

/// The domids of both host VMs, and the hypervisor's ids of them if it was asked.
type Domains = ((u32, u32), Option<[u64; 2]>);

/// Refuse what the host hypervisor cannot do at all.
fn domids(
    driver: &dyn Driver,
    (from, to): (&mut Side<'_>, &mut Side<'_>),
    mode: Mode,
) -> Result<Domains, SwapError> {
    let domids = (from.domid().map_err(refused)?, to.domid().map_err(refused)?);
    if mode.is_external() {
        let offer = |e| {
            refused(format!(
                "{e}; `vmbeam migrate --mode copy` copies the memory instead"
            ))
        };
        let session = driver.open_anew(domids.0, domids.1).map_err(offer)?;
        return Ok((domids, Some(session.ids())));
    }
    Ok((domids, None))
}

/// Guests and facts of both host VMs, each asked once.
#[derive(Debug)]
struct Inventory {
    here: (Vec<Guest>, Facts),
    there: (Vec<Guest>, Facts),
    /// UUIDs of the guests here and there, by their domids.
    uuids: (HashMap<u32, Uuid>, HashMap<u32, Uuid>),
    /// What the clocks show, of agents that tell.
    clocks: (Option<Reading>, Option<Reading>),
}

impl Inventory {
    /// What is wrong, and not in the way.
    fn warnings(&self, from: &str, to: &str) -> Vec<String> {
        let (Some(a), Some(b)) = self.clocks else {
            return Vec::new();
        };
        clock::apart((from, a), (to, b)).into_iter().collect()
    }

    fn of(from: &mut Side<'_>, to: &mut Side<'_>) -> Result<Self, SwapError> {
        let ask = |side: &mut Side<'_>| {
            side.greet()?;
            let known = (side.talk(|l| l.guests())?, side.talk(|l| l.facts())?);
            Ok((known, side.talk(|l| l.uuids())?, side.talk(|l| l.time())?))
        };
        let (here, there) = both(|| ask(from), || ask(to));
        let refused = |e: String| refused(e);
        let (here, uuids_here, clock_here) = here.map_err(refused)?;
        let (there, uuids_there, clock_there) = there.map_err(refused)?;
        Ok(Self {
            here,
            there,
            uuids: (uuids_here, uuids_there),
            clocks: (clock_here, clock_there),
        })
    }
}

/// What is in the way of all guests of a host VM.
pub(crate) fn plan(
    driver: &dyn Driver,
    host_vms: (&HostVm, &HostVm),
    mode: Mode,
) -> Result<PlanReport, SwapError> {
    let (mut from, mut to) = take(host_vms)?;
    let memory = Both::ask(from.vm, to.vm, REGARDLESS);
    let mode = memory.chosen(driver, mode);
    let mut report = PlanReport {
        mode,
        memory: memory.to(),
        ..PlanReport::default()
    };
    if let Err(e) = domids(driver, (&mut from, &mut to), mode) {
        report.blockers.push(e.message);
    }
    report.blockers.extend(closed(to.vm));
    let names = (from.name(), to.name());
    let in_the_way = memory.in_the_way(driver, names, mode);
    report.blockers.extend(in_the_way);
    let inventory = Inventory::of(&mut from, &mut to)?;
    let mut warnings = inventory.warnings(from.name(), to.name());
    let Inventory {
        mut here,
        there,
        uuids,
        ..
    } = inventory;
    here.0.retain(is_alive);
    let (here, there) = (&here, &there);
    let pair = blockers_of_pair(mode, (from.name(), &here.1), (to.name(), &there.1));
    report.blockers.extend(pair);
    report.free_mib = there.1.free_mib;
    report.needed_mib = here.0.iter().map(|g| needed_mib(g.pages)).sum();
    let mut planned = |guest: &Guest| {
        let mut blockers = blockers_of(to.name(), guest, there);
        blockers.extend(named(&here.0, &guest.name, from.name()).err());
        blockers.extend(same_uuid(
            (guest, from.name(), &here.0),
            to.name(),
            &there.0,
            &uuids,
        ));
        blockers.extend(no_reserve(to.name(), guest, mode, memory.to()));
        let looked = looked_at(&mut from, &mut to, guest, mode);
        blockers.extend(looked.blockers);
        warnings.extend(looked.warnings);
        PlannedGuest {
            blockers,
            guest: guest.clone(),
            uuid: uuids.0.get(&guest.domid).copied(),
        }
    };
    report.guests = here.0.iter().map(&mut planned).collect();
    report.warnings = warnings;
    report.guests.sort_by_key(|g| g.guest.domid);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_agent_protocol::CpuFeatures;

    fn guest(name: &str) -> Guest {
        Guest {
            name: name.into(),
            domid: 1,
            state: GuestState::Running,
            pages: 257,
            kind: GuestKind::Pv,
            cpu: Some(CpuFeatures::default()),
        }
    }

    #[test]
    fn a_name_is_that_of_one_guest() {
        let (one, mut other) = (guest("one"), guest("one"));
        other.domid = 7;
        let all = [one.clone(), guest("two"), other.clone()];
        assert_eq!(named(&all, "two", "A"), Ok(&all[1]));
        let e = named(&all, "one", "A").unwrap_err();
        assert!(e.contains("several guests named one (domains 1, 7)"), "{e}");
        assert!(named(&all, "three", "A").unwrap_err().contains("no guest"));
        // What is going away counts for nothing.
        other.state = GuestState::Dying;
        let all = [other.clone(), one];
        assert_eq!(named(&all, "one", "A"), Ok(&all[1]));
        let there = (vec![other], Facts::default());
        assert!(blockers_of("B", &guest("one"), &there).is_empty());
    }

    #[test]
    fn every_blocker_is_named() {
        let good = guest("guest");
        let there = |name| (vec![guest(name)], Facts::default());
        assert!(blockers_of("B", &good, &there("other")).is_empty());
        let mut bad = good.clone();
        bad.kind = GuestKind::Hvm;
        bad.state = GuestState::Paused;
        let all = blockers_of("B", &bad, &there("guest"));
        assert_eq!(all.len(), 3);
        for (blocker, words) in
            all.iter()
                .zip(["not a PV guest", "does not run", "has a guest named guest"])
        {
            assert!(blocker.contains(words), "{blocker}");
        }
        let mut strange = good.clone();
        strange.cpu = None;
        let newer = |number, registers, msr| {
            let leaf = move |leaf, _| (leaf == number).then_some(registers);
            let cpu = CpuFeatures::new(leaf, move |m| (m == 0x10a).then_some(msr));
            Guest {
                cpu: Some(cpu),
                ..good.clone()
            }
        };
        for (guest, words) in [
            (strange, "does not tell which CPU features guest guest has"),
            (newer(7, [0, 0x21, 0, 0], 0), "CPUID 0x7:0 ebx bit 0 and"),
            // What only a guest hypervisor of today knows of.
            (
                newer(0x8000_0021, [0, 0, 4, 0], 0),
                "CPUID 0x80000021:0 ecx bit 2;",
            ),
            (newer(0, [0; 4], 1), "MSR 0x10a bit 0;"),
            (newer(0, [0; 4], 1 << 62), "MSR 0x10a bit 62;"),
        ] {
            let all = blockers_of("B", &guest, &there("other"));
            assert!(all.len() == 1 && all[0].contains(words), "{all:?}");
        }
        let same = newer(0x8000_0021, [0, 0, 4, 0], 1);
        let there_too = Facts {
            cpu: same.cpu.unwrap(),
            ..Facts::default()
        };
        assert!(blockers_of("B", &same, &(Vec::new(), there_too)).is_empty());
        let fine = Facts::default();
        let old = Facts {
            problem: Some("old tools".into()),
            ..Facts::default()
        };
        let stages = Facts {
            stages: true,
            ..Facts::default()
        };
        let unstaged = |mode| unstaged(mode, ("A", &stages), ("B", &fine)).unwrap();
        assert!(unstaged(Mode::Swap).contains("toolstack of host VM B lacks `xl save --staged`"));
        assert!(unstaged(Mode::Copy).contains("a copy is made"));
        assert_eq!(
            super::unstaged(Mode::Swap, ("A", &stages), ("B", &stages)),
            None
        );
        let pair = |mode| blockers_of_pair(mode, ("A", &fine), ("B", &old));
        assert_eq!(pair(Mode::Swap), ["host VM B: old tools"]);
        // A copy needs nothing of the toolstack.
        assert!(pair(Mode::Copy).is_empty());
        // 257 pages, and what the toolstack needs for itself.
        assert_eq!(no_room("B", "it needs", needed_mib(good.pages), 4), None);
        let full = no_room("B", "it needs", needed_mib(good.pages), 3).unwrap();
        assert!(
            full.contains("3 MiB of free memory, and it needs 4 MiB"),
            "{full}"
        );
    }
}
