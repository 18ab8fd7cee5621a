// SPDX-License-Identifier: GPL-2.0-only

//! The same caller as a 64-bit and as a 32-bit program: every byte that it gets
//! from the driver must be the same.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::domains::Host;
use crate::report::report;

/// Frames of the two domains; the program uses fewer.
const FRAMES: u64 = 64;

/// Run both programs on two bare domains and compare what they print.
pub fn run(program64: &Path, program32: &Path) -> Result<()> {
    println!("1..3");
    let host = Host::open()?;
    let (a, b) = (host.domain(FRAMES)?, host.domain(FRAMES)?);
    let call = |program: &Path| -> Result<String> {
        let output = Command::new(program)
            .args([a.domid().to_string(), b.domid().to_string()])
            .output()
            .with_context(|| program.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{}: {}\n{text}",
            program.display(),
            output.status
        );
        Ok(text)
    };
    let (long, short) = (call(program64), call(program32));
    let equal = match (&long, &short) {
        (Ok(long), Ok(short)) => difference(long, short),
        _ => Err(anyhow::anyhow!("one of them failed")),
    };
    let good = [
        report(1, "a session of a 64-bit program", &long.map(drop)),
        report(2, "a session of a 32-bit program", &short.map(drop)),
        report(3, "both get the same answers", &equal),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

fn difference(long: &str, short: &str) -> Result<()> {
    ensure!(long.lines().count() > 10, "too little was printed:\n{long}");
    for (l, s) in long.lines().zip(short.lines()) {
        ensure!(l == s, "64 bits: {l}\n32 bits: {s}");
    }
    ensure!(
        long.lines().count() == short.lines().count(),
        "one printed more"
    );
    Ok(())
}
