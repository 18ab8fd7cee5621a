// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam list`

use crate::client::{Client, ClientError};
use crate::output;
use std::process::ExitCode;
use vmbeam_control_protocol::{FromDaemon, GuestKind, GuestState, ToDaemon};

/// Print rows in columns as wide as they need to be.
pub(crate) fn table(rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| output::name(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
}

/// One of them.
pub(crate) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

pub(crate) fn list(client: Client, json: bool) -> Result<ExitCode, ClientError> {
    let FromDaemon::List(host_vms) = client.ask(&ToDaemon::List, |_| {})? else {
        return Err(ClientError::Unexpected);
    };
    if json {
        output::json(&host_vms)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![row(&[
        "HOST VM", "DOMID", "GUEST", "DOMID", "MIB", "KIND", "STATE",
    ])];
    let mut problems = Vec::new();
    for vm in &host_vms {
        let domid = vm.domid.as_ref().map_or("-".into(), u32::to_string);
        if vm.maintenance {
            problems.push(format!("host VM {} is in maintenance", vm.name));
        }
        if let Some(why) = &vm.held {
            problems.push(format!(
                "host VM {} may not start guests yet: {why}",
                vm.name
            ));
        }
        if let Err(e) = &vm.domid {
            problems.push(format!("{}: {e}", vm.name));
        }
        match &vm.guests {
            Ok(guests) if !guests.is_empty() => {
                for g in guests {
                    let state = match g.state {
                        GuestState::Running => "running",
                        GuestState::Paused => "paused",
                        GuestState::Shutdown => "shut down",
                        GuestState::Dying => "dying",
                    };
                    let kind = match g.kind {
                        GuestKind::Pv => "PV",
                        GuestKind::Hvm => "HVM",
                    };
                    let guest = g.domid.to_string();
                    let mib = (g.pages / 256).to_string();
                    rows.push(row(&[&vm.name, &domid, &g.name, &guest, &mib, kind, state]));
                }
            }
            Ok(_) => rows.push(row(&[&vm.name, &domid, "(no guests)"])),
            Err(e) => {
                rows.push(row(&[&vm.name, &domid, "(unknown)"]));
                problems.push(format!("{}: {e}", vm.name));
            }
        }
    }
    table(&rows);
    for p in problems {
        eprintln!("vmbeam: {p}");
    }
    Ok(ExitCode::SUCCESS)
}
