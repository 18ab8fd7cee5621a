// SPDX-License-Identifier: GPL-2.0-only

//! What a guest was suspended for: every moment of the pause belongs to one part of it. And what
//! went through the agents' ports meanwhile.

use std::time::{Duration, Instant};
use vmbeam_control_protocol::Traffic;

/// The parts of a pause, which add up to it.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    /// Up to here all is accounted for.
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
    /// What had gone through the ports before.
    before: Traffic,
}

impl Ledger {
    /// From now on the guest may be suspended. So much has gone through the ports.
    pub(crate) fn new(before: Traffic) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
            parts: Vec::new(),
            before,
        }
    }

    /// What went through the ports in the pause, if so much has in all.
    pub(crate) fn traffic(&self, now: Traffic) -> Traffic {
        now.since(self.before)
    }

    /// When that was.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What went on since the end of the part before.
    pub(crate) fn end(&mut self, part: &'static str) {
        let now = Instant::now();
        let spent = now - self.last;
        self.last = now;
        match self.parts.iter_mut().find(|p| p.0 == part) {
            Some((_, so_far)) => *so_far += spent,
            None => self.parts.push((part, spent)),
        }
    }

    /// All parts, and their nanoseconds.
    pub(crate) fn parts(&self) -> Vec<(String, u64)> {
        self.parts
            .iter()
            // Of a pause; 584 years fit.
            .map(|(part, spent)| ((*part).to_owned(), spent.as_nanos() as u64))
            .collect()
    }

    /// What they add up to.
    pub(crate) fn seconds(&self) -> f64 {
        let all: u64 = self.parts().iter().map(|p| p.1).sum();
        all as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_pause() {
        let mut ledger = Ledger::new(Traffic::default());
        for part in ["journal", "swap", "journal", "resume"] {
            std::thread::sleep(Duration::from_millis(2));
            ledger.end(part);
        }
        let parts = ledger.parts();
        let names: Vec<_> = parts.iter().map(|p| p.0.as_str()).collect();
        assert_eq!(names, ["journal", "swap", "resume"]);
        let all: u64 = parts.iter().map(|p| p.1).sum();
        assert_eq!(u128::from(all), (ledger.last - ledger.began).as_nanos());
        assert!(parts[0].1 > parts[1].1 / 2);
    }
}
