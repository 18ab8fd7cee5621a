// SPDX-License-Identifier: GPL-2.0-only

//! Charts of what was measured on the real processor, without a boot.

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
use crate::sections::points;
use crate::sections::size;
use crate::sections::time;
use crate::sections::Maker;
use crate::sections::Section;

/// All of them.
pub const ALL: [Maker; 5] = [hypercall, scale, against, lists, memory];

/// Stages of a list's way that are timed.
const STAGES: [&str; 6] = [
    "agent: gather",
    "agent: send",
    "daemon: receive one",
    "daemon: join",
    "driver: add",
    "driver: batches",
];

fn hypercall(results: &Results) -> Result<Option<Section>> {
    let named = [
        ("NPT, 2 MiB entries", "contiguous"),
        ("EPT, 2 MiB entries", "EPT, contiguous"),
        ("NPT, 4 KiB entries", "4 KiB entries"),
        ("EPT, 4 KiB entries", "EPT, 4 KiB entries"),
        ("NPT, scattered frames", "scattered"),
        ("EPT, scattered frames", "EPT, scattered"),
        ("swap by copying", "contiguous, by copying"),
        ("swap by copying, scattered", "scattered, by copying"),
        ("memcpy one way", "contiguous, memcpy one way"),
    ];
    let mut values = Vec::new();
    for (name, series) in named {
        let spread = results
            .series("hypercall.pair", series)
            .first()
            .map(|g| g.spread);
        values.extend(spread.map(|s| (name.to_owned(), s)));
    }
    let median = |series| results.median("hypercall.pair", series, 1024.0);
    let (Some(ours), Some(small), Some(scattered), Some(copy)) = (
        median("contiguous"),
        median("4 KiB entries"),
        median("scattered"),
        median("contiguous, by copying"),
    ) else {
        return Ok(None);
    };
    let sentence = format!(
        "With NPT a pair of 4 KiB frames costs {} ns where both host VMs have 2 MiB entries, {} ns in 4 KiB \
         entries and {} ns with frames in no order; to swap by copying costs {} ns, {} times the first.",
        short(&ours),
        short(&small),
        short(&scattered),
        short(&copy),
        short(&(copy / ours)),
    );
    let labels = Labels {
        title: "One pair of 4 KiB frames, on this processor",
        x: "ns",
        y: "",
    };
    Ok(Some(Section {
        id: "hypercall",
        title: "The hypercall, and copying",
        sentence,
        svg: chart::bars(labels, &values)?,
        method: "Xen's own C files in user space, 1 GiB in one call; Documentation/hypervisor-harness.rst.",
        fits: BTreeMap::new(),
    }))
}

/// A series at its largest size, and the line through it.
fn end(s: &Series) -> Option<String> {
    let (mib, spread) = s.points.last()?;
    let fit = s
        .fit
        .map_or_else(String::new, |fit| format!(", {}", law(fit)));
    Some(format!(
        "{}: {} for {}{fit}",
        s.name,
        time(spread.median),
        size(*mib)
    ))
}

fn scale(results: &Results) -> Result<Option<Section>> {
    let series: Vec<Series> = results
        .names("scale.time")
        .into_iter()
        .map(|name| fitted(results, "scale.time", name))
        .collect();
    if series.is_empty() {
        return Ok(None);
    }
    let ends: Vec<String> = series.iter().filter_map(end).collect();
    let labels = Labels {
        title: "The hypercall against the size of the guest VM",
        x: "memory of the guest VM, MiB",
        y: "s of CPU time",
    };
    Ok(Some(Section {
        id: "scale",
        title: "The hypercall at sizes that no test machine has",
        sentence: format!("{}.", ends.join("; ")),
        svg: chart::lines(labels, &series)?,
        method: "As above, with page tables and frame tables of that size but no memory behind the frames; \
                 calls of at most 4096 pairs, as the driver makes them.",
        fits: fits(&series),
    }))
}

/// List handling against the hypercall, for 1 GiB.
fn against(results: &Results) -> Result<Option<Section>> {
    let pairs = f64::from(1 << 18);
    let mut values = Vec::new();
    let mut words = Vec::new();
    for (shape, entries) in [("2 MiB runs", "contiguous"), ("4 KiB runs", "scattered")] {
        let list = results.series("lists.time", &format!("{shape}, all"));
        let list = list
            .iter()
            .find(|g| g.first.mib == 1024.0)
            .map(|g| g.spread);
        let call = results
            .series("hypercall.pair", entries)
            .first()
            .map(|g| g.spread);
        let (Some(list), Some(call)) = (list, call) else {
            continue;
        };
        let (list, call) = (by(list, 1e3), by(call, pairs * 1e-6));
        words.push(format!(
            "{shape}: lists {} ms, hypercall {} ms, ratio {:.2}",
            short(&list.median),
            short(&call.median),
            list.median / call.median
        ));
        values.push((format!("lists, {shape}"), list));
        values.push((format!("hypercall, {entries}"), call));
        for stage in STAGES {
            let all = results.series("lists.time", &format!("{shape}, {stage}"));
            if let Some(g) = all.iter().find(|g| g.first.mib == 1024.0) {
                values.push((format!("    {stage}"), by(g.spread, 1e3)));
            }
        }
    }
    if values.is_empty() {
        return Ok(None);
    }
    let labels = Labels {
        title: "1 GiB: handling the lists, and the hypercall",
        x: "ms of CPU time",
        y: "",
    };
    Ok(Some(Section {
        id: "against",
        title: "List handling against the hypercall",
        sentence: format!("{}.", words.join("; ")),
        svg: chart::bars(labels, &values)?,
        method: "The agents work at the same time, and so do the two threads of the daemon that receive \
                 their lists: one of each counts. The hypercalls by which the guest hypervisor tells types \
                 of frames are not part of it.",
        fits: BTreeMap::new(),
    }))
}

fn lists(results: &Results) -> Result<Option<Section>> {
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
    if series.is_empty() {
        return Ok(None);
    }
    let ends: Vec<String> = series.iter().filter_map(end).collect();
    let labels = Labels {
        title: "Frame lists from both guest hypervisors to the hypercall",
        x: "memory of the guest VM, MiB",
        y: "s of CPU time",
    };
    Ok(Some(Section {
        id: "lists",
        title: "Lists of large guest VMs: time",
        sentence: format!(
            "Up to the largest list that is accepted, {}.",
            ends.join("; ")
        ),
        svg: chart::lines(labels, &series)?,
        method: "Synthetic guests whose runs are in no order; one page in 512 is a page table.",
        fits: fits(&series),
    }))
}

fn memory(results: &Results) -> Result<Option<Section>> {
    let mut series = Vec::new();
    let mut words = Vec::new();
    for stage in [
        "agent",
        "daemon: receive one",
        "daemon: join",
        "driver: add",
        "driver: batches",
    ] {
        let name = format!("2 MiB runs, {stage}");
        let s = points(results, "lists.memory", &name, 1.0 / f64::from(1 << 20));
        if let Some(last) = s.points.last() {
            words.push(format!(
                "{stage} {} for {}",
                size(last.1.median),
                size(last.0)
            ));
            series.push(Series {
                name: stage.into(),
                ..s
            });
        }
    }
    if words.is_empty() {
        return Ok(None);
    }
    let labels = Labels {
        title: "Memory for frame lists in 2 MiB runs",
        x: "memory of the guest VM, MiB",
        y: "MiB at most",
    };
    Ok(Some(Section {
        id: "memory",
        title: "Lists of large guest VMs: memory",
        sentence: format!(
            "At most, and beyond what the stage before holds: {}.",
            words.join("; ")
        ),
        svg: chart::lines(labels, &series)?,
        method: "",
        fits: BTreeMap::new(),
    }))
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
            part.add("scale.time", "scattered", mib, 0.01 + mib / 10_000.0, "s");
        }
        for (series, ns) in [
            ("contiguous", 10.0),
            ("4 KiB entries", 50.0),
            ("scattered", 100.0),
            ("contiguous, by copying", 700.0),
        ] {
            part.add("hypercall.pair", series, 1024.0, ns, "ns");
        }
        Results::new(&[part])
    }

    fn sections(results: &Results) -> Vec<Section> {
        ALL.iter()
            .filter_map(|make| make(results).unwrap())
            .collect()
    }

    #[test]
    fn all_are_drawn() {
        assert_eq!(sections(&everything()).len(), ALL.len());
        assert!(sections(&Results::default()).is_empty());
    }

    #[test]
    fn sentences_say_what_the_values_say() {
        let all = sections(&everything());
        let says = |id, wanted: &[&str]| {
            let section = all.iter().find(|s| s.id == id).unwrap();
            for want in wanted {
                assert!(section.sentence.contains(want), "{want}: {section:?}");
            }
        };
        says("hypercall", &["10 ns", "70 times"]);
        // 10.24 ms and 2.62 ms.
        says("against", &["ratio 3.91"]);
        // 0.01 s and 0.1024 s; per page 1e-4 / 256.
        says(
            "scale",
            &["112 ms for 1 GiB", "10 ms + 391 ns a page", "R² 1.0000"],
        );
        says("lists", &["2 MiB runs: 10.2 ms for 1 GiB"]);
    }
}
