// SPDX-License-Identifier: GPL-2.0-only

//! Charts of what was measured in the whole nested topology.

use crate::chart::Axes;
use crate::chart::Bar;
use crate::chart::Group;
use crate::chart::Method;
use crate::chart::Series;
use crate::results::Results;
use crate::section::by;
use crate::section::fitted;
use crate::section::law;
use crate::section::ours;
use crate::section::Answer;
use crate::section::Figure;
use crate::section::Maker;
use crate::section::Section;
use crate::stats::Spread;
use crate::units::short;
use crate::units::size;
use crate::units::time;

/// All of them.
pub const ALL: [Maker; 11] = [
    still, grows, seen, parts, total, bytes, cpu, neighbour, swap, network, superpages,
];

const MIB: f64 = (1 << 20) as f64;
const COMMIT: &str = "commit";
const WHOLE: &str = "all of vmbeam swap";
/// The load that is closest to what guest VMs do.
const BUSY: &str = "network and disk";
const OURS: &str = "vmbeam migrate";
const THEIRS: &str = "xl save and restore";

/// `METHOD, LOAD`, as the series of migrations are called.
fn method_and_load(series: &str) -> (&str, &str) {
    series.split_once(", ").unwrap_or((series, ""))
}

/// The values of one thing, a group for each load, and the memory of the guest VM in MiB.
fn by_load(results: &Results, what: &str, factor: f64) -> (Vec<Group>, f64) {
    let mut groups: Vec<Group> = Vec::new();
    let mut mib = 0.0;
    for series in results.names(what) {
        let (name, load) = method_and_load(series);
        let method = match name.starts_with("xl ") {
            true => Method::Other,
            false => Method::Ours,
        };
        for value in results.series(what, series) {
            mib = value.first.mib;
            let bar = Bar {
                name: name.into(),
                method,
                value: by(value.spread, factor),
            };
            match groups.iter_mut().find(|g| g.name == load) {
                Some(group) => group.bars.push(bar),
                None => groups.push(Group {
                    name: load.into(),
                    bars: vec![bar],
                }),
            }
        }
    }
    (groups, mib)
}

/// How much more the second bar of each group is than the first: least and most.
fn times(groups: &[Group]) -> Option<String> {
    let ratio = |g: &Group| Some(g.bars.get(1)?.value.median / g.bars.first()?.value.median);
    let all: Vec<f64> = groups.iter().filter_map(ratio).collect();
    let least = all.iter().copied().reduce(f64::min)?;
    let most = all.iter().copied().reduce(f64::max)?;
    Some(match short(&least) == short(&most) {
        true => format!("{} times", short(&least)),
        false => format!("{} to {} times", short(&least), short(&most)),
    })
}

/// Both ways beside each other, for each load.
fn compared(
    results: &Results,
    (id, title): (&'static str, &'static str),
    (what, factor, value): (&str, f64, fn(f64) -> String),
    method: &'static str,
) -> Option<Section> {
    let (groups, mib) = by_load(results, what, factor);
    let more = times(&groups).map_or_else(String::new, |t| format!(" {THEIRS}: {t} as much."));
    Some(Section {
        id,
        title,
        sentence: format!("A guest VM of {}, in the lab.{more}", size(mib)),
        figure: bars(groups, value)?,
        method,
    })
}

/// None without a value that could be drawn.
fn bars(groups: Vec<Group>, value: fn(f64) -> String) -> Option<Figure> {
    let mut all = groups.iter().flat_map(|g| &g.bars);
    all.any(|b| b.value.most > 0.0)
        .then_some(Figure::Bars(groups, value))
}

fn still(results: &Results) -> Option<Section> {
    compared(
        results,
        ("still", "How long the guest VM stands still"),
        ("migrate.down", 1.0, time),
        "From the request to suspend to the resumption, by the tools. Debian builds its guest \
         hypervisors without the log-dirty mode that xl migrate needs for PV guest VMs; xl save \
         into the network and xl restore from it is what is left of the toolstack's own.",
    )
}

/// The pause against the size of the guest VM.
fn grows(results: &Results) -> Option<Section> {
    let series = [
        ("size.down", "from the request to suspend to the resumption"),
        (
            "size.silence",
            "the silence of its connection, as its peer sees it",
        ),
    ]
    .map(|(what, name)| Series {
        name: name.into(),
        ..fitted(results, what, BUSY)
    });
    let points = &series[0].points;
    let ((small, low), (large, high)) = (*points.first()?, *points.last()?);
    Some(Section {
        id: "grows",
        title: "How the pause grows with the guest VM",
        sentence: format!(
            "A guest VM that uses its network and its disk stands still for {} with {}, and for {} with {}, \
             medians of {}, in the lab.",
            time(low.median),
            size(small),
            time(high.median),
            size(large),
            high.n
        ),
        figure: Figure::Lines(SECONDS, series.into()),
        method: "vmbeam migrate, staged, one guest VM after the other, there and back in turns.",
    })
}

fn seen(results: &Results) -> Option<Section> {
    let mut groups = Vec::new();
    for (what, who) in [
        ("migrate.gap", "by itself"),
        ("migrate.silence", "by its peer"),
    ] {
        groups.extend(by_load(results, what, 1.0).0.into_iter().map(|g| Group {
            name: format!("{}, {who}", g.name),
            ..g
        }));
    }
    Some(Section {
        id: "seen",
        title: "How long it was away, as seen",
        sentence: "What the guest VM notices itself, and whoever talks to it.".into(),
        figure: bars(groups, time)?,
        method:
            "The longest gap between two beats of the guest VM's heart, by its wall clock; the \
                 longest silence of its TCP connection, by the peer in the host's management VM.",
    })
}

/// The parts of a staged pause, one after the other.
const PARTS: [&str; 8] = [
    "suspend", "state", "restore", "confirm", "journal", "swap", "copy", "resume",
];

/// What the guest VM stands still for.
fn parts(results: &Results) -> Option<Section> {
    let (mut groups, mib) = by_load(results, "migrate.part", 1.0);
    groups.first()?;
    for group in &mut groups {
        let place = |bar: &Bar| PARTS.iter().position(|part| bar.name == *part);
        // What is none of them comes first: it is there only where nothing is staged.
        group.bars.sort_by_key(place);
    }
    Some(Section {
        id: "parts",
        title: "What it stands still for",
        sentence: format!("A guest VM of {}, by vmbeam migrate, in the lab.", size(mib)),
        figure: Figure::Stack(groups, time),
        method: "Medians of each part, so they add up to the median of the pause but for chance. \
                 suspend: until its state begins to come, of which all that can be sent before is \
                 at the destination; state: until all has come; restore: until it is complete at the \
                 destination, meanwhile digests of pages by which a daemon that starts again would see \
                 where the memory is, and a dry run; journal: two lines; copy: pages that cannot be \
                 swapped. lists, dry run, probes: only where the toolstack cannot stage.",
    })
}

fn total(results: &Results) -> Option<Section> {
    compared(
        results,
        ("total", "How long the whole migration takes"),
        ("migrate.total", 1.0, time),
        "",
    )
}

fn bytes(results: &Results) -> Option<Section> {
    compared(
        results,
        ("bytes", "What is sent"),
        ("migrate.bytes", 1.0 / MIB, size),
        "Everything through the agents' ports, or everything that xl save wrote.",
    )
}

fn cpu(results: &Results) -> Option<Section> {
    let mut groups = Vec::new();
    for (what, whose) in [
        ("migrate.cpu.host", "host"),
        ("migrate.cpu.source", "source"),
        ("migrate.cpu.destination", "destination"),
    ] {
        let all = by_load(results, what, 1.0).0;
        let busy = all.iter().find(|g| g.name == BUSY).or(all.first());
        groups.extend(busy.map(|g| Group {
            name: format!("{whose}, {}", g.name),
            bars: g.bars.clone(),
        }));
    }
    Some(Section {
        id: "cpu",
        title: "CPU time of the management VMs",
        sentence: "For one migration, in the lab.".into(),
        figure: bars(groups, time)?,
        method:
            "User, system and interrupts, as each kernel counts them; the host's has the device \
                 models of both host VMs in it.",
    })
}

fn percent(share: f64) -> String {
    format!("{} %", short(&share))
}

/// What another guest VM notices.
fn neighbour(results: &Results) -> Option<Section> {
    let value = |name: &&str| {
        let all = results.series("neighbour.share", name);
        Some(ours(name, by(all.first()?.spread, 100.0)))
    };
    let group = Group {
        name: "CPU time of a guest VM that computes".into(),
        bars: results
            .names("neighbour.share")
            .iter()
            .filter_map(value)
            .collect(),
    };
    Some(Section {
        id: "neighbour",
        title: "What is left for another guest VM",
        sentence: "While a guest VM moves into its host VM, and out of it, in the lab.".into(),
        figure: bars(vec![group], percent)?,
        method: "What xl list says of its CPU time, divided by the time on the wall; its management VM, \
                 and all else of B, are on the same processor.",
    })
}

fn swap(results: &Results) -> Option<Section> {
    let series = [COMMIT, WHOLE].map(|name| fitted(results, "swap.time", name));
    let (mib, commit) = series[0].points.last().copied()?;
    let count = |what| short(&results.median("swap.count", what, mib).unwrap_or_default());
    let laws: Vec<String> = series
        .iter()
        .filter_map(|s| Some(format!("{}: {}", s.name, law(s.fit?))))
        .collect();
    Some(Section {
        id: "swap",
        title: "The published experiment: swapping a guest VM's memory",
        sentence: format!(
            "{} change places in {} (the commit, median of {}), with {} hypercalls; {} superpages \
             were split and {} put together. {}.",
            size(mib),
            time(commit.median),
            commit.n,
            count("hypercalls"),
            count("splits"),
            count("merges"),
            laws.join("; ")
        ),
        figure: Figure::Lines(SECONDS, series.into()),
        method: "Guest VMs that were created and never ran, in both host VMs; vmbeam swap without \
                 --verify, there and back in turns.",
    })
}

const SECONDS: Axes<'static> = Axes {
    x: "memory of the guest VM",
    y: "s",
};

/// The same bytes over virtual networks.
fn network(results: &Results) -> Option<Section> {
    let [commit, whole] = [COMMIT, WHOLE].map(|name| Series {
        fit: None,
        ..fitted(results, "swap.time", name)
    });
    commit.points.last()?;
    let mut sent = Vec::new();
    for name in results.names("network.rate") {
        for rate in results.series("network.rate", name) {
            sent.push(Series {
                name: format!("TCP {name}"),
                method: Method::Other,
                points: commit
                    .points
                    .iter()
                    .map(|p| (p.0, at(p.0, rate.spread)))
                    .collect(),
                fit: None,
            });
        }
    }
    let last = |s: &Series| s.points.last().map_or(f64::NAN, |p| p.1.median);
    let fastest = sent.iter().map(last).reduce(f64::min)?;
    let sentence = format!(
        "The faster network would take {} times as long as the commit, {} times as long as all of vmbeam \
         swap. An emulator slows networks down far more than the swap: do not expect these ratios of \
         hardware.",
        short(&(fastest / last(&commit))),
        short(&(fastest / last(&whole))),
    );
    sent.extend([whole, commit]);
    Some(Section {
        id: "network",
        title: "Swapping against sending",
        sentence,
        figure: Figure::Lines(SECONDS, sent),
        method: "A fixed number of bytes is sent over one TCP connection; the time for a guest VM's memory \
                 is its size divided by that rate.",
    })
}

/// The time of so many MiB at a rate in bytes/s.
fn at(mib: f64, rate: Spread) -> Spread {
    let at = |rate: f64| mib * MIB / rate;
    Spread {
        n: rate.n,
        median: at(rate.median),
        least: at(rate.most),
        most: at(rate.least),
        quartiles: at(rate.median) * rate.quartiles / rate.median,
    }
}

/// What becomes of the superpages of the host VMs.
fn superpages(results: &Results) -> Option<Section> {
    const COUNT: &str = "migrate.count";
    let mut groups: Vec<Group> = Vec::new();
    for series in results.names("superpages.of_2m") {
        let (vm, when) = method_and_load(series);
        let value = results.series("superpages.of_2m", series);
        let bar = ours(when, value.first()?.spread);
        match groups.iter_mut().find(|g| g.name == vm) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group {
                name: vm.into(),
                bars: vec![bar],
            }),
        }
    }
    let moves: usize = results
        .names(COUNT)
        .into_iter()
        .filter(|name| name.starts_with("splits"))
        .flat_map(|name| results.series(COUNT, name))
        .map(|g| g.spread.n)
        .sum();
    let [whole, splits, merges] =
        ["superpages exchanged", "splits", "merges"].map(|name| short(&results.sum(COUNT, name)));
    Some(Section {
        id: "superpages",
        title: "What becomes of the host VMs' superpages",
        sentence: format!(
            "Entries of 2 MiB in the P2M tables of both, before and after {moves} migrations by vmbeam \
             migrate. In them {whole} pairs of superpages were exchanged whole, {splits} superpages were \
             split and {merges} put together again."
        ),
        figure: bars(groups, |n| short(&n))?,
        method: "Read from the memory of the machine from outside, when nothing migrates. The counts are \
                 those of vmbeam migrate --json.",
    })
}

/// A median of migrations under the usual load.
fn busy(results: &Results, what: &str, method: &str) -> Option<(f64, f64)> {
    let all = results.series(what, &format!("{method}, {BUSY}"));
    let group = all.first()?;
    Some((group.spread.median, group.first.mib))
}

/// How long does my guest stand still?
pub fn stands_still(results: &Results) -> Option<Answer> {
    let (down, mib) = busy(results, "migrate.down", OURS)?;
    let against = busy(results, "migrate.down", THEIRS).map_or_else(String::new, |(s, _)| {
        format!(", against {} by {THEIRS}", time(s))
    });
    Some(Answer {
        question: "How long does my guest stand still?",
        figure: time(down),
        words: format!(
            "a guest VM of {} that uses its network and its disk{against}. In the lab, under emulation",
            size(mib)
        ),
    })
}

/// What does it cost the others?
pub fn costs_others(results: &Results) -> Option<Answer> {
    let share = |name| {
        let all = results.series("neighbour.share", name);
        Some(all.first()?.spread.median * 100.0)
    };
    let (before, meanwhile) = (share("nothing moves")?, share("a guest VM arrives")?);
    Some(Answer {
        question: "What does it cost the others?",
        figure: format!("{} % of CPU", short(&(before - meanwhile))),
        words: format!(
            "a guest VM that computes gets {} while another one arrives, and {} else. In the lab, on one \
             processor with its management VM",
            percent(meanwhile),
            percent(before)
        ),
    })
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
        for (mib, seconds) in [(256.0, 2.0), (512.0, 2.25), (1024.0, 2.5)] {
            part.add("size.down", BUSY, mib, seconds, "s");
            part.add("size.silence", BUSY, mib, seconds - 0.5, "s");
        }
        part.add("network.rate", "here", 16.0, 4.0 * MIB, "bytes/s");
        for (of, seconds) in [("restore", 5.0), ("state", 1.0)] {
            let series = format!("{of}, {BUSY}");
            part.add("migrate.part", &series, 256.0, seconds, "s");
        }
        for (when, share) in [("nothing moves", 0.5), ("a guest VM arrives", 0.4)] {
            part.add("neighbour.share", when, 256.0, share, "");
        }
        for (when, of_2m) in [("before", 480.0), ("after", 476.0)] {
            part.add("superpages.of_2m", &format!("A, {when}"), 1024.0, of_2m, "");
        }
        for load in ["reading memory", BUSY] {
            for (count, value) in [("splits", 7.0), ("merges", 5.0)] {
                let series = format!("{count}, {load}");
                part.add("migrate.count", &series, 256.0, value, "");
            }
            for what in ["down", "gap", "silence", "total", "cpu.host"] {
                for (method, value) in [(OURS, 2.0), (OURS, 4.0), (THEIRS, 30.0)] {
                    let series = format!("{method}, {load}");
                    part.add(&format!("migrate.{what}"), &series, 256.0, value, "s");
                }
            }
        }
        let series = format!("{OURS}, {BUSY}");
        part.add("migrate.bytes", &series, 256.0, 7.0 * MIB, "bytes");
        Results::new(&[part])
    }

    #[test]
    fn all_are_drawn() {
        let drawn = |results: &Results| -> Vec<Section> {
            ALL.iter().filter_map(|make| make(results)).collect()
        };
        let all = drawn(&everything());
        assert_eq!(all.len(), ALL.len());
        assert!(drawn(&Results::default()).is_empty());
        for (id, wanted) in [
            ("swap", "1 GiB change places in 1 s"),
            ("swap", "3 superpages were split"),
            // 1024 MiB at 4 MiB/s: 256 s, against 1 s and 8 s.
            ("network", "256 times as long as the commit, 32 times"),
            (
                "still",
                "256 MiB, in the lab. xl save and restore: 10 times",
            ),
            (
                "grows",
                "stands still for 2 s with 256 MiB, and for 2.5 s with 1 GiB",
            ),
            ("superpages", "after 2 migrations"),
            ("superpages", "14 superpages were split and 10 put together"),
        ] {
            let section = all.iter().find(|s| s.id == id).unwrap();
            assert!(section.sentence.contains(wanted), "{section:?}");
        }
        let still = all.iter().find(|s| s.id == "still").unwrap();
        let rows = still.figure.table();
        assert_eq!(rows[1], ["reading memory", OURS, "3 s", "2 s", "4 s", "2"]);
        assert_eq!(rows[2][..3], ["", THEIRS, "30 s"]);
        let parts = all.iter().find(|s| s.id == "parts").unwrap();
        assert_eq!(parts.figure.table()[1][..3], [BUSY, "state", "1 s"]);
        assert_eq!(parts.figure.table()[2][1], "restore");
        let svg = still.figure.svg().unwrap();
        assert!(svg.contains("network and disk") && svg.contains("30 s  xl save"));
    }

    #[test]
    fn questions_are_answered() {
        let answer = stands_still(&everything()).unwrap();
        assert_eq!(answer.figure, "3 s");
        assert!(
            answer.words.contains("against 30 s by xl save"),
            "{answer:?}"
        );
        assert_eq!(costs_others(&everything()).unwrap().figure, "10 % of CPU");
        assert_eq!(stands_still(&Results::default()), None);
    }
}
