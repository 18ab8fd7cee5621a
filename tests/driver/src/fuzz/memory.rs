// SPDX-License-Identifier: GPL-2.0-only

//! Memory that domains of the model lose, get and may have, for relocation.

use anyhow::Result;

use super::Fuzzer;
use crate::model::Session;
use crate::model::DOMAINS;
use crate::model::FRAMES;

impl Fuzzer {
    /// A domain of the model loses a frame, which is populate-on-demand then, or gets one again,
    /// or may have some more pages only. Often it is a frame that the session has swapped.
    pub(super) fn change_memory(&mut self, session: &Session) -> Result<()> {
        let anywhere = (self.rng.usize(..DOMAINS), self.rng.u64(..FRAMES));
        let swapped = session.swapped_frame(&self.world, |nr| self.rng.usize(..nr.max(1)));
        let place = match swapped {
            Some(place) if self.rng.u8(..4) == 0 => place,
            _ => anywhere,
        };
        let (index, gfn) = place;
        let contents = 0x7b00_0000_0000_0000 | self.rng.u64(..1 << 32);
        let Some(domain) = self.domains[index].of_model() else {
            return Ok(());
        };
        if self.rng.u8(..6) == 0 {
            self.world.limits[index] = self.world.pages[index] + self.rng.u64(..4);
            domain.limit(self.world.limits[index])?;
        } else if self.world.missing.contains(&place) {
            domain.write_tags(gfn, &[contents])?;
            self.world.populate(place, contents);
        } else {
            // As many at once as a run has, often.
            for gfn in gfn..(gfn + self.rng.u64(1..6)).min(FRAMES) {
                domain.depopulate(gfn)?;
                self.world.depopulate((index, gfn));
            }
        }
        Ok(())
    }

    /// No limit is in the way.
    fn no_limits(&mut self) -> Result<()> {
        for (domain, limit) in self.domains.iter().zip(&mut self.world.limits) {
            if let Some(domain) = domain.of_model().filter(|_| *limit != u64::MAX) {
                *limit = u64::MAX;
                domain.limit(*limit)?;
            }
        }
        Ok(())
    }

    /// Every frame has memory again.
    pub(super) fn populate_all(&mut self) -> Result<()> {
        self.no_limits()?;
        while let Some((index, gfn)) = self.world.missing.first().copied() {
            let contents = 0x7c00_0000_0000_0000 | ((index as u64) << 32) | gfn;
            if let Some(domain) = self.domains[index].of_model() {
                domain.write_tags(gfn, &[contents])?;
            }
            self.world.populate((index, gfn), contents);
        }
        Ok(())
    }
}
