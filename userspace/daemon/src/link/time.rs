// SPDX-License-Identifier: GPL-2.0-only

//! What time it is for an agent.

use super::uuids::is_not_known;
use super::{unexpected, Link, LinkError};
use std::time::{Duration, Instant};
use vmbeam_agent_protocol::{FromAgent, ToAgent};

/// What a clock showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Nanoseconds since 1970.
    pub(crate) nanoseconds: u64,
    /// When that was, give or take so much: between the question and the answer.
    pub(crate) at: Instant,
    pub(crate) within: Duration,
}

impl Reading {
    /// Nanoseconds by which this clock is ahead of that one, and by how much that may be wrong.
    pub(crate) fn ahead_of(&self, other: &Self) -> (i128, u128) {
        let later = match self.at.checked_duration_since(other.at) {
            Some(later) => later.as_nanos() as i128,
            None => -((other.at - self.at).as_nanos() as i128),
        };
        let shows = i128::from(self.nanoseconds) - i128::from(other.nanoseconds);
        (shows - later, (self.within + other.within).as_nanos())
    }
}

impl Link {
    /// What the clock of the management VM shows; nothing if the agent does not know the question.
    pub(crate) fn time(&mut self) -> Result<Option<Reading>, LinkError> {
        let asked = Instant::now();
        let answer = self.ask(&ToAgent::Time, |a| Err(unexpected(&a)));
        let within = asked.elapsed() / 2;
        if is_not_known(&answer) {
            return Ok(None);
        }
        match answer? {
            FromAgent::Time { nanoseconds } => Ok(Some(Reading {
                nanoseconds,
                at: asked + within,
                within,
            })),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_two_questions_is_no_difference() {
        let at = Instant::now();
        let second = Duration::from_secs(1);
        let reading = |seconds: u64, after: u32, within| Reading {
            nanoseconds: seconds * 1_000_000_000,
            at: at + after * second,
            within,
        };
        let (a, b) = (reading(100, 0, second), reading(107, 7, second / 2));
        assert_eq!(a.ahead_of(&b), (0, 1_500_000_000));
        assert_eq!(b.ahead_of(&a), (0, 1_500_000_000));
        let fast = reading(110, 7, second);
        assert_eq!(fast.ahead_of(&a).0, 3_000_000_000);
        assert_eq!(a.ahead_of(&fast).0, -3_000_000_000);
    }
}
