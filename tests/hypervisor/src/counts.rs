// SPDX-License-Identifier: GPL-2.0-only

//! What a swap costs in instructions. Unlike a time, that is the same on every processor and
//! however busy it is, so `make check` can give a verdict on it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;
use anyhow::Result;

use crate::steps;
use crate::swap::handle;
use crate::swap::linear;
use crate::swap::request;
use crate::swap::Side;
use crate::swap::LIBRARY;
use crate::xen::Xen;

/// Sorts of entries, pairs that are stepped through (a batch of 2 MiB entries, or two of 4 KiB
/// entries; where the frames are makes no difference), and how many instructions a pair may
/// take: a little more than today, for another compiler.
const STEPPED: [(&str, usize, f64); 2] =
    [("contiguous", 4096, 97.0), ("4 KiB entries", 1024, 435.0)];

/// Instructions per pair, by function.
pub type Counts = BTreeMap<&'static str, BTreeMap<String, f64>>;

/// Count them, for 2 MiB and 4 KiB entries.
pub fn instructions(xen: &Xen, sides: [&(Side, Side); 2]) -> Result<Counts> {
    let mut result = BTreeMap::new();
    for ((name, nr, _), (a, b)) in STEPPED.into_iter().zip(sides) {
        let mut counts = steps::count(Path::new(LIBRARY), || {
            request(xen, a, b, &linear(nr), |args| xen.swap(args))
        })?;
        for n in counts.values_mut() {
            *n /= nr as f64;
        }
        result.insert(name, counts);
    }
    Ok(result)
}

/// Print how many they are, and the functions with most of them; those of each sort.
pub fn print(counts: &Counts) -> BTreeMap<&'static str, f64> {
    let mut sums = BTreeMap::new();
    for (name, functions) in counts {
        let all = functions.values().sum();
        println!("# {name}: {all:.1} instructions per pair");
        let mut most: Vec<_> = functions.iter().collect();
        most.sort_by(|a, b| b.1.total_cmp(a.1));
        for (function, n) in most.into_iter().take(8) {
            println!("#   {function:30} {n:9.1}");
        }
        sums.insert(*name, all);
    }
    sums
}

/// Print them; an error if they are too many.
pub fn run() -> Result<()> {
    let pairs = STEPPED[0].1 as u64;
    let xen = Xen::load(Path::new(LIBRARY), 16 * pairs, false, handle)?;
    xen.create(0, 2, 64, false)?;
    let side = |id: u16, order| {
        // Frames that could make larger entries would be made some.
        let first = u64::from(id) * pairs + u64::from(order == 0);
        Side::new(&xen, id, (first..first + pairs).collect(), order)
    };
    let large = (side(1, 9)?, side(2, 9)?);
    let small = (side(3, 0)?, side(4, 0)?);
    let sums = print(&instructions(&xen, [&large, &small])?);
    for (name, _, most) in STEPPED {
        ensure!(sums[name] <= most, "{name}: more than {most}");
    }
    Ok(())
}
