// SPDX-License-Identifier: GPL-2.0-only

//! The charts of the report, each with a sentence of what it shows. The sentences are made
//! of the values; none says more than these do.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::chart::short;
use crate::chart::Series;
use crate::native;
use crate::nested;
use crate::report::Results;
use crate::stats::Fit;
use crate::stats::Spread;

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
    pub svg: String,
    /// How it was measured.
    pub method: &'static str,
    /// The lines in it, by series: seconds against MiB.
    pub fits: BTreeMap<String, Fit>,
}

/// Draws one chart, if its values are there.
pub type Maker = fn(&Results) -> Result<Option<Section>>;

/// What no run of this measures so far.
pub const NEVER: [&str; 2] = [
    "hardware: nested virtualization on a real processor, and Intel's EPT in any form",
    "stock xl migrate, by plain TCP or ssh: Debian's guest hypervisors have no log-dirty mode for PV",
];

/// What can be concluded from it, and what cannot.
pub const HONEST: [&str; 4] = [
    "In the lab everything runs under QEMU's software emulation on two cores: the hypervisors, their \
     management VMs, the guest VMs. Its times are many times what hardware takes, and not by one \
     factor: a device model or a nested trap costs more than plain code does. Counts are exact and \
     carry over; times are for comparing two ways in the same lab.",
    "Figures of lists and of the hypercall are CPU time of one thread on the real processor, with the \
     product's own code: agent, protocol and daemon as they are, the driver's list logic and the \
     hypervisor's C files as programs. What else runs on the machine shows in caches and memory only. \
     Flushes of TLBs cost nothing there, which flatters the hypercall.",
    "Whether a swap beats copying is a question to the harness, which runs both on the same processor \
     and in turns; compare its ratios, not its times, with those of another machine.",
    "A line a + b * pages is the one with the least squares of relative deviations. Its a is what is \
     left of small sizes, which fit caches better than large ones: it may be below 0.",
];

/// Those whose values are there.
pub fn all(results: &Results) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    for make in nested::ALL.into_iter().chain(native::ALL) {
        sections.extend(make(results)?);
    }
    Ok(sections)
}

/// Seconds in a unit that suits them.
pub fn time(seconds: f64) -> String {
    match seconds.abs() {
        s if s >= 1.0 => format!("{} s", short(&seconds)),
        s if s >= 1e-3 => format!("{} ms", short(&(seconds * 1e3))),
        s if s >= 1e-6 => format!("{} us", short(&(seconds * 1e6))),
        _ => format!("{} ns", short(&(seconds * 1e9))),
    }
}

/// MiB in a unit that suits them.
pub fn size(mib: f64) -> String {
    if mib >= 1024.0 {
        format!("{} GiB", short(&(mib / 1024.0)))
    } else {
        format!("{} MiB", short(&mib))
    }
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

/// Values of one series at all sizes, in another unit.
pub fn points(results: &Results, what: &str, series: &str, factor: f64) -> Series {
    Series {
        name: series.into(),
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

/// The lines of some series by name.
pub fn fits(series: &[Series]) -> BTreeMap<String, Fit> {
    series
        .iter()
        .filter_map(|s| Some((s.name.clone(), s.fit?)))
        .collect()
}
