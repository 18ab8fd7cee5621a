// SPDX-License-Identifier: GPL-2.0-only

//! The command line of the agent.

use crate::port::PORT_NAME;
use clap::Parser;
use std::path::PathBuf;

/// Lists the frames of this system's guests for vmbeamd on the host.
///
/// Runs in the management VM of a guest hypervisor, as root. The host reaches it
/// through a virtio-serial port of the host VM, without a network.
#[derive(Debug, Parser)]
#[command(name = "vmbeam-agent", version, max_term_width = 80)]
pub struct Args {
    /// Device of the port, or a UNIX socket to connect to; found by its name if
    /// not given
    #[arg(long, value_name = "PATH")]
    pub port: Option<PathBuf>,
    /// Name of the port
    #[arg(long, value_name = "NAME", default_value = PORT_NAME, conflicts_with = "port")]
    pub port_name: String,
    /// Listen on a UNIX socket instead, as QEMU does for a port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["port", "port_name"])]
    pub listen: Option<PathBuf>,
    /// Wait until vmbeamd on the host has said whether this host VM's guests may be
    /// started, and fail if they may not
    ///
    /// For what starts them at boot, such as xendomains.service. Needs an agent that runs.
    #[arg(long, conflicts_with_all = ["port", "port_name", "listen"])]
    pub may_start: bool,
    /// Say more
    #[arg(short, long)]
    pub verbose: bool,
}
