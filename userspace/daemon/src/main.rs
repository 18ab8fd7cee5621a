// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeamd`: the daemon of the host management VM.

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use tracing::{info, warn};
use vmbeamd::config::{Domid, HostVmConfig};
use vmbeamd::driver::{DeviceDriver, Driver};
use vmbeamd::privilege::{self, Filter};
use vmbeamd::{Args, Config, Daemon};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    vmbeam_log::init(args.verbose);
    let config = Config::load(&args.config)?;
    if args.check_config {
        return Ok(());
    }
    if config.pairs.is_empty() {
        warn!(
            "{}: no [[pair]], so nothing may be swapped",
            args.config.display()
        );
    }
    let by_command = |vm: &HostVmConfig| matches!(vm.domid, Domid::Command(_));
    if args.seccomp != Filter::Off && config.host_vms.iter().any(by_command) {
        anyhow::bail!("with --seccomp no program can be run: give each [[host_vm]] a domid");
    }
    // Before any thread exists, so that all of them leave these to the wait below.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;

    if let Some(user) = &args.user {
        let socket = config.control_socket.parent();
        let directories: Vec<_> = socket.into_iter().chain([&*config.state_dir]).collect();
        privilege::become_user(user, &directories)?;
    }
    let driver = DeviceDriver::new(config.device.clone());
    match driver.info() {
        Ok(info) => info!(?info, "driver"),
        // It may be loaded later; each job opens the device anew.
        Err(e) => warn!("{e}"),
    }
    let daemon = Daemon::start(config, Arc::new(driver))?;
    privilege::restrict(args.seccomp)?;
    let signal = signals.wait().context("cannot wait for signals")?;
    info!("{signal}: stopping");
    daemon.stop();
    Ok(())
}
