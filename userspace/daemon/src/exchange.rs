// SPDX-License-Identifier: GPL-2.0-only

//! Driving a session of the driver: load it, ask, swap, swap back.

use crate::driver::DriverSession;
use crate::join::JoinedRun;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;
use tracing::error;
use vmbeam_agent_protocol::PfnRun;
use vmbeam_control_protocol::{Failure, Phase};
use vmbeam_uapi::{refusal_reason, Errno, Mode as BindMode, Run, NOT_ATTEMPTED};

/// Runs that the driver is handed at once. They are copied for it, and a copy of all runs of a
/// large guest would be memory that nothing else needs.
const ADD_CHUNK: usize = 64 << 10;
/// Pairs that one dry-run call is given, so that there is progress to show.
const CHECK_CHUNK: usize = 64 << 10;
/// The same for the swap; larger, because calls cost time there: 1 GiB.
const COMMIT_CHUNK: usize = 256 << 10;
/// How many refused frames are listed for each reason.
const EXAMPLES: usize = 4;
/// How a swap failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SwapError {
    /// How badly.
    pub failure: Failure,
    /// The same for a person.
    pub message: String,
}

impl SwapError {
    /// The same if there is a reason `why` not to go on any more, which is named once: what did not
    /// answer in time is one thing, whose time that was another.
    pub(crate) fn because(self, why: Result<(), Self>) -> Self {
        match why {
            Err(why) if !self.message.contains(&why.message) => Self {
                message: format!("{}: {}", why.message, self.message),
                ..why
            },
            _ => self,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err()")]
pub(crate) fn refused(message: impl ToString) -> SwapError {
    SwapError {
        failure: Failure::Refused,
        message: message.to_string(),
    }
}

/// What is said of a panic.
pub(crate) fn internal() -> SwapError {
    SwapError {
        failure: Failure::Failed,
        message: "internal error; see vmbeamd's log".into(),
    }
}

/// Whether to go on; an error says why not.
pub(crate) type GoOn<'a> = &'a (dyn Fn() -> Result<(), SwapError> + Sync);

/// For what is brought to its end whatever happens.
pub(crate) const REGARDLESS: GoOn<'static> = &|| Ok(());

/// Progress of a swap: phase, pages done, pages to do.
pub type Progress<'a> = &'a (dyn Fn(Phase, u64, u64) + Sync);

/// Run two things at once, the first of them here, and wait for both.
pub(crate) fn both<A, B: Send>(a: impl FnOnce() -> A, b: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|s| {
        let other = s.spawn(b);
        let a = a();
        match other.join() {
            Ok(b) => (a, b),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Sums the progress of two sides that go on at once.
pub(crate) struct Sum<'a> {
    phase: Phase,
    total: u64,
    done: Mutex<[u64; 2]>,
    progress: Progress<'a>,
}

impl<'a> Sum<'a> {
    pub(crate) fn new(phase: Phase, total: u64, progress: Progress<'a>) -> Self {
        progress(phase, 0, total);
        Self {
            phase,
            total,
            done: Mutex::new([0; 2]),
            progress,
        }
    }

    pub(crate) fn side(&self, side: usize) -> impl FnMut(u64) + '_ {
        move |pages| {
            let mut done = self
                .done
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            done[side] = pages;
            (self.progress)(
                self.phase,
                done[0] + done[1],
                self.total.max(done[0] + done[1]),
            );
        }
    }
}

/// Hand the runs to the driver; the seconds that it took. Asks before each call whether to go on.
pub(crate) fn add(
    session: &mut dyn DriverSession,
    runs: &[JoinedRun],
    progress: Progress<'_>,
    go_on: GoOn<'_>,
) -> Result<f64, SwapError> {
    progress(Phase::Add, 0, 0);
    let started = Instant::now();
    let mut raw: Vec<Run> = Vec::new();
    for part in runs.chunks(ADD_CHUNK) {
        go_on()?;
        raw.clear();
        raw.extend(part.iter().map(Run::from));
        session.add(&raw).map_err(|e| {
            let which = e.run.and_then(|i| part.get(i)).map_or(String::new(), |r| {
                format!(
                    ": page {:#x}, frames {:#x} and {:#x}, {} pages",
                    r.pfn, r.gfn_a, r.gfn_b, r.nr
                )
            });
            refused(format!("{e}{which}"))
        })?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// What a dry run or a swap took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    /// Frames that went over without one in return, or would go.
    pub(crate) moves: u64,
}

/// Ask which pairs would be refused; and before each call, whether to go on.
pub(crate) fn prepare(
    session: &dyn DriverSession,
    status: &mut [i32],
    progress: Progress<'_>,
    go_on: GoOn<'_>,
) -> Result<Took, SwapError> {
    let total = status.len() as u64;
    let started = Instant::now();
    let (mut done, mut moves) = (0, 0);
    while done < status.len() {
        go_on()?;
        progress(Phase::Prepare, done as u64, total);
        let end = (done + CHECK_CHUNK).min(status.len());
        match session.prepare(done as u64, moves, &mut status[done..end]) {
            Ok(p) if p.done > 0 => {
                done += (p.done as usize).min(end - done);
                moves += p.moves;
            }
            Ok(_)
            | Err(vmbeam_uapi::Error {
                errno: Errno::EINTR,
                ..
            }) => {}
            Err(e) => return Err(refused(e)),
        }
    }
    progress(Phase::Prepare, total, total);
    Ok(Took {
        seconds: started.elapsed().as_secs_f64(),
        moves,
    })
}

/// Swap. If that fails half way, swap back.
///
/// So it is if it is not to be gone on with, which is asked between two calls. To go on would keep
/// no guest safer: what has lost its time is swapped back behind the last call all the same, and
/// that would be more.
pub(crate) fn commit(
    session: &mut dyn DriverSession,
    status: &mut [i32],
    progress: Progress<'_>,
    go_on: GoOn<'_>,
) -> Result<Took, SwapError> {
    let total = status.len() as u64;
    let mut done = 0;
    let mut took = Took::default();
    status.fill(NOT_ATTEMPTED);
    progress(Phase::Commit, 0, total);
    while done < status.len() {
        if done > 0 {
            if let Err(e) = go_on() {
                return Err(roll_back(session, &e.message, progress));
            }
        }
        let end = (done + COMMIT_CHUNK).min(status.len());
        let part = &mut status[done..end];
        let started = Instant::now();
        let step = session.commit(part);
        took.seconds += started.elapsed().as_secs_f64();
        match step {
            Ok(step) if step.cursor > done as u64 && step.cursor <= end as u64 => {
                done = step.cursor as usize;
                took.moves += step.moved;
            }
            Ok(step) => {
                let message = format!(
                    "the driver's cursor went from {done} to {}, which is impossible",
                    step.cursor
                );
                return Err(roll_back(session, &message, progress));
            }
            Err(vmbeam_uapi::Error {
                errno: Errno::EINTR,
                ..
            }) => {}
            Err(e) if done == 0 => return Err(refused(e)),
            Err(e) => return Err(roll_back(session, &e.to_string(), progress)),
        }
        progress(Phase::Commit, done as u64, total);
    }
    Ok(took)
}

/// Swap back, because of `why`. The result says whether that worked.
pub(crate) fn roll_back(
    session: &mut dyn DriverSession,
    why: &str,
    progress: Progress<'_>,
) -> SwapError {
    error!("the swap is rolled back: {why}");
    loop {
        match session.rollback() {
            Ok(step) if step.cursor == 0 => break,
            Ok(step) => progress(Phase::Rollback, step.cursor, 0),
            Err(e) if e.errno == Errno::EINTR => {}
            Err(e) => {
                let left = session
                    .status()
                    .map_or("an unknown number of".into(), |s| s.swapped.to_string());
                return SwapError {
                    failure: Failure::Failed,
                    message: format!(
                        "{why}; swapping back failed as well ({e}), {left} pages remain swapped: let neither guest run, and see `vmbeam records`"
                    ),
                };
            }
        }
    }
    SwapError {
        failure: Failure::RolledBack,
        message: format!("{why}; everything was swapped back"),
    }
}

/// Every pair with its status: pfn, gfn in A, gfn in B, status.
pub(crate) fn pairs<'a>(
    runs: &'a [JoinedRun],
    status: &'a [i32],
) -> impl Iterator<Item = (u64, u64, u64, i32)> + 'a {
    runs.iter()
        .flat_map(|r| (0..u64::from(r.nr)).map(|i| (r.pfn + i, r.gfn_a + i, r.gfn_b + i)))
        .zip(status)
        .map(|((pfn, a, b), s)| (pfn, a, b, *s))
}

/// Whether frames may go over without one in return.
pub(crate) fn relocates(mode: BindMode) -> bool {
    matches!(mode, BindMode::ToB | BindMode::ToA)
}

/// Pages that were not there where a relocation comes from: they read as zeroes, and so they do
/// where it goes. That is no refusal, and becomes none in `status`.
pub(crate) fn take_empty(mode: BindMode, runs: &[JoinedRun], status: &mut [i32]) -> Vec<PfnRun> {
    const EMPTY: i32 = -(Errno::ENODATA as i32);
    let mut empty: Vec<PfnRun> = Vec::new();
    if !relocates(mode) {
        return empty;
    }
    for (pfn, ..) in pairs(runs, status).filter(|p| p.3 == EMPTY) {
        match empty.last_mut() {
            Some(last) if last.pfn + u64::from(last.nr) == pfn => last.nr += 1,
            _ => empty.push(PfnRun { pfn, nr: 1 }),
        }
    }
    status
        .iter_mut()
        .filter(|s| **s == EMPTY)
        .for_each(|s| *s = 0);
    empty
}

/// Pairs that the hypervisor refuses.
#[derive(Default)]
pub(crate) struct Refusals {
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) examples: Vec<(String, u64, u64)>,
}

impl Refusals {
    pub(crate) fn collect(runs: &[JoinedRun], status: &[i32]) -> Self {
        let mut all = Self::default();
        for (_, a, b, s) in pairs(runs, status) {
            if s == 0 {
                continue;
            }
            let reason = if s == NOT_ATTEMPTED {
                "not_attempted"
            } else {
                refusal_reason(s)
            };
            let count = all.counts.entry(reason).or_default();
            *count += 1;
            if *count <= EXAMPLES as u64 {
                all.examples.push((reason.into(), a, b));
            }
        }
        all
    }
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (reason, nr)) in self.counts.iter().enumerate() {
            write!(f, "{}{nr} {reason}", if i == 0 { "" } else { ", " })?;
        }
        if let Some((_, a, b)) = self.examples.first() {
            write!(f, " (for example frames {a:#x} and {b:#x})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use vmbeam_uapi::{AddFailed, Checked, Error, Spent, Status, Step};

    /// Does what it is told, and counts.
    #[derive(Default)]
    struct Counting {
        added: usize,
        prepared: std::cell::Cell<u64>,
        cursor: u64,
        back: bool,
    }

    impl DriverSession for Counting {
        fn ids(&self) -> [u64; 2] {
            [1, 2]
        }
        fn add(&mut self, runs: &[Run]) -> Result<(), AddFailed> {
            self.added += runs.len();
            Ok(())
        }
        fn prepare(&self, first: u64, _: u64, status: &mut [i32]) -> Result<Checked, Error> {
            let done = status.len() as u64;
            self.prepared.set(first + done);
            Ok(Checked {
                done,
                ..Default::default()
            })
        }
        fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error> {
            self.cursor += status.len() as u64;
            Ok(Step {
                cursor: self.cursor,
                ..Default::default()
            })
        }
        fn status(&self) -> Result<Status, Error> {
            Ok(Status::default())
        }
        fn spent(&self) -> Spent {
            Spent::default()
        }
        fn rollback(&mut self) -> Result<Step, Error> {
            (self.cursor, self.back) = (0, true);
            Ok(Step::default())
        }
    }

    /// Agrees so often.
    fn times(nr: u32) -> impl Fn() -> Result<(), SwapError> + Sync {
        let left = AtomicU32::new(nr);
        move || match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        {
            Ok(_) => Ok(()),
            Err(_) => Err(refused("nobody wants it")),
        }
    }

    /// What was undone between two calls says why already.
    #[test]
    fn why_it_is_not_gone_on_with_is_said_once() {
        let late = || SwapError {
            failure: Failure::RolledBack,
            message: "it was too late".into(),
        };
        for (message, said) in [
            ("no answer", "it was too late: no answer"),
            ("it was too late", "it was too late"),
            (
                "it was too late; everything was swapped back",
                "it was too late; everything was swapped back",
            ),
        ] {
            let error = refused(message);
            assert_eq!(error.clone().because(Ok(())), error);
            assert_eq!(error.because(Err(late())).message, said);
        }
    }

    #[test]
    fn nobody_wants_it_any_more_between_two_calls() {
        let quiet = &|_, _, _| {};
        let run = JoinedRun {
            pfn: 0,
            gfn_a: 0,
            gfn_b: 0,
            nr: 1,
        };
        let mut session = Counting::default();
        let runs = vec![run; 3 * ADD_CHUNK];
        let e = add(&mut session, &runs, quiet, &times(1)).unwrap_err();
        assert_eq!((&*e.message, session.added), ("nobody wants it", ADD_CHUNK));
        let mut status = vec![NOT_ATTEMPTED; 3 * COMMIT_CHUNK];
        let e = prepare(&session, &mut status, quiet, &times(2)).map(|_| ());
        assert_eq!(e, Err(refused("nobody wants it")));
        assert_eq!(session.prepared.get(), 2 * CHECK_CHUNK as u64);
        // What is half swapped does not stay so.
        let e = commit(&mut session, &mut status, quiet, &times(1)).map(|_| ());
        let e = e.unwrap_err();
        assert_eq!(e.failure, Failure::RolledBack);
        assert_eq!(e.message, "nobody wants it; everything was swapped back");
        assert!(session.back);
        // Behind the last call somebody else asks.
        assert!(commit(&mut session, &mut status, quiet, &times(2)).is_ok());
    }
}
