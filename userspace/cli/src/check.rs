// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam check`

use crate::base::{self, Base};
use crate::client::{Client, ClientError};
use crate::exit;
use crate::output;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_uapi::Device;
use vmbeam_wire::message::{CheckReport, FromDaemon, ToDaemon, Toolstack};

/// One thing that a swap needs.
#[derive(Debug, Serialize)]
struct Item {
    name: String,
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
}

pub(crate) fn run(socket: &Path, path: &Path, json: bool) -> Result<ExitCode, ClientError> {
    let mut items = Vec::new();
    device(path, &mut items);
    items.extend(base::look(base::run).map(source));
    match Client::connect(socket).and_then(|c| c.ask(&ToDaemon::Check, |_| {})) {
        Ok(FromDaemon::Check(report)) => agents(&report, &mut items),
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
    fn the_newest_source_is_not() {
        let newest = source(Base::Newest {
            installed: "2".into(),
        });
        assert_eq!(state(&newest), "ok");
        assert_eq!(state(&item("x", Err("y".into()))), "MISSING");
    }
}
