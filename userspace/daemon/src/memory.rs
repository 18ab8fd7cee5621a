// SPDX-License-Identifier: GPL-2.0-only

//! What host VMs have of the host's memory, and how guests get into one that has less of it
//! than its guest hypervisor believes.

use crate::driver::Driver;
use crate::exchange::{both, refused, relocates, GoOn, SwapError, REGARDLESS};
use crate::journal::Place;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};
use vmbeam_control_protocol::{reserve_for, HostMemory, HostVmMemory, Mode, MARGIN};
use vmbeam_uapi::sys::FEATURE_RELOCATE;
use vmbeam_uapi::Mode as BindMode;
use vmbeam_xen::command::run_while;

use crate::host_vm::{expected, side_by_side, HostVm};
use crate::identity::Source;

/// How long the command may take that asks the hypervisor.
const LIMIT: Duration = Duration::from_secs(10);

/// The same if it fills a reserve before, which may be of many GiB.
const FILLING: Duration = Duration::from_secs(120);

/// The hypervisor tells it only to root.
pub(crate) const UNPRIVILEGED: &str = "vmbeamd may not ask the hypervisor with --user or --seccomp";

/// Ask by this command, for as long as it is to be gone on with; before, have the reserve be so
/// many pages if that is wanted.
pub(crate) fn ask(
    command: &[String],
    domid: u32,
    reserve: Option<u64>,
    go_on: GoOn<'_>,
) -> Result<HostMemory, String> {
    let shown = command.join(" ");
    let failed = |why: &str| format!("`{shown} {domid}`: {why}");
    let (program, arguments) = command.split_first().ok_or("no memory_command")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(domid.to_string());
    command.process_group(0);
    command.args(reserve.map(|pages| format!("--reserve={pages}")));
    let limit = reserve.map_or(LIMIT, |_| FILLING);
    let wanted = || go_on().is_ok();
    let out = run_while(&mut command, limit, wanted).map_err(|e| failed(&e.to_string()))?;
    if !out.status.success() {
        let why = out.err.lines().next().unwrap_or("it says nothing").trim();
        return Err(failed(why));
    }
    serde_json::from_str(&out.out).map_err(|e| failed(&format!("not what was asked for: {e}")))
}

/// What both host VMs of a move have, the source first.
pub(crate) struct Both(pub(crate) [Result<HostMemory, String>; 2]);

impl Both {
    pub(crate) fn ask(from: &HostVm, to: &HostVm, go_on: GoOn<'_>) -> Self {
        let (from, to) = both(|| from.memory_while(go_on), || to.memory_while(go_on));
        Self([from, to])
    }

    /// Whether the destination has less memory than its guest hypervisor believes, if that is
    /// known.
    pub(crate) fn small(&self) -> Option<bool> {
        self.to().map(|m| m.is_small())
    }

    pub(crate) fn to(&self) -> Option<HostMemory> {
        self.0[1].clone().ok()
    }

    /// How a guest's memory gets there if that is left open. A page that is not there, on
    /// either side, cannot be swapped.
    pub(crate) fn chosen(&self, driver: &dyn Driver, wanted: Mode) -> Mode {
        let small =
            |memory: &Result<HostMemory, String>| memory.as_ref().is_ok_and(HostMemory::is_small);
        let [from, to] = &self.0;
        let can = || {
            driver
                .info()
                .is_ok_and(|i| i.features & FEATURE_RELOCATE != 0)
        };
        match wanted {
            Mode::Auto if small(to) || small(from) && can() => Mode::Relocate,
            Mode::Auto => Mode::Swap,
            _ => wanted,
        }
    }

    /// Why nothing at all can be moved by this mode.
    pub(crate) fn in_the_way(
        &self,
        driver: &dyn Driver,
        (from, to): (&str, &str),
        mode: Mode,
    ) -> Vec<String> {
        let relocates = mode == Mode::Relocate;
        let mut all = Vec::new();
        for (name, memory) in [from, to].iter().zip(&self.0) {
            match memory {
                Err(why) if relocates || why != UNPRIVILEGED => all.push(format!(
                    "nothing can be moved from or to host VM {name}, whose reserve is not known: {why}"
                )),
                _ => {}
            }
        }
        if let (true, Ok(memory)) = (relocates, &self.0[0]) {
            all.extend(memory.cannot_give(from));
        }
        if relocates {
            all.extend(no_relocation(driver));
        }
        all
    }

    /// Give both the reserves without which a guest of so many pages must not move, of what the
    /// host has.
    pub(crate) fn fill(
        &mut self,
        (from, to): (&HostVm, &HostVm),
        domids: (u32, u32),
        pages: u64,
        mode: Mode,
        go_on: GoOn<'_>,
    ) -> Result<(), SwapError> {
        let [source, destination] = &mut self.0;
        let gives = match source {
            Ok(m) if mode == Mode::Relocate && m.dies_of_giving() => MARGIN,
            _ => 0,
        };
        let takes = reserve_for(pages, mode);
        for (vm, domid, memory, reserve) in [
            (from, domids.0, source, gives),
            (to, domids.1, destination, takes),
        ] {
            let Ok(known) = memory else { continue };
            if known.lacks(reserve) > 0 {
                let name = &vm.config.name;
                go_on()?;
                let filled = vm.reserve(domid, reserve, go_on).map_err(|why| {
                    let why = format!("host VM {name} got no reserve for this move: {why}");
                    match go_on() {
                        Err(e) => SwapError {
                            message: format!("{}: {why}", e.message),
                            ..e
                        },
                        Ok(()) => refused(why),
                    }
                })?;
                info!(host_vm = name, memory = ?filled, "its reserve before a move");
                *known = filled;
            }
        }
        Ok(())
    }
}

/// Why nothing at all can be relocated.
fn no_relocation(driver: &dyn Driver) -> Option<String> {
    match driver.info() {
        Ok(info) if info.features & FEATURE_RELOCATE != 0 => None,
        Ok(_) => Some(
            "the driver or the host hypervisor cannot relocate memory; install those of this release, or give the destination all its memory when it is created"
                .into(),
        ),
        // What is wrong with the driver is said elsewhere.
        Err(_) => None,
    }
}

/// Where memory goes, for the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// The domains: A is where it comes from.
    pub(crate) domids: (u32, u32),
    pub(crate) mode: BindMode,
}

impl Route {
    pub(crate) fn new(domids: (u32, u32), mode: Mode) -> Self {
        let mode = match mode {
            Mode::Relocate => BindMode::ToB,
            _ => BindMode::Swap,
        };
        Self { domids, mode }
    }

    /// What undoes it, with the same pairs.
    pub(crate) fn back(self) -> Self {
        let mode = match self.mode {
            BindMode::ToB => BindMode::ToA,
            BindMode::ToA => BindMode::ToB,
            same => same,
        };
        Self { mode, ..self }
    }

    /// Whether frames may go over without one in return.
    pub(crate) fn relocates(self) -> bool {
        relocates(self.mode)
    }
}

/// Whether enough is left of a host VM's reserve for so many pages that are to be written
/// there by themselves. The guest may stand still meanwhile: so the domain is not looked for
/// again, and it is not waited for longer than that may last.
pub(crate) fn holds(
    (vm, domid): (&HostVm, u32),
    copies: u64,
    go_on: GoOn<'_>,
) -> Result<(), SwapError> {
    let name = &vm.config.name;
    let memory = vm.memory_of(domid, go_on).map_err(|why| {
        refused(format!(
            "the reserve of host VM {name} is not known any more: {why}"
        ))
    })?;
    info!(
        host_vm = name,
        ?memory,
        copies,
        "what is left of its reserve"
    );
    match memory.exhausted(name, copies) {
        Some(why) => Err(refused(why)),
        None => Ok(()),
    }
}

/// Frames have gone over, or they have come back: each host VM gets a margin again. And if it was
/// undone, each gets what the hypervisor has cut of its reserve meanwhile. What was cut otherwise is
/// the host's, which has it for the next move that needs a reserve.
pub(crate) fn refill(sides: [(&HostVm, &Place); 2], undone: bool) {
    let fill = |(vm, place): (&HostVm, &Place), pages| {
        let (name, domid) = (&vm.config.name, place.host_domid);
        // It may have ended since, and its number may be another domain's.
        let there = vm.is_still(place);
        match there.and_then(|there| match there {
            true => vm.reserve(domid, pages, REGARDLESS),
            false => Err("it has ended".into()),
        }) {
            Ok(memory) => {
                info!(host_vm = name, ?memory, "its reserve after a relocation");
                Some(memory)
            }
            Err(why) => {
                warn!("host VM {name} may lack a reserve after a relocation: {why}");
                None
            }
        }
    };
    let now = sides.map(|side| fill(side, MARGIN));
    for (side, now) in sides.into_iter().zip(now).filter(|_| undone) {
        let had = side.1.pages;
        let lost = had.zip(now).map(|(had, now)| had.saturating_sub(now.pages));
        if let (Some(now), Some(lost @ 1..)) = (now, lost) {
            fill(side, now.cache + lost);
        }
    }
}

impl HostVm {
    /// What it has of the host's memory.
    pub(crate) fn memory(&self) -> Result<HostMemory, String> {
        self.memory_while(REGARDLESS)
    }

    /// The same, for as long as it is to be gone on with.
    fn memory_while(&self, go_on: GoOn<'_>) -> Result<HostMemory, String> {
        match self.source {
            Source::Start(_) => Err(UNPRIVILEGED.into()),
            Source::Command(_) => {
                let domid = self.domid_while(|| go_on().is_ok())?;
                self.memory_of(domid, go_on)
            }
        }
    }

    /// The same of one whose domain is known, for as long as it is to be gone on with.
    pub(crate) fn memory_of(&self, domid: u32, go_on: GoOn<'_>) -> Result<HostMemory, String> {
        self.look_at(domid, None, go_on)
    }

    /// The same once it has a reserve of so many pages, or of as many as it has a use for.
    pub(crate) fn reserve(
        &self,
        domid: u32,
        pages: u64,
        go_on: GoOn<'_>,
    ) -> Result<HostMemory, String> {
        self.look_at(domid, Some(pages), go_on)
    }

    fn look_at(
        &self,
        domid: u32,
        reserve: Option<u64>,
        go_on: GoOn<'_>,
    ) -> Result<HostMemory, String> {
        match self.source {
            Source::Start(_) => Err(UNPRIVILEGED.into()),
            Source::Command(_) => ask(&self.config.memory, domid, reserve, go_on),
        }
    }
}

/// All host VMs' memory.
pub(crate) fn memories(host_vms: &[Arc<HostVm>]) -> Vec<HostVmMemory> {
    side_by_side(&expected(host_vms), |vm| HostVmMemory {
        host_vm: vm.config.name.clone(),
        memory: vm.memory(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_prints() {
        let printed = |text: &str| {
            let command = ["sh", "-c", "echo \"$0\"; test $1 = 3", text];
            ask(&command.map(String::from), 3, None, REGARDLESS)
        };
        let memory = HostMemory {
            pages: 4,
            max_pages: 3,
            cache: 2,
            entries: 1,
            host_free: 5,
        };
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(printed(&text), Ok(memory));
        let e = printed("who?").unwrap_err();
        assert!(e.contains("3`: not what was asked for"), "{e}");
        let failing = ["sh", "-c", "echo no such domain >&2; exit 1"].map(String::from);
        let e = ask(&failing, 3, None, REGARDLESS).unwrap_err();
        assert!(e.ends_with("`: no such domain"), "{e}");
    }
}
