// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeamd`: the daemon of the host management VM.

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use sd_notify::NotifyState;
use std::sync::Arc;
use tracing::{info, warn};
use vmbeamd::config::{Domid, HostVmConfig};
use vmbeamd::driver::{DeviceDriver, Driver, Pinned};
use vmbeamd::events::{Events, Warnings};
use vmbeamd::identity::Source;
use vmbeamd::privilege::{self, Filter};
use vmbeamd::{Args, Config, Daemon};

/// Tell the service manager, if there is one that wants to know.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(false, &[state]) {
        warn!("cannot tell systemd: {e}");
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let events = Arc::<Events>::default();
    vmbeam_log::init_with(args.verbose, Warnings(events.clone()));
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
    if args.seccomp != Filter::Off && !config.hooks.is_empty() {
        anyhow::bail!("with --seccomp no program can be run: there can be no [[hook]]");
    }
    // Before any thread exists, so that all of them leave these to the wait below.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().context("cannot block signals")?;

    // While the host's toolstack can still be asked.
    let unprivileged = args.user.is_some() || args.seccomp != Filter::Off;
    let sessions = Arc::new(DeviceDriver::new(config.device.clone()));
    let driver = match unprivileged {
        true => Pinned::for_ever(sessions),
        false => Pinned::new(sessions),
    };
    let sources = Source::all(&config, &driver, unprivileged);
    let state = &*config.state_dir;
    match &args.user {
        Some(user) => {
            let socket = config.control_socket.parent();
            privilege::become_user(user, socket, state)?;
        }
        None => privilege::take_back(state)?,
    }
    match driver.info() {
        Ok(info) => info!(?info, "driver"),
        // It may be loaded later; each job opens the device anew.
        Err(e) => warn!("{e}"),
    }
    let daemon = Daemon::start_with(config, Arc::new(driver), sources, events)?;
    privilege::restrict(args.seccomp)?;
    tell_systemd(NotifyState::Ready);
    let signal = loop {
        match signals.wait().context("cannot wait for signals")? {
            Signal::SIGHUP => warn!("SIGHUP changes nothing: the configuration is read at the start; restart vmbeamd for another"),
            signal => break signal,
        }
    };
    tell_systemd(NotifyState::Stopping);
    info!("{signal}: stopping");
    daemon.stop();
    Ok(())
}
