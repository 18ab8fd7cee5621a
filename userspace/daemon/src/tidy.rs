// SPDX-License-Identifier: GPL-2.0-only

//! After a move: the frames of pages that stayed where they were (page tables, mostly) follow
//! those around them, without their contents. Neither host VM sees a difference, and both have
//! their superpages whole again, which otherwise would be one or two fewer with every move.
//!
//! Nothing depends on it: it is not journalled, and not done for a job that another one settled.

use crate::exchange::{add, commit, pairs, refused, Refusals, SwapError, REGARDLESS};
use crate::execute::Swapped;
use crate::job::Job;
use crate::join::JoinedRun;
use crate::limits::seconds;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_uapi::sys::FEATURE_KEEP;
use vmbeam_uapi::Mode;

/// Waits before what is refused is tried again: a backend in the host holds a page for as long as
/// a request takes.
const AGAIN: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

impl Job<'_> {
    /// Have the frames of `self.stayed` follow. The guest runs.
    pub(crate) fn tidy(&mut self) {
        if self.stayed.is_empty() {
            return;
        }
        // The session of the move has both host VMs for as long as it is open. All is swapped,
        // so its end changes nothing.
        self.exec.swapped = Swapped::Unknown;
        if let Err(e) = self.follow() {
            warn!(guest = self.guest.name, "superpages stay split: {e}");
        }
    }

    fn follow(&mut self) -> Result<(), SwapError> {
        let started = Instant::now();
        let driver = self.context.driver;
        if driver.info().map_err(refused)?.features & FEATURE_KEEP == 0 {
            return Ok(());
        }
        let (a, b) = self.route.domids;
        let mut left = std::mem::take(&mut self.stayed);
        let (mut pages, mut superpages) = (0, 0);
        let mut waits = AGAIN.into_iter();
        let refusals = loop {
            let mut session = driver.open(a, b, Mode::Keep).map_err(refused)?;
            add(&mut *session, &left, &|_, _, _| {}, REGARDLESS)?;
            let nr: usize = left.iter().map(|r| r.nr as usize).sum();
            let mut status = vec![0; nr];
            commit(&mut *session, &mut status, &|_, _, _| {}, REGARDLESS)?;
            superpages += session.spent().merges;
            let refusals = Refusals::collect(&left, &status);
            left = pairs(&left, &status)
                .filter(|pair| pair.3 != 0)
                .map(|(pfn, gfn_a, gfn_b, _)| JoinedRun {
                    pfn,
                    gfn_a,
                    gfn_b,
                    nr: 1,
                })
                .collect();
            pages += nr - left.len();
            match waits.next() {
                Some(wait) if !left.is_empty() => thread::sleep(wait),
                _ => break refusals,
            }
        };
        self.report.frames_left = left.len() as u64;
        info!(
            guest = self.guest.name,
            pages,
            refused = %refusals,
            superpages,
            seconds = seconds(started),
            "the frames of pages that stayed have followed"
        );
        Ok(())
    }
}
