// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam watch`

use crate::client::ClientError;
use crate::evacuate::{self, WAIT};
use crate::{moves, rejuvenate, replace, worker};
use schemars::JsonSchema;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use vmbeam_control_protocol::{FromDaemon, ToDaemon};

/// Options of `vmbeam watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of the job, from `vmbeam status`
    job: u64,
    /// How long to wait for vmbeamd if it is being restarted
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT)]
    wait: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `vmbeam watch` prints: the report of the job.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "for the schema")]
pub(crate) enum Printed<'a> {
    Evacuation(evacuate::Json<'a>),
    Rejuvenation(rejuvenate::report::Report),
    Replacement(replace::report::Report),
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    let wait = Duration::from_secs(args.wait.into());
    let request = ToDaemon::Watch { job: args.job };
    match moves::follow(socket, request, wait, None)? {
        FromDaemon::Evacuated(report) => evacuate::end(&report, args.json),
        FromDaemon::Ended(report) => Ok(worker::ended(&report, args.json)),
        _ => Err(ClientError::Unexpected),
    }
}
