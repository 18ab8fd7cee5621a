// SPDX-License-Identifier: GPL-2.0-only

//! After a move: the frames of pages that stayed where they were (page tables, mostly) follow
//! those around them, without their contents. Neither host VM sees a difference, and both have
//! their superpages whole again, which otherwise would be one or two fewer with every move.
//!
//! Nothing depends on it: it is not journalled, and not done for a job that another one settled.

use crate::exchange::{add, commit, refused, Refusals, SwapError};
use crate::execute::Swapped;
use crate::migrate::{seconds, Job};
use std::time::Instant;
use tracing::{info, warn};
use vmbeam_uapi::sys::FEATURE_KEEP;
use vmbeam_uapi::Mode;

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

    fn follow(&self) -> Result<(), SwapError> {
        let started = Instant::now();
        let driver = self.context.driver;
        if driver.info().map_err(refused)?.features & FEATURE_KEEP == 0 {
            return Ok(());
        }
        let (a, b) = self.route.domids;
        let mut session = driver.open(a, b, Mode::Keep).map_err(refused)?;
        add(&mut *session, &self.stayed, &|_, _, _| {})?;
        let pages: usize = self.stayed.iter().map(|r| r.nr as usize).sum();
        let mut status = vec![0; pages];
        commit(&mut *session, &mut status, &|_, _, _| {})?;
        info!(
            guest = self.guest.name,
            pages = status.iter().filter(|s| **s == 0).count(),
            refused = %Refusals::collect(&self.stayed, &status),
            superpages = session.spent().merges,
            seconds = seconds(started),
            "the frames of pages that stayed have followed"
        );
        Ok(())
    }
}
