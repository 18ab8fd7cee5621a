// SPDX-License-Identifier: GPL-2.0-only

//! The simplest provider of external memory: copies it from one guest to the
//! other within one system. For tests of the toolstack alone; between two
//! systems the memory itself moves.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde_json::json;
use vmbeam_xen::stream::Scanner;
use vmbeam_xen::PageKind;
use vmbeam_xen::Xen;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// What `xl save --external-memory` wrote.
    #[arg(long)]
    saved: PathBuf,
    /// Domid of the guest that was saved, which has the memory.
    #[arg(long)]
    from: u32,
    /// Domid of the guest that was restored.
    #[arg(long)]
    to: u32,
}

/// Copy; prints what the saved state holds as JSON.
pub fn provide(arguments: &Arguments) -> Result<()> {
    let mut scanner = Scanner::default();
    let mut file = File::open(&arguments.saved)
        .with_context(|| format!("cannot read {}", arguments.saved.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        scanner.feed(&buffer[..n])?;
    }
    let contents = scanner.contents();
    ensure!(contents.complete, "the saved state is cut off");

    let xen = Xen::open()?;
    let (from, to) = (
        ordinary(&xen, arguments.from)?,
        ordinary(&xen, arguments.to)?,
    );
    let mut gfns = (Vec::new(), Vec::new());
    for pfn in contents.external.iter().cloned().flatten() {
        let missing = |which| format!("the {which} guest has no ordinary page {pfn:#x}");
        gfns.0
            .push(*from.get(&pfn).with_context(|| missing("saved"))?);
        gfns.1
            .push(*to.get(&pfn).with_context(|| missing("restored"))?);
    }
    // In batches, so as not to hold all of it.
    for (from, to) in gfns.0.chunks(1024).zip(gfns.1.chunks(1024)) {
        let mut pages = Vec::with_capacity(from.len());
        xen.read_pages(arguments.from, from, |_, page| pages.push(*page))?;
        xen.write_pages(arguments.to, to, |i, page| {
            page.copy_from_slice(&pages[i]);
            Ok(())
        })?;
    }
    println!(
        "{}",
        json!({
            "external_pages": contents.external_pages(),
            "external_ranges": contents.external.len(),
            "data_pages": contents.data_pages,
            "bytes": contents.bytes,
        })
    );
    Ok(())
}

/// The frames behind the ordinary pages of a guest, by pfn.
fn ordinary(xen: &Xen, domid: u32) -> Result<HashMap<u64, u64>> {
    Ok(xen
        .pages(domid)?
        .into_iter()
        .filter(|run| run.kind == PageKind::Ordinary)
        .flat_map(|run| (0..u64::from(run.nr)).map(move |i| (run.pfn + i, run.gfn + i)))
        .collect())
}
