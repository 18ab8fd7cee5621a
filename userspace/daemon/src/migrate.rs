// SPDX-License-Identifier: GPL-2.0-only

//! One migration: the state machine of Documentation/migration.rst.
//!
//! Everything up to the point of no return can fail, and is undone by the
//! procedure that also recovers after a crash ([`crate::recovery`]); everything
//! behind it is tried until it works.

use crate::driver::{counts, Driver, DriverSession};
use crate::exchange::{
    add, both, commit, prepare, refused, roll_back, Progress, Refusals, Sum, SwapError,
};
use crate::host_vm::HostVm;
use crate::join::{join, select, split, JoinedRun};
use crate::journal::{Journal, Place, Probe, Record, State};
use crate::link::{parts, Patience};
use crate::preflight::{check, mib, Checked};
use crate::recovery::{Settled, Settling};
use crate::side::Side;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmbeam_uapi::NOT_ATTEMPTED;
use vmbeam_wire::message::{
    Digest, Failure, Guest, GuestKind, MigrateReport, MigrateRequest, Mode, Phase, SwapRun,
    MAX_PAGES_PER_CHUNK, MAX_PART,
};
use vmbeam_wire::PfnRun;
use vmbeam_xen::stream::{Contents, Scanner};

/// How long an agent may be away while a migration is undone or completed, before
/// that is left to the background.
const PATIENCE: Duration = Duration::from_secs(90);
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

/// What a migration needs besides the host VMs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The driver.
    pub driver: &'a dyn Driver,
    /// The journal.
    pub journal: &'a Journal,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Somebody wants it to end.
    pub cancel: &'a Arc<AtomicBool>,
    /// The daemon is to stop.
    pub stop: &'a AtomicBool,
}

/// How a migration ended, or did not.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What to say.
    pub result: Result<MigrateReport, SwapError>,
    /// What is still to be brought to an end.
    pub unsettled: Option<Record>,
}

/// A migration in progress.
struct Job<'a> {
    context: Context<'a>,
    request: &'a MigrateRequest,
    from: Side<'a>,
    to: Side<'a>,
    domids: (u32, u32),
    started: Instant,
    guest: Guest,
    /// From when on the guest may be suspended.
    suspended: Option<Instant>,
    /// Once something has been done that would have to be undone.
    record: Option<Record>,
    /// A session that has swapped.
    swapped: Option<Box<dyn DriverSession>>,
    report: MigrateReport,
}

/// Migrate a guest. The pair of host VMs has been found to be allowed.
pub(crate) fn migrate<'a>(
    context: Context<'a>,
    host_vms: (&'a HostVm, &'a HostVm),
    request: &'a MigrateRequest,
) -> Finished {
    let result = Job::begin(context, host_vms, request);
    let mut job = match result {
        Ok(job) => job,
        Err(error) => {
            return Finished {
                result: Err(error),
                unsettled: None,
            }
        }
    };
    if request.dry_run {
        return Finished {
            result: job.dry_run(),
            unsettled: None,
        };
    }
    match job.before() {
        Ok(()) => job.after(),
        Err(error) => job.undo(error),
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn count(runs: &[PfnRun]) -> u64 {
    runs.iter().map(|r| u64::from(r.nr)).sum()
}

impl<'a> Job<'a> {
    /// Everything that can be found out without touching the guest.
    fn begin(
        context: Context<'a>,
        host_vms: (&'a HostVm, &'a HostVm),
        request: &'a MigrateRequest,
    ) -> Result<Self, SwapError> {
        let started = Instant::now();
        (context.progress)(Phase::Preflight, 0, 0);
        let Checked {
            from,
            to,
            domids,
            guest,
            blockers,
        } = check(context.driver, host_vms, request)?;
        if !request.dry_run && !blockers.is_empty() {
            return Err(refused(blockers.join("; ")));
        }
        let mut report = MigrateReport {
            from: request.from.clone(),
            to: request.to.clone(),
            mode: request.mode,
            dry_run: request.dry_run,
            blockers,
            guest_mib: mib(guest.pages),
            ..MigrateReport::default()
        };
        report.seconds.preflight = seconds(started);
        Ok(Self {
            context,
            request,
            from,
            to,
            domids,
            started,
            guest,
            suspended: None,
            record: None,
            swapped: None,
            report,
        })
    }

    /// What would move.
    fn dry_run(mut self) -> Result<MigrateReport, SwapError> {
        let domid = self.guest.domid;
        if self.guest.kind == GuestKind::Pv {
            let list = self
                .from
                .talk(|l| l.frames(domid, |_| {}))
                .map_err(refused)?;
            let movable: u64 = list.runs().iter().map(|r| u64::from(r.nr)).sum();
            match self.request.mode {
                Mode::Swap => {
                    self.report.pages_swapped = movable;
                    self.report.pages_sent = list.pages() - movable;
                }
                Mode::Copy => self.report.pages_sent = list.pages(),
            }
        }
        self.report.seconds.total = seconds(self.started);
        Ok(self.report)
    }

    /// Whether to go on. Asked again and again before the point of no return.
    fn go_on(&self) -> Result<(), SwapError> {
        let stop = |message: String| {
            Err(SwapError {
                failure: Failure::RolledBack,
                message,
            })
        };
        if self.context.cancel.load(Ordering::Relaxed) {
            return stop("it was cancelled".into());
        }
        if self.context.stop.load(Ordering::Relaxed) {
            return stop("vmbeamd is stopping".into());
        }
        let elapsed = self.started.elapsed();
        match self.request.timeout_seconds {
            Some(limit) if elapsed > Duration::from_secs(limit.into()) => {
                return stop(format!("it was not done after {limit} s, the --timeout"));
            }
            _ => {}
        }
        let down = self.suspended.map_or(Duration::ZERO, |s| s.elapsed());
        match self.request.max_downtime_ms {
            Some(limit) if down > Duration::from_millis(limit.into()) => stop(format!(
                "the guest was suspended for {limit} ms, the --max-downtime"
            )),
            _ => Ok(()),
        }
    }

    /// Have both agents' answers waited for as long as [`Job::go_on`] agrees.
    fn limit(&mut self) {
        let limits = [
            self.request
                .timeout_seconds
                .map(|s| self.started + Duration::from_secs(s.into())),
            self.request
                .max_downtime_ms
                .zip(self.suspended)
                .map(|(ms, suspended)| suspended + Duration::from_millis(ms.into())),
        ];
        let until = limits.into_iter().flatten().min();
        let patience = Patience {
            until,
            cancel: Some(self.context.cancel.clone()),
        };
        self.from.patience = patience.clone();
        self.to.patience = patience;
    }

    fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), SwapError> {
        if let Some(record) = &mut self.record {
            let mut new = record.clone();
            change(&mut new);
            self.context
                .journal
                .write(&new)
                .map_err(|e| refused(format!("cannot write the journal: {e}")))?;
            *record = new;
        }
        Ok(())
    }

    /// Up to the point of no return.
    fn before(&mut self) -> Result<(), SwapError> {
        self.go_on()?;
        let place = |vm: &Side<'_>, host_domid, guest| Place {
            host_vm: vm.name().to_owned(),
            host_domid,
            guest,
        };
        let from = place(&self.from, self.domids.0, Some(self.guest.domid));
        let to = place(&self.to, self.domids.1, None);
        self.record = Some(self.context.journal.begin(&self.guest.name, from, to));
        self.write(|_| {})?;

        let (contents, there) = self.stream()?;
        self.report.stream_bytes = contents.bytes;
        self.report.pages_sent = contents.data_pages;
        self.write(|r| r.to.guest = Some(there))?;
        if self.request.mode == Mode::Swap {
            self.swap(&contents, there)?;
        }
        self.go_on()?;
        // The point of no return is where this is durable.
        self.write(|r| r.state = State::Resume)
    }

    /// Save the guest, carry it over, restore it.
    fn stream(&mut self) -> Result<(Contents, u32), SwapError> {
        let started = Instant::now();
        let external = self.request.mode == Mode::Swap;
        let name = self.guest.name.clone();
        let here = self.guest.domid;
        (self.context.progress)(Phase::Stream, 0, 0);
        self.limit();
        self.to
            .talk(|l| l.restore(&name, external))
            .map_err(refused)?;
        self.suspended = Some(Instant::now());
        self.limit();
        self.from
            .talk(|l| l.save(here, external))
            .map_err(refused)?;

        let mut scanner = Scanner::default();
        let mut moved = Instant::now();
        let mut waiting = Vec::new();
        let mut end = false;
        // A part is pushed while the next one is pulled.
        while !end || !waiting.is_empty() {
            self.go_on()?;
            let (from, to) = (&mut self.from, &mut self.to);
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
            match self.to.talk(|l| l.finish()).map_err(refused)? {
                Some(guest) => break guest,
                None if Instant::now() > deadline => {
                    return Err(refused(format!(
                        "host VM {} has not completed the guest within {} s; see its agent's log, and agent_timeout_seconds if the guest is large",
                        self.to.name(),
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
        Ok((contents, there))
    }

    /// How long the toolstacks may make no progress. One that restores a large guest makes
    /// room for all of it before it takes more.
    fn stalled_after(&self) -> Duration {
        self.to.vm.timeout()
    }

    fn stalled(&self, source: bool) -> String {
        let limit = self.stalled_after().as_secs();
        if source {
            format!(
                "host VM {} sent nothing of the guest for {limit} s; does the guest suspend itself? See its console",
                self.from.name()
            )
        } else {
            format!(
                "host VM {} took nothing of the guest for {limit} s; see its agent's log, and agent_timeout_seconds if the guest is large",
                self.to.name()
            )
        }
    }

    /// Swap the memory, and copy what cannot be swapped.
    fn swap(&mut self, contents: &Contents, there: u32) -> Result<(), SwapError> {
        let here = self.guest.domid;
        let (runs, mut copies) = self.lists(contents, there)?;
        self.go_on()?;
        let (mut session, runs, refused_pages) = self.load(&runs)?;
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
        let external: Vec<PfnRun> = contents
            .external
            .iter()
            // A guest has at most 2^26 pages.
            .map(|r| PfnRun {
                pfn: r.start,
                nr: (r.end - r.start) as u32,
            })
            .collect();
        let before = if self.request.verify {
            self.digests(Phase::DigestsBefore, true, here, &external)?
        } else {
            Vec::new()
        };
        self.go_on()?;

        let pairs: Vec<SwapRun> = runs
            .iter()
            .map(|r| SwapRun {
                pfn: r.pfn,
                gfn_a: r.gfn_a,
                gfn_b: r.gfn_b,
                nr: r.nr,
            })
            .collect();
        self.write(|r| {
            r.state = State::Swap {
                pairs,
                probes,
                copies: to_copy > 0,
                torn: false,
            }
        })?;
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        let mut status = vec![NOT_ATTEMPTED; pages as usize];
        match commit(&mut *session, &mut status, self.context.progress) {
            Ok(seconds) => self.report.seconds.swap = seconds,
            Err(e) => {
                self.write(|r| match &mut r.state {
                    // Some pairs are swapped, and their host VM may be gone.
                    State::Swap { torn, .. } if e.failure == Failure::Failed => *torn = true,
                    // None is.
                    state => *state = State::Stream,
                })?;
                return Err(e);
            }
        }
        self.report.counts = counts(session.spent());
        self.swapped = Some(session);
        let late = Refusals::collect(&runs, &status);
        if !late.counts.is_empty() {
            return Err(refused(format!(
                "pages could not be swapped that could have been before: {late}"
            )));
        }
        self.report.pages_swapped = pages;
        self.copy(&copies, there)?;
        if self.request.verify {
            let after = self.digests(Phase::DigestsAfter, false, there, &external)?;
            self.compare(&before, &after)?;
        }
        Ok(())
    }

    /// The frames behind the external pages on both sides, and the pages that
    /// one side does not name.
    fn lists(
        &mut self,
        contents: &Contents,
        there: u32,
    ) -> Result<(Vec<JoinedRun>, Vec<PfnRun>), SwapError> {
        let started = Instant::now();
        let here = self.guest.domid;
        let sum = Sum::new(Phase::Lists, 2 * self.guest.pages, self.context.progress);
        let (from, to) = (&mut self.from, &mut self.to);
        let (a, b) = both(
            || from.talk(|l| l.frames(here, sum.side(0))),
            || to.talk(|l| l.frames(there, sum.side(1))),
        );
        let joined = join(&a.map_err(refused)?, &b.map_err(refused)?);
        let selected = select(&joined.runs, &contents.external);
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
        let (from, to) = (&mut self.from, &mut self.to);
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
            let (from, to) = (&mut self.from, &mut self.to);
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
            &mut self.from
        } else {
            &mut self.to
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

    /// Before the point of no return: everything as it was.
    fn undo(mut self, mut error: SwapError) -> Finished {
        // An agent that did not answer in time is one thing, whose time that was another.
        match self.go_on() {
            Err(why) if why != error => {
                error.message = format!("{}: {}", why.message, error.message);
            }
            _ => {}
        }
        self.from.patience = Patience::default();
        self.to.patience = Patience::default();
        let Some(mut record) = self.record.take() else {
            return Finished {
                result: Err(error),
                unsettled: None,
            };
        };
        warn!(guest = self.guest.name, "undoing the migration: {error}");
        (self.context.progress)(Phase::Undo, 0, 0);
        if let Some(mut session) = self.swapped.take() {
            let back = roll_back(&mut *session, &error.message, self.context.progress);
            match &mut record.state {
                State::Swap { torn, .. } if back.failure == Failure::Failed => *torn = true,
                state => *state = State::Stream,
            }
            if let Err(e) = self.context.journal.write(&record) {
                // The probes tell the same.
                warn!("cannot write the journal: {e}");
            }
        }
        let mut settling = Settling {
            driver: self.context.driver,
            journal: self.context.journal,
            from: &mut self.from,
            to: &mut self.to,
            record: &mut record,
            deadline: Instant::now() + PATIENCE,
        };
        let (failure, end, unsettled) = match settling.settle() {
            Ok(Settled::AtSource) => {
                let end = format!("the guest runs in {}", self.request.from.host_vm);
                (Failure::RolledBack, end, None)
            }
            Ok(Settled::AtDestination) => {
                let end = format!("but the guest runs in {}", self.request.to);
                (Failure::Failed, end, None)
            }
            Ok(Settled::Lost) => {
                let end = "and the guest is lost with its host VM".into();
                (Failure::Failed, end, None)
            }
            Err(why) => {
                let end = format!("undoing that is not complete, and is tried again: {why}");
                (Failure::Failed, end, Some(record))
            }
        };
        Finished {
            result: Err(SwapError {
                failure,
                message: format!("{}; {end}", error.message),
            }),
            unsettled,
        }
    }

    /// Behind the point of no return: the guest runs there, whatever it takes.
    fn after(mut self) -> Finished {
        self.from.patience = Patience::default();
        self.to.patience = Patience::default();
        let deadline = Instant::now() + PATIENCE;
        let Some(there) = self.record.as_ref().and_then(|r| r.to.guest) else {
            return self.unsettled("the guest's number is not known");
        };
        (self.context.progress)(Phase::Resume, 0, 0);
        let started = Instant::now();
        if let Err(e) = self.to.insist(deadline, |l| l.resume(there)) {
            return self.unsettled(&e);
        }
        self.report.seconds.resume = seconds(started);
        self.report.seconds.downtime = self.suspended.map_or(0.0, seconds);
        (self.context.progress)(Phase::Destroy, 0, 0);
        let started = Instant::now();
        let here = self.guest.domid;
        let cleaned = self
            .write(|r| r.state = State::Destroy)
            .map_err(|e| e.message)
            .and_then(|()| self.from.insist(deadline, |l| l.destroy(here)))
            .and_then(|()| match &self.record {
                Some(record) => self
                    .context
                    .journal
                    .remove(record.id)
                    .map_err(|e| format!("cannot remove the journal's record: {e}")),
                None => Ok(()),
            });
        self.report.seconds.destroy = seconds(started);
        let mut unsettled = None;
        if let Err(e) = cleaned {
            self.report.pending = Some(e);
            unsettled = self.record.take();
        }
        self.report.seconds.total = seconds(self.started);
        self.report.traffic = self.from.traffic().and(self.to.traffic());
        Finished {
            result: Ok(self.report),
            unsettled,
        }
    }

    fn unsettled(mut self, why: &str) -> Finished {
        let to = &self.request.to;
        Finished {
            result: Err(SwapError {
                failure: Failure::Failed,
                message: format!(
                    "the guest's memory is in {to}, but it could not be let run there yet: {why}; vmbeamd goes on trying"
                ),
            }),
            unsettled: self.record.take(),
        }
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
