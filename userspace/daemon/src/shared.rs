// SPDX-License-Identifier: GPL-2.0-only

//! What all threads of the daemon share.

use crate::config::Config;
use crate::driver::Driver;
use crate::evacuations::Evacuations;
use crate::events::Events;
use crate::exchange::{refused, SwapError};
use crate::held::Held;
use crate::hooks::Hooks;
use crate::host_vm::HostVm;
use crate::jobs::Jobs;
#[allow(
    unused_imports,
    reason = "fail_point!() is nothing in a daemon that is not tested"
)]
use crate::journal::injected;
use crate::maintenance::Maintenance;
use crate::metrics::Metrics;
use crate::pauses::Pauses;
use crate::upkeeps::Upkeeps;
use anyhow::Context;
use fail::fail_point;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use vmbeam_control_protocol::Failure;

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) host_vms: Vec<Arc<HostVm>>,
    pub(crate) maintenance: Arc<Maintenance>,
    /// Why guests are not started yet.
    pub(crate) held: Held,
    pub(crate) jobs: Jobs,
    pub(crate) evacuations: Evacuations,
    pub(crate) upkeeps: Upkeeps,
    pub(crate) events: Arc<Events>,
    pub(crate) hooks: Hooks,
    pub(crate) metrics: Metrics,
    pub(crate) pauses: Pauses,
    pub(crate) clients: AtomicUsize,
    /// Clients that have asked for something, and have not got all of the answer.
    pub(crate) answering: AtomicUsize,
    pub(crate) stop: Arc<AtomicBool>,
    /// No client is served any more.
    pub(crate) closed: AtomicBool,
}

/// Start a thread.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    fail_point!(&format!("spawn-{name}"), |e| Err(injected(e))
        .context("cannot start a thread"));
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .context("cannot start a thread")?;
    Ok(())
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn host_vm(&self, name: &str) -> Result<&HostVm, SwapError> {
        self.host_vms
            .iter()
            .find(|vm| vm.config.name == name)
            .map(|vm| &**vm)
            .ok_or_else(|| SwapError {
                failure: Failure::Refused,
                message: format!("there is no host VM named {name} in vmbeamd's configuration"),
            })
    }

    /// Two host VMs that may exchange memory.
    pub(crate) fn pair(&self, a: &str, b: &str) -> Result<(&HostVm, &HostVm), SwapError> {
        let refuse = |message: String| Err(refused(message));
        let host_vms = (self.host_vm(a)?, self.host_vm(b)?);
        if a == b {
            return refuse(format!(
                "source and destination are both host VM {a}; name two host VMs"
            ));
        }
        if !self.config.allows(a, b) {
            return refuse(format!(
                "host VMs {a} and {b} may not swap; add a [[pair]] with between = [\"{a}\", \"{b}\"] to vmbeamd's configuration to allow it"
            ));
        }
        if self.is_stopping() {
            return refuse("vmbeamd is stopping".into());
        }
        Ok(host_vms)
    }
}
