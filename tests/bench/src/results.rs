// SPDX-License-Identifier: GPL-2.0-only

//! What was measured, for whoever draws or tells it.

use std::collections::BTreeMap;

use vmbeam_bench::Part;
use vmbeam_bench::Sample;

use crate::stats::Spread;

/// Everything that was measured, by what, series and size.
#[derive(Debug, Default)]
pub struct Results {
    /// All samples.
    pub samples: Vec<Sample>,
    /// What was not measured.
    pub missing: Vec<String>,
}

/// Samples of one thing at one size.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// A sample of them.
    pub first: &'a Sample,
    /// Their middle and spread.
    pub spread: Spread,
}

impl Results {
    /// Of these parts.
    pub fn new(parts: &[Part]) -> Self {
        Self {
            samples: parts.iter().flat_map(|p| p.samples.clone()).collect(),
            missing: parts.iter().flat_map(|p| p.missing.clone()).collect(),
        }
    }

    /// All groups, in order.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut all: BTreeMap<(&str, &str, u64), Vec<&Sample>> = BTreeMap::new();
        for s in &self.samples {
            let key = (s.what.as_str(), s.series.as_str(), s.mib as u64);
            all.entry(key).or_default().push(s);
        }
        all.into_values()
            .filter_map(|samples| {
                let values: Vec<f64> = samples.iter().map(|s| s.value).collect();
                Some(Group {
                    first: samples.first()?,
                    spread: Spread::of(&values)?,
                })
            })
            .collect()
    }

    /// Those of one thing and one series.
    pub fn series(&self, what: &str, series: &str) -> Vec<Group<'_>> {
        let mut all = self.groups();
        all.retain(|g| g.first.what == what && g.first.series == series);
        all
    }

    /// The median of one thing at one size.
    pub fn median(&self, what: &str, series: &str, mib: f64) -> Option<f64> {
        let all = self.series(what, series);
        let group = all.iter().find(|g| g.first.mib == mib)?;
        Some(group.spread.median)
    }

    /// All values of one thing in the series whose names begin like this, together.
    pub fn sum(&self, what: &str, series: &str) -> f64 {
        self.samples
            .iter()
            .filter(|s| s.what == what && s.series.starts_with(series))
            .map(|s| s.value)
            .sum()
    }

    /// Names of the series of one thing, in the order in which they were measured.
    pub fn names(&self, what: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for s in self.samples.iter().filter(|s| s.what == what) {
            if !names.contains(&s.series.as_str()) {
                names.push(&s.series);
            }
        }
        names
    }
}
