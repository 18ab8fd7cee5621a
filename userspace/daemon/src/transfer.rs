// SPDX-License-Identifier: GPL-2.0-only

//! What moves a guest forward: its state through the two agents, its memory by the driver.

use crate::driver::{counts, DriverSession};
use crate::exchange::{add, both, commit, prepare, refused, Refusals, Sum, SwapError};
use crate::execute::{Moved, Swapped};
use crate::join::{join, select, split, JoinedRun};
use crate::journal::Probe;
use crate::link::parts;
use crate::migrate::{seconds, Job};
use std::ops::Range;
use std::time::{Duration, Instant};
use tracing::info;
use vmbeam_migration::Event;
use vmbeam_uapi::NOT_ATTEMPTED;
use vmbeam_wire::message::{Digest, Failure, Mode, Phase, SwapRun, MAX_PAGES_PER_CHUNK, MAX_PART};
use vmbeam_wire::PfnRun;
use vmbeam_xen::stream::Scanner;

/// Most pages that are copied because they cannot be swapped: 64 MiB. With more of
/// them it is not what was asked for any more.
const MAX_COPIES: u64 = 16 << 10;
/// Bytes that are pushed at once: what is not taken has to be sent again.
const PUSH: usize = 128 << 10;
/// Pages that are looked at in search of a difference, spread over the guest: most
/// pages of a guest that ran differ from those of one that did not.
const PROBE_SAMPLE: usize = 256;
/// The same when none of these differs, and all pages are looked at.
const PROBE_BATCH: usize = 4096;

fn count(runs: &[PfnRun]) -> u64 {
    runs.iter().map(|r| u64::from(r.nr)).sum()
}

impl Job<'_> {
    /// Save the guest, carry it over, restore it.
    pub(crate) fn stream(&mut self) -> Result<Event, SwapError> {
        let started = Instant::now();
        let external = self.request.mode == Mode::Swap;
        let name = self.guest.name.clone();
        let here = self.guest.domid;
        (self.context.progress)(Phase::Stream, 0, 0);
        self.limit();
        self.exec
            .to
            .talk(|l| l.restore(&name, external))
            .map_err(refused)?;
        self.suspended = Some(Instant::now());
        self.limit();
        self.exec
            .from
            .talk(|l| l.save(here, external))
            .map_err(refused)?;

        let mut scanner = Scanner::default();
        let mut moved = Instant::now();
        let mut waiting = Vec::new();
        let mut end = false;
        // A part is pushed while the next one is pulled.
        while !end || !waiting.is_empty() {
            self.go_on()?;
            let (from, to) = (&mut self.exec.from, &mut self.exec.to);
            let (pulled, pushed) = both(
                || {
                    if end || waiting.len() >= MAX_PART {
                        return Ok((Vec::new(), end));
                    }
                    from.talk(|l| l.pull())
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
            if taken > 0 || !data.is_empty() || ended && !end {
                moved = Instant::now();
            } else if moved.elapsed() > self.stalled_after() {
                return Err(refused(self.stalled(waiting.is_empty())));
            }
            scanner.feed(&data).map_err(refused)?;
            waiting.drain(..taken);
            waiting.extend(data);
            end = ended;
            (self.context.progress)(Phase::Stream, scanner.contents().bytes, 0);
        }
        let contents = scanner.contents().clone();
        if !contents.complete {
            return Err(refused("the saved state of the guest is cut off"));
        }
        let deadline = Instant::now() + self.stalled_after();
        let there = loop {
            self.go_on()?;
            match self.exec.to.talk(|l| l.finish()).map_err(refused)? {
                Some(guest) => break guest,
                None if Instant::now() > deadline => {
                    return Err(refused(format!(
                        "host VM {} has not completed the guest within {} s; see its agent's log, and agent_timeout_seconds if the guest is large",
                        self.exec.to.name(),
                        self.stalled_after().as_secs()
                    )));
                }
                None => {}
            }
        };
        self.report.seconds.stream = seconds(started);
        info!(
            bytes = contents.bytes,
            external = contents.external_pages(),
            data_pages = contents.data_pages,
            "the guest exists twice"
        );
        self.report.stream_bytes = contents.bytes;
        self.report.pages_sent = contents.data_pages;
        self.contents = contents;
        self.work.record.to.guest = Some(there);
        Ok(Event::Done)
    }

    /// How long the toolstacks may make no progress. One that restores a large guest makes
    /// room for all of it before it takes more.
    fn stalled_after(&self) -> Duration {
        self.exec.to.vm.timeout()
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
        self.go_on()?;
        let (session, runs, refused_pages) = self.load(&runs)?;
        copies.extend(refused_pages);
        copies.sort_by_key(|r| r.pfn);
        let to_copy = count(&copies);
        if to_copy > MAX_COPIES || runs.is_empty() {
            return Err(refused(format!(
                "{to_copy} pages cannot be swapped ({:?}); `vmbeam migrate --mode copy` copies the memory instead",
                self.report.pages_refused
            )));
        }
        let started = Instant::now();
        let probes = self.probes(&runs, there)?;
        self.report.seconds.probes = seconds(started);
        if self.request.verify {
            let (here, external) = (self.guest.domid, self.external());
            self.before = self.digests(Phase::DigestsBefore, true, here, &external)?;
        }
        self.work.moved = Some(Moved {
            pairs: runs.iter().map(SwapRun::from).collect(),
            probes,
        });
        self.loaded = Some((session, runs));
        self.copies = copies;
        let copies = to_copy > 0;
        Ok(Event::Prepared { copies })
    }

    /// The guest's number at the destination.
    fn there(&self) -> Result<u32, SwapError> {
        let there = self.work.record.to.guest;
        there.ok_or_else(|| refused("the guest's number is not known"))
    }

    /// The pages whose contents are not in the stream.
    fn external(&self) -> Vec<PfnRun> {
        let run = |r: &Range<u64>| PfnRun {
            pfn: r.start,
            // A guest has at most 2^26 pages.
            nr: (r.end - r.start) as u32,
        };
        self.contents.external.iter().map(run).collect()
    }

    /// Swap the memory.
    pub(crate) fn commit(&mut self) -> Result<Event, SwapError> {
        let Some((mut session, runs)) = self.loaded.take() else {
            return Err(refused("nothing is prepared to be swapped"));
        };
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        match commit(&mut *session, &mut status, self.context.progress) {
            Ok(seconds) => self.report.seconds.swap = seconds,
            Err(e) => {
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
        self.exec.swapped = Swapped::By(session);
        let late = Refusals::collect(&runs, &status);
        if !late.counts.is_empty() {
            return Err(refused(format!(
                "pages could not be swapped that could have been before: {late}"
            )));
        }
        self.report.pages_swapped = pages;
        Ok(Event::Done)
    }

    /// Copy what cannot be swapped, and see whether all has arrived.
    pub(crate) fn copy_and_verify(&mut self) -> Result<Event, SwapError> {
        let there = self.there()?;
        let copies = std::mem::take(&mut self.copies);
        self.copy(&copies, there)?;
        if self.request.verify {
            let external = self.external();
            let after = self.digests(Phase::DigestsAfter, false, there, &external)?;
            let before = std::mem::take(&mut self.before);
            self.compare(&before, &after)?;
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
        let selected = select(&joined.runs, &self.contents.external);
        self.report.seconds.lists = seconds(started);
        Ok(selected)
    }

    /// A session with those runs that will not be refused, and the pages of the
    /// others.
    #[allow(clippy::type_complexity, reason = "three things, used once")]
    fn load(
        &mut self,
        runs: &[JoinedRun],
    ) -> Result<(Box<dyn DriverSession>, Vec<JoinedRun>, Vec<PfnRun>), SwapError> {
        let progress = self.context.progress;
        let open = || {
            self.context
                .driver
                .open(self.domids.0, self.domids.1)
                .map_err(refused)
        };
        let started = Instant::now();
        let mut session = open()?;
        add(&mut *session, runs, progress)?;
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        prepare(&*session, &mut status, progress)?;
        let refusals = Refusals::collect(runs, &status);
        let (good, bad) = split(runs, &status);
        if !bad.is_empty() && !good.is_empty() {
            info!("not to be swapped: {refusals}");
            // What is swapped is to be all or nothing, so without these.
            session = open()?;
            add(&mut *session, &good, progress)?;
        }
        for (reason, nr) in refusals.counts {
            self.report.pages_refused.insert(reason.into(), nr);
        }
        self.report.seconds.prepare = seconds(started);
        Ok((session, good, bad))
    }

    /// Pages that differ, of which two are kept: they tell where the memory is.
    fn probes(&mut self, runs: &[JoinedRun], there: u32) -> Result<Vec<Probe>, SwapError> {
        let pfns: Vec<u64> = runs
            .iter()
            .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i))
            .collect();
        let mut found = self.differences(&sample(&pfns, PROBE_SAMPLE), there)?;
        for batch in pfns.chunks(PROBE_BATCH) {
            if !found.is_empty() {
                break;
            }
            found = self.differences(batch, there)?;
        }
        if let [first, .., last] = found[..] {
            found = vec![first, last];
        }
        Ok(found)
    }

    fn differences(&mut self, pfns: &[u64], there: u32) -> Result<Vec<Probe>, SwapError> {
        self.go_on()?;
        let runs: Vec<PfnRun> = pfns.iter().map(|p| PfnRun { pfn: *p, nr: 1 }).collect();
        let here = self.guest.domid;
        let (from, to) = (&mut self.exec.from, &mut self.exec.to);
        let (a, b) = both(
            || from.talk(|l| l.digests(here, &runs, |_| {})),
            || to.talk(|l| l.digests(there, &runs, |_| {})),
        );
        let pairs = a.map_err(refused)?.into_iter().zip(b.map_err(refused)?);
        Ok(pairs
            .filter(|(a, b)| a.1 != b.1)
            .map(|(a, b)| Probe {
                pfn: a.0,
                source: a.1,
                destination: b.1,
            })
            .collect())
    }

    fn copy(&mut self, copies: &[PfnRun], there: u32) -> Result<(), SwapError> {
        let started = Instant::now();
        let here = self.guest.domid;
        let total = count(copies);
        let mut done = 0;
        let mut read: Option<(Vec<PfnRun>, Vec<u8>)> = None;
        let parts = parts(copies, MAX_PAGES_PER_CHUNK as u64);
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

    fn digests(
        &mut self,
        phase: Phase,
        at_source: bool,
        guest: u32,
        runs: &[PfnRun],
    ) -> Result<Vec<(u64, Digest)>, SwapError> {
        let started = Instant::now();
        let sum = Sum::new(phase, count(runs), self.context.progress);
        let side = if at_source {
            &mut self.exec.from
        } else {
            &mut self.exec.to
        };
        let digests = side
            .talk(|l| l.digests(guest, runs, sum.side(0)))
            .map_err(refused)?;
        self.report.seconds.digests += seconds(started);
        Ok(digests)
    }

    /// Every external page must have arrived as it was.
    fn compare(
        &mut self,
        before: &[(u64, Digest)],
        after: &[(u64, Digest)],
    ) -> Result<(), SwapError> {
        let wrong: Vec<u64> = before
            .iter()
            .zip(after)
            .filter(|(a, b)| a != b)
            .map(|(a, _)| a.0)
            .collect();
        if let Some(first) = wrong.first() {
            return Err(refused(format!(
                "{} of {} pages are not what they were, for example page {first:#x}",
                wrong.len(),
                before.len()
            )));
        }
        self.report.pages_verified = after.len() as u64;
        Ok(())
    }
}

/// Some of these, spread evenly, the first and the last among them.
fn sample(pfns: &[u64], most: usize) -> Vec<u64> {
    let Some(last) = pfns.len().checked_sub(1) else {
        return Vec::new();
    };
    let nr = pfns.len().min(most);
    (0..nr).map(|i| pfns[i * last / (nr - 1).max(1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread() {
        let pfns: Vec<u64> = (10..1010).collect();
        let some = sample(&pfns, 4);
        assert_eq!(some, [10, 343, 676, 1009]);
        assert_eq!(sample(&pfns, 1), [10]);
        assert_eq!(sample(&pfns[..3], 256), [10, 11, 12]);
        assert!(sample(&[], 256).is_empty());
    }
}
