// SPDX-License-Identifier: GPL-2.0-only

//! Charts of what was measured on the real processor, without a boot.

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
use crate::section::points;
use crate::section::Answer;
use crate::section::Figure;
use crate::section::Maker;
use crate::section::Section;
use crate::stats::Spread;
use crate::units::short;
use crate::units::size;
use crate::units::time;

/// All of them.
pub const ALL: [Maker; 6] = [pause, hypercall, scale, against, lists, memory];

const PAIR: &str = "hypercall.pair";
const GIB: f64 = 1024.0;

/// Stages of a list's way that are timed.
const STAGES: [&str; 6] = [
    "agent: gather",
    "agent: send",
    "daemon: receive one",
    "daemon: join",
    "driver: add",
    "driver: batches",
];

fn nanoseconds(value: f64) -> String {
    format!("{} ns", short(&value))
}

fn milliseconds(value: f64) -> String {
    format!("{} ms", short(&value))
}

/// The values of a pair of frames, if they are there.
fn pair(results: &Results, series: &str) -> Option<Spread> {
    Some(results.series(PAIR, series).first()?.spread)
}

fn pause(results: &Results) -> Option<Section> {
    let whole = fitted(results, "pause.time", "all of these");
    let law = whole.fit.map_or_else(String::new, law);
    let names = results.names("pause.part").into_iter();
    let parts = names.map(|name| points(results, "pause.part", name, 1.0));
    let series: Vec<Series> = std::iter::once(whole).chain(parts).collect();
    series[0].points.first()?;
    Some(Section {
        id: "pause",
        title: "What of the pause is ours and grows, without emulation",
        sentence: format!("The guest VM stands still for {law}, and for what agents and toolstacks do."),
        figure: Figure::Lines(CPU_TIME, series),
        method: "On this processor, a staged migration of a guest VM in 2 MiB pages, of which one block in \
                 64 has a new page table: the daemon's confirmation of the pairs, the driver's ledger, \
                 the hypercall. Not in it: questions to agents, the stream, the journal; the types of all \
                 pages, which the source asks for, and the validation of page tables at the \
                 destination, both by the guest hypervisors.",
    })
}

fn hypercall(results: &Results) -> Option<Section> {
    let group = |name: &str, entries: &str| {
        let bars = [
            ("NPT", Method::Ours, entries.to_owned()),
            ("EPT", Method::Ours, format!("EPT, {entries}")),
            (
                "by copying",
                Method::Other,
                format!("{entries}, by copying"),
            ),
        ];
        let bar = |(name, method, series): &(&str, Method, String)| {
            Some(Bar {
                name: (*name).to_owned(),
                method: *method,
                value: pair(results, series)?,
            })
        };
        Group {
            name: name.into(),
            bars: bars.iter().filter_map(bar).collect(),
        }
    };
    let groups = vec![
        group("2 MiB entries", "contiguous"),
        group("4 KiB entries, frames in order", "4 KiB entries"),
        group("4 KiB entries, frames in no order", "scattered"),
    ];
    let copy = pair(results, "contiguous, by copying")?.median;
    let ours = pair(results, "contiguous")?.median;
    Some(Section {
        id: "hypercall",
        title: "The hypercall, and copying",
        sentence: format!(
            "One pair of 4 KiB frames. In 2 MiB entries copying takes {} times as long.",
            short(&(copy / ours))
        ),
        figure: Figure::Bars(groups, nanoseconds),
        method: "On this processor, Xen's own C files in user space, 1 GiB in one call; \
                 Documentation/hypervisor-harness.rst.",
    })
}

/// The lines through some series, in words.
fn laws(series: &[Series]) -> String {
    let law = |s: &Series| Some(format!("{}: {}", s.name, law(s.fit?)));
    let all: Vec<String> = series.iter().filter_map(law).collect();
    format!("{}.", all.join("; "))
}

fn scale(results: &Results) -> Option<Section> {
    let names = results.names("scale.time");
    let series: Vec<Series> = names
        .into_iter()
        .map(|name| fitted(results, "scale.time", name))
        .collect();
    series.first()?;
    Some(Section {
        id: "scale",
        title: "The hypercall at sizes that no test machine has",
        sentence: laws(&series),
        figure: Figure::Lines(CPU_TIME, series),
        method: "As above, with page tables and frame tables of that size but no memory behind the frames; \
                 calls of at most 4096 pairs, as the driver makes them.",
    })
}

const CPU_TIME: Axes<'static> = Axes {
    x: "memory of the guest VM",
    y: "s of CPU time",
};

/// List handling against the hypercall, for 1 GiB.
fn against(results: &Results) -> Option<Section> {
    let pairs = f64::from(1 << 18);
    let mut groups = Vec::new();
    for (shape, entries) in [("2 MiB runs", "contiguous"), ("4 KiB runs", "scattered")] {
        let of = |stage: &str| {
            let all = results.series("lists.time", &format!("{shape}, {stage}"));
            let one = all.iter().find(|g| g.first.mib == GIB)?;
            Some(by(one.spread, 1e3))
        };
        let (Some(list), Some(call)) = (of("all"), pair(results, entries)) else {
            continue;
        };
        let mut bars = vec![
            Bar {
                method: Method::Other,
                ..ours("the hypercall", by(call, pairs * 1e-6))
            },
            ours("all lists", list),
        ];
        bars.extend(STAGES.iter().filter_map(|s| Some(ours(s, of(s)?))));
        groups.push(Group {
            name: shape.into(),
            bars,
        });
    }
    groups.first()?;
    Some(Section {
        id: "against",
        title: "Handling the lists, and the hypercall",
        sentence: "For a guest VM of 1 GiB.".into(),
        figure: Figure::Bars(groups, milliseconds),
        method: "CPU time. The agents work at the same time, and so do the two threads of the daemon that \
                 receive their lists: one of each counts. The hypercalls by which the guest hypervisor \
                 tells types of frames are not part of it.",
    })
}

fn lists(results: &Results) -> Option<Section> {
    let series: Vec<Series> = results
        .names("lists.time")
        .into_iter()
        .filter_map(|name| {
            let shape = name.strip_suffix(", all")?;
            Some(Series {
                name: shape.into(),
                ..fitted(results, "lists.time", name)
            })
        })
        .collect();
    series.first()?;
    Some(Section {
        id: "lists",
        title: "Lists of large guest VMs: time",
        sentence: format!("Up to the largest list that is accepted. {}", laws(&series)),
        figure: Figure::Lines(CPU_TIME, series),
        method: "From both guest hypervisors to the hypercall. Synthetic guests whose runs are in no order; \
                 one page in 512 is a page table.",
    })
}

fn memory(results: &Results) -> Option<Section> {
    let stages = std::iter::once("agent").chain(STAGES.into_iter().skip(2));
    let series: Vec<Series> = stages
        .map(|stage| {
            let name = format!("2 MiB runs, {stage}");
            Series {
                name: stage.into(),
                ..points(results, "lists.memory", &name, 1.0 / f64::from(1 << 20))
            }
        })
        .filter(|s| !s.points.is_empty())
        .collect();
    series.first()?;
    Some(Section {
        id: "memory",
        title: "Lists of large guest VMs: memory",
        sentence: "In runs of 2 MiB; at most, and beyond what the stage before holds.".into(),
        figure: Figure::Lines(
            Axes {
                x: "memory of the guest VM",
                y: "MiB at most",
            },
            series,
        ),
        method: "",
    })
}

/// How does that grow?
pub fn grows(results: &Results) -> Option<Answer> {
    let all = [
        ("daemon, driver and hypercall", "pause.time", "all of these"),
        ("in the hypercall", "scale.time", "2 MiB entries"),
    ];
    all.into_iter().find_map(|(where_, what, series)| {
        let line = fitted(results, what, series);
        let (mib, spread) = line.points.last()?;
        Some(Answer {
            question: "How does that grow?",
            figure: format!("{} per GiB", time(line.fit?.b * GIB)),
            words: format!(
                "{where_}, {} for {}, on this processor",
                time(spread.median),
                size(*mib)
            ),
        })
    })
}

/// Against what?
pub fn against_copying(results: &Results) -> Option<Answer> {
    let copy = pair(results, "contiguous, by copying")?.median;
    let ours = pair(results, "contiguous")?.median;
    Some(Answer {
        question: "Against what?",
        figure: format!("{} times", short(&(copy / ours))),
        words: format!(
            "as fast as exchanging the contents: {} for a pair of 4 KiB frames in 2 MiB entries, \
             against {}, on this processor",
            nanoseconds(ours),
            nanoseconds(copy)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbeam_bench::Part;

    /// Values that are exactly linear, of all that these charts know.
    fn everything() -> Results {
        let mut part = Part::new("lists");
        for mib in [256.0, 512.0, 1024.0] {
            for stage in ["all", "agent: gather"] {
                let series = format!("2 MiB runs, {stage}");
                part.add("lists.time", &series, mib, mib * 1e-5, "s");
            }
            part.add("lists.memory", "2 MiB runs, agent", mib, mib * 1e4, "bytes");
            let time = 0.01 + mib / 10_000.0;
            part.add("scale.time", "2 MiB entries", mib, time, "s");
            part.add("pause.time", "all of these", mib, time, "s");
            part.add("pause.part", "driver", mib, time, "s");
        }
        for (series, ns) in [
            ("contiguous", 10.0),
            ("EPT, contiguous", 11.0),
            ("4 KiB entries", 50.0),
            ("scattered", 100.0),
            ("contiguous, by copying", 700.0),
        ] {
            part.add(PAIR, series, 1024.0, ns, "ns");
        }
        Results::new(&[part])
    }

    fn sections(results: &Results) -> Vec<Section> {
        ALL.iter().filter_map(|make| make(results)).collect()
    }

    #[test]
    fn all_are_drawn() {
        let all = sections(&everything());
        assert_eq!(all.len(), ALL.len());
        for section in &all {
            assert!(section.figure.svg().unwrap().contains("<svg"));
            assert!(section.figure.table().len() > 1);
        }
        assert!(sections(&Results::default()).is_empty());
    }

    #[test]
    fn sentences_say_what_the_values_say() {
        let all = sections(&everything());
        let find = |id| all.iter().find(|s| s.id == id).unwrap();
        assert!(find("hypercall").sentence.contains("70 times"));
        // 0.01 s and 0.1024 s; per page 1e-4 / 256.
        for want in ["10 ms + 391 ns a page", "R² 1.0000"] {
            assert!(find("scale").sentence.contains(want));
        }
        assert_eq!(find("scale").figure.table()[1][3], "0.112");
        // 10.24 ms and 2.62 ms.
        let rows = find("against").figure.table();
        assert_eq!((&*rows[1][2], &*rows[2][2]), ("2.62 ms", "10.2 ms"));
    }

    #[test]
    fn questions_are_answered() {
        let answer = grows(&everything()).unwrap();
        assert_eq!(answer.figure, "102 ms per GiB");
        let words = "daemon, driver and hypercall, 112 ms for 1 GiB";
        assert!(answer.words.contains(words), "{answer:?}");
        assert_eq!(against_copying(&everything()).unwrap().figure, "70 times");
        assert_eq!(against_copying(&Results::default()), None);
    }
}
