// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam memory`, and what other commands show of the memory of host VMs.

use crate::client::{Client, ClientError};
use crate::exit;
use crate::output;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use vmbeam_control_protocol::{FromDaemon, HostMemory, HostVmMemory, ToDaemon};
use vmbeam_xen::{Error, Xen};

/// How long a person waits for what the host's toolstack and hypervisor have to be asked for.
const ASKED: Duration = Duration::from_secs(20);
/// Pages of 1 MiB.
const MIB: u64 = 256;

/// What the hypervisor of this machine says of a domain.
fn look(domid: u32) -> Result<HostMemory, Error> {
    let xen = Xen::open()?;
    let domain = xen.domain(domid)?;
    let (cache, entries) = match domain.hvm {
        true => xen.populate_on_demand(domid)?,
        false => (0, 0),
    };
    Ok(HostMemory {
        pages: domain.pages,
        max_pages: domain.max_pages,
        cache,
        entries,
        host_free: xen.free_pages()?,
    })
}

/// Have its reserve be so many pages, or as many as it has a use for, if it is less.
fn fill(domid: u32, reserve: u64) -> Result<(), Error> {
    let memory = look(domid)?;
    match memory.lacks(reserve) {
        0 => Ok(()),
        lacks => Xen::open()?.set_populate_on_demand(domid, memory.pages + lacks),
    }
}

/// Print it, for vmbeamd; before, fill its reserve if that is wanted.
pub(crate) fn print(domid: u32, reserve: Option<u64>) -> Result<ExitCode, ClientError> {
    let filled = reserve.map_or(Ok(()), |pages| fill(domid, pages));
    match filled.and_then(|()| look(domid)) {
        Ok(memory) => {
            output::json(&memory)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(e) => {
            eprintln!("vmbeam: {e}");
            Ok(ExitCode::from(exit::FAILED))
        }
    }
}

/// What the daemon knows of all host VMs.
pub(crate) fn ask(socket: &Path) -> Result<Vec<HostVmMemory>, ClientError> {
    match Client::connect(socket)?.ask_soon(&ToDaemon::Memory, ASKED)? {
        FromDaemon::Memory(all) => Ok(all),
        _ => Err(ClientError::Unexpected),
    }
}

/// It in one line.
pub(crate) fn text(memory: &HostMemory) -> String {
    let HostMemory {
        pages,
        max_pages,
        cache,
        entries,
        ..
    } = memory;
    let (pages, max) = (pages / MIB, max_pages / MIB);
    match memory.is_small() {
        false => format!("{pages} MiB, at most {max}; all of it is there"),
        true => format!(
            "small: {pages} MiB, at most {max}; a reserve of {} MiB for {} MiB that are not there{}",
            cache / MIB,
            entries / MIB,
            match memory.is_backed() {
                true => "",
                false => ": start nothing in it",
            }
        ),
    }
}

/// The same for whoever wants to know something else as well.
pub(crate) fn asked(socket: &Path) -> Vec<String> {
    match ask(socket) {
        Ok(all) => lines(&all),
        Err(e) => vec![format!("The memory of the host VMs is not known: {e}")],
    }
}

/// Lines about those that are small.
pub(crate) fn lines(all: &[HostVmMemory]) -> Vec<String> {
    let mut lines = Vec::new();
    for vm in all {
        let (name, Ok(memory)) = (&vm.host_vm, &vm.memory) else {
            continue;
        };
        if memory.is_small() {
            lines.push(format!("Host VM {}: {}", output::name(name), text(memory)));
        }
        for warning in memory.warnings(name) {
            lines.push(format!("Host VM {}: {warning}", output::name(name)));
        }
    }
    lines
}
