// SPDX-License-Identifier: GPL-2.0-only

//! How many instructions a swap takes, and where: a child is stepped through it, one
//! instruction at a time. Unlike times, these figures are exact and the same every time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// Functions of the library, by address, and where it is loaded.
struct Symbols {
    functions: BTreeMap<u64, String>,
    base: u64,
    end: u64,
}

impl Symbols {
    fn load(library: &Path) -> Result<Self> {
        let output = Command::new("nm")
            .arg(library)
            .output()
            .context("cannot run nm")?;
        let text = String::from_utf8(output.stdout)?;
        let functions = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let address = u64::from_str_radix(fields.next()?, 16).ok()?;
                matches!(fields.next()?, "t" | "T")
                    .then(|| Some((address, fields.next()?.to_owned())))?
            })
            .collect();
        let name = library
            .file_name()
            .context("no name")?
            .to_string_lossy()
            .into_owned();
        let maps = fs::read_to_string("/proc/self/maps")?;
        let mut ranges = maps.lines().filter(|l| l.ends_with(&name)).filter_map(|l| {
            let (first, last) = l.split_whitespace().next()?.split_once('-')?;
            Some((
                u64::from_str_radix(first, 16).ok()?,
                u64::from_str_radix(last, 16).ok()?,
            ))
        });
        let (base, mut end) = ranges.next().context("the library is not loaded")?;
        if let Some((_, last)) = ranges.next_back() {
            end = last;
        }
        Ok(Self {
            functions,
            base,
            end,
        })
    }

    fn name(&self, address: u64) -> &str {
        if !(self.base..self.end).contains(&address) {
            return "(the harness)";
        }
        self.functions
            .range(..=address - self.base)
            .next_back()
            .map_or("(unknown)", |(_, name)| name)
    }
}

/// Instructions of `work`, by function. `work` is done in a child and its effects are lost.
pub fn count(library: &Path, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, f64>> {
    let symbols = Symbols::load(library)?;
    // SAFETY: this program has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child does nothing but this, and ends.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGUSR1);
            let ok = work().is_ok();
            libc::raise(libc::SIGUSR2);
            libc::_exit(i32::from(!ok));
        }
    }
    ensure!(child > 0, "cannot fork");
    let signal = || -> Result<i32> {
        let mut status = 0;
        // SAFETY: waits for the child.
        let rc = unsafe { libc::waitpid(child, &raw mut status, 0) };
        ensure!(rc == child, "lost the child");
        ensure!(
            libc::WIFSTOPPED(status),
            "the child ended before its work was done"
        );
        Ok(libc::WSTOPSIG(status))
    };
    ensure!(signal()? == libc::SIGUSR1, "the child did not begin");
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last = 0;
    loop {
        // SAFETY: the child is stopped.
        let address = unsafe {
            libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0);
            match signal()? {
                libc::SIGTRAP => libc::ptrace(libc::PTRACE_PEEKUSER, child, 8 * libc::RIP, 0),
                libc::SIGUSR2 => break,
                other => bail!("signal {other} in the child"),
            }
        } as u64;
        // A string instruction is stepped once for each of its repetitions.
        if address != last {
            *counts.entry(address).or_default() += 1;
        }
        last = address;
    }
    // SAFETY: the child, which is of no more use.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    let mut result = BTreeMap::new();
    for (address, n) in counts {
        *result.entry(symbols.name(address).to_owned()).or_default() += n as f64;
    }
    Ok(result)
}
