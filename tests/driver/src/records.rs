// SPDX-License-Identifier: GPL-2.0-only

//! What an operator does about half a move: `vmbeam records`, `recover` and
//! `forget` on records that the driver really keeps.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use vmbeam_uapi::sys;

use crate::device::DEVICE;
use crate::domains::Domain;
use crate::domains::Host;
use crate::race;
use crate::report::report;

const FRAMES: u64 = 16;
/// Pairs that are swapped when the program that swaps them is gone.
const DONE: u64 = 10;
/// The frame that somebody maps then.
const HELD: u64 = 3;

/// Exit status of `vmbeam` when something failed.
const FAILED: i32 = 1;

struct Test<'a> {
    program: &'a Path,
    host: Host,
}

/// Run the command line on records of both sorts.
pub fn run(program: &Path) -> Result<()> {
    println!("1..3");
    let test = Test {
        program,
        host: Host::open()?,
    };
    let good = [
        report(1, "no records: nothing is listed", &test.none()),
        report(2, "a record is listed and recovered", &test.recover()),
        report(3, "a record is forgotten", &test.forget()),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

impl Test<'_> {
    /// What `vmbeam` prints, which must end with this status.
    fn says(&self, arguments: &[&str], code: i32) -> Result<String> {
        let output = Command::new(self.program)
            .args(arguments)
            .output()
            .with_context(|| self.program.display().to_string())?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "vmbeam {}: {}, printed: {text}",
            arguments.join(" "),
            output.status
        );
        Ok(text)
    }

    fn pair(&self) -> Result<[Domain; 2]> {
        let domains = [self.host.domain(FRAMES)?, self.host.domain(FRAMES)?];
        for (domain, first) in domains.iter().zip([0xa00, 0xb00]) {
            domain.write_tags(&contents(first))?;
        }
        Ok(domains)
    }

    /// Whether the listing names it, for people and for programs.
    fn listed(&self, [a, b]: &[Domain; 2], swapped: u64, reason: &str) -> Result<String> {
        let text = self.says(&["records"], 0)?;
        let expected = format!(
            "domains {} and {}, swap: {swapped} of {FRAMES} pages are still swapped: {reason}",
            a.domid(),
            b.domid()
        );
        ensure!(text.contains(&expected), "{text}: no {expected:?}");
        let json = self.says(&["records", "--json"], 0)?;
        let expected = format!("\"domains\":[{},{}]", a.domid(), b.domid());
        ensure!(json.contains(&expected), "{json}: no {expected}");
        let (_, id) = json.split_once("\"id\":").context("no id")?;
        Ok(id.chars().take_while(char::is_ascii_digit).collect())
    }

    fn none(&self) -> Result<()> {
        let text = self.says(&["records"], 0)?;
        ensure!(text.is_empty(), "printed: {text}");
        let json = self.says(&["records", "--json"], 0)?;
        ensure!(json.trim() == "[]", "printed: {json}");
        let text = self.says(&["recover", "7"], FAILED)?;
        ensure!(text.contains("record"), "printed: {text}");
        self.says(&["forget", "7"], FAILED)?;
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        let domains = self.pair()?;
        let file = half(&domains)?;
        let held = domains[1].hold(HELD, Errno::EBUSY)?;
        drop(file);
        let id = self.listed(&domains, HELD + 1, "EBUSY")?;
        // Nothing has changed: it fails, and is kept under another number.
        let text = self.says(&["recover", &id], FAILED)?;
        ensure!(text.contains("remain swapped"), "printed: {text}");
        let next = self.listed(&domains, HELD + 1, "EBUSY")?;
        ensure!(next != id, "the number {id} was used again");
        drop(held);
        self.says(&["recover", &next], 0)?;
        for (domain, first) in domains.iter().zip([0xa00, 0xb00]) {
            let (seen, expected) = (domain.tags()?, contents(first));
            ensure!(seen == expected, "{seen:x?}, expected {expected:x?}");
        }
        self.none()
    }

    fn forget(&self) -> Result<()> {
        let domains = self.pair()?;
        let file = half(&domains)?;
        let numbers = [domains[0].domid(), domains[1].domid()];
        let [a, b] = domains;
        drop(b);
        drop(file);
        let text = self.says(&["records"], 0)?;
        let expected = format!(
            "domains {} and {}, swap: {DONE} of {FRAMES} pages are still swapped: ESRCH",
            numbers[0], numbers[1]
        );
        ensure!(text.contains(&expected), "{text}: no {expected:?}");
        let (_, id) = text.split_once("vmbeam forget ").context("no advice")?;
        let id: String = id.chars().take_while(char::is_ascii_digit).collect();
        self.says(&["forget", &id], 0)?;
        drop(a);
        self.none()
    }
}

fn contents(first: u64) -> Vec<u64> {
    (first..first + FRAMES).collect()
}

/// A file with half a move.
fn half([a, b]: &[Domain; 2]) -> Result<File> {
    let file = File::options().read(true).write(true).open(DEVICE)?;
    let mut open = sys::Bind {
        size: 32,
        domid_a: a.domid(),
        domid_b: b.domid(),
        ..Default::default()
    };
    race::ioctl(&file, sys::IOCTL_BIND, &mut open).context("BIND")?;
    let run = sys::Run {
        gfn_a: 0,
        gfn_b: 0,
        nr: FRAMES as u32,
        reserved: 0,
    };
    let mut add = sys::Add {
        size: 40,
        runs: &raw const run as u64,
        nr_runs: 1,
        ..Default::default()
    };
    race::ioctl(&file, sys::IOCTL_ADD, &mut add).context("ADD")?;
    let mut commit = sys::Commit {
        size: size_of::<sys::Commit>() as u32,
        nr: DONE,
        ..Default::default()
    };
    race::ioctl(&file, sys::IOCTL_COMMIT, &mut commit).context("COMMIT")?;
    ensure!(commit.swapped == DONE, "{commit:?}");
    Ok(file)
}
