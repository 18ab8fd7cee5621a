// SPDX-License-Identifier: GPL-2.0-only

//! What moves a guest forward: its state through the two agents, its memory by the driver.

use crate::differ::without;
use crate::driver::counts;
use crate::exchange::{both, commit, refused, take_empty, Refusals, Sum, SwapError};
use crate::execute::{Moved, Swapped};
use crate::job::Job;
use crate::join::{join, select, JoinedRun};
use crate::journal::Pairs;
use crate::ledger::Ledger;
use crate::limits::{seconds, Limits};
use crate::link::{parts, Link, LinkError};
use crate::load::{load, Loaded};
use crate::memory::holds;
use crate::relay::{Gate, Relay};
use crate::side::Side;
use std::ops::Range;
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{Digest, PfnRun, MAX_PAGES_PER_CHUNK, MAX_PART};
use vmbeam_control_protocol::{Failure, Phase, SwapRun};
use vmbeam_migration::Event;
use vmbeam_uapi::NOT_ATTEMPTED;

/// Most pages that are copied because they cannot be swapped: 64 MiB. With more of
/// them it is not what was asked for any more.
const MAX_COPIES: u64 = 16 << 10;
/// Pages that are verified at once.
const VERIFIED_AT_ONCE: u64 = 16 << 10;
/// Bytes that are pushed at once: what is not taken has to be sent again.
const PUSH: usize = 128 << 10;
pub(crate) fn count(runs: &[PfnRun]) -> u64 {
    runs.iter().map(|r| u64::from(r.nr)).sum()
}

impl Job<'_> {
    /// Have both toolstacks begin. With `staged`, the guest runs on.
    pub(crate) fn begin_stream(&mut self, staged: bool) -> Result<(), SwapError> {
        let external = self.mode.is_external();
        let name = self.guest.name.clone();
        let here = self.guest.domid;
        self.limit();
        self.exec
            .to
            .talk(|l| l.restore(&name, external, staged))
            .map_err(refused)?;
        if !staged {
            self.pause = Some(Ledger::new(self.exec.traffic()));
            self.limit();
        }
        self.exec
            .from
            .talk(|l| l.save(here, external, staged))
            .map_err(refused)
    }

    /// Carry over what there is of the guest's state until that is enough.
    pub(crate) fn relay(
        &mut self,
        relay: &mut Relay,
        phase: Phase,
        enough: impl Fn(&Relay) -> bool,
    ) -> Result<(), SwapError> {
        let mut moved = Instant::now();
        // A part is pushed while the next one is pulled.
        while !enough(relay) {
            self.go_on()?;
            let (from, to) = (&mut self.exec.from, &mut self.exec.to);
            let Relay {
                waiting, end, gate, ..
            } = &*relay;
            let (pulled, pushed) = both(
                || {
                    if *end || waiting.len() >= MAX_PART || gate.is_shut(&relay.scanner) {
                        return Ok((Vec::new(), *end));
                    }
                    from.talk(|l| match gate {
                        Gate::Opens => l.go(),
                        _ => l.pull(),
                    })
                },
                || {
                    if waiting.is_empty() {
                        return Ok(0);
                    }
                    to.talk(|l| l.push(&waiting[..waiting.len().min(PUSH)]))
                },
            );
            // Of two failures the source's is the one that made the other.
            let (data, ended) = pulled.map_err(refused)?;
            let taken = pushed.map_err(refused)?;
            if taken > 0 || !data.is_empty() || ended && !relay.end {
                moved = Instant::now();
            } else if moved.elapsed() > self.stalled_after() {
                return Err(refused(self.stalled(relay.waiting.is_empty())));
            }
            if relay.gate == Gate::Opens {
                relay.gate = Gate::Open;
            }
            if relay.gate == Gate::Open && !relay.answered && !data.is_empty() {
                relay.answered = true;
                self.part("suspend");
            }
            relay.scanner.feed(&data).map_err(refused)?;
            relay.waiting.drain(..taken);
            relay.waiting.extend(data);
            relay.end = ended;
            (self.context.progress)(phase, relay.scanner.contents().bytes, 0);
        }
        Ok(())
    }

    /// How long the toolstacks may make no progress. One that restores a large guest makes
    /// room for all of it before it takes more.
    fn stalled_after(&self) -> Duration {
        stalled_after(&self.exec.to)
    }

    fn stalled(&self, source: bool) -> String {
        let limit = self.stalled_after().as_secs();
        if source {
            format!(
                "host VM {} sent nothing of the guest for {limit} s; does the guest suspend itself? See its console",
                self.exec.from.name()
            )
        } else {
            format!(
                "host VM {} took nothing of the guest for {limit} s; see its agent's log, and agent_timeout_seconds if the guest is large",
                self.exec.to.name()
            )
        }
    }

    /// Find the pairs to be swapped, the pages to be copied, and some that tell where the
    /// memory is.
    pub(crate) fn prepare(&mut self) -> Result<Event, SwapError> {
        let there = self.there()?;
        let (runs, mut copies) = self.lists(there)?;
        self.part("lists");
        self.go_on()?;
        let loaded = load(self.limits(), self.route, &self.request.to, &runs)?;
        self.refused(&loaded);
        self.part("dry run");
        copies.extend(&loaded.bad);
        copies.sort_by_key(|r| r.pfn);
        self.bounded(&copies, &loaded.good)?;
        self.reserve_holds(&copies)?;
        let started = Instant::now();
        let probes = self.probes(&loaded, there)?;
        self.report.seconds.probes = seconds(started);
        self.part("probes");
        let pairs = Pairs {
            pairs: loaded.good.iter().map(SwapRun::from).collect(),
            filed: None,
        };
        self.prepared(loaded, Moved { pairs, probes }, copies)
    }

    /// Refuse to copy what is too much.
    pub(crate) fn bounded(&self, copies: &[PfnRun], runs: &[JoinedRun]) -> Result<(), SwapError> {
        let to_copy = count(copies);
        if to_copy > MAX_COPIES || runs.is_empty() {
            return Err(refused(format!(
                "{to_copy} pages cannot be swapped ({:?}); `vmbeam migrate --mode copy` copies the memory instead",
                self.report.pages_refused
            )));
        }
        Ok(())
    }

    /// Refuse what would take more of the destination's reserve than it has: pages that are
    /// copied are touched there, and more than that is touched by whatever runs there.
    pub(crate) fn reserve_holds(&self, copies: &[PfnRun]) -> Result<(), SwapError> {
        let absent = self.report.pages_refused.contains_key("populate_on_demand");
        match self.small {
            Some(true) => {
                let limits = self.limits();
                let there = self.route.domids.1;
                holds((self.exec.to.vm, there), count(copies), &|| limits.go_on())
            }
            None if absent => Err(refused(
                "pages are not there in one of the two host VMs, and vmbeamd may not ask what reserve they have; run it without --user and --seccomp",
            )),
            _ => Ok(()),
        }
    }

    /// All is known that has to be before the swap.
    pub(crate) fn prepared(
        &mut self,
        loaded: Loaded,
        moved: Moved,
        copies: Vec<PfnRun>,
    ) -> Result<Event, SwapError> {
        self.empty = loaded.empty;
        if self.request.verify {
            self.before = self.digests()?;
            self.part("digests");
        }
        self.work.moved = Some(moved);
        self.loaded = Some((loaded.session, loaded.good));
        self.copies = copies;
        let copies = !self.copies.is_empty();
        Ok(Event::Prepared { copies })
    }

    /// The pages whose contents are not in the stream, and that are there.
    fn external(&self) -> Vec<PfnRun> {
        let run = |r: &Range<u64>| PfnRun {
            pfn: r.start,
            // A guest has at most 2^26 pages.
            nr: (r.end - r.start) as u32,
        };
        let all: Vec<_> = self.contents.external.iter().map(run).collect();
        without(&all, &self.empty)
    }

    /// Swap the memory.
    pub(crate) fn commit(&mut self) -> Result<Event, SwapError> {
        let Some((mut session, runs)) = self.loaded.take() else {
            return Err(refused("nothing is prepared to be swapped"));
        };
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        let (progress, limits) = (self.context.progress, self.limits());
        match commit(&mut *session, &mut status, progress, &|| limits.go_on()) {
            Ok(took) => {
                self.report.seconds.swap = took.seconds;
                self.report.relocated = took.moves;
            }
            Err(e) => {
                self.exec.was_away = e.failure == Failure::RolledBack;
                self.exec.swapped = match e.failure {
                    // Some pairs are swapped, and their host VM may be gone.
                    Failure::Failed => Swapped::Torn,
                    // None is.
                    _ => Swapped::Back,
                };
                return Err(e);
            }
        }
        self.report.counts = counts(session.spent());
        self.part("swap");
        self.exec.swapped = Swapped::By(session);
        let empty = count(&take_empty(self.route.mode, &runs, &mut status));
        let late = Refusals::collect(&runs, &status);
        if !late.counts.is_empty() {
            return Err(refused(format!(
                "pages could not be swapped that could have been before: {late}"
            )));
        }
        self.report.runs = runs.len() as u64;
        self.report.pages_swapped = pages - empty;
        self.report.pages_empty = empty;
        Ok(Event::Done)
    }

    /// Copy what cannot be swapped, and see whether all has arrived.
    pub(crate) fn copy_and_verify(&mut self) -> Result<Event, SwapError> {
        let there = self.there()?;
        let copies = std::mem::take(&mut self.copies);
        self.copy(&copies, there)?;
        self.part("copy");
        if self.request.verify {
            self.verify(there)?;
            self.part("digests");
        }
        Ok(Event::Done)
    }

    /// The frames behind the external pages on both sides, and the pages that
    /// one side does not name.
    fn lists(&mut self, there: u32) -> Result<(Vec<JoinedRun>, Vec<PfnRun>), SwapError> {
        let started = Instant::now();
        let here = self.guest.domid;
        let sum = Sum::new(Phase::Lists, 2 * self.guest.pages, self.context.progress);
        let (from, to) = (&mut self.exec.from, &mut self.exec.to);
        let (a, b) = both(
            || from.talk(|l| l.frames(here, sum.side(0))),
            || to.talk(|l| l.frames(there, sum.side(1))),
        );
        let joined = join(&a.map_err(refused)?, &b.map_err(refused)?);
        (self.context.progress)(Phase::Pairs, 0, 0);
        let selected = select(&joined.runs, &self.contents.external);
        self.report.seconds.lists = seconds(started);
        Ok(selected)
    }

    /// Note how many pages cannot be swapped.
    pub(crate) fn refused(&mut self, loaded: &Loaded) {
        for (reason, nr) in &loaded.refusals.counts {
            let known = &mut self.report.pages_refused;
            *known.entry((*reason).into()).or_default() += nr;
        }
        self.report.seconds.prepare += loaded.seconds;
    }

    fn copy(&mut self, copies: &[PfnRun], there: u32) -> Result<(), SwapError> {
        let started = Instant::now();
        let here = self.guest.domid;
        let total = count(copies);
        let mut done = 0;
        let mut read: Option<(Vec<PfnRun>, Vec<u8>)> = None;
        let mut parts = parts(copies, MAX_PAGES_PER_CHUNK as u64);
        let ahead = std::mem::take(&mut self.ahead);
        if parts == [&*ahead.0] && !ahead.1.is_empty() {
            parts.clear();
            read = Some(ahead);
        }
        // One part is written while the next one is read.
        for part in parts.into_iter().map(Some).chain([None]) {
            self.go_on()?;
            (self.context.progress)(Phase::Copy, done, total);
            let (from, to) = (&mut self.exec.from, &mut self.exec.to);
            let (next, written) = both(
                || {
                    part.map(|runs| {
                        let data = from.talk(|l| l.read_pages(here, &runs))?;
                        Ok((runs, data))
                    })
                },
                || {
                    read.take().map_or(Ok(0), |(runs, data)| {
                        to.talk(|l| l.write_pages(there, &runs, data))?;
                        Ok(count(&runs))
                    })
                },
            );
            done += written.map_err(|e: String| refused(e))?;
            read = next.transpose().map_err(|e: String| refused(e))?;
        }
        self.report.pages_copied = total;
        self.report.seconds.copy = seconds(started);
        Ok(())
    }

    /// What the external pages have, before they go: 24 bytes a page are kept of it.
    fn digests(&mut self) -> Result<Vec<(u64, Digest)>, SwapError> {
        let started = Instant::now();
        let (here, runs) = (self.guest.domid, self.external());
        let sum = Sum::new(Phase::DigestsBefore, count(&runs), self.context.progress);
        let digests = self
            .exec
            .from
            .talk(|l| l.digests(here, &runs, sum.side(0)))
            .map_err(refused)?;
        self.report.seconds.digests += seconds(started);
        Ok(digests)
    }

    /// Every external page must have arrived as it was. What they have now is kept of a part of
    /// them at a time.
    fn verify(&mut self, there: u32) -> Result<(), SwapError> {
        let started = Instant::now();
        let before = std::mem::take(&mut self.before);
        let external = self.external();
        let total = count(&external);
        let (mut seen, mut wrong, mut first) = (0, 0_u64, None);
        let mut expected = before.iter();
        for part in parts(&external, VERIFIED_AT_ONCE) {
            self.go_on()?;
            (self.context.progress)(Phase::DigestsAfter, seen, total);
            let to = &mut self.exec.to;
            let after = to.talk(|l| l.digests(there, &part, |_| {}));
            for now in after.map_err(refused)? {
                seen += 1;
                if expected.next() != Some(&now) {
                    wrong += 1;
                    first.get_or_insert(now.0);
                }
            }
        }
        self.report.seconds.digests += seconds(started);
        if let Some(first) = first {
            return Err(refused(format!(
                "{wrong} of {total} pages are not what they were, for example page {first:#x}"
            )));
        }
        self.report.pages_verified = seen;
        Ok(())
    }
}

/// How long the toolstacks may make no progress. One that restores a large guest makes
/// room for all of it before it takes more.
fn stalled_after(to: &Side<'_>) -> Duration {
    to.vm.timeout()
}

/// Ask the destination until it has a guest, but not for ever.
pub(crate) fn until_made(
    to: &mut Side<'_>,
    limits: Limits<'_>,
    ask: impl Fn(&mut Link) -> Result<Option<u32>, LinkError>,
) -> Result<u32, SwapError> {
    let deadline = Instant::now() + stalled_after(to);
    loop {
        limits.go_on()?;
        match to.talk(&ask).map_err(refused)? {
            Some(guest) => return Ok(guest),
            None if Instant::now() > deadline => {
                return Err(refused(format!(
                    "host VM {} has not completed the guest within {} s; see its agent's log, and agent_timeout_seconds if the guest is large",
                    to.name(),
                    stalled_after(to).as_secs()
                )));
            }
            None => {}
        }
    }
}

/// The guest, once it is restored.
pub(crate) fn finish(to: &mut Side<'_>, limits: Limits<'_>) -> Result<u32, SwapError> {
    until_made(to, limits, Link::finish)
}
