// SPDX-License-Identifier: GPL-2.0-only

//! Which lines of the driver the tests of the plain VM run.
//!
//! Debian's kernel has neither gcov nor kcov, and the module shall be the one that
//! is tested. So the emulator tells: it translates each piece of straight code
//! when it is first reached, and logs the addresses of its instructions. The
//! debugging information says which lines they were made from, inlined ones too.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::driver::Amount;
use crate::mock;
use crate::paths;
use crate::tally::Tally;

/// Where the kernel puts modules.
const MODULES: &str = "0xffffffffa0000000+0x5f000000";

/// The part of the lines that the tests must reach at least, in percent.
const ENOUGH: usize = 90;

/// File and line.
type Line = (String, u32);

/// Run the tests once more, and write the report to `build/report/coverage.txt`.
pub fn run(tally: &mut Tally) {
    tally.case("mock", "the tests reach the driver's lines", || {
        let report = measure()?;
        fs::create_dir_all(paths::reports())?;
        fs::write(paths::reports().join("coverage.txt"), &report.text)?;
        print!("{}", report.table);
        ensure!(
            report.reached * 100 >= report.lines * ENOUGH,
            "{} of {} lines; see build/report/coverage.txt",
            report.reached,
            report.lines
        );
        Ok(())
    });
}

/// What was found out.
struct Report {
    lines: usize,
    reached: usize,
    table: String,
    text: String,
}

fn measure() -> Result<Report> {
    let log = paths::logs().join("coverage.log");
    fs::create_dir_all(paths::logs())?;
    let name = log.to_string_lossy();
    let emulator = ["-d", "in_asm", "-dfilter", MODULES, "-D", &name];
    let output = mock::boot("mock", &Amount::COVERAGE, "nokaslr", &emulator)?;
    let text = output
        .lines()
        .find_map(|line| line.strip_prefix("TEXT 0x"))
        .context("the VM did not say where the module is")?;
    let base = u64::from_str_radix(text.trim(), 16)?;
    let reached = translated(&log)?;
    fs::remove_file(&log)?;
    let code = code()?;
    let mut lines: BTreeMap<Line, bool> = BTreeMap::new();
    for (offset, made_from) in code {
        let hit = reached.contains(&(base + offset));
        for line in made_from {
            *lines.entry(line).or_default() |= hit;
        }
    }
    ensure!(!lines.is_empty(), "the module has no debugging information");
    Ok(tell(&lines))
}

/// Addresses of the instructions in the emulator's log.
fn translated(log: &Path) -> Result<BTreeSet<u64>> {
    let file = fs::File::open(log).with_context(|| log.display().to_string())?;
    let mut out = BTreeSet::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let address = line.strip_prefix("0x").and_then(|l| l.split_once(':'));
        if let Some(Ok(address)) = address.map(|(a, _)| u64::from_str_radix(a, 16)) {
            out.insert(address);
        }
    }
    ensure!(!out.is_empty(), "the emulator logged no code of modules");
    Ok(out)
}

/// The module's instructions, and the driver's lines that each was made from.
fn code() -> Result<Vec<(u64, Vec<Line>)>> {
    let mut child = Command::new("objdump")
        .args(["-d", "-l", "--inlines", "--no-show-raw-insn", "-j", ".text"])
        .arg(paths::debug_driver())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start objdump")?;
    let output = child.stdout.take().context("objdump has no output")?;
    let mut out = Vec::new();
    let (mut inner, mut around) = (None, Vec::new());
    // Whether the places so far are those of an instruction that was seen.
    let mut stale = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        let address = line
            .strip_prefix(' ')
            .and_then(|l| l.trim_start().split_once(":\t"))
            .and_then(|(a, _)| u64::from_str_radix(a, 16).ok());
        if let Some(address) = address {
            let places = inner.iter().chain(&around).flatten();
            out.push((address, places.cloned().collect()));
            stale = true;
            continue;
        }
        if let Some(place) = line.strip_prefix("inlined by ") {
            if stale {
                // The innermost place is still the same.
                around.clear();
                stale = false;
            }
            around.push(driver_line(place));
        } else if line.starts_with('/') {
            inner = Some(driver_line(&line));
            around.clear();
            stale = false;
        }
    }
    ensure!(child.wait()?.success(), "objdump failed");
    Ok(out)
}

/// `FILE:LINE ...` if it is a file of the driver.
fn driver_line(place: &str) -> Option<Line> {
    let place = place.split(' ').next()?;
    let (file, line) = place.rsplit_once(':')?;
    let file = file.strip_prefix("/src/")?;
    let name = file.strip_prefix("drivers/vmbeam/")?;
    let ours = name.ends_with(".rs") || name == "vmbeam_xen.c";
    // Line 0 is code of no line.
    let line = line.parse().ok().filter(|line| *line != 0)?;
    ours.then(|| (file.to_owned(), line))
}

fn tell(lines: &BTreeMap<Line, bool>) -> Report {
    let mut files: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut missed = String::new();
    for ((file, line), hit) in lines {
        let counts = files.entry(file).or_default();
        counts.0 += 1;
        counts.1 += usize::from(*hit);
        if !hit {
            let source = fs::read_to_string(Path::new("/src").join(file)).unwrap_or_default();
            let source = source.lines().nth(*line as usize - 1).unwrap_or_default();
            let _ = writeln!(missed, "{file}:{line}: {}", source.trim());
        }
    }
    let mut table = String::new();
    let (mut all, mut reached) = (0, 0);
    for (file, (of, hit)) in files {
        let _ = writeln!(table, "    {hit:>4} of {of:>4}  {file}");
        // What only tests need is not counted.
        if !file.contains("/debug") {
            all += of;
            reached += hit;
        }
    }
    let _ = writeln!(
        table,
        "    {reached} of {all} lines of the driver that code was made from ({:.1} %)",
        100.0 * reached as f64 / all.max(1) as f64
    );
    Report {
        lines: all,
        reached,
        text: format!("{table}\nNot reached:\n\n{missed}"),
        table,
    }
}
