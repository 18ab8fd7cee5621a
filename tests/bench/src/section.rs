// SPDX-License-Identifier: GPL-2.0-only

//! One chart of the report, and what its values are made with.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::chart;
use crate::chart::Axes;
use crate::chart::Bar;
use crate::chart::Group;
use crate::chart::Method;
use crate::chart::Series;
use crate::results::Results;
use crate::stats::Fit;
use crate::stats::Spread;
use crate::units::short;
use crate::units::size;
use crate::units::time;

/// One chart.
#[derive(Debug)]
pub struct Section {
    /// Name of its file.
    pub id: &'static str,
    /// Above it.
    pub title: &'static str,
    /// What it shows.
    pub sentence: String,
    /// The chart.
    pub figure: Figure,
    /// How it was measured.
    pub method: &'static str,
}

/// What is drawn, and what stands in the table below.
#[derive(Debug)]
pub enum Figure {
    /// Against the size of the guest VM.
    Lines(Axes<'static>, Vec<Series>),
    /// Side by side, with what says a value.
    Bars(Vec<Group>, fn(f64) -> String),
    /// Parts of a whole behind each other, with what says a value.
    Stack(Vec<Group>, fn(f64) -> String),
}

impl Figure {
    /// The picture.
    pub fn svg(&self) -> Result<String> {
        match self {
            Self::Lines(axes, series) => chart::lines(*axes, series),
            Self::Bars(groups, value) => chart::bars(groups, *value),
            Self::Stack(groups, value) => chart::stack(groups, *value),
        }
    }

    /// The same as a table, with its head.
    pub fn table(&self) -> Vec<Vec<String>> {
        match self {
            Self::Lines(axes, series) => {
                let mut sizes: Vec<f64> = Vec::new();
                for (mib, _) in series.iter().flat_map(|s| &s.points) {
                    if !sizes.contains(mib) {
                        sizes.push(*mib);
                    }
                }
                sizes.sort_by(f64::total_cmp);
                let head = std::iter::once(axes.y.to_owned()).chain(sizes.iter().map(|m| size(*m)));
                let row = |s: &Series| {
                    let at = |mib: &f64| {
                        let found = s.points.iter().find(|p| p.0 == *mib);
                        found.map_or_else(String::new, |p| short(&p.1.median))
                    };
                    std::iter::once(s.name.clone())
                        .chain(sizes.iter().map(at))
                        .collect()
                };
                std::iter::once(head.collect())
                    .chain(series.iter().map(row))
                    .collect()
            }
            Self::Bars(groups, value) | Self::Stack(groups, value) => {
                let head = ["", "", "median", "least", "most", "of"].map(str::to_owned);
                let rows = groups.iter().flat_map(|g| {
                    g.bars.iter().enumerate().map(|(i, b)| {
                        let group = if i == 0 {
                            g.name.clone()
                        } else {
                            String::new()
                        };
                        let v = b.value;
                        vec![
                            group,
                            b.name.clone(),
                            value(v.median),
                            value(v.least),
                            value(v.most),
                            v.n.to_string(),
                        ]
                    })
                });
                std::iter::once(head.to_vec()).chain(rows).collect()
            }
        }
    }

    /// The lines in it, by series: seconds against MiB.
    pub fn fits(&self) -> BTreeMap<&str, Fit> {
        match self {
            Self::Lines(_, series) => series
                .iter()
                .filter_map(|s| Some((s.name.as_str(), s.fit?)))
                .collect(),
            Self::Bars(..) | Self::Stack(..) => BTreeMap::new(),
        }
    }
}

/// Draws one chart, if its values are there.
pub type Maker = fn(&Results) -> Option<Section>;

/// What a reader asks first, and the answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The question.
    pub question: &'static str,
    /// The figure.
    pub figure: String,
    /// What it is of, and what it is compared with.
    pub words: String,
}

/// The same values in another unit.
pub fn by(s: Spread, factor: f64) -> Spread {
    Spread {
        median: s.median * factor,
        least: s.least * factor,
        most: s.most * factor,
        quartiles: s.quartiles * factor,
        ..s
    }
}

/// A bar of ours.
pub fn ours(name: &str, value: Spread) -> Bar {
    Bar {
        name: name.into(),
        method: Method::Ours,
        value,
    }
}

/// Values of one series at all sizes, in another unit.
pub fn points(results: &Results, what: &str, series: &str, factor: f64) -> Series {
    Series {
        name: series.into(),
        method: Method::Ours,
        points: results
            .series(what, series)
            .iter()
            .map(|g| (g.first.mib, by(g.spread, factor)))
            .collect(),
        fit: None,
    }
}

/// The same with a line through the medians, if two sizes are not all there is.
pub fn fitted(results: &Results, what: &str, series: &str) -> Series {
    let all = points(results, what, series, 1.0);
    let medians: Vec<_> = all.points.iter().map(|p| (p.0, p.1.median)).collect();
    Series {
        fit: Fit::of(&medians).filter(|_| medians.len() > 2),
        ..all
    }
}

/// `time = a + b * pages`, in words.
pub fn law(fit: Fit) -> String {
    format!(
        "{} {} {} a page (R² {:.4}, at most {:.0} % off)",
        time(fit.a),
        if fit.b < 0.0 { "-" } else { "+" },
        time(fit.b.abs() / 256.0),
        fit.r2,
        fit.off * 100.0
    )
}
