// SPDX-License-Identifier: GPL-2.0-only

//! Ctrl-C while one guest is moved, or several one after the other.

use crate::client::{Client, ClientError};
use crate::exit;
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use vmbeam_control_protocol::ToDaemon;

/// No job whose number is known.
const NONE: u64 = 0;
/// None either, and it is to be cancelled as soon as it is.
const UNWANTED: u64 = u64::MAX;

/// The job that is going on, for whoever wants it to end.
#[derive(Clone, Debug)]
pub(crate) struct Going {
    socket: PathBuf,
    job: Arc<AtomicU64>,
}

impl Going {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
            job: Arc::new(AtomicU64::new(NONE)),
        }
    }

    /// This job is going on now.
    pub(crate) fn begun(&self, job: u64) {
        if self.job.swap(job, Ordering::Relaxed) == UNWANTED {
            self.abort(job);
        }
    }

    /// It is over.
    fn ended(&self) {
        self.job.store(NONE, Ordering::Relaxed);
    }

    /// Cancel it, now or when its number is known.
    pub(crate) fn cancel(&self) {
        let (none, unwanted) = (NONE, UNWANTED);
        let order = Ordering::Relaxed;
        match self.job.compare_exchange(none, unwanted, order, order) {
            Ok(_) | Err(UNWANTED) => {}
            Err(job) => self.abort(job),
        }
    }

    fn abort(&self, job: u64) {
        let result =
            Client::connect(&self.socket).and_then(|c| c.ask(&ToDaemon::Abort { job }, |_| {}));
        if let Err(e) = result {
            eprintln!("vmbeam: cannot cancel: {e}");
        }
    }
}

/// Block the signals that ask the program to end. To be done before there is a thread, so
/// that all leave them to whoever waits for them.
pub(crate) fn signals() -> Result<SigSet, ClientError> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(std::io::Error::from)?;
    Ok(signals)
}

/// What a person has asked for since the program began.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    stop: Arc<AtomicBool>,
    going: Going,
}

impl Interrupt {
    /// From now on the first Ctrl-C stops between two steps, or an evacuation after the guest
    /// that moves; the second cancels this one's move; and the third only leaves.
    pub(crate) fn catch(socket: &Path) -> Result<Self, ClientError> {
        let signals = signals()?;
        let interrupt = Self {
            stop: Arc::default(),
            going: Going::new(socket),
        };
        let seen = interrupt.clone();
        std::thread::spawn(move || {
            let _ = signals.wait();
            seen.stop.store(true, Ordering::Relaxed);
            // An evacuation that is told once stops, and one that is told twice cancels.
            seen.going.cancel();
            eprintln!("vmbeam: stopping after this step; once more to cancel it");
            let _ = signals.wait();
            eprintln!("vmbeam: cancelling; once more to leave");
            seen.going.cancel();
            let _ = signals.wait();
            std::process::exit(exit::FAILED.into());
        });
        Ok(interrupt)
    }

    /// Whether to stop.
    pub(crate) fn is_wanted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// This job is going on now.
    pub(crate) fn begun(&self, job: u64) {
        self.going.begun(job);
    }

    /// It is over.
    pub(crate) fn ended(&self) {
        self.going.ended();
    }
}
