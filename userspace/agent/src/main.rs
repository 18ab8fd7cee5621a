// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam-agent`: lists the frames of guests for `vmbeamd`.

use anyhow::Context;
use clap::Parser;
use std::path::PathBuf;
use vmbeam_agent::port::{find, Channel};
use vmbeam_agent::{Agent, PORT_NAME};

/// Lists the frames of this system's guests for vmbeamd on the host.
///
/// Runs in the management VM of a guest hypervisor, as root. The host reaches it
/// through a virtio-serial port of the host VM, without a network.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Device of the port, or a UNIX socket to connect to; found by its name if
    /// not given
    #[arg(long, value_name = "PATH")]
    port: Option<PathBuf>,
    /// Name of the port
    #[arg(long, value_name = "NAME", default_value = PORT_NAME, conflicts_with = "port")]
    port_name: String,
    /// Listen on a UNIX socket instead, as QEMU does for a port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["port", "port_name"])]
    listen: Option<PathBuf>,
    /// Say more
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    vmbeam_log::init(args.verbose);
    let xen = vmbeam_xen::Xen::open()?;
    let channel = match (&args.listen, &args.port) {
        (Some(path), _) => Channel::Listen(path.clone()),
        (None, Some(path)) => Channel::at(path),
        (None, None) => Channel::Port(find(&args.port_name).with_context(|| {
            format!(
                "give the host VM a virtio-serial port named {} (see Documentation/)",
                args.port_name
            )
        })?),
    };
    let mut agent = Agent::new(xen);
    channel
        .serve(&mut agent)
        .with_context(|| format!("cannot serve {channel:?}"))
}
