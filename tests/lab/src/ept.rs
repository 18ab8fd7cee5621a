// SPDX-License-Identifier: GPL-2.0-only

//! The hypercall and the driver on Intel's page tables (EPT), by software emulation: the
//! programs of the groups `host` and `races`, on machines that Bochs emulates.

use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;

use crate::bochs;
use crate::bochs::Config;
use crate::bochs::Machine;
use crate::channel::Output;
use crate::paging::EPT;
use crate::paths;
use crate::programs::guest_output;
use crate::progress::Progress;
use crate::races;
use crate::tally::Tally;
use crate::topology::wait_ready;

const GROUP: &str = "ept";

/// Time for a machine to come up, and for a program: only there so that one that hangs ends.
const BOOT: Duration = Duration::from_secs(1800);
const PROGRAM: Duration = Duration::from_secs(3600);

/// What runs on a machine.
#[derive(Clone, Copy, Debug)]
struct Program {
    name: &'static str,
    command: &'static str,
    /// Prints the results of tests.
    tests: bool,
}

const fn program(name: &'static str, command: &'static str) -> Program {
    Program {
        name,
        command,
        tests: true,
    }
}

const fn step(name: &'static str, command: &'static str) -> Program {
    Program {
        name,
        command,
        tests: false,
    }
}

const HYPERCALL: Program = program("test-mem-swap", "test-mem-swap");

const DRIVER: [Program; 7] = [
    step("load the driver", "insmod /lib/modules/vmbeam.ko"),
    program("vmbeam_test", "vmbeam_test"),
    program("vmbeam_half", "vmbeam_half"),
    program("vmbeam_modes", "vmbeam_modes"),
    step(
        "load the debug driver instead",
        "rmmod vmbeam && insmod /lib/modules/vmbeam-debug.ko",
    ),
    program("vmbeam_fault", "vmbeam_fault"),
    program("vmbeam_turns", "vmbeam_turns"),
];

/// The races of vCPUs that write, short even in the machine's own time.
const WRITERS: Program = program("stress", "stress --seconds 1 --only writ");
/// In `make check-long`: all of them, but emulated accesses, which want an option that only a
/// hypervisor with assertions has.
const RACES: Program = program(
    "stress",
    "stress --seconds 2 --calls 2000 --mib 64 --skip emulated",
);

/// A machine and what it runs.
struct Plan {
    config: Config,
    programs: Vec<Program>,
}

impl Plan {
    fn new(name: &'static str, debug: bool, cpus: u32, programs: &[&[Program]]) -> Self {
        let xen = match debug {
            true => paths::xen_debug(),
            false => paths::xen(),
        };
        Plan {
            config: Config { name, xen, cpus },
            programs: programs.concat(),
        }
    }
}

/// What came of a program, and after how many seconds.
struct Ran {
    program: Program,
    output: Result<Output>,
    seconds: f64,
}

/// Run the group. Bochs keeps one processor of this machine busy, so two of them run at a
/// time, each by itself; results are entered when both have ended.
pub fn check(tally: &mut Tally, long: bool, progress: &Progress) {
    let one: [&[Program]; 2] = [&[HYPERCALL], &DRIVER];
    let two: [&[Program]; 3] = [&[HYPERCALL], &DRIVER, &[RACES]];
    let plans = match long {
        false => vec![
            Plan::new("ept-release-1", false, 1, &one),
            Plan::new("ept-debug-2", true, 2, &[&[HYPERCALL], &[WRITERS]]),
        ],
        true => vec![
            Plan::new("ept-release-1", false, 1, &one),
            Plan::new("ept-debug-1", true, 1, &one),
            Plan::new("ept-release-2", false, 2, &two),
            Plan::new("ept-debug-2", true, 2, &two),
        ],
    };
    for pair in plans.chunks(2) {
        let names: Vec<_> = pair.iter().map(|p| p.config.name).collect();
        let stage = progress.stage(&format!("Intel's EPT in Bochs: {}", names.join(", ")));
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = pair.iter().map(|p| scope.spawn(|| run(p))).collect();
            threads
                .into_iter()
                .map(|t| {
                    t.join().unwrap_or_else(|_| {
                        Err(anyhow::anyhow!("a thread of the harness panicked"))
                    })
                })
                .collect()
        });
        stage.done();
        for (plan, result) in pair.iter().zip(results) {
            enter(tally, plan, result);
        }
    }
    if long {
        mutants(tally, &[], progress);
    }
}

/// Boot hypervisors with a defect each, all of them if none is named.
pub fn mutants(tally: &mut Tally, names: &[String], progress: &Progress) {
    for mutant in &MUTANTS {
        if names.is_empty() || names.iter().any(|n| n == mutant.name) {
            let name = format!("{} is found", mutant.name);
            tally.case(GROUP, &name, || mutant.try_it(progress));
        }
    }
}

/// Boot it and run its programs. Nothing runs if it does not have EPT.
fn run(plan: &Plan) -> Result<(f64, Vec<Ran>)> {
    let start = Instant::now();
    let machine = boot(&plan.config)?;
    let booted = start.elapsed().as_secs_f64();
    let mut results = Vec::new();
    for program in &plan.programs {
        let start = Instant::now();
        let command = format!("PATH=$PATH:/usr/lib/vmbeam/tests; {}", program.command);
        let output = machine.host.run(&command, PROGRAM);
        let lost = output.is_err();
        results.push(Ran {
            program: *program,
            output,
            seconds: start.elapsed().as_secs_f64(),
        });
        if lost {
            break;
        }
    }
    Ok((booted, results))
}

fn boot(config: &Config) -> Result<Machine> {
    let log = bochs::console(config.name);
    let machine = Machine::start(config)?;
    wait_ready(&machine.host, BOOT, "host management VM", &[&log])?;
    EPT.check(&machine.host, &log)?;
    Ok(machine)
}

fn enter(tally: &mut Tally, plan: &Plan, result: Result<(f64, Vec<Ran>)>) {
    let name = plan.config.name;
    let (booted, results) = match result {
        Ok(both) => both,
        Err(e) => return tally.enter(name, "the hypervisor boots and uses EPT", Err(e)),
    };
    tally.enter(
        name,
        &format!("the hypervisor boots and uses EPT ({booted:.1} s)"),
        Ok(()),
    );
    for Ran {
        program,
        output,
        seconds,
    } in results
    {
        if program.tests {
            let log = format!("{name}-{}", program.name);
            guest_output(tally, name, &log, output);
            println!("    {log}: {seconds:.1} s");
            continue;
        }
        let result = output.and_then(|o| {
            ensure!(o.code == 0, "exit status {}: {}", o.code, o.text.trim());
            Ok(())
        });
        tally.enter(name, program.name, result);
    }
    let log = bochs::console(name);
    tally.case(name, "the hypervisor printed no warning", || {
        races::quiet(&log)
    });
}

/// A defect of the hypervisor that has to be found on EPT.
struct Mutant {
    name: &'static str,
    /// The list that it is in.
    list: &'static str,
    /// All of these have to find it.
    programs: &'static [Program],
}

const WRITES: Program = program("stress", "stress --seconds 10 --only writ");

/// Defects that concern flushes and entries of EPT, on three processors: a translation that
/// is too old lives in Bochs as long as the processor that has it stays in guest mode, and
/// two domains have to run while the hypercall does.
const MUTANTS: [Mutant; 4] = [
    Mutant {
        name: "no-flush",
        list: "tests/stress/mutants.txt",
        programs: &[WRITES, HYPERCALL],
    },
    Mutant {
        name: "flush-late",
        list: "tests/stress/mutants.txt",
        programs: &[WRITES],
    },
    Mutant {
        name: "ept-table-not-changed",
        list: "tests/hypervisor/mutants.txt",
        programs: &[HYPERCALL],
    },
    Mutant {
        name: "ept-nested-allowed",
        list: "tests/hypervisor/mutants.txt",
        programs: &[HYPERCALL],
    },
];

impl Mutant {
    fn try_it(&self, progress: &Progress) -> Result<()> {
        let built = Command::new("scripts/xen-mutant.sh")
            .args([self.name, self.list])
            .status()?;
        ensure!(built.success(), "it cannot be built");
        let config = Config {
            name: "ept-mutant-3",
            xen: paths::xen_mutant(),
            cpus: 3,
        };
        let stage = progress.stage("boot a hypervisor with a defect in Bochs");
        let machine = boot(&config)?;
        stage.done();
        for program in self.programs {
            let command = format!("PATH=$PATH:/usr/lib/vmbeam/tests; {}", program.command);
            let output = machine.host.run(&command, PROGRAM);
            let how = races::detected(output, &bochs::console(config.name))?;
            println!("    {} by {}: {how}", self.name, program.name);
        }
        Ok(())
    }
}
