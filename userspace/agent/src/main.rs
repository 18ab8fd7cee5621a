// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam-agent`: lists the frames of guests for `vmbeamd`.

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use vmbeam_agent::gate::Gate;
use vmbeam_agent::port::{find, Channel};
use vmbeam_agent::{Agent, Args};

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    vmbeam_log::init(args.verbose);
    if args.may_start {
        let allowed = Gate::default().wait();
        return Ok(ExitCode::from(u8::from(!allowed)));
    }
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
    vmbeam_agent::take_over();
    let mut agent = Agent::new(xen);
    channel
        .serve(&mut agent)
        .with_context(|| format!("cannot serve {channel:?}"))?;
    Ok(ExitCode::SUCCESS)
}
