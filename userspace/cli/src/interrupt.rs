// SPDX-License-Identifier: GPL-2.0-only

//! Ctrl-C while several guests are moved one after the other.

use crate::client::{Client, ClientError};
use crate::exit;
use nix::sys::signal::{SigSet, Signal};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use vmbeam_wire::message::ToDaemon;

/// No job.
const NONE: u64 = 0;

/// What a person has asked for since the program began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt {
    stop: Arc<AtomicBool>,
    job: Arc<AtomicU64>,
}

impl Interrupt {
    /// From now on the first Ctrl-C stops between two steps, the second cancels the
    /// move that is going on, and the third only leaves.
    pub(crate) fn catch(socket: &Path) -> Result<Self, ClientError> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        // Before the thread exists, so that both leave them to its wait.
        signals.thread_block().map_err(std::io::Error::from)?;
        let interrupt = Self::default();
        let (seen, socket) = (interrupt.clone(), socket.to_owned());
        std::thread::spawn(move || {
            let _ = signals.wait();
            seen.stop.store(true, Ordering::Relaxed);
            eprintln!("vmbeam: stopping after this step; once more to cancel it");
            let _ = signals.wait();
            seen.cancel(&socket);
            let _ = signals.wait();
            std::process::exit(exit::FAILED.into());
        });
        Ok(interrupt)
    }

    fn cancel(&self, socket: &Path) {
        eprintln!("vmbeam: cancelling; once more to leave");
        let id = self.job.load(Ordering::Relaxed);
        if id == NONE {
            return;
        }
        let result =
            Client::connect(socket).and_then(|c| c.ask(&ToDaemon::Abort { job: id }, |_| {}));
        if let Err(e) = result {
            eprintln!("vmbeam: cannot cancel: {e}");
        }
    }

    /// Whether to stop.
    pub(crate) fn is_wanted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// This job is going on now.
    pub(crate) fn begun(&self, job: u64) {
        self.job.store(job, Ordering::Relaxed);
    }

    /// It is over.
    pub(crate) fn ended(&self) {
        self.job.store(NONE, Ordering::Relaxed);
    }
}
