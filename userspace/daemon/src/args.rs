// SPDX-License-Identifier: GPL-2.0-only

//! The command line of the daemon.

use crate::config::CONFIG_PATH;
use crate::privilege::Filter;
use clap::Parser;
use std::path::PathBuf;

/// Swaps the memory of guest VMs between host VMs.
///
/// Runs in the host management VM, as root. Use the command `vmbeam` to talk to
/// it.
#[derive(Debug, Parser)]
#[command(name = "vmbeamd", version, max_term_width = 80)]
pub struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG_PATH)]
    pub config: PathBuf,
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
    /// Become this user when everything is set up; it must be in the group of the
    /// device. Host VMs then need a domid in the configuration
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What to do about system calls that the daemon does not need
    #[arg(long, value_name = "ACTION", value_enum, default_value = "off")]
    pub seccomp: Filter,
    /// Say more
    #[arg(short, long)]
    pub verbose: bool,
}
