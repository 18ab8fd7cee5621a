// SPDX-License-Identifier: GPL-2.0-only

//! The report: one page, one table of all samples, one summary for machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde_json::json;
use vmbeam_bench::directory;
use vmbeam_bench::Part;

use crate::environment;
use crate::page::page;
use crate::results::Results;
use crate::sections;

/// What `make bench-hv` left, as a part.
fn hypercall() -> Result<Option<Part>> {
    let Ok(text) = fs::read_to_string("build/report/bench-hv.json") else {
        return Ok(None);
    };
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let mut part = Part::new("hypercall");
    for (prefix, json) in [("", &json), ("EPT, ", &json["ept"])] {
        let times: BTreeMap<String, Vec<f64>> = serde_json::from_value(json["times"].clone())
            .context("build/report/bench-hv.json has no times")?;
        for (name, values) in times {
            for value in values {
                let name = format!("{prefix}{name}");
                part.add("hypercall.pair", &name, 1024.0, value, "ns");
            }
        }
    }
    Ok(Some(part))
}

/// Make it of the parts that are there; the others are named as missing.
pub fn run() -> Result<()> {
    let mut parts = Vec::new();
    let mut missing = Vec::new();
    let all = [
        ("lab", Part::read("lab")?),
        ("hypercall", hypercall()?),
        ("lists", Part::read("lists")?),
        ("scale", Part::read("scale")?),
        ("pause", Part::read("pause")?),
    ];
    for (name, part) in all {
        match part {
            Some(part) => parts.push(part),
            None => missing.push(format!("the whole part {name}: it was not run")),
        }
    }
    ensure!(!parts.is_empty(), "nothing was measured yet");
    let mut results = Results::new(&parts);
    missing.append(&mut results.missing);
    for what in &missing {
        println!("not measured: {what}");
    }
    missing.extend(sections::NEVER.map(str::to_owned));
    let mut environment = environment::here();
    for part in &parts {
        for (key, value) in &part.environment {
            environment.insert(format!("{} ({})", key, part.name), value.clone());
        }
    }
    let dir = directory();
    fs::create_dir_all(&dir)?;
    let mut csv = csv::Writer::from_path(dir.join(SAMPLES))?;
    for sample in &results.samples {
        csv.serialize(sample)?;
    }
    csv.flush()?;
    write(&dir, &results, &environment, &missing)?;
    println!(
        "bench: {} samples{}; see {}",
        results.samples.len(),
        took().map_or_else(String::new, |s| format!(" in {s} s, set-up included")),
        dir.join("index.html").display()
    );
    Ok(())
}

/// Make the page of an earlier report anew, of its samples.
pub fn again(dir: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Summary {
        environment: BTreeMap<String, String>,
        not_measured: Vec<String>,
    }
    let samples = csv::Reader::from_path(dir.join(SAMPLES))?.into_deserialize();
    let part = Part {
        samples: samples.collect::<Result<_, _>>()?,
        ..Part::default()
    };
    let summary: Summary = serde_json::from_str(&fs::read_to_string(dir.join(SUMMARY))?)?;
    write(
        dir,
        &Results::new(&[part]),
        &summary.environment,
        &summary.not_measured,
    )
}

const SAMPLES: &str = "samples.csv";
const SUMMARY: &str = "summary.json";

/// Page, charts and summary.
fn write(
    dir: &Path,
    results: &Results,
    environment: &BTreeMap<String, String>,
    missing: &[String],
) -> Result<()> {
    let sections = sections::all(results);
    let answers = sections::answers(results);
    for section in &sections {
        let file = dir.join(format!("{}.svg", section.id));
        fs::write(file, section.figure.svg()?)?;
        println!("{}: {}", section.id, section.sentence);
    }
    let summary = json!({
        "environment": environment,
        "answers": answers.iter().map(|a| json!({
            "question": a.question, "figure": a.figure, "of": a.words,
        })).collect::<Vec<_>>(),
        "figures": sections.iter().map(|s| (s.id, json!({
            "title": s.title, "says": s.sentence, "fits": s.figure.fits(),
        }))).collect::<BTreeMap<_, _>>(),
        "values": results.groups().iter().map(|g| json!({
            "what": g.first.what, "series": g.first.series, "mib": g.first.mib,
            "unit": g.first.unit, "spread": g.spread,
        })).collect::<Vec<_>>(),
        "not_measured": missing,
    });
    let summary = serde_json::to_string_pretty(&summary)? + "\n";
    fs::write(dir.join(SUMMARY), summary)?;
    let page = page(&answers, &sections, results, environment, missing)?;
    fs::write(dir.join("index.html"), page.into_string())?;
    Ok(())
}

/// Seconds since make was started, if it was that.
fn took() -> Option<u64> {
    let begun: u64 = std::env::var("VMBEAM_STARTED").ok()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.as_secs().checked_sub(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_finds() {
        let mut part = Part::new("lists");
        for (mib, value) in [(1024.0, 1.0), (1024.0, 3.0), (4096.0, 9.0)] {
            part.add("lists.time", "a", mib, value, "s");
        }
        part.add("lists.time", "b", 1024.0, 7.0, "s");
        let results = Results::new(&[part]);
        assert_eq!(results.groups().len(), 3);
        assert_eq!(results.series("lists.time", "a").len(), 2);
        assert_eq!(results.median("lists.time", "a", 1024.0), Some(2.0));
        assert_eq!(results.median("lists.time", "c", 1024.0), None);
        assert_eq!(results.names("lists.time"), ["a", "b"]);
    }
}
