// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam check`

use crate::base::{self, Base};
use crate::client::{Client, ClientError};
use crate::exit;
use crate::memory;
use crate::output;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{
    CheckReport, Clocks, FromDaemon, HostVmMemory, JobReport, ToDaemon, Toolstack,
};
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_uapi::Device;

/// One thing that a swap needs.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Item {
    /// What it is.
    name: String,
    /// It is there.
    ok: bool,
    /// Nothing is missing for a swap, but somebody should look at it.
    warning: bool,
    /// What was found, or what is wrong and what to do about it.
    detail: String,
}

fn item(name: impl Into<String>, result: Result<String, String>) -> Item {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Item {
        name: name.into(),
        ok,
        warning: false,
        detail,
    }
}

fn source(base: Base) -> Item {
    let name = "hypervisor's source";
    match base {
        Base::Newest { installed } => {
            item(name, Ok(format!("{installed}; apt knows no newer one")))
        }
        Base::Old {
            installed,
            newest,
            held,
        } => {
            let mut detail = format!("{installed} is older than Debian's {newest} and lacks its security updates; make packages of the newer one (make deb-xen) and install them");
            if held {
                detail += "; the package is held, so apt offers nothing by itself";
            }
            Item {
                warning: true,
                ..item(name, Ok(detail))
            }
        }
    }
}

fn state(item: &Item) -> &'static str {
    match item {
        Item { ok: false, .. } => "MISSING",
        Item { warning: true, .. } => "WARNING",
        _ => "ok",
    }
}

fn device(path: &Path, items: &mut Vec<Item>) {
    let info = match Device::open(path).and_then(|d| d.info()) {
        Ok(info) => info,
        Err(e) => return items.push(item("driver", Err(e.to_string()))),
    };
    items.push(item(
        "driver",
        Ok(format!(
            "{}: {} pairs a hypercall, {} pairs a session",
            path.display(),
            info.batch_pairs,
            info.max_pairs
        )),
    ));
    items.push(item(
        "hypervisor",
        if info.features & FEATURE_SWAP != 0 {
            Ok("can swap frames".into())
        } else {
            Err("the host hypervisor lacks the swap of frames; boot a Xen with the VMBeam patches (hypervisor-patches/)".into())
        },
    ));
}

/// What the driver keeps of moves that it could neither end nor undo.
fn half_moves(path: &Path, items: &mut Vec<Item>) {
    let records = Device::open(path).and_then(|d| d.records());
    if let Ok(nr @ 1..) = records.map(|r| r.len()) {
        let detail = format!("the driver keeps {nr}; see `vmbeam records`");
        items.push(item("half moves", Err(detail)));
    }
}

/// Whether the daemon, which may be another user with another view of devices, can use
/// the driver.
fn driver_of_daemon(report: &CheckReport) -> Item {
    let result = match &report.driver {
        Ok(d) if d.can_swap => Ok(format!("can swap {} pairs a session", d.max_pairs)),
        Ok(_) => Err("vmbeamd finds no hypervisor that can swap frames; see above".into()),
        Err(e) => Err(format!(
            "vmbeamd cannot use it: {e}; it must be in the device's group (--user), and the module loaded when its unit starts (restart vmbeamd)"
        )),
    };
    item("driver, for vmbeamd", result)
}

/// What host VMs have of the host's memory.
fn memories(all: &[HostVmMemory], items: &mut Vec<Item>) {
    for vm in all {
        let (host_vm, name) = (&vm.host_vm, format!("memory of host VM {}", vm.host_vm));
        let memory = match &vm.memory {
            Ok(memory) => memory,
            Err(why) => {
                let detail = Ok(format!("not known, so nothing can be relocated: {why}"));
                items.push(item(name, detail));
                continue;
            }
        };
        let warnings = memory.warnings(host_vm);
        items.push(Item {
            warning: !warnings.is_empty(),
            ..item(
                name,
                Ok([&[memory::text(memory)], &*warnings].concat().join("; ")),
            )
        });
    }
}

/// Whoever asks in the middle of something should know.
fn jobs(jobs: &[JobReport], items: &mut Vec<Item>) {
    for job in jobs.iter().filter(|j| j.running) {
        items.push(Item {
            warning: true,
            ..item(
                format!("job {}", job.id),
                Ok(format!(
                    "{} to {} is going on: {}",
                    job.from,
                    job.to.shown(),
                    job.phase
                )),
            )
        });
    }
}

fn agents(report: &CheckReport, items: &mut Vec<Item>) {
    items.push(item(
        "daemon",
        Ok(format!(
            "vmbeamd {}, protocol {}; this is vmbeam {}",
            report.daemon_version,
            report.protocol,
            env!("CARGO_PKG_VERSION")
        )),
    ));
    items.push(driver_of_daemon(report));
    if report.agents.is_empty() {
        let detail = "no [[host_vm]] in vmbeamd's configuration; add the host VMs".into();
        items.push(item("host VMs", Err(detail)));
    }
    for a in &report.agents {
        let name = &a.host_vm;
        let Some(v) = &a.connected else {
            let problem = a.problem.clone();
            let detail = Err(problem.unwrap_or_else(|| "not connected".into()));
            items.push(item(format!("agent of host VM {name}"), detail));
            continue;
        };
        items.push(item(
            format!("agent of host VM {name}"),
            Ok(format!(
                "vmbeam-agent {} on {}, memory ends at frame {:#x}",
                v.agent, v.hypervisor, v.memory_end
            )),
        ));
        let identity = a
            .identity
            .clone()
            .unwrap_or_else(|| Err("not known".into()));
        items.push(item(
            format!("identity of host VM {name}"),
            identity.map(|i| format!("proven: domain {}, UUID {}", i.domid, i.uuid)),
        ));
        let Toolstack { version, problem } = &v.toolstack;
        items.push(item(
            format!("toolstack of host VM {name}"),
            match problem {
                None => Ok(format!("{version}, can move guests")),
                Some(problem) => Err(format!(
                    "{version}: {problem}; until then only `--mode copy` moves guests"
                )),
            },
        ));
    }
    let pairs: Vec<_> = report
        .pairs
        .iter()
        .map(|(a, b)| format!("{a} and {b}"))
        .collect();
    items.push(item(
        "pairs",
        if pairs.is_empty() {
            Err("no [[pair]] in vmbeamd's configuration, so nothing may be swapped; add one".into())
        } else {
            Ok(pairs.join(", "))
        },
    ));
    for ((a, b), clocks) in &report.clocks {
        items.push(clock(&format!("{a} and {b}"), clocks));
    }
}

/// Whether a guest would find another time.
fn clock(pair: &str, clocks: &Clocks) -> Item {
    let (warning, detail) = match clocks {
        Clocks::Together => (false, "within a second of each other".into()),
        Clocks::Apart(why) => (true, why.clone()),
        Clocks::Unknown(why) => (false, format!("not compared: {why}")),
    };
    Item {
        warning,
        ..item(format!("clocks of host VMs {pair}"), Ok(detail))
    }
}

pub(crate) fn run(socket: &Path, path: &Path, json: bool) -> Result<ExitCode, ClientError> {
    let mut items = Vec::new();
    device(path, &mut items);
    half_moves(path, &mut items);
    items.extend(base::look(base::run).map(source));
    let ask = |question| Client::connect(socket).and_then(|c| c.ask(question, |_| {}));
    match ask(&ToDaemon::Check) {
        Ok(FromDaemon::Check(report)) => {
            agents(&report, &mut items);
            if let Ok(FromDaemon::Memory(all)) = ask(&ToDaemon::Memory) {
                memories(&all, &mut items);
            }
            if let Ok(FromDaemon::Status(all)) = ask(&ToDaemon::Status) {
                jobs(&all, &mut items);
            }
        }
        Ok(_) => return Err(ClientError::Unexpected),
        Err(e) => items.push(item("daemon", Err(e.to_string()))),
    }
    if json {
        output::json(&items)?;
    } else {
        for i in &items {
            println!("{:<8} {}: {}", state(i), i.name, i.detail);
        }
    }
    let ok = items.iter().all(|i| i.ok);
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FAILED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_control_protocol::{DriverReport, HostMemory};

    #[test]
    fn an_old_source_is_a_warning() {
        let old = |held| {
            source(Base::Old {
                installed: "1".into(),
                newest: "2".into(),
                held,
            })
        };
        assert!(old(false).ok);
        assert_eq!(state(&old(false)), "WARNING");
        assert!(!old(false).detail.contains("held"));
        assert!(old(true).detail.contains("held"));
    }

    #[test]
    fn a_host_vm_that_starts_small_is_said_to_be_one() {
        let host_vm = |name: &str, memory| HostVmMemory {
            host_vm: name.into(),
            memory,
        };
        let full = HostMemory {
            pages: 278_524,
            max_pages: 278_784,
            ..HostMemory::default()
        };
        let small = HostMemory {
            pages: 163_836,
            max_pages: 311_552,
            cache: 45_796,
            entries: 193_252,
            host_free: 0,
        };
        // The same, but for what it has touched since.
        let low = HostMemory {
            cache: 85,
            entries: 147_541,
            ..small
        };
        let all = [
            host_vm("A", Ok(full)),
            host_vm("B", Ok(small)),
            host_vm("C", Ok(low)),
            host_vm("D", Err("no".into())),
        ];
        let mut items = Vec::new();
        memories(&all, &mut items);
        let shown: Vec<_> = items.iter().map(|i| (state(i), &*i.detail)).collect();
        assert_eq!(
            shown[..2],
            [
                ("ok", "1087 MiB, at most 1089; all of it is there"),
                ("ok", "small: 639 MiB, at most 1217; a reserve of 178 MiB for 754 MiB that are not there: start nothing in it"),
            ]
        );
        assert_eq!(shown[2].0, "WARNING");
        assert!(shown[2].1.contains("its reserve is 0 MiB"), "{shown:?}");
        assert_eq!(
            shown[3],
            ("ok", "not known, so nothing can be relocated: no")
        );
        assert_eq!(memory::lines(&all).len(), 3);
    }

    #[test]
    fn a_driver_that_the_daemon_cannot_use_is_missing() {
        let report = |driver| CheckReport {
            daemon_version: "1".into(),
            protocol: 1,
            driver,
            agents: Vec::new(),
            pairs: Vec::new(),
            clocks: Vec::new(),
        };
        let driver = |can_swap| {
            Ok(DriverReport {
                can_swap,
                batch_pairs: 1,
                max_pairs: 2,
            })
        };
        assert!(driver_of_daemon(&report(driver(true))).ok);
        assert!(!driver_of_daemon(&report(driver(false))).ok);
        let denied = driver_of_daemon(&report(Err("permission denied".into())));
        assert_eq!(state(&denied), "MISSING");
        assert!(denied.detail.contains("permission denied; it must be in"));
    }

    #[test]
    fn the_newest_source_is_not() {
        let newest = source(Base::Newest {
            installed: "2".into(),
        });
        assert_eq!(state(&newest), "ok");
        assert_eq!(state(&item("x", Err("y".into()))), "MISSING");
    }
}
