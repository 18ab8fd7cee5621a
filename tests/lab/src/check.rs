// SPDX-License-Identifier: GPL-2.0-only

//! `make check`: every test, in groups, one tally.

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::anyhow;
use anyhow::ensure;
use anyhow::Result;

use crate::busy;
use crate::channel::Channel;
use crate::coverage;
use crate::crossed;
use crate::definitions;
use crate::demo;
use crate::driver;
use crate::driver_mutants;
use crate::ept;
use crate::evacuate;
use crate::faults;
use crate::installed;
use crate::lies;
use crate::machine::Accelerator;
use crate::migrations;
use crate::migrations::Extent;
use crate::mock;
use crate::packaged;
use crate::paging::NPT;
use crate::paths;
use crate::product;
use crate::programs::guest_tests;
use crate::programs::FAULT_TEST;
use crate::programs::TESTS;
use crate::progress::Progress;
use crate::races;
use crate::rejuvenate;
use crate::relocate;
use crate::replace;
use crate::tally;
use crate::tally::Tally;
use crate::toolstack;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;
use crate::tracing;
use crate::unprivileged;
use crate::upkeep;

/// A part of `make check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Formatting, lints, documentation of the code.
    Style,
    /// The patch series applies, each patch builds; which source of Xen it is built from.
    Hypervisor,
    /// Unit and property tests on this machine.
    Unit,
    /// The driver's selftests in a plain VM, on a model of a hypervisor.
    Mock,
    /// Property test of the hypercall in user space.
    Harness,
    /// Races, fuzzing and latency of the hypercall, with assertions.
    Races,
    /// The same programs as in `host` and `races` on Intel's EPT, in an emulator.
    Ept,
    /// Tests in the host management VM, on bare domains.
    Host,
    /// The patched toolstack alone, in the host management VM.
    Toolstack,
    /// The demonstration and bad input, on the whole topology.
    Nested,
    /// A running guest VM migrates, on the same topology.
    Migrate,
    /// Somebody dies in each state of a migration, on the same topology.
    Faults,
    /// A guest VM's memory is relocated between host VMs that have little, and somebody dies.
    Relocate,
    /// The guest hypervisor is replaced under running guest VMs.
    Rejuvenate,
    /// A host VM is replaced under running guest VMs.
    Replace,
    /// The driver on a hypervisor that lacks the hypercall.
    Stock,
    /// The driver under a fuzzer, with the kernel's debugging aids.
    Driver,
    /// Drivers with a defect each: do the tests on the model find it?
    DriverMutants,
    /// The life of the packages; the driver, hypervisor and toolstack that they hold.
    Package,
    /// The driver's trace events with perf, trace-cmd and bpftrace.
    Tracing,
    /// Debian with systemd on the host and in the management VMs, from the packages.
    Installed,
}

impl Group {
    /// As it is named in results.
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether it only builds and computes. A machine that is emulated leaves time for that.
    fn boots_nothing(self) -> bool {
        !self.programs(false).is_empty()
    }

    /// The programs of a group that boots nothing.
    fn programs(self, long: bool) -> Vec<Command> {
        let of = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        match self {
            Group::Style if long => {
                vec![
                    of(&["scripts/style.sh"]),
                    of(&["scripts/report-check.sh"]),
                    of(&["nice", "scripts/kernel-tree.sh"]),
                ]
            }
            Group::Style => vec![of(&["scripts/style.sh"])],
            Group::Unit => {
                let mut test = of(&[
                    "cargo",
                    "test",
                    "--quiet",
                    "--no-fail-fast",
                    "--manifest-path",
                    "userspace/Cargo.toml",
                    "--workspace",
                    "--",
                    "--format=pretty",
                ]);
                // These want what only `make check-long` makes.
                test.args(long.then_some("--include-ignored"));
                vec![test]
            }
            Group::Harness => vec![of(&["build/target/release/hv-harness", "check"])],
            // It has time to the end.
            Group::Hypervisor => {
                let mut hv_check = of(&["nice", "scripts/hv-check.sh"]);
                hv_check.args((!long).then_some("quick"));
                vec![of(&["nice", "tests/base/base.sh"]), hv_check]
            }
            _ => Vec::new(),
        }
    }
}

const ALL: [Group; 21] = [
    Group::Style,
    Group::Unit,
    Group::Harness,
    Group::Hypervisor,
    Group::Mock,
    Group::Races,
    Group::Ept,
    Group::Host,
    Group::Toolstack,
    Group::Nested,
    Group::Migrate,
    Group::Faults,
    Group::Relocate,
    Group::Rejuvenate,
    Group::Replace,
    Group::Stock,
    Group::Driver,
    Group::DriverMutants,
    Group::Package,
    Group::Tracing,
    Group::Installed,
];

/// How often a guest VM connects its devices anew in [`migrations::failures`], at most.
const FAILURES: u32 = 10;
/// The same with [`faults::run`].
const FAULTS: u32 = 100;

/// Run the groups, all of them if none is named; true if nothing failed. Some
/// have a long form.
pub fn run(groups: &[Group], long: bool, sizes: Sizes, progress: &Progress) -> Result<bool> {
    // These take minutes: in the long form, or when they are named.
    let wanted = |group| match group {
        Group::Faults
        | Group::Relocate
        | Group::Rejuvenate
        | Group::Replace
        | Group::DriverMutants
        | Group::Package
        | Group::Tracing
        | Group::Installed => groups.contains(&group) || (long && groups.is_empty()),
        _ => groups.is_empty() || groups.contains(&group),
    };
    let extent = Extent {
        moves: if long { 100 } else { 3 },
        failures: long || groups.contains(&Group::Migrate),
    };
    let plain = sizes;
    // The same guest VM, with the same devices, in all of them.
    let more = [(extent.failures, FAILURES), (wanted(Group::Faults), FAULTS)];
    let more: u32 = more.iter().filter(|m| m.0).map(|m| m.1).sum();
    let sizes = match wanted(Group::Migrate) && more > 0 {
        true => sizes.for_moves(extent.moves + more),
        false => sizes,
    };
    let mut tally = Tally::default();
    let (beside, booting): (Vec<_>, Vec<_>) = ALL
        .into_iter()
        .filter(|g| wanted(*g))
        .partition(|g| g.boots_nothing());
    let (results, ended) = mpsc::channel();
    let lane = thread::spawn(move || {
        for group in beside {
            let start = Instant::now();
            let printed = group.programs(long).iter_mut().map(tally::stream).collect();
            if results.send((group, printed, start.elapsed())).is_err() {
                break;
            }
        }
    });
    let enter = |tally: &mut Tally, (group, printed, time): (Group, Vec<_>, Duration)| {
        let name = group.name();
        for printed in printed {
            tally.printed(&name, printed);
        }
        tally.spent(&name, time);
    };
    for group in booting {
        let start = Instant::now();
        match group {
            Group::Style | Group::Unit | Group::Hypervisor | Group::Harness => {}
            Group::Mock => {
                mock::run(&mut tally, long);
                if long {
                    coverage::run(&mut tally);
                }
            }
            Group::Races => races::check(&mut tally, long, progress),
            Group::Ept => ept::check(&mut tally, long, progress),
            // These groups use one boot.
            Group::Host => patched(&mut tally, wanted, extent, sizes, progress),
            Group::Nested | Group::Toolstack | Group::Migrate | Group::Faults
                if wanted(Group::Host) => {}
            Group::Toolstack => toolstack_only(&mut tally, sizes, progress),
            Group::Migrate | Group::Faults if wanted(Group::Nested) => {}
            Group::Faults if wanted(Group::Migrate) => {}
            Group::Nested | Group::Migrate | Group::Faults => {
                nested_only(&mut tally, wanted, extent, sizes, progress)
            }
            Group::Relocate => relocate::check(&mut tally, plain, progress),
            Group::Rejuvenate => {
                if let Some(topology) = upkeep::check::<rejuvenate::Report>(&mut tally, progress) {
                    evacuate::run(&mut tally, &topology, &busy::GUESTS);
                }
            }
            Group::Replace => drop(upkeep::check::<replace::Report>(&mut tally, progress)),
            Group::Stock => stock(&mut tally, sizes, progress),
            Group::Driver => driver::run(&mut tally, long, sizes, progress),
            Group::DriverMutants => driver_mutants::check(&mut tally),
            Group::Package => {
                tally.program("package", &mut Command::new("scripts/deb-test.sh"));
                tally.program("package", Command::new("scripts/deb-test.sh").arg("xen"));
                packaged::run(&mut tally, sizes, progress);
            }
            Group::Tracing => tracing::run(&mut tally),
            Group::Installed => installed::run(&mut tally, progress),
        }
        tally.spent(&group.name(), start.elapsed());
        for group in ended.try_iter() {
            enter(&mut tally, group);
        }
    }
    for group in ended {
        enter(&mut tally, group);
    }
    lane.join()
        .map_err(|_| anyhow!("a thread of the harness panicked"))?;
    Ok(tally.close())
}

fn patched(
    tally: &mut Tally,
    wanted: impl Fn(Group) -> bool,
    extent: Extent,
    sizes: Sizes,
    progress: &Progress,
) {
    match Topology::boot_host(sizes, &paths::xen(), progress) {
        Ok((topology, _)) => {
            tally.enter("host", "the patched hypervisor boots", Ok(()));
            // With KVM the processor is what this machine has.
            if Accelerator::detect() == Accelerator::Tcg {
                tally.case("host", "it uses AMD's NPT", || {
                    NPT.check(&topology.machine.host, "host.log")
                });
            }
            guest_tests(tally, "mem-swap", &topology.machine.host, "test-mem-swap");
            tally.case("host", "load the driver, start the daemon", || {
                product::start(&topology)
            });
            selftests(tally, &topology.machine.host);
            if wanted(Group::Toolstack) {
                toolstack::run(tally, &topology, extent.failures);
            }
            nested(tally, &topology, wanted, extent, progress);
        }
        Err(e) => tally.enter("host", "the patched hypervisor boots", Err(e)),
    }
}

/// The driver's selftests on real domains: with the driver as it is, and those for
/// faults with its debug flavour.
fn selftests(tally: &mut Tally, host: &Channel) {
    guest_tests(tally, "kselftest", host, "vmbeam_test");
    guest_tests(tally, "kselftest", host, "vmbeam_half");
    guest_tests(tally, "kselftest", host, "vmbeam_modes");
    tally.case("kselftest", "load the debug driver instead", || {
        host.sh("rmmod vmbeam && insmod /lib/modules/vmbeam-debug.ko", SHORT)?;
        Ok(())
    });
    guest_tests(tally, "kselftest", host, FAULT_TEST);
    guest_tests(tally, "kselftest", host, "vmbeam_turns");
    tally.case("kselftest", "load the driver again", || {
        host.sh("rmmod vmbeam && insmod /lib/modules/vmbeam.ko", SHORT)?;
        Ok(())
    });
}

fn toolstack_only(tally: &mut Tally, sizes: Sizes, progress: &Progress) {
    match Topology::boot_host(sizes, &paths::xen(), progress) {
        Ok((topology, _)) => toolstack::run(tally, &topology, true),
        Err(e) => tally.enter("toolstack", "the patched hypervisor boots", Err(e)),
    }
}

fn nested_only(
    tally: &mut Tally,
    wanted: impl Fn(Group) -> bool,
    extent: Extent,
    sizes: Sizes,
    progress: &Progress,
) {
    match Topology::boot_host(sizes, &paths::xen(), progress) {
        Ok((topology, _)) => {
            tally.case("host", "load the driver, start the daemon", || {
                product::start(&topology)
            });
            nested(tally, &topology, wanted, extent, progress);
        }
        Err(e) => tally.enter("host", "the patched hypervisor boots", Err(e)),
    }
}

/// The groups that use both host VMs, with their guests.
fn nested(
    tally: &mut Tally,
    topology: &Topology,
    wanted: impl Fn(Group) -> bool,
    extent: Extent,
    progress: &Progress,
) {
    if ![Group::Nested, Group::Migrate, Group::Faults]
        .into_iter()
        .any(&wanted)
    {
        return;
    }
    let mut up = false;
    tally.case(
        "nested",
        "both guest hypervisors and the guest VMs come up",
        || {
            topology.start_host_vms(progress)?;
            product::wait_for_agents(topology)?;
            topology.start_guests(progress)?;
            up = true;
            Ok(())
        },
    );
    if !up {
        return;
    }
    if wanted(Group::Nested) || wanted(Group::Migrate) {
        if wanted(Group::Nested) {
            crossed::run(tally, topology);
        }
        // All that succeeds is done by a daemon with as little privilege as it can have.
        unprivileged::start(tally, topology);
        if wanted(Group::Nested) {
            swaps(tally, topology, progress);
            lies::run(tally, topology);
        }
        let places = wanted(Group::Migrate)
            .then(|| migrations::run(tally, topology, extent.moves))
            .flatten();
        unprivileged::stop(tally, topology);
        if let Some(places) = places.filter(|_| extent.failures) {
            migrations::failures(tally, topology, places);
            definitions::run(tally, topology, places);
        }
    }
    if wanted(Group::Faults) {
        faults::run(tally, topology, progress);
    }
}

/// The demonstration sends all that is swapped over the network as well, for a figure;
/// here it is enough that the way works.
const NETWORK_PART: u64 = 16;

fn swaps(tally: &mut Tally, topology: &Topology, progress: &Progress) {
    refusals(tally, topology);
    tally.case(
        "nested",
        "the daemon takes what `vmbeam init` writes",
        || {
            topology.machine.host.sh(
                "file=/run/lab/init.toml; rm -f $file; vmbeam init --file $file && \
             vmbeamd --check-config --config $file && \
             grep agents/A.sock $file && grep agents/B.sock $file && \
             grep 'between = .\"A\", \"B\".' $file && ! vmbeam init --file $file",
                SHORT,
            )?;
            Ok(())
        },
    );
    tally.case(
        "nested",
        "a guest VM's memory moves, is verified, and moves back",
        || {
            let report = demo::run(topology, progress, NETWORK_PART)?;
            report.write()?;
            report.print();
            report.verdict()
        },
    );
    agent_loss(tally, topology);
}

/// Exit status of `vmbeam` when nothing was changed because of what was asked for.
const REFUSED: i64 = 3;

/// What a person can ask for that must be refused, and a word of the answer.
fn refusals(tally: &mut Tally, topology: &Topology) {
    let swap = |from: &str, to: &str| format!("vmbeam swap --from {from} --to {to}");
    let cases = [
        ("an unknown host VM", swap("C/guest", "B/guest"), "C"),
        ("an unknown guest VM", swap("A/nobody", "B/guest"), "nobody"),
        ("the same host VM twice", swap("A/guest", "A/guest"), "A"),
    ];
    for (name, command, word) in cases {
        tally.case("nested", &format!("refused: {name}"), || {
            let output = topology.machine.host.run(&command, SHORT)?;
            ensure!(
                output.code == REFUSED && output.text.contains(word),
                "exit status {}, printed: {}",
                output.code,
                output.text.trim()
            );
            Ok(())
        });
    }
}

/// The daemon does without an agent, says so, and takes it back.
fn agent_loss(tally: &mut Tally, topology: &Topology) {
    let host = &topology.machine.host;
    tally.case(
        "nested",
        "an agent that is gone is named, and comes back",
        || {
            topology.machine.b.sh("killall -9 vmbeam-agent", SHORT)?;
            let output = host.run(
                &format!("vmbeam swap --from A/{GUEST} --to B/{GUEST}"),
                TESTS,
            )?;
            ensure!(
                output.code == REFUSED && output.text.contains('B'),
                "without B's agent: exit status {}, printed: {}",
                output.code,
                output.text.trim()
            );
            product::start_agent(topology, "B")?;
            product::wait_for_agents(topology)
        },
    );
}

/// Debian's own hypervisor under the host: the driver loads and says what is missing.
fn stock(tally: &mut Tally, sizes: Sizes, progress: &Progress) {
    match Topology::boot_host(sizes, &paths::stock_xen(), progress) {
        Ok((topology, _)) => {
            let host = &topology.machine.host;
            tally.case("stock", "the driver loads without the hypercall", || {
                host.sh(
                    "insmod /lib/modules/vmbeam.ko && test -c /dev/vmbeam",
                    SHORT,
                )?;
                Ok(())
            });
            guest_tests(tally, "stock", host, "vmbeam_test");
            tally.case(
                "stock",
                "`vmbeam check` says what is missing and what to do",
                || {
                    let output = host.run("vmbeam check", SHORT)?;
                    ensure!(
                        output.code != 0
                            && output.text.contains("hypercall")
                            && output.text.contains("hypervisor-patches"),
                        "exit status {}, printed: {}",
                        output.code,
                        output.text.trim()
                    );
                    Ok(())
                },
            );
        }
        Err(e) => tally.enter("stock", "Debian's hypervisor boots", Err(e)),
    }
}
