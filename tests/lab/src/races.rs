// SPDX-License-Identifier: GPL-2.0-only

//! The stress program on a machine of its own: the patched hypervisor with
//! assertions, two CPUs for the host management VM, so that its threads really
//! run at the same time, and two for the domains that the program makes.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use crate::machine::Accelerator;
use crate::machine::Config;
use crate::machine::Machine;
use crate::paths;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::wait_ready;
use crate::topology::BOOT_HOST;

const GROUP: &str = "races";

/// What the hypervisor prints when something is wrong.
const WARNINGS: &[&str] = &[
    "BUG",
    "Assertion",
    "WARN",
    "Xen call trace",
    "Panic",
    "crash",
    "Error",
    "Bad ",
    "Over-allocation",
    "memory leak",
    "mm locking order",
];

/// Run it with these arguments; true if nothing failed.
pub fn run(arguments: &str, progress: &Progress) -> bool {
    let mut tally = Tally::default();
    run_with(
        &mut tally,
        arguments,
        Duration::from_secs(4 * 3600),
        progress,
    );
    tally.close()
}

fn run_with(tally: &mut Tally, arguments: &str, limit: Duration, progress: &Progress) {
    match boot(progress) {
        Ok(machine) => {
            stress(tally, &machine, arguments, limit);
            tally.case(GROUP, "the hypervisor printed no warning", quiet);
        }
        Err(e) => tally.enter(GROUP, "the hypervisor with assertions boots", Err(e)),
    }
}

fn boot(progress: &Progress) -> Result<Machine> {
    let stage = progress.stage("boot the host: patched Xen with assertions, 4 CPUs");
    let machine = Machine::start(&Config {
        xen: paths::xen_debug(),
        accelerator: Accelerator::detect(),
        memory_mib: 4736,
        dom0_mib: 2048,
        cpus: 4,
        dom0_cpus: 2,
        dom0_options: "",
    })?;
    wait_ready(
        &machine.host,
        2 * BOOT_HOST,
        "host management VM",
        &["host.log"],
    )?;
    stage.done();
    Ok(machine)
}

fn stress(tally: &mut Tally, machine: &Machine, arguments: &str, limit: Duration) {
    let command = format!("/usr/lib/vmbeam/tests/stress {arguments}");
    match machine
        .host
        .run_with(&command, limit, |part| print!("{part}"))
    {
        Ok(output) => {
            let _ = fs::write(paths::logs().join("stress.tap"), &output.text);
            tally.lines(GROUP, &output.text);
            tally.case(GROUP, "exit status", || {
                ensure!(output.code == 0, "stress exited with {}", output.code);
                Ok(())
            });
        }
        Err(e) => tally.enter(GROUP, "stress", Err(e)),
    }
}

/// Everything that the hypervisor printed, except what tests provoke on purpose.
fn quiet() -> Result<()> {
    let log = fs::read(paths::logs().join("host.log"))?;
    let log = String::from_utf8_lossy(&log);
    let bad: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("(XEN)") && WARNINGS.iter().any(|w| l.contains(w)))
        .collect();
    ensure!(bad.is_empty(), "in host.log: {}", bad.join("\n"));
    Ok(())
}
