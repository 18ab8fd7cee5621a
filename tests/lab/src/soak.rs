// SPDX-License-Identifier: GPL-2.0-only

//! Boots the whole topology again and again: a lab that fails now and then would
//! poison every test that runs in it.

use std::fs;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::machine::Accelerator;
use crate::paths;
use crate::progress::Progress;
use crate::topology::BootTimes;
use crate::topology::Sizes;
use crate::topology::Topology;

#[derive(Serialize)]
struct Boot {
    seconds: f64,
    times: Option<BootTimes>,
    error: Option<String>,
}

/// Boot this often; true if none failed. Writes `build/report/soak.json`.
pub fn run(boots: u32, sizes: Sizes, progress: &Progress) -> Result<bool> {
    let mut results = Vec::new();
    for number in 1..=boots {
        let start = Instant::now();
        let outcome = Topology::boot(sizes, progress);
        let seconds = start.elapsed().as_secs_f64();
        let (times, error) = match outcome {
            Ok((_, times)) => (Some(times), None),
            Err(e) => (None, Some(format!("{e:#}"))),
        };
        match &error {
            None => println!("boot {number} of {boots}: ok, {seconds:.0} s"),
            Some(e) => {
                println!("boot {number} of {boots}: FAILED after {seconds:.0} s: {e}");
                let kept = paths::build(&format!("logs-failed-boot-{number}"));
                let _ = fs::remove_dir_all(&kept);
                let _ = fs::rename(paths::logs(), &kept);
            }
        }
        results.push(Boot {
            seconds,
            times,
            error,
        });
        fs::create_dir_all(paths::reports())?;
        let report = serde_json::json!({
            "accelerator": Accelerator::detect().name(),
            "guest_mib": sizes.guest_mib,
            "boots": results,
        });
        fs::write(
            paths::reports().join("soak.json"),
            serde_json::to_string_pretty(&report)?,
        )?;
    }
    let failed = results.iter().filter(|b| b.error.is_some()).count();
    println!(
        "soak: {} boots, {failed} failed; see build/report/soak.json",
        results.len()
    );
    Ok(failed == 0)
}
