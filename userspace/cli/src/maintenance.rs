// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam maintenance`

use crate::client::{Client, ClientError, KNOWN};
use crate::output;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{FromDaemon, ToDaemon};

/// Options of `vmbeam maintenance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host VM that somebody begins to work on, or has worked on
    #[arg(requires = "state")]
    host_vm: Option<String>,
    /// Begin, or end
    #[arg(value_enum)]
    state: Option<State>,
    /// Print JSON
    #[arg(long, conflicts_with = "host_vm")]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    /// Nothing is started there, and no guest arrives.
    On,
    /// As before.
    Off,
}

/// The host VMs that are in maintenance.
pub(crate) fn ask(socket: &Path) -> Result<Vec<String>, ClientError> {
    match Client::connect(socket)?.ask_soon(&ToDaemon::Maintenance, KNOWN)? {
        FromDaemon::Maintenance(names) => Ok(names),
        _ => Err(ClientError::Unexpected),
    }
}

/// One line of a list of them, if there are any.
pub(crate) fn line(names: &[String]) -> Option<String> {
    let shown: Vec<_> = names.iter().map(|n| output::name(n)).collect();
    (!names.is_empty()).then(|| format!("In maintenance: {}", shown.join(", ")))
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    if let (Some(host_vm), Some(state)) = (&args.host_vm, args.state) {
        let on = matches!(state, State::On);
        let host_vm = host_vm.clone();
        let demand = ToDaemon::SetMaintenance { host_vm, on };
        return match Client::connect(socket)?.ask(&demand, |_| {})? {
            FromDaemon::Done => Ok(ExitCode::SUCCESS),
            _ => Err(ClientError::Unexpected),
        };
    }
    let names = ask(socket)?;
    if args.json {
        output::json(&names)?;
    } else {
        let line = line(&names);
        println!(
            "{}",
            line.as_deref().unwrap_or("No host VM is in maintenance.")
        );
    }
    Ok(ExitCode::SUCCESS)
}
