// SPDX-License-Identifier: GPL-2.0-only

//! What is shown of the commands that give a host VM another guest hypervisor: as a
//! demonstration with a report, and as tests.

use std::fs;

use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

use crate::busy;
use crate::images;
use crate::paths;
use crate::product;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::Sizes;
use crate::topology::Topology;

/// What a command did.
pub trait Report: Serialize + Sized {
    /// The command's name, and that of its group and its file.
    const NAME: &str;
    /// Bring the machine up.
    fn boot(progress: &Progress) -> Result<Topology>;
    /// Start the guest VMs.
    fn start_guests(topology: &Topology, progress: &Progress) -> Result<()> {
        busy::start(topology, progress)
    }
    /// Tests without them.
    fn alone(_: &mut Tally, _: &Topology) {}
    /// Do it, and look.
    fn run(topology: &Topology, progress: &Progress) -> Result<Self>;
    /// What must be true, and whether it is.
    fn findings(&self) -> Vec<(&'static str, Result<()>)>;
    /// For a person.
    fn print(&self);

    /// `build/report/NAME.json`.
    fn write(&self) -> Result<()> {
        fs::create_dir_all(paths::reports())?;
        let path = paths::reports().join(format!("{}.json", Self::NAME));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The host alone, with room for the guest VMs and with the old guest hypervisor in its image.
pub fn boot_host(progress: &Progress) -> Result<Topology> {
    let stage = progress.stage("images: the host with the old guest hypervisor");
    images::with_old_xen()?;
    stage.done();
    let sizes = Sizes::for_guests(busy::GUESTS.len() as u32, busy::GUEST_MIB);
    let (topology, _) =
        Topology::boot_host_with(sizes, &paths::xen(), "host-old", (1, ""), progress)?;
    product::start(&topology)?;
    Ok(topology)
}

/// `make demo-NAME`: true if everything verified.
pub fn demo<R: Report>(progress: &Progress) -> Result<bool> {
    let topology = R::boot(progress)?;
    R::start_guests(&topology, progress)?;
    let report = R::run(&topology, progress)?;
    report.write()?;
    report.print();
    let name = R::NAME;
    let mut failed = false;
    for (what, result) in report.findings() {
        if let Err(e) = result {
            println!("{name}: FAILED: {what}: {e:#}");
            failed = true;
        }
    }
    if !failed {
        println!("{name}: everything verified; see build/report/{name}.json");
    }
    Ok(!failed)
}

/// The same as tests; gives what they ran on, if it came to its end.
pub fn check<R: Report>(tally: &mut Tally, progress: &Progress) -> Option<Topology> {
    let mut topology = None;
    tally.case(R::NAME, "an older guest hypervisor comes up", || {
        topology = Some(R::boot(progress)?);
        Ok(())
    });
    let topology = topology?;
    R::alone(tally, &topology);
    let mut started = false;
    tally.case(R::NAME, "three busy guest VMs start in it", || {
        R::start_guests(&topology, progress)?;
        started = true;
        Ok(())
    });
    if !started {
        return None;
    }
    let mut report = None;
    tally.case(R::NAME, "the command comes to its end", || {
        report = Some(R::run(&topology, progress)?);
        Ok(())
    });
    let report = report?;
    tally.case(R::NAME, "the report is written", || report.write());
    report.print();
    for (what, result) in report.findings() {
        tally.enter(R::NAME, what, result);
    }
    Some(topology)
}
