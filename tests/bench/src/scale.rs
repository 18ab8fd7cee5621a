// SPDX-License-Identifier: GPL-2.0-only

//! The hypercall at sizes that no test machine has: the harness of `tests/hypervisor` does
//! it, this calls it for each.

use std::process::Command;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use vmbeam_bench::Part;

const HARNESS: &str = "build/target/release/hv-harness";
/// Sizes in GiB.
const SIZES: [u64; 4] = [1, 4, 16, 64];
/// Names of the sorts of entries, there and in the report.
const ENTRIES: [(&str, &str); 3] = [
    ("large", "2 MiB entries"),
    ("small", "4 KiB entries"),
    ("scattered", "scattered"),
];

#[derive(Deserialize)]
struct Times {
    seconds: Vec<f64>,
}

/// Seconds of each round of one size and one sort of entries.
pub fn measure(gib: u64, entries: &str, rounds: usize) -> Result<Vec<f64>> {
    let output = Command::new(HARNESS)
        .args(["scale", "--mib", &(gib << 10).to_string()])
        .args(["--entries", entries, "--rounds", &rounds.to_string()])
        .output()
        .with_context(|| format!("cannot run {HARNESS}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {}{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let times: Times = serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| format!("the harness printed: {text}"))?;
    Ok(times.seconds)
}

/// All sorts and sizes, up to `most` GiB.
pub fn run(most: u64, rounds: usize) -> Result<()> {
    let mut part = Part::new("scale");
    for (entries, name) in ENTRIES {
        for gib in SIZES.into_iter().filter(|gib| *gib <= most) {
            println!("==> hypercall: {gib} GiB, {name}");
            match measure(gib, entries, rounds) {
                Ok(times) => {
                    for seconds in times {
                        part.add("scale.time", name, (gib << 10) as f64, seconds, "s");
                    }
                }
                // A machine with less memory than this takes.
                Err(e) => part
                    .missing
                    .push(format!("hypercall: {gib} GiB, {name}: {e:#}")),
            }
        }
    }
    ensure!(
        !part.samples.is_empty(),
        "nothing was measured: {:?}",
        part.missing
    );
    part.missing
        .push("hypercall: 256 GiB in the harness: 10 GiB of tables".into());
    part.write()
}
