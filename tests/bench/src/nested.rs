// SPDX-License-Identifier: GPL-2.0-only

//! Charts of what was measured in the whole nested topology.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::chart;
use crate::chart::short;
use crate::chart::Labels;
use crate::chart::Series;
use crate::report::Results;
use crate::sections::by;
use crate::sections::fits;
use crate::sections::fitted;
use crate::sections::law;
use crate::sections::size;
use crate::sections::time;
use crate::sections::Maker;
use crate::sections::Section;
use crate::stats::Spread;

/// All of them.
pub const ALL: [Maker; 9] = [
    swap, network, still, parts, total, bytes, cpu, superpages, neighbour,
];

const COMMIT: &str = "commit";
const WHOLE: &str = "all of vmbeam swap";

fn swap(results: &Results) -> Result<Option<Section>> {
    let series = [COMMIT, WHOLE].map(|name| fitted(results, "swap.time", name));
    let Some((mib, commit)) = series[0].points.last().copied() else {
        return Ok(None);
    };
    let count = |what| short(&results.median("swap.count", what, mib).unwrap_or_default());
    let laws: Vec<String> = series
        .iter()
        .filter_map(|s| Some(format!("{}: {}", s.name, law(s.fit?))))
        .collect();
    let sentence = format!(
        "The memory of a guest VM of {} changes places in {} (the commit, median of {}): {} pages in {} \
         runs, with {} messages between agents and daemon, {} hypercalls, {} TLB flushes, {} P2M \
         entries written, {} pairs of superpages exchanged whole, {} split and {} put together. {}.",
        size(mib),
        time(commit.median),
        commit.n,
        count("pages"),
        count("runs"),
        count("messages"),
        count("hypercalls"),
        count("TLB flushes"),
        count("P2M writes"),
        count("superpages exchanged"),
        count("splits"),
        count("merges"),
        laws.join("; ")
    );
    let labels = Labels {
        title: "Swap of a whole guest VM, in the lab",
        x: "memory of the guest VM, MiB",
        y: "s",
    };
    Ok(Some(Section {
        id: "swap",
        title: "The published experiment: swapping a guest VM's memory",
        sentence,
        svg: chart::lines(labels, &series)?,
        method: "Guest VMs that were created and never ran, in both host VMs; vmbeam swap without \
                 --verify, there and back in turns.",
        fits: fits(&series),
    }))
}

/// The same bytes over virtual networks.
fn network(results: &Results) -> Result<Option<Section>> {
    let [commit, whole] = [COMMIT, WHOLE].map(|name| Series {
        fit: None,
        ..fitted(results, "swap.time", name)
    });
    let Some((mib, _)) = commit.points.last().copied() else {
        return Ok(None);
    };
    let last = |s: &Series| s.points.last().map_or(f64::NAN, |p| p.1.median);
    let mut series = Vec::new();
    let mut sentence = String::from("Plain TCP ");
    for name in results.names("network.rate") {
        for rate in results.series("network.rate", name) {
            let rate = rate.spread;
            let sent = Series {
                name: format!("TCP {name}, by its rate"),
                points: commit.points.iter().map(|p| (p.0, at(p.0, rate))).collect(),
                fit: None,
            };
            sentence += &format!(
                "{name} carries {} MiB/s (median of {}), so {} would take {}: {} times the commit, {} times all \
                 of vmbeam swap; ",
                short(&(rate.median / f64::from(1 << 20))),
                rate.n,
                size(mib),
                time(last(&sent)),
                short(&(last(&sent) / last(&commit))),
                short(&(last(&sent) / last(&whole))),
            );
            series.push(sent);
        }
    }
    if series.is_empty() {
        return Ok(None);
    }
    sentence += "an emulator slows networks down far more than the swap: do not expect these ratios of hardware.";
    series.extend([whole, commit]);
    let labels = Labels {
        title: "Swapping against sending, in the lab",
        x: "memory of the guest VM, MiB",
        y: "s",
    };
    Ok(Some(Section {
        id: "network",
        title: "Against virtual networks",
        sentence,
        svg: chart::lines(labels, &series)?,
        method: "A fixed number of bytes is sent over one TCP connection; the time for a guest VM's memory \
                 is its size divided by that rate.",
        fits: BTreeMap::new(),
    }))
}

/// The time of so many MiB at a rate in bytes/s.
fn at(mib: f64, rate: Spread) -> Spread {
    let at = |rate: f64| mib * f64::from(1 << 20) / rate;
    Spread {
        n: rate.n,
        median: at(rate.median),
        least: at(rate.most),
        most: at(rate.least),
        quartiles: at(rate.median) * rate.quartiles / rate.median,
    }
}

/// Bars of a chart, each with the name of its series.
#[derive(Debug, Default)]
struct Bars {
    /// Memory of the guest VM in MiB: there is one size.
    mib: f64,
    values: Vec<(String, Spread)>,
}

fn bars(results: &Results, what: &[(&str, &str)], factor: f64) -> Bars {
    let mut bars = Bars::default();
    for (what, prefix) in what {
        for name in results.names(what) {
            for group in results.series(what, name) {
                bars.mib = group.first.mib;
                let value = by(group.spread, factor);
                bars.values.push((format!("{prefix}{name}"), value));
            }
        }
    }
    bars
}

fn words(bars: &Bars, text: impl Fn(f64) -> String) -> String {
    let all: Vec<String> = bars
        .values
        .iter()
        .map(|(name, s)| format!("{name}: {} (n={})", text(s.median), s.n))
        .collect();
    format!(
        "Medians, for a guest VM of {}: {}.",
        size(bars.mib),
        all.join("; ")
    )
}

fn section(
    bars: &Bars,
    labels: Labels<'_>,
    text: impl Fn(f64) -> String,
) -> Result<Option<Section>> {
    if bars.values.is_empty() {
        return Ok(None);
    }
    Ok(Some(Section {
        id: "",
        title: "",
        sentence: words(bars, text),
        svg: chart::bars(labels, &bars.values)?,
        method: "",
        fits: BTreeMap::new(),
    }))
}

fn still(results: &Results) -> Result<Option<Section>> {
    let what = [
        ("migrate.down", "stands still: "),
        ("migrate.gap", "gap that it sees: "),
        ("migrate.silence", "silence of its connection: "),
    ];
    let labels = Labels {
        title: "How long a migrating guest VM is away, in the lab",
        x: "s",
        y: "",
    };
    let section = section(&bars(results, &what, 1.0), labels, time)?;
    Ok(section.map(|s| Section {
        id: "still",
        title: "Migration: how long the guest VM is away",
        method: "From the request to suspend to the resumption, by the tools; the longest gap between two \
                 beats of the guest VM's heart, by its wall clock; and the longest silence of its TCP \
                 connection, by the peer in the host's management VM. Debian builds its guest hypervisors \
                 without the log-dirty mode that xl migrate needs for PV guest VMs; xl save into the network \
                 and xl restore from it is what is left of the toolstack's own.",
        ..s
    }))
}

/// What the guest VM stands still for.
fn parts(results: &Results) -> Result<Option<Section>> {
    let labels = Labels {
        title: "What a migrating guest VM stands still for, in the lab",
        x: "s",
        y: "",
    };
    let section = section(&bars(results, &[("migrate.part", "")], 1.0), labels, time)?;
    Ok(section.map(|s| Section {
        id: "parts",
        title: "Migration: what the guest VM stands still for",
        method: "stream: its state, saved by the one toolstack and restored by the other; lists: both frame \
                 lists and their join; probes: digests of pages by which a daemon that starts again would see \
                 where the memory is; copy: pages that cannot be swapped.",
        ..s
    }))
}

fn total(results: &Results) -> Result<Option<Section>> {
    let labels = Labels {
        title: "The whole migration, in the lab",
        x: "s",
        y: "",
    };
    let section = section(&bars(results, &[("migrate.total", "")], 1.0), labels, time)?;
    Ok(section.map(|s| Section {
        id: "total",
        title: "Migration: all of it",
        ..s
    }))
}

fn bytes(results: &Results) -> Result<Option<Section>> {
    let labels = Labels {
        title: "Bytes that a migration sends",
        x: "MiB",
        y: "",
    };
    let values = bars(results, &[("migrate.bytes", "")], 1.0 / f64::from(1 << 20));
    let section = section(&values, labels, size)?;
    Ok(section.map(|s| Section {
        id: "bytes",
        title: "Migration: what is sent",
        method: "Everything through the agents' ports, or everything that xl save wrote.",
        ..s
    }))
}

fn cpu(results: &Results) -> Result<Option<Section>> {
    let what = [
        ("migrate.cpu.host", "host: "),
        ("migrate.cpu.source", "source: "),
        ("migrate.cpu.destination", "destination: "),
    ];
    let labels = Labels {
        title: "CPU time of the management VMs for a migration, in the lab",
        x: "s",
        y: "",
    };
    let section = section(&bars(results, &what, 1.0), labels, time)?;
    Ok(section.map(|s| Section {
        id: "cpu",
        title: "Migration: CPU time of the management VMs",
        method: "User, system and interrupts, as each kernel counts them; the host's has the device models \
                 of both host VMs in it.",
        ..s
    }))
}

/// What becomes of the superpages of the host VMs.
fn superpages(results: &Results) -> Result<Option<Section>> {
    const COUNT: &str = "migrate.count";
    let of_2m = bars(results, &[("superpages.of_2m", "")], 1.0);
    let of_1g = bars(results, &[("superpages.of_1g", "")], 1.0);
    if of_2m.values.is_empty() {
        return Ok(None);
    }
    let all: Vec<String> = of_2m
        .values
        .iter()
        .zip(&of_1g.values)
        .map(|((name, of_2m), (_, of_1g))| {
            format!(
                "{name}: {} of 2 MiB, {} of 1 GiB",
                short(&of_2m.median),
                short(&of_1g.median)
            )
        })
        .collect();
    let counts = bars(results, &[(COUNT, "")], 1.0);
    let moves: usize = counts
        .values
        .iter()
        .filter(|(name, _)| name.starts_with("splits"))
        .map(|(_, s)| s.n)
        .sum();
    let [whole, splits, merges] =
        ["superpages exchanged", "splits", "merges"].map(|name| short(&results.sum(COUNT, name)));
    let each: Vec<String> = ["messages", "hypercalls", "TLB flushes", "P2M writes"]
        .iter()
        .map(|name| {
            format!(
                "{} {name}",
                short(&(results.sum(COUNT, name) / moves.max(1) as f64))
            )
        })
        .collect();
    let sentence = format!(
        "Superpages of the host VMs, of {} each: {}. Between these lie {moves} migrations of a guest \
         VM of {} by vmbeam migrate. In them, by the host hypervisor's own counts, {whole} pairs of \
         superpages were exchanged whole, {splits} superpages were split and {merges} put together \
         again. On the average one took {}.",
        size(of_2m.mib),
        all.join("; "),
        size(counts.mib),
        each.join(", ")
    );
    let labels = Labels {
        title: "Superpages of both host VMs, before and after the migrations",
        x: "entries of 2 MiB",
        y: "",
    };
    Ok(Some(Section {
        id: "superpages",
        title: "Migration: superpages of the host VMs",
        sentence,
        svg: chart::bars(labels, &of_2m.values)?,
        method: "Entries of their P2M tables, read from the memory of the machine from outside, when nothing \
                 migrates. The counts are those of vmbeam migrate --json.",
        fits: BTreeMap::new(),
    }))
}

/// What another guest VM notices.
fn neighbour(results: &Results) -> Result<Option<Section>> {
    let values = bars(results, &[("neighbour.share", "")], 100.0);
    let labels = Labels {
        title: "CPU time of another guest VM in B, in the lab",
        x: "% of a processor",
        y: "",
    };
    let percent = |share: f64| format!("{} %", short(&share));
    let section = section(&values, labels, percent)?;
    Ok(section.map(|s| Section {
        id: "neighbour",
        title: "Migration: what is left for another guest VM",
        method: "A guest VM in B that computes all the time, and what xl list says of its CPU time, divided by \
                 the time on the wall; its management VM, and all else of B, are on the same processor.",
        ..s
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_bench::Part;

    fn everything() -> Results {
        let mut part = Part::new("lab");
        for mib in [256.0, 512.0, 1024.0] {
            part.add("swap.time", COMMIT, mib, mib / 1024.0, "s");
            part.add("swap.time", WHOLE, mib, mib / 128.0, "s");
            part.add("swap.count", "splits", mib, 3.0, "");
        }
        let rate = 4.0 * f64::from(1 << 20);
        part.add("network.rate", "here", 16.0, rate, "bytes/s");
        part.add("migrate.part", "stream, idle", 256.0, 5.0, "s");
        part.add("neighbour.share", "nothing moves", 256.0, 0.5, "");
        for (when, of_2m) in [("before", 480.0), ("after", 476.0)] {
            part.add("superpages.of_2m", &format!("A, {when}"), 1024.0, of_2m, "");
            part.add("superpages.of_1g", &format!("A, {when}"), 1024.0, 1.0, "");
        }
        for load in ["idle", "busy"] {
            for (count, value) in [
                ("splits", 7.0),
                ("merges", 5.0),
                ("hypercalls", 16.0),
                ("messages", 90.0),
            ] {
                part.add(
                    "migrate.count",
                    &format!("{count}, {load}"),
                    256.0,
                    value,
                    "",
                );
            }
        }
        for what in ["down", "gap", "silence", "total", "cpu.host"] {
            for value in [2.0, 4.0] {
                part.add(&format!("migrate.{what}"), "ours", 256.0, value, "s");
            }
        }
        let mib = f64::from(1 << 20);
        part.add("migrate.bytes", "ours", 256.0, 7.0 * mib, "bytes");
        Results::new(&[part])
    }

    #[test]
    fn all_are_drawn() {
        let drawn = |results: &Results| -> Vec<Section> {
            ALL.iter()
                .filter_map(|make| make(results).unwrap())
                .collect()
        };
        let all = drawn(&everything());
        assert_eq!(all.len(), ALL.len());
        assert!(drawn(&Results::default()).is_empty());
        for (id, wanted) in [
            ("swap", "1 GiB changes places in 1 s"),
            ("swap", "3 split"),
            // 1024 MiB at 4 MiB/s: 256 s, against 1 s and 8 s.
            ("network", "256 s: 256 times the commit, 32 times all"),
            ("still", "stands still: ours: 3 s (n=2)"),
            ("total", "ours: 3 s"),
            ("bytes", "ours: 7 MiB (n=1)"),
            ("cpu", "host: ours: 3 s"),
            ("superpages", "A, after: 476 of 2 MiB, 1 of 1 GiB."),
            ("superpages", "2 migrations of a guest VM of 256 MiB"),
            (
                "superpages",
                "14 superpages were split and 10 put together again",
            ),
            ("superpages", "one took 90 messages, 16 hypercalls"),
            ("neighbour", "nothing moves: 50 %"),
            ("parts", "stream, idle: 5 s"),
        ] {
            let section = all.iter().find(|s| s.id == id).unwrap();
            assert!(section.sentence.contains(wanted), "{section:?}");
        }
    }
}
