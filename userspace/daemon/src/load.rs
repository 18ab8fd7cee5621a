// SPDX-License-Identifier: GPL-2.0-only

//! What the driver is given before a guest's memory moves, and what it would refuse of that.

use crate::driver::DriverSession;
use crate::exchange::{add, prepare, refused, take_empty, Refusals, SwapError};
use crate::join::{split, JoinedRun};
use crate::limits::{seconds, Limits};
use crate::memory::Route;
use std::time::Instant;
use tracing::info;
use vmbeam_agent_protocol::PfnRun;
use vmbeam_uapi::{Errno, NOT_ATTEMPTED};

/// A session with those runs that will not be refused, and the others.
pub(crate) struct Loaded {
    pub(crate) session: Box<dyn DriverSession>,
    pub(crate) good: Vec<JoinedRun>,
    pub(crate) bad: Vec<PfnRun>,
    /// Of the good ones, those that are not there at the source: nobody must look at them.
    pub(crate) empty: Vec<PfnRun>,
    /// Frames that go over without one in return.
    pub(crate) moves: u64,
    pub(crate) refusals: Refusals,
    pub(crate) seconds: f64,
}

/// Hand runs to the driver, and try which would be refused. `to` names the destination.
pub(crate) fn load(
    limits: Limits<'_>,
    route: Route,
    to: &str,
    runs: &[JoinedRun],
) -> Result<Loaded, SwapError> {
    let (context, progress) = (limits.context, limits.context.progress);
    let go_on = &|| limits.go_on();
    let (a, b) = route.domids;
    let open = || context.driver.open(a, b, route.mode).map_err(refused);
    let started = Instant::now();
    let mut session = open()?;
    add(&mut *session, runs, progress, go_on)?;
    let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
    let mut status = vec![NOT_ATTEMPTED; pages as usize];
    let moves = prepare(&*session, &mut status, progress, go_on)?.moves;
    let empty = take_empty(route.mode, runs, &mut status);
    no_room(to, moves, &status)?;
    let refusals = Refusals::collect(runs, &status);
    let (good, bad) = split(runs, &status);
    if !bad.is_empty() && !good.is_empty() {
        info!("not to be swapped: {refusals}");
        // What is swapped is to be all or nothing, so without these.
        session = open()?;
        add(&mut *session, &good, progress, go_on)?;
    }
    Ok(Loaded {
        session,
        good,
        bad,
        empty,
        moves,
        refusals,
        seconds: seconds(started),
    })
}

/// Pages that the destination may not have are not copied there either.
fn no_room(to: &str, moves: u64, status: &[i32]) -> Result<(), SwapError> {
    let full = -(Errno::ENOSPC as i32);
    match status.iter().filter(|s| **s == full).count() {
        0 => Ok(()),
        nr => Err(refused(format!(
            "host VM {to} may have {moves} more pages, and not the other {nr} that would come: raise its maximum (`xl mem-max`; `vmbeam check` says how far)"
        ))),
    }
}
