// SPDX-License-Identifier: GPL-2.0-only

//! What host VMs have of the host's memory, and how guests get into one that has less of it
//! than its guest hypervisor believes.

use crate::driver::Driver;
use crate::exchange::{refused, SwapError};
use std::process::Command;
use std::time::Duration;
use tracing::info;
use vmbeam_control_protocol::{HostMemory, HostVmMemory, Mode};
use vmbeam_uapi::sys::FEATURE_RELOCATE;
use vmbeam_uapi::Mode as BindMode;
use vmbeam_xen::command::run;

use crate::control::Shared;
use crate::host_vm::{expected, side_by_side, HostVm};

/// How long the command may take that asks the hypervisor.
const LIMIT: Duration = Duration::from_secs(10);

/// The hypervisor tells it only to root.
pub(crate) const UNPRIVILEGED: &str = "vmbeamd may not ask the hypervisor with --user or --seccomp";

/// Ask by this command; before, have the reserve be so many pages if that is wanted.
pub(crate) fn ask(
    command: &[String],
    domid: u32,
    reserve: Option<u64>,
) -> Result<HostMemory, String> {
    let shown = command.join(" ");
    let failed = |why: &str| format!("`{shown} {domid}`: {why}");
    let (program, arguments) = command.split_first().ok_or("no memory_command")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(domid.to_string());
    command.args(reserve.map(|pages| format!("--reserve={pages}")));
    let out = run(&mut command, LIMIT).map_err(|e| failed(&e.to_string()))?;
    if !out.status.success() {
        let why = out.err.lines().next().unwrap_or("it says nothing").trim();
        return Err(failed(why));
    }
    serde_json::from_str(&out.out).map_err(|e| failed(&format!("not what was asked for: {e}")))
}

/// How a guest's memory gets there if that is left open.
pub(crate) fn chosen(wanted: Mode, to: &Result<HostMemory, String>) -> Mode {
    match (wanted, to) {
        (Mode::Auto, Ok(memory)) if memory.is_small() => Mode::Relocate,
        (Mode::Auto, _) => Mode::Swap,
        _ => wanted,
    }
}

/// Why nothing at all can be relocated.
pub(crate) fn no_relocation(
    driver: &dyn Driver,
    to: &str,
    mode: Mode,
    memory: &Result<HostMemory, String>,
) -> Option<String> {
    if mode != Mode::Relocate {
        return None;
    }
    if let Err(why) = memory {
        return Some(format!(
            "nothing can be relocated to host VM {to}, whose reserve is not known: {why}"
        ));
    }
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

/// Whether frames may go over without one in return.
pub(crate) fn relocates(mode: BindMode) -> bool {
    matches!(mode, BindMode::ToB | BindMode::ToA)
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
/// there by themselves.
pub(crate) fn holds(vm: &HostVm, copies: u64) -> Result<(), SwapError> {
    let name = &vm.config.name;
    let memory = vm.memory().map_err(|why| {
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

impl Shared {
    /// All host VMs' memory.
    pub(crate) fn memories(&self) -> Vec<HostVmMemory> {
        side_by_side(&expected(&self.host_vms), |vm| HostVmMemory {
            host_vm: vm.config.name.clone(),
            memory: vm.memory(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_prints() {
        let printed = |text: &str| {
            let command = ["sh", "-c", "echo \"$0\"; test $1 = 3", text];
            ask(&command.map(String::from), 3, None)
        };
        let memory = HostMemory {
            pages: 4,
            max_pages: 3,
            cache: 2,
            entries: 1,
        };
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(printed(&text), Ok(memory));
        let e = printed("who?").unwrap_err();
        assert!(e.contains("3`: not what was asked for"), "{e}");
        let failing = ["sh", "-c", "echo no such domain >&2; exit 1"].map(String::from);
        let e = ask(&failing, 3, None).unwrap_err();
        assert!(e.ends_with("`: no such domain"), "{e}");
    }

    #[test]
    fn a_small_destination_is_relocated_to_unless_somebody_wants_otherwise() {
        let small = Ok(HostMemory {
            entries: 1,
            ..HostMemory::default()
        });
        let full = Ok(HostMemory::default());
        let unknown = Err(String::new());
        assert_eq!(chosen(Mode::Auto, &small), Mode::Relocate);
        assert_eq!(chosen(Mode::Auto, &full), Mode::Swap);
        assert_eq!(chosen(Mode::Auto, &unknown), Mode::Swap);
        for mode in [Mode::Swap, Mode::Copy, Mode::Relocate] {
            assert_eq!(chosen(mode, &small), mode);
            assert_eq!(chosen(mode, &full), mode);
        }
    }
}
