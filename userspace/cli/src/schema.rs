// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam schema`: what commands print with `--json`. Made from the types that are printed.

use crate::client::ClientError;
use crate::{check, evacuate, migrate, output, records, rejuvenate, replace, swap, watch};
use clap::builder::PossibleValuesParser;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use std::process::ExitCode;
use vmbeam_control_protocol::{Event, HostMemory, HostVmReport, JobReport};

/// What a command prints.
type Printed = fn(SchemaGenerator) -> Schema;

const COMMANDS: &[(&str, Printed)] = &[
    ("check", |g| g.into_root_schema_for::<Vec<check::Item>>()),
    ("evacuate", |g| {
        g.into_root_schema_for::<evacuate::Printed<'_>>()
    }),
    ("events", |g| g.into_root_schema_for::<Event>()),
    ("list", |g| g.into_root_schema_for::<Vec<HostVmReport>>()),
    ("maintenance", |g| g.into_root_schema_for::<Vec<String>>()),
    ("memory", |g| g.into_root_schema_for::<HostMemory>()),
    ("migrate", |g| g.into_root_schema_for::<migrate::Json<'_>>()),
    ("records", |g| {
        g.into_root_schema_for::<Vec<records::Shown>>()
    }),
    ("rejuvenate", |g| {
        g.into_root_schema_for::<rejuvenate::report::Printed>()
    }),
    ("replace", |g| {
        g.into_root_schema_for::<replace::report::Printed>()
    }),
    ("status", |g| g.into_root_schema_for::<Vec<JobReport>>()),
    ("swap", |g| g.into_root_schema_for::<swap::Json<'_>>()),
    ("watch", |g| g.into_root_schema_for::<watch::Printed<'_>>()),
];

/// Options of `vmbeam schema`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command
    #[arg(value_parser = PossibleValuesParser::new(COMMANDS.iter().map(|(name, _)| *name)))]
    command: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, ClientError> {
    let printed = COMMANDS.iter().find(|(name, _)| *name == args.command);
    if let Some((_, printed)) = printed {
        // Of what is written, not of what would be read: all fields are there.
        let settings = SchemaSettings::draft2020_12().for_serialize();
        output::json(&printed(settings.into_generator()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[path = "../tests/schema/mod.rs"]
mod fits;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use vmbeam_uapi::Record;

    /// Of commands that need a driver or a hypervisor.
    #[test]
    fn what_is_printed_fits() {
        let record = records::Shown::from(&Record::default());
        fits::assert_fits("records", &json!([record]));
        fits::assert_fits("memory", &json!(HostMemory::default()));
    }

    #[test]
    fn every_command_that_prints_json_has_one() {
        let command = crate::command();
        let printing = command.get_subcommands().filter(|c| {
            let json = |a: &clap::Arg| a.get_id() == "json";
            c.get_arguments().any(json) || c.get_name() == "memory"
        });
        let mut names: Vec<_> = printing.map(|c| c.get_name()).collect();
        names.sort_unstable();
        let known: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, known);
    }
}
