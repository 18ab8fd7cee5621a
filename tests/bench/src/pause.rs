// SPDX-License-Identifier: GPL-2.0-only

//! What is left in the pause of a staged migration, by the size of the guest VM: what the
//! daemon does with the list of external pages, the driver's session, the hypercall. With the
//! product's own code, on this processor, and no boot. What the guest hypervisors do for each
//! page is not here and is counted instead.

use std::fs;
use std::ops::Range;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde_json::json;
use vmbeam_bench::Part;
use vmbeamd::join::beyond;
use vmbeamd::join::select;
use vmbeamd::join::JoinedRun;

use crate::clock::timed;
use crate::scale;
use crate::session::Session;
use crate::stats::Fit;
use crate::stats::Spread;

const OUT: &str = "build/report/bench-pause.json";
/// Pages of a GiB.
const GIB: u64 = 1 << 18;
/// Pages of a superpage.
const SUPER: u64 = 512;
/// Sizes in GiB.
const SIZES: [u64; 5] = [1, 4, 16, 64, 256];
/// Of so many superpages one has a page table in it that is new since the lists were made, and
/// one a page that was a table then.
const CHANGED: u64 = 64;

/// A guest of so many pages in blocks of 2 MiB, whose last ones are page tables: the pairs, the
/// pairs of page tables, and the pages that the source says are external in the end.
struct Guest {
    pairs: Vec<JoinedRun>,
    tables: Vec<JoinedRun>,
    external: Vec<Range<u64>>,
}

impl Guest {
    fn new(pages: u64) -> Self {
        let blocks = pages / SUPER;
        // One table for 512 pages, together at the end, as Linux allocates most of them.
        let first_table = pages - pages.div_ceil(SUPER);
        // The blocks of both sides are in another order.
        let place = |block: u64, odd: u64| (block.wrapping_mul(odd) % blocks) * SUPER;
        let run = |pfn: u64, nr: u64| JoinedRun {
            pfn,
            gfn_a: place(pfn / SUPER, 0x9e37_79b9) + pfn % SUPER,
            gfn_b: place(pfn / SUPER, 0x85eb_ca6b) + pfn % SUPER,
            nr: nr as u32,
        };
        let cut = |from: u64, to: u64| {
            let mut runs = Vec::new();
            let mut pfn = from;
            while pfn < to {
                let nr = (SUPER - pfn % SUPER).min(to - pfn);
                runs.push(run(pfn, nr));
                pfn += nr;
            }
            runs
        };
        // New tables, one at the end of each such block; and old ones that are none any more.
        let mut external = Vec::new();
        let mut start = 0;
        for block in (0..first_table / SUPER).step_by(CHANGED as usize) {
            let table = block * SUPER + SUPER - 1;
            external.push(start..table);
            start = table + 1;
        }
        external.push(start..first_table);
        let since = (first_table + 1..pages).step_by(CHANGED as usize);
        external.extend(since.map(|pfn| pfn..pfn + 1));
        Self {
            pairs: cut(0, first_table),
            tables: cut(first_table, pages),
            external,
        }
    }
}

/// Seconds of one pause, by its parts.
fn round(guest: &Guest) -> Result<[(&'static str, f64); 2]> {
    let (runs, confirm) = timed(|| {
        let (mut runs, missing) = select(&guest.pairs, &guest.external);
        let missing: Vec<_> = missing
            .iter()
            .map(|r| r.pfn..r.pfn + u64::from(r.nr))
            .collect();
        let (since, _) = select(&guest.tables, &missing);
        runs.extend(since);
        runs.sort_unstable_by_key(|r| r.pfn);
        let journal = (beyond(&runs, &guest.pairs), beyond(&guest.pairs, &runs));
        drop(journal);
        runs
    });
    let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
    let mut status = vec![0; pages as usize];
    let (added, driver) = timed(|| {
        let mut session = Session::default();
        session.add_all(&runs)?;
        session.commit(&mut status);
        anyhow::Ok(())
    });
    added?;
    Ok([("confirm", confirm), ("driver", driver)])
}

/// Seconds that the hypercall takes for so many GiB in 2 MiB entries, and for a page in 4 KiB
/// entries.
fn hypercall(gib: u64, rounds: usize) -> Result<(Vec<f64>, f64)> {
    let large = scale::measure(gib, "large", rounds)?;
    let small = scale::measure(1, "small", rounds)?;
    let small = Spread::of(&small).context("no round of 4 KiB entries")?;
    Ok((large, small.median / GIB as f64))
}

/// All sizes, up to `most` GiB.
pub fn run(most: u64, rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "--rounds is 0: nothing would be measured");
    let mut part = Part::new("pause");
    let mut points = Vec::new();
    for gib in SIZES.into_iter().filter(|gib| *gib <= most) {
        println!("==> pause: {gib} GiB");
        let guest = Guest::new(gib * GIB);
        let mib = (gib << 10) as f64;
        let (large, small) = match hypercall(gib, rounds) {
            Ok(times) => times,
            // A machine with less memory than this takes.
            Err(e) => {
                part.missing.push(format!("pause: {gib} GiB: {e:#}"));
                continue;
            }
        };
        let broken = (gib * GIB / SUPER / CHANGED * SUPER) as f64;
        let mut totals = Vec::new();
        // The first one warms up.
        round(&guest)?;
        for large in large {
            let call = large * (1.0 - 1.0 / CHANGED as f64) + broken * small;
            let mut total = call;
            part.add("pause.part", "hypercall", mib, call, "s");
            for (name, seconds) in round(&guest)? {
                part.add("pause.part", name, mib, seconds, "s");
                total += seconds;
            }
            part.add("pause.time", "all of these", mib, total, "s");
            totals.push(total);
        }
        let spread = Spread::of(&totals).context("no round")?;
        println!("    {:.3} ms", spread.median * 1e3);
        points.push((gib, spread));
    }
    let medians: Vec<_> = points.iter().map(|(g, s)| (*g as f64, s.median)).collect();
    let fit = Fit::of(&medians).context("one size is no line: --most is too small")?;
    let json = json!({
        "ms_per_gib": fit.b * 1e3,
        "constant_ms": fit.a * 1e3,
        "points": points.iter().map(|(gib, s)| json!({
            "gib": gib, "ms": s.median * 1e3, "least_ms": s.least * 1e3, "most_ms": s.most * 1e3,
            // What the guest hypervisors do, which no harness has.
            "entries_validated_at_the_destination": gib * GIB,
            "types_asked_at_the_source": gib * GIB,
        })).collect::<Vec<_>>(),
        "left_out": "agents, ports, stream, journal; the guest hypervisors: types of all pages, \
                     validation of page tables",
    });
    fs::create_dir_all("build/report")?;
    fs::write(OUT, serde_json::to_string_pretty(&json)? + "\n")?;
    println!(
        "pause: {:.2} ms + {:.2} ms per GiB; see {OUT}",
        fit.a * 1e3,
        fit.b * 1e3
    );
    part.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pages but tables are swapped, whatever changed.
    #[test]
    fn what_changed_is_found() {
        let guest = Guest::new(64 * GIB / 64);
        let wanted: u64 = guest.external.iter().map(|r| r.end - r.start).sum();
        let (runs, missing) = select(&guest.pairs, &guest.external);
        assert_eq!(missing.len(), 8);
        let pages: u64 = runs.iter().map(|r| u64::from(r.nr)).sum();
        assert_eq!(pages + 8, wanted);
        assert!(round(&guest).unwrap().iter().all(|(_, s)| *s > 0.0));
    }
}
