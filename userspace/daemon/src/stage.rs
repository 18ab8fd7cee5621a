// SPDX-License-Identifier: GPL-2.0-only

//! What is made and found out while the guest still runs: its copy with all its pages and
//! devices, the pairs, which of them are refused. What is left for the pause is what has
//! changed since.

use crate::differ::{different, samples, two_of, without};
use crate::exchange::{both, refused, Sum, SwapError};
use crate::execute::Moved;
use crate::job::{Confirmed, Job, Staged};
use crate::join::{beyond, join, select, JoinedRun};
use crate::journal::{Filed, Pairs};
use crate::ledger::Ledger;
use crate::limits::seconds;
use crate::link::Link;
use crate::load::load;
use crate::relay::{Gate, Relay};
use crate::transfer::{count, finish, until_made};
use std::ops::Range;
use std::time::Instant;
use tracing::info;
use vmbeam_agent_protocol::{PfnRun, MAX_PAGES_PER_CHUNK};
use vmbeam_control_protocol::{Phase, SwapRun};
use vmbeam_migration::Event;

impl Job<'_> {
    /// Make the guest's copy, and the pairs.
    pub(crate) fn stage(&mut self) -> Result<Event, SwapError> {
        let started = Instant::now();
        (self.context.progress)(Phase::Stage, 0, 0);
        self.begin_stream(true)?;
        let mut relay = Relay::default();
        self.relay(&mut relay, Phase::Stage, Relay::is_staged)?;
        if !relay.scanner.contents().staged {
            return Err(refused(format!(
                "the toolstack of host VM {} did not wait before it suspended the guest",
                self.exec.from.name()
            )));
        }
        let limits = self.limits();
        let there = until_made(&mut self.exec.to, limits, Link::staged)?;
        self.work.record.to.guest = Some(there);
        let (runs, others) = self.staged_lists(there)?;
        self.go_on()?;
        let rehearsal = load(self.limits(), self.route, &self.request.to, &runs)?;
        self.refused(&rehearsal);
        self.bounded(&rehearsal.bad, &rehearsal.good)?;
        self.reserve_holds(&rehearsal.bad)?;
        let id = self.work.record.id;
        let digest = self
            .context
            .journal
            .file_pairs(id, &rehearsal.good)
            .map_err(|e| refused(format!("cannot write the journal: {e}")))?;
        self.report.seconds.stage = seconds(started);
        info!(
            guest = self.guest.name,
            pages = relay.scanner.contents().populated,
            runs = rehearsal.good.len(),
            moves = rehearsal.moves,
            empty = count(&rehearsal.empty),
            seconds = self.report.seconds.stage,
            "the guest's copy is made"
        );
        self.staged = Some(Staged {
            relay,
            refused: beyond(&runs, &rehearsal.good),
            copies: count(&rehearsal.bad),
            pairs: rehearsal.good,
            empty: rehearsal.empty,
            digest,
            others,
            confirmed: None,
        });
        Ok(Event::Done)
    }

    /// The pairs of pages that may move, and those of pages that are something else now.
    fn staged_lists(&mut self, there: u32) -> Result<(Vec<JoinedRun>, Vec<JoinedRun>), SwapError> {
        let started = Instant::now();
        let here = self.guest.domid;
        let sum = Sum::new(Phase::Lists, 2 * self.guest.pages, self.context.progress);
        let (from, to) = (&mut self.exec.from, &mut self.exec.to);
        let (a, b) = both(
            || {
                let list = from.talk(|l| l.frames(here, sum.side(0)))?;
                Ok((list, from.talk(|l| l.kept(here))?))
            },
            || {
                let list = to.talk(|l| l.frames(there, sum.side(1)))?;
                Ok((list, to.talk(|l| l.kept(there))?))
            },
        );
        let (a, b) = (
            a.map_err(|e: String| refused(e))?,
            b.map_err(|e: String| refused(e))?,
        );
        let runs = join(&a.0, &b.0).runs;
        let others = [(&a.0, &b.1), (&a.1, &b.0), (&a.1, &b.1)];
        let mut others: Vec<JoinedRun> = others
            .into_iter()
            .flat_map(|(a, b)| join(a, b).runs)
            .collect();
        others.sort_unstable_by_key(|r| r.pfn);
        self.report.seconds.lists = seconds(started);
        (self.context.progress)(Phase::Pairs, 0, 0);
        Ok((runs, others))
    }

    /// Save the guest, carry it over, restore it; or what staging has left of that.
    pub(crate) fn stream(&mut self) -> Result<Event, SwapError> {
        let started = Instant::now();
        let staged = self.report.unstaged.is_none();
        let pauses = self.context.pauses;
        pauses.affordable(
            self.request,
            self.guest.pages,
            staged,
            self.context.progress,
        )?;
        (self.context.progress)(Phase::Stream, 0, 0);
        let mut relay = match &mut self.staged {
            Some(staged) => {
                self.pause = Some(Ledger::new(self.exec.traffic()));
                std::mem::take(&mut staged.relay)
            }
            None => {
                self.begin_stream(false)?;
                Relay::open()
            }
        };
        if self.staged.is_some() {
            relay.gate = Gate::Opens;
            self.limit();
        }
        self.relay(&mut relay, Phase::Stream, Relay::is_over)?;
        self.part("state");
        let contents = relay.scanner.contents().clone();
        if !contents.complete {
            return Err(refused("the saved state of the guest is cut off"));
        }
        self.report.stream_bytes = contents.bytes;
        self.report.pages_sent = contents.data_pages;
        self.contents = contents;
        if self.staged.is_some() {
            self.complete()?;
        } else {
            let limits = self.limits();
            let there = finish(&mut self.exec.to, limits)?;
            self.work.record.to.guest = Some(there);
        }
        self.exec.idle = true;
        self.part("restore");
        self.report.seconds.stream = seconds(started);
        info!(
            bytes = self.contents.bytes,
            external = self.contents.external_pages(),
            data_pages = self.contents.data_pages,
            "the guest exists twice"
        );
        Ok(Event::Done)
    }

    /// The guest is suspended and saved: at once complete its copy, look for pages that tell
    /// where the memory is, and have the driver look at what is to be swapped.
    fn complete(&mut self) -> Result<(), SwapError> {
        let Some(staged) = &self.staged else {
            return Err(refused("nothing is staged"));
        };
        let there = self.there()?;
        let here = self.guest.domid;
        let (mut runs, missing) = select(&staged.pairs, &self.contents.external);
        let missing: Vec<Range<u64>> = missing
            .iter()
            .map(|r| r.pfn..r.pfn + u64::from(r.nr))
            .collect();
        // Pages that may move since, and those that are refused or were not there.
        let (since, copies) = select(&staged.others, &missing);
        if !since.is_empty() {
            runs.extend(since);
            runs.sort_unstable_by_key(|r| r.pfn);
        }
        let some = without(&samples(&runs), &staged.empty);
        let limits = self.limits();
        let (route, to_name) = (self.route, &self.request.to);
        let (from, to) = (&mut self.exec.from, &mut self.exec.to);
        let (loaded, (a, b)) = both(
            || load(limits, route, to_name, &runs),
            || {
                both(
                    || {
                        let digests = from.talk(|l| l.digests(here, &some, |_| {}))?;
                        // What is to be copied is read while nobody waits for that.
                        let few = (1..=MAX_PAGES_PER_CHUNK as u64).contains(&count(&copies));
                        let contents = match few {
                            true => from.talk(|l| l.read_pages(here, &copies))?,
                            false => Vec::new(),
                        };
                        Ok((digests, contents))
                    },
                    || {
                        let guest = finish(to, limits)?;
                        if guest != there {
                            return Err(refused(format!(
                                "guest {there} was made in host VM {}, but guest {guest} completed",
                                to.name()
                            )));
                        }
                        // To look at pages that are not there yet would make them be there.
                        if route.relocates() {
                            return Ok(Vec::new());
                        }
                        to.talk(|l| l.digests(there, &some, |_| {}))
                            .map_err(refused)
                    },
                )
            },
        );
        let b = b?;
        let (a, contents) = a.map_err(|e: String| refused(e))?;
        let confirmed = Confirmed {
            loaded: loaded?,
            copies,
            digests: [a, b],
            contents,
        };
        if let Some(staged) = &mut self.staged {
            staged.confirmed = Some(confirmed);
        }
        Ok(())
    }

    /// What [`Job::prepare`] finds without staging.
    pub(crate) fn confirm(&mut self) -> Result<Event, SwapError> {
        let there = self.there()?;
        let taken = self.staged.take();
        let Some((staged, confirmed)) = taken.and_then(|mut s| {
            let confirmed = s.confirmed.take()?;
            Some((s, confirmed))
        }) else {
            return Err(refused("the guest is not complete at the destination"));
        };
        let Confirmed {
            loaded,
            mut copies,
            digests,
            contents,
        } = confirmed;
        self.refused(&loaded);
        self.ahead = (copies.clone(), contents);
        copies.extend(&loaded.bad);
        copies.sort_by_key(|r| r.pfn);
        self.bounded(&copies, &loaded.good)?;
        // The guest stands still: this is only asked if there is a reason.
        if count(&copies) > staged.copies {
            self.reserve_holds(&copies)?;
        }
        let probes = if self.route.relocates() {
            let [known, _] = digests;
            self.probes_afar(&loaded, there, known)?
        } else {
            let mut found = different(digests);
            found.retain(|probe| !loaded.bad.iter().any(|r| r.has(probe.pfn)));
            match found.is_empty() {
                true => self.search(&loaded.good, there)?,
                false => two_of(&found),
            }
        };
        let pairs = Pairs {
            pairs: beyond(&loaded.good, &staged.pairs)
                .iter()
                .map(SwapRun::from)
                .collect(),
            filed: Some(Filed {
                digest: staged.digest,
                without: beyond(&staged.pairs, &loaded.good)
                    .iter()
                    .map(PfnRun::from)
                    .collect(),
            }),
        };
        if !self.route.relocates() {
            let mut all = [&staged.pairs[..], &staged.others, &staged.refused].concat();
            all.sort_unstable_by_key(|r| r.pfn);
            self.stayed = beyond(&all, &loaded.good);
        }
        info!(
            since = pairs.pairs.len(),
            without = pairs.filed.as_ref().map_or(0, |f| f.without.len()),
            "the pairs are confirmed"
        );
        self.part("confirm");
        self.prepared(loaded, Moved { pairs, probes }, copies)
    }
}
