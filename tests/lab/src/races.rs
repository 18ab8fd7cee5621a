// SPDX-License-Identifier: GPL-2.0-only

//! The stress program on a machine of its own: the patched hypervisor with
//! assertions, two CPUs for the host management VM, so that its threads really
//! run at the same time, and two for the domains that the program makes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::channel::last_lines;
use crate::channel::Output;
use crate::machine::Accelerator;
use crate::machine::Config;
use crate::machine::Machine;
use crate::paths;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::wait_ready;
use crate::topology::BOOT_HOST;

const GROUP: &str = "races";
/// What it prints at the end of its boot. Before that it warns of what an emulated processor
/// says of itself (QEMU: sizes of states of vector registers).
const BOOTED: &str = "init memory";
/// Where the hypervisor's console goes.
const CONSOLE: &str = "host.log";

/// Lets the domains of the test have single instructions emulated by the hypervisor.
const XEN_OPTIONS: &str = "flask=disabled hvm_fep";

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

/// Arguments of the stress program in `make races`: also bounds of time, which no test of
/// `make check` and `make check-long` has, as they would depend on the machine.
pub const ALONE: &str = "--seconds 20 --calls 100000 --bounds";
/// In `make check-long`.
const LONG: &str = "--seconds 20 --calls 100000";
/// In `make check`: short races, less memory, and calls enough for each kind of refusal to be met a
/// thousand times.
const QUICK: &str = "--seconds 2 --calls 30000 --mib 256";

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

/// As a group of `make check`.
pub fn check(tally: &mut Tally, long: bool, progress: &Progress) {
    let (arguments, limit) = if long { (LONG, 3600) } else { (QUICK, 900) };
    run_with(tally, arguments, Duration::from_secs(limit), progress);
    flask(tally, progress);
}

/// Options of a hypervisor with a policy that it enforces, and where the other policy is that the
/// tests of that load.
const FLASK_OPTIONS: &str = "flask=enforcing";
const POLICY: &str = "/run/policy";

/// The same hypervisor with a policy that it enforces.
fn flask(tally: &mut Tally, progress: &Progress) {
    match boot(paths::xen_debug(), FLASK_OPTIONS, progress) {
        Ok(machine) => {
            tally.case(GROUP, "a policy is put there", || {
                machine.host.put(&paths::policy_apart(), POLICY)
            });
            let arguments = format!("--flask {POLICY}");
            stress(tally, &machine, &arguments, Duration::from_secs(300));
        }
        Err(e) => tally.enter(GROUP, "the hypervisor boots with FLASK", Err(e)),
    }
}

fn run_with(tally: &mut Tally, arguments: &str, limit: Duration, progress: &Progress) {
    match boot(paths::xen_debug(), XEN_OPTIONS, progress) {
        Ok(machine) => {
            stress(tally, &machine, arguments, limit);
            tally.case(GROUP, "the hypervisor printed no warning", || {
                quiet(CONSOLE)
            });
        }
        Err(e) => tally.enter(GROUP, "the hypervisor with assertions boots", Err(e)),
    }
}

/// Boot hypervisors with a defect each; true if the tests find all of them.
pub fn mutants(names: &[String], progress: &Progress) -> Result<bool> {
    let mut tally = Tally::default();
    for line in fs::read_to_string(paths::mutants())?.lines() {
        let [name, _, test, _] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        if !names.is_empty() && !names.iter().any(|n| n == name) {
            continue;
        }
        tally.case("mutants", &format!("{name} is found"), || {
            println!("    {name}: {}", found(name, test, progress)?);
            Ok(())
        });
    }
    Ok(tally.close())
}

/// How a defect was found; an error if it was not, or could not be tried.
fn found(name: &str, test: &str, progress: &Progress) -> Result<String> {
    let built = Command::new("scripts/xen-mutant.sh").arg(name).status()?;
    ensure!(built.success(), "it cannot be built");
    let with_policy = test == "flask";
    let options = if with_policy {
        FLASK_OPTIONS
    } else {
        XEN_OPTIONS
    };
    let machine = boot(paths::xen_mutant(), options, progress)?;
    let arguments = if with_policy {
        machine.host.put(&paths::policy_apart(), POLICY)?;
        format!("--flask {POLICY}")
    } else {
        format!("--seconds 10 --only {test}")
    };
    let command = format!("/usr/lib/vmbeam/tests/stress {arguments}");
    let output = machine
        .host
        .run_with(&command, Duration::from_secs(180), |part| print!("{part}"));
    detected(output, CONSOLE)
}

/// How a program's output or its end shows a defect; an error if nothing does.
pub fn detected(output: Result<Output>, log: &str) -> Result<String> {
    Ok(match output {
        // The machine is gone, or does not answer any more.
        Err(e) => {
            let warning = quiet(log).err().map(|w| format!("{w:#}"));
            let warning = warning.as_deref().and_then(|w| w.lines().next());
            format!(
                "{}; {}",
                warning.unwrap_or("no warning"),
                last_lines(&format!("{e:#}"), 1)
            )
        }
        Ok(output) => {
            let text = output.text;
            if let Some(first_round) = text.lines().find_map(|l| l.strip_prefix("Bail out! ")) {
                return Ok(first_round.to_owned());
            }
            let mut reason = "no reason given";
            let failed = text.lines().find(|line| {
                if let Some(text) = line.strip_prefix("# ") {
                    reason = text;
                }
                line.starts_with("not ok ")
            });
            ensure!(failed.is_some(), "the tests passed");
            reason.to_owned()
        }
    })
}

fn boot(xen: PathBuf, xen_options: &'static str, progress: &Progress) -> Result<Machine> {
    let stage = progress.stage(&format!(
        "boot the host: patched Xen with assertions, 4 CPUs, {xen_options}"
    ));
    let machine = Machine::start(&Config {
        xen,
        accelerator: Accelerator::detect(),
        memory_mib: 4736,
        dom0_mib: 2048,
        cpus: 4,
        dom0_cpus: 2,
        xen_options,
        dom0_options: "",
        image: "host",
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
pub fn quiet(log: &str) -> Result<()> {
    let text = fs::read(paths::logs().join(log))?;
    let text = String::from_utf8_lossy(&text);
    let (_, after) = text
        .split_once(BOOTED)
        .with_context(|| format!("{log} has no end of the boot"))?;
    let bad: Vec<&str> = after
        .lines()
        .filter(|l| l.contains("(XEN)"))
        .filter(|l| WARNINGS.iter().any(|w| l.contains(w)))
        .collect();
    ensure!(bad.is_empty(), "in {log}: {}", bad.join("\n"));
    Ok(())
}
