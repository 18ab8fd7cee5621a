// SPDX-License-Identifier: GPL-2.0-only

//! Who has pairs swapped. As swapping twice puts back, of the sessions that share a domain
//! only one may have.
//!
//! Every session that is bound has a place here, also when nothing but a record is left of
//! it. So there is room for as many records as there are sessions, and keeping one can
//! never fail.

use kernel::prelude::*;

use crate::xen::Domains;

/// Most sessions that are bound or records, together.
pub(crate) const MAX_SESSIONS: usize = 256;

kernel::sync::global_lock! {
    // SAFETY: The module initialises it before its device exists, and nothing else leads here.
    pub(crate) unsafe(uninit) static PLACES: Mutex<Table> = Table([None; MAX_SESSIONS]);
}

#[derive(Clone, Copy)]
struct Taken {
    domains: Domains,
    /// The session has pairs swapped, or is about to.
    swapped: bool,
}

/// All places.
pub(crate) struct Table([Option<Taken>; MAX_SESSIONS]);

impl Table {
    /// Whether a session other than that in `place` has pairs of one of the domains swapped.
    fn busy(&self, domains: &Domains, place: Option<usize>) -> bool {
        self.0.iter().enumerate().any(|(index, taken)| {
            Some(index) != place
                && taken.is_some_and(|taken| taken.swapped && taken.domains.share(domains))
        })
    }
}

/// A place, for a session for as long as it is bound.
pub(crate) struct Place(usize);

impl Place {
    /// Take one.
    ///
    /// # Errors
    ///
    /// - [`ENOSPC`]: all [`MAX_SESSIONS`] are taken.
    /// - [`EBUSY`]: another session has pairs of one of these domains swapped.
    pub(crate) fn take(domains: Domains) -> Result<Self> {
        let mut table = PLACES.lock();

        if table.busy(&domains, None) {
            return Err(EBUSY);
        }
        let mut places = table.0.iter_mut().enumerate();
        let (index, free) = places.find(|(_, taken)| taken.is_none()).ok_or(ENOSPC)?;
        *free = Some(Taken {
            domains,
            swapped: false,
        });
        Ok(Self(index))
    }

    /// Be the only session with pairs of these domains swapped, until [`Self::note`].
    ///
    /// # Errors
    ///
    /// [`EBUSY`]: there is another one.
    pub(crate) fn claim(&self, domains: &Domains) -> Result {
        let mut table = PLACES.lock();

        if table.busy(domains, Some(self.0)) {
            return Err(EBUSY);
        }
        table.set(self.0, true);
        Ok(())
    }

    /// Let others know whether the session has pairs swapped.
    pub(crate) fn note(&self, swapped: bool) {
        PLACES.lock().set(self.0, swapped);
    }

    /// Its number, below [`MAX_SESSIONS`].
    pub(crate) fn index(&self) -> usize {
        self.0
    }
}

impl Table {
    fn set(&mut self, index: usize, swapped: bool) {
        if let Some(Some(taken)) = self.0.get_mut(index) {
            taken.swapped = swapped;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(taken) = PLACES.lock().0.get_mut(self.0) {
            *taken = None;
        }
    }
}
