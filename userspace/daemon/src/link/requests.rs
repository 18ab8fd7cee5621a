// SPDX-License-Identifier: GPL-2.0-only

//! What agents are asked for.

use super::{unexpected, Link, LinkError};
use std::time::Duration;
use tracing::warn;
use vmbeam_agent_protocol::{
    AgentErrorCode, Digest, Facts, FrameList, FrameListBuilder, FromAgent, Guest, PfnRun, ToAgent,
    MAX_DIGEST_PAGES, MAX_PART, PAGE,
};

/// How long an agent may take over what it answers within a few seconds.
const PROMPT: Duration = Duration::from_secs(60);
/// Pages that one request for digests asks for.
const DIGEST_REQUEST: u64 = 16 << 10;
const _: () = assert!(DIGEST_REQUEST <= MAX_DIGEST_PAGES);

/// What is made of an answer that an agent does not know how to give.
pub(crate) fn or_nothing<T: Default>(result: Result<T, LinkError>) -> Result<T, LinkError> {
    match result {
        // One of an earlier version. What it does not look at fails later, as it did then.
        Err(LinkError::Agent {
            code: AgentErrorCode::BadRequest,
            message,
        }) => {
            warn!("an agent does not say what is in the way of a guest: {message}");
            Ok(T::default())
        }
        other => other,
    }
}

impl Link {
    /// All guests of the host VM.
    pub fn guests(&mut self) -> Result<Vec<Guest>, LinkError> {
        match self.ask(&ToAgent::ListGuests, |a| Err(unexpected(&a)))? {
            FromAgent::Guests(guests) => Ok(guests),
            other => Err(unexpected(&other)),
        }
    }

    /// Pause a guest; says whether it was paused already.
    pub fn pause(&mut self, guest: u32) -> Result<bool, LinkError> {
        match self.ask(&ToAgent::Pause { guest }, |a| Err(unexpected(&a)))? {
            FromAgent::Paused { was_paused } => Ok(was_paused),
            other => Err(unexpected(&other)),
        }
    }

    /// Ask for something whose only answer is that it was done.
    fn demand(&mut self, message: &ToAgent) -> Result<(), LinkError> {
        match self.ask(message, |a| Err(unexpected(&a)))? {
            FromAgent::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Let a guest run. Goes through although the daemon is stopping.
    pub fn unpause(&mut self, guest: u32) -> Result<(), LinkError> {
        let regardless = std::mem::replace(&mut self.regardless, true);
        let result = self.demand(&ToAgent::Unpause { guest });
        self.regardless = regardless;
        result
    }

    /// What can move to or from there.
    pub fn facts(&mut self) -> Result<Facts, LinkError> {
        match self.ask(&ToAgent::Facts, |a| Err(unexpected(&a)))? {
            FromAgent::Facts(facts) => Ok(facts),
            other => Err(unexpected(&other)),
        }
    }

    /// Begin to save a guest. With `staged`, it runs on until [`Link::go`].
    pub fn save(&mut self, guest: u32, external: bool, staged: bool) -> Result<(), LinkError> {
        self.demand(&ToAgent::Send {
            guest,
            external,
            staged,
        })
    }

    /// What there is of the guest that is being saved; true with the end.
    pub fn pull(&mut self) -> Result<(Vec<u8>, bool), LinkError> {
        self.part(&ToAgent::Pull)
    }

    /// The guest may be suspended now; and the same.
    pub fn go(&mut self) -> Result<(Vec<u8>, bool), LinkError> {
        self.part(&ToAgent::Go)
    }

    fn part(&mut self, question: &ToAgent) -> Result<(Vec<u8>, bool), LinkError> {
        match self.ask_within(question, PROMPT)? {
            FromAgent::Part { data, end } => Ok((data, end)),
            other => Err(unexpected(&other)),
        }
    }

    /// Begin to restore a guest.
    pub fn restore(&mut self, name: &str, external: bool, staged: bool) -> Result<(), LinkError> {
        let name = name.to_owned();
        self.demand(&ToAgent::Receive {
            name,
            external,
            staged,
        })
    }

    /// The guest that is being restored, once it is made and only lacks its state.
    pub fn staged(&mut self) -> Result<Option<u32>, LinkError> {
        match self.ask_within(&ToAgent::Staged, PROMPT)? {
            FromAgent::Staged { guest } => Ok(guest),
            other => Err(unexpected(&other)),
        }
    }

    /// Hand over the next bytes of it; says how many were taken.
    pub fn push(&mut self, data: &[u8]) -> Result<usize, LinkError> {
        let data = &data[..data.len().min(MAX_PART)];
        let message = ToAgent::Push {
            data: data.to_vec(),
        };
        match self.ask_within(&message, PROMPT)? {
            FromAgent::Taken { bytes } if bytes as usize <= data.len() => Ok(bytes as usize),
            other => Err(unexpected(&other)),
        }
    }

    /// All was pushed: the guest, once it is complete.
    pub fn finish(&mut self) -> Result<Option<u32>, LinkError> {
        match self.ask_within(&ToAgent::Finish, PROMPT)? {
            FromAgent::Restored { guest } => Ok(guest),
            other => Err(unexpected(&other)),
        }
    }

    /// Give up what is being saved or restored.
    pub fn abort(&mut self) -> Result<(), LinkError> {
        self.demand(&ToAgent::Abort)
    }

    /// Let a guest run, in whatever state its saving left it.
    pub fn resume(&mut self, guest: u32) -> Result<(), LinkError> {
        self.demand(&ToAgent::Resume { guest })
    }

    /// Destroy a guest that does not run.
    pub fn destroy(&mut self, guest: u32) -> Result<(), LinkError> {
        self.demand(&ToAgent::Destroy { guest })
    }

    /// The contents of some pages, one after the other.
    pub fn read_pages(&mut self, guest: u32, runs: &[PfnRun]) -> Result<Vec<u8>, LinkError> {
        let pages: usize = runs.iter().map(|r| r.nr as usize).sum();
        let runs = runs.to_vec();
        match self.ask(&ToAgent::ReadPages { guest, runs }, |a| Err(unexpected(&a)))? {
            FromAgent::Pages { data } if data.len() == pages * PAGE => Ok(data),
            other => Err(unexpected(&other)),
        }
    }

    /// Replace the contents of some pages.
    pub fn write_pages(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        data: Vec<u8>,
    ) -> Result<(), LinkError> {
        let runs = runs.to_vec();
        self.demand(&ToAgent::WritePages { guest, runs, data })
    }

    /// A guest's frame list, checked: in order, without overlaps, and within
    /// the memory that the agent says its host VM has.
    pub fn frames(
        &mut self,
        guest: u32,
        progress: impl FnMut(u64),
    ) -> Result<FrameList, LinkError> {
        self.list(&ToAgent::Frames { guest }, progress)
    }

    /// The same of the pages that may not move by that list, which all seem to here.
    pub fn kept(&mut self, guest: u32) -> Result<FrameList, LinkError> {
        self.list(&ToAgent::Kept { guest }, |_| {})
    }

    fn list(
        &mut self,
        question: &ToAgent,
        mut progress: impl FnMut(u64),
    ) -> Result<FrameList, LinkError> {
        let mut list = FrameListBuilder::within(self.versions.memory_end);
        let last = self.ask(question, |answer| match answer {
            FromAgent::FramesChunk {
                runs,
                excluded,
                more,
            } => {
                list.expect(runs.len() + more as usize);
                runs.into_iter().try_for_each(|r| list.push_run(r))?;
                excluded
                    .into_iter()
                    .try_for_each(|e| list.push_excluded(e))?;
                progress(list.pages());
                Ok(())
            }
            other => Err(unexpected(&other)),
        })?;
        match last {
            FromAgent::FramesEnd { pages } => Ok(list.finish(pages)?),
            other => Err(unexpected(&other)),
        }
    }

    /// The digests of some pages, in the order asked for.
    pub fn digests(
        &mut self,
        guest: u32,
        runs: &[PfnRun],
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<(u64, Digest)>, LinkError> {
        let mut all = Vec::new();
        for part in parts(runs, DIGEST_REQUEST) {
            let mut wanted = part
                .iter()
                .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i));
            let last = self.ask(
                &ToAgent::Digest {
                    guest,
                    runs: part.clone(),
                },
                |answer| {
                    let FromAgent::DigestChunk { pfn, digests } = answer else {
                        return Err(unexpected(&answer));
                    };
                    for (i, digest) in digests.into_iter().enumerate() {
                        if wanted.next() != pfn.checked_add(i as u64) {
                            return Err(LinkError::Protocol(format!(
                                "a digest of page {:#x}, which is not the next one asked for",
                                pfn.wrapping_add(i as u64)
                            )));
                        }
                        all.push((pfn + i as u64, digest));
                    }
                    progress(all.len() as u64);
                    Ok(())
                },
            )?;
            match last {
                FromAgent::Done if wanted.next().is_none() => {}
                FromAgent::Done => {
                    return Err(LinkError::Protocol("fewer digests than asked for".into()));
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(all)
    }
}

/// Split into requests of at most `most` pages.
pub(crate) fn parts(runs: &[PfnRun], most: u64) -> Vec<Vec<PfnRun>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut room = most;
    for run in runs {
        let mut pfn = run.pfn;
        let mut left = u64::from(run.nr);
        while left > 0 {
            let take = left.min(room);
            // At most run.nr.
            part.push(PfnRun {
                pfn,
                nr: take as u32,
            });
            pfn += take;
            left -= take;
            room -= take;
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = most;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_digests_are_bounded() {
        let runs = [
            PfnRun { pfn: 0, nr: 10 },
            PfnRun {
                pfn: 100,
                nr: 3 * DIGEST_REQUEST as u32,
            },
            PfnRun {
                pfn: 1 << 30,
                nr: 1,
            },
        ];
        let parts = parts(&runs, DIGEST_REQUEST);
        let sizes: Vec<u64> = parts
            .iter()
            .map(|p| p.iter().map(|r| u64::from(r.nr)).sum())
            .collect();
        assert_eq!(sizes, [DIGEST_REQUEST, DIGEST_REQUEST, DIGEST_REQUEST, 11]);
        let pages = |runs: &[PfnRun]| -> Vec<u64> {
            runs.iter()
                .flat_map(|r| (0..u64::from(r.nr)).map(|i| r.pfn + i))
                .collect()
        };
        assert_eq!(pages(&parts.concat()), pages(&runs));
    }
}
