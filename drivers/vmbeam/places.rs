// SPDX-License-Identifier: GPL-2.0-only

//! Who has pairs swapped. As swapping twice puts back, of the sessions that share a domain
//! only one may have.
//!
//! Every session that is bound has a place here, also when nothing but a record is left of
//! it. So there is room for as many records as there are sessions, and keeping one can
//! never fail.

use kernel::prelude::*;

use crate::{
    hypervisor,
    xen::Domains, //
};

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
    /// No hypercall can be under way for it that moves something: it is a record, or was one when
    /// a domain of it was gone already.
    idle: bool,
}

/// All places.
pub(crate) struct Table([Option<Taken>; MAX_SESSIONS]);

impl Table {
    /// What session other than that in `place` has pairs of one of the domains swapped.
    fn in_the_way(&self, domains: &Domains, place: Option<usize>) -> Option<Taken> {
        let others = (self.0.iter().enumerate()).filter(|(index, _)| Some(*index) != place);

        others
            .filter_map(|(_, taken)| *taken)
            .find(|taken| taken.swapped && taken.domains.share(domains))
    }

    /// What is swapped of these domains can never be put back.
    fn forget(&mut self, domains: &Domains) {
        for taken in self.0.iter_mut().flatten() {
            if taken.idle && taken.domains.ids == domains.ids {
                taken.swapped = false;
            }
        }
    }
}

/// Do `what` when no session other than that in `place` has pairs of one of the domains swapped.
///
/// # Errors
///
/// [`EBUSY`]: there is one. Those of `what`.
fn when_free<T>(
    domains: &Domains,
    place: Option<usize>,
    what: impl Fn(&mut Table) -> Result<T>,
) -> Result<T> {
    loop {
        let mut table = PLACES.lock();
        let Some(taken) = table.in_the_way(domains, place) else {
            return what(&mut table);
        };
        drop(table);

        // A record is in nobody's way when its domain is gone, be it since it was kept.
        if !taken.idle || !hypervisor::gone(taken.domains) {
            return Err(EBUSY);
        }
        PLACES.lock().forget(&taken.domains);
    }
}

/// A place, for a session for as long as it is bound.
pub(crate) struct Place {
    index: usize,
    domains: Domains,
}

impl Place {
    /// Take one.
    ///
    /// # Errors
    ///
    /// - [`ENOSPC`]: all [`MAX_SESSIONS`] are taken.
    /// - [`EBUSY`]: another session has pairs of one of these domains swapped.
    pub(crate) fn take(domains: Domains) -> Result<Self> {
        when_free(&domains, None, |table| {
            let mut places = table.0.iter_mut().enumerate();
            let (index, free) = places.find(|(_, taken)| taken.is_none()).ok_or(ENOSPC)?;

            *free = Some(Taken {
                domains,
                swapped: false,
                idle: false,
            });
            Ok(Self { index, domains })
        })
    }

    /// Be the only session with pairs of its domains swapped, until [`Self::note`].
    ///
    /// # Errors
    ///
    /// [`EBUSY`]: there is another one.
    pub(crate) fn claim(&self) -> Result {
        when_free(&self.domains, Some(self.index), |table| {
            self.change(table, |taken| taken.swapped = true);
            Ok(())
        })
    }

    /// Let others know whether the session has pairs swapped.
    pub(crate) fn note(&self, swapped: bool) {
        self.change(&mut PLACES.lock(), |taken| taken.swapped = swapped);
    }

    /// The session is a record from now on.
    pub(crate) fn keep(&self) {
        self.change(&mut PLACES.lock(), |taken| taken.idle = true);
    }

    /// It is a record no longer.
    pub(crate) fn adopt(&self) {
        let idle = hypervisor::gone(self.domains);

        self.change(&mut PLACES.lock(), |taken| taken.idle = idle);
    }

    /// Its number, below [`MAX_SESSIONS`].
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    fn change(&self, table: &mut Table, how: impl FnOnce(&mut Taken)) {
        // Taken by `take()`, and given up by nobody but `drop()`.
        match table.0.get_mut(self.index) {
            Some(Some(taken)) => how(taken),
            _ => {
                kernel::warn_on!(true);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match PLACES.lock().0.get_mut(self.index) {
            Some(taken @ Some(_)) => *taken = None,
            _ => {
                kernel::warn_on!(true);
            }
        }
    }
}
