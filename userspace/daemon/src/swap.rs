// SPDX-License-Identifier: GPL-2.0-only

//! One swap, from the request to the report.

use crate::driver::{counts, Driver, DriverSession};
use crate::exchange::{
    add, both, commit, pairs, prepare, refused, Progress, Refusals, Sum, SwapError, REGARDLESS,
};
use crate::host_vm::{AgentGuard, HostVm};
use crate::join::{comparable, join, JoinedRun};
use crate::link::Patience;
use crate::preflight::named;
use crate::verify::{compare, Snapshot};
use std::collections::HashSet;
use std::time::Instant;
use tracing::{info, warn};
use vmbeam_agent_protocol::{FrameList, Guest, GuestKind, GuestState};
use vmbeam_control_protocol::{Failure, Phase, Seconds, SwapReport, SwapRequest, SwapRun, Traffic};
use vmbeam_uapi::NOT_ATTEMPTED;

/// Most runs that are listed: they must fit into one message.
const MAX_RUN_LIST: usize = 32 << 10;

/// One of the two guests.
struct Party<'a> {
    agent: AgentGuard<'a>,
    guest: Guest,
    /// Paused by this job, and not yet let go.
    paused_by_us: bool,
}

impl Party<'_> {
    fn find<'a>(
        mut agent: AgentGuard<'a>,
        name: &str,
    ) -> Result<(AgentGuard<'a>, Guest), SwapError> {
        agent.greet_anew(Patience::default()).map_err(refused)?;
        let guests = agent.with(|l| l.guests()).map_err(refused)?;
        let host_vm = agent.name().to_owned();
        let guest = named(&guests, name, &host_vm).map_err(refused)?.clone();
        if guest.kind != GuestKind::Pv {
            return Err(refused(format!(
                "guest {host_vm}/{name} is not a PV guest; only PV guests can be swapped so far"
            )));
        }
        if guest.state == GuestState::Shutdown {
            return Err(refused(format!("guest {host_vm}/{name} is not alive")));
        }
        Ok((agent, guest))
    }

    fn pause(&mut self) -> Result<(), SwapError> {
        let domid = self.guest.domid;
        let was_paused = self.agent.with(|l| l.pause(domid)).map_err(refused)?;
        self.paused_by_us = !was_paused;
        Ok(())
    }

    fn unpause(&mut self) -> Result<(), String> {
        let domid = self.guest.domid;
        self.agent.with(|l| l.unpause(domid))
    }

    /// Back to how it was found.
    fn restore(&mut self) {
        if self.paused_by_us {
            self.paused_by_us = false;
            if let Err(e) = self.unpause() {
                warn!(
                    "guest {}/{} stays paused: {e}",
                    self.agent.name(),
                    self.guest.name
                );
            }
        }
    }
}

/// A job in progress.
struct Job<'a> {
    from: Party<'a>,
    to: Party<'a>,
    progress: Progress<'a>,
    seconds: Seconds,
}

impl Job<'_> {
    fn lists(&mut self) -> Result<(FrameList, FrameList), SwapError> {
        let started = Instant::now();
        let sum = Sum::new(
            Phase::Lists,
            self.from.guest.pages + self.to.guest.pages,
            self.progress,
        );
        let list = |party: &mut Party<'_>, side| {
            let domid = party.guest.domid;
            let list = party.agent.with(|l| l.frames(domid, sum.side(side)));
            (list, started.elapsed().as_secs_f64())
        };
        let (a, b) = both(|| list(&mut self.from, 0), || list(&mut self.to, 1));
        self.seconds.list_from = a.1;
        self.seconds.list_to = b.1;
        self.seconds.lists = started.elapsed().as_secs_f64();
        Ok((a.0.map_err(refused)?, b.0.map_err(refused)?))
    }

    fn digests(
        &mut self,
        phase: Phase,
        from: &FrameList,
        to: &FrameList,
    ) -> Result<Snapshot, String> {
        let started = Instant::now();
        let runs = (comparable(from), comparable(to));
        let pages = |runs: &[vmbeam_agent_protocol::PfnRun]| {
            runs.iter().map(|r| u64::from(r.nr)).sum::<u64>()
        };
        let sum = Sum::new(phase, pages(&runs.0) + pages(&runs.1), self.progress);
        let digest = |party: &mut Party<'_>, side, runs: &[_]| {
            let domid = party.guest.domid;
            party.agent.with(|l| l.digests(domid, runs, sum.side(side)))
        };
        let (a, b) = both(
            || digest(&mut self.from, 0, &runs.0),
            || digest(&mut self.to, 1, &runs.1),
        );
        let seconds = started.elapsed().as_secs_f64();
        self.seconds.digests += seconds;
        info!(?phase, seconds, "read every page");
        Ok(Snapshot {
            from: a?.into_iter().collect(),
            to: b?.into_iter().collect(),
        })
    }

    fn run(
        &mut self,
        request: &SwapRequest,
        mut session: Box<dyn DriverSession>,
    ) -> Result<SwapReport, SwapError> {
        if !request.dry_run {
            self.from.pause()?;
            self.to.pause()?;
        }
        let (list_from, list_to) = self.lists()?;

        let started = Instant::now();
        let joined = join(&list_from, &list_to);
        self.seconds.join = started.elapsed().as_secs_f64();
        if joined.pages == 0 {
            return Err(refused(
                "the two guests have no page in common that may move",
            ));
        }
        info!(
            pages = joined.pages,
            runs = joined.runs.len(),
            "joined the frame lists"
        );

        let before = if request.verify && !request.dry_run {
            Some(
                self.digests(Phase::DigestsBefore, &list_from, &list_to)
                    .map_err(refused)?,
            )
        } else {
            None
        };

        self.seconds.add = add(&mut *session, &joined.runs, self.progress, REGARDLESS)?;
        let mut status = vec![NOT_ATTEMPTED; joined.pages as usize];
        self.seconds.prepare = prepare(&*session, &mut status, self.progress, REGARDLESS)?.seconds;
        info!(seconds = self.seconds.prepare, "asked the hypervisor");
        if status.iter().all(|s| *s < 0) {
            let r = Refusals::collect(&joined.runs, &status);
            return Err(refused(format!(
                "the hypervisor would refuse every page: {r}"
            )));
        }
        if !request.dry_run {
            self.seconds.commit =
                commit(&mut *session, &mut status, self.progress, REGARDLESS)?.seconds;
            info!(seconds = self.seconds.commit, "swapped");
        }

        // From here on the swap has happened, whatever else goes wrong.
        let refusals = Refusals::collect(&joined.runs, &status);
        let mut pages_refused = joined.kept.clone();
        for (reason, nr) in &refusals.counts {
            *pages_refused.entry((*reason).to_owned()).or_default() += nr;
        }
        let mut report = SwapReport {
            from: request.from.clone(),
            to: request.to.clone(),
            dry_run: request.dry_run,
            guest_mib: self.from.guest.pages / 256,
            pages_listed: joined.pages + joined.kept.values().sum::<u64>(),
            pages_swapped: status.iter().filter(|s| **s == 0).count() as u64,
            pages_refused,
            refused_examples: refusals.examples,
            pages_verified: 0,
            unmoved_verified: 0,
            mismatches: 0,
            mismatch_examples: Vec::new(),
            runs: joined.runs.len() as u64,
            run_list: Vec::new(),
            seconds: Seconds::default(),
            counts: counts(session.spent()),
            traffic: Traffic::default(),
        };
        if request.list_runs && request.dry_run {
            report.run_list = run_list(&joined.runs, &status)?;
        }
        if let Some(before) = before {
            let after = self
                .digests(Phase::DigestsAfter, &list_from, &list_to)
                .map_err(|e| SwapError {
                    failure: Failure::Failed,
                    message: format!("the pages were swapped, but could not be verified: {e}"),
                })?;
            let swapped: HashSet<u64> = pairs(&joined.runs, &status)
                .filter(|p| p.3 == 0)
                .map(|p| p.0)
                .collect();
            let verdict = compare(&before, &after, |pfn| swapped.contains(&pfn));
            report.pages_verified = verdict.verified;
            report.unmoved_verified = verdict.unmoved_verified;
            report.mismatches = verdict.mismatches;
            report.mismatch_examples = verdict.examples;
        }
        Ok(report)
    }
}

/// The pairs that can be swapped, as runs.
fn run_list(runs: &[JoinedRun], status: &[i32]) -> Result<Vec<SwapRun>, SwapError> {
    let mut list: Vec<SwapRun> = Vec::new();
    for (pfn, gfn_a, gfn_b, _) in pairs(runs, status).filter(|p| p.3 == 0) {
        match list.last_mut() {
            Some(last)
                if last.pfn + u64::from(last.nr) == pfn
                    && last.gfn_a + u64::from(last.nr) == gfn_a
                    && last.gfn_b + u64::from(last.nr) == gfn_b =>
            {
                last.nr += 1;
            }
            _ => list.push(SwapRun {
                pfn,
                gfn_a,
                gfn_b,
                nr: 1,
            }),
        }
    }
    if list.len() > MAX_RUN_LIST {
        return Err(refused(format!(
            "there are {} runs, and at most {MAX_RUN_LIST} can be listed; leave the listing out",
            list.len()
        )));
    }
    Ok(list)
}

/// Swap two guests. The pair of host VMs has been found to be allowed.
///
/// Both guests are paused. After a success they stay so: their page tables and
/// their vCPUs have not moved, so neither may run before it is swapped back. After
/// a failure they are as they were.
///
/// A paused guest's backends and event channels are still there, and can write
/// to pages that look ordinary. A swap that is to be relied on wants guests
/// without backends, or suspended ones; `verify` finds what went wrong.
pub fn swap(
    driver: &dyn Driver,
    host_vms: (&HostVm, &HostVm),
    request: &SwapRequest,
    progress: Progress<'_>,
) -> Result<SwapReport, SwapError> {
    let started = Instant::now();
    let mut agent_from = host_vms.0.agent_soon().map_err(refused)?;
    let mut agent_to = host_vms.1.agent_soon().map_err(refused)?;
    let before = agent_from.traffic().and(agent_to.traffic());

    // What can be refused without the agents is.
    let domids = (
        agent_from.domid().map_err(refused)?,
        agent_to.domid().map_err(refused)?,
    );
    let session = driver.open_anew(domids.0, domids.1).map_err(refused)?;

    let (agent_from, guest_from) = Party::find(agent_from, &request.from.guest)?;
    let (agent_to, guest_to) = Party::find(agent_to, &request.to.guest)?;
    let mut job = Job {
        from: Party {
            agent: agent_from,
            guest: guest_from,
            paused_by_us: false,
        },
        to: Party {
            agent: agent_to,
            guest: guest_to,
            paused_by_us: false,
        },
        progress,
        seconds: Seconds::default(),
    };
    match job.run(request, session) {
        Ok(mut report) => {
            job.seconds.total = started.elapsed().as_secs_f64();
            report.seconds = job.seconds;
            let now = job.from.agent.traffic().and(job.to.agent.traffic());
            report.traffic = now.since(before);
            Ok(report)
        }
        Err(e) => {
            if e.failure != Failure::Failed {
                job.from.restore();
                job.to.restore();
            }
            Err(e)
        }
    }
}
