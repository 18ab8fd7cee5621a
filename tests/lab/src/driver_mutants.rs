// SPDX-License-Identifier: GPL-2.0-only

//! Drivers with one defect each, in plain VMs: the tests that run on the driver's model of
//! a hypervisor must find every one, as they are worth no more than what they can find.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;

use crate::channel::last_lines;
use crate::driver::Amount;
use crate::driver::FEW_AIDS;
use crate::images;
use crate::mock;
use crate::paths;
use crate::tally::Tally;

const GROUP: &str = "driver-mutants";

/// How many are tried at the same time, each in a directory of its own.
pub const LANES: usize = 2;

/// One line of the list.
#[derive(Clone, Debug)]
struct Mutant {
    name: String,
    /// Name of the file without its directory: files move.
    file: String,
    /// For `sed -E`.
    expression: String,
    /// No test can find it.
    equivalent: bool,
}

/// What the tests said.
enum Verdict {
    /// The first failure.
    Found(String),
    /// Nothing more, from some test on.
    Silent(String),
    Survived,
}

/// Try the mutants of these names, or all; true if all are found.
pub fn run(names: &[String], lanes: usize) -> Result<bool> {
    let mut tally = Tally::default();
    let (all, survived) = try_all(&mut tally, names, lanes)?;
    let good = tally.close();
    println!("{all} mutants, {survived} survived");
    Ok(good)
}

/// As a group of `make check-long`.
pub fn check(tally: &mut Tally) {
    match try_all(tally, &[], LANES) {
        Ok((all, survived)) => println!("    {all} mutants, {survived} survived"),
        Err(e) => tally.enter(GROUP, "the mutants are tried", Err(e)),
    }
}

/// Enter a result for each; how many should be found, and how many of them were not.
fn try_all(tally: &mut Tally, names: &[String], lanes: usize) -> Result<(usize, usize)> {
    let mutants = list(Path::new("/src"))?;
    for name in names {
        ensure!(
            mutants.iter().any(|mutant| mutant.name == *name),
            "there is no mutant {name}"
        );
    }
    let mutants: Vec<_> = mutants
        .into_iter()
        .filter(|mutant| names.is_empty() || names.contains(&mutant.name))
        .collect();
    if paths::driver_mutants().exists() {
        fs::remove_dir_all(paths::driver_mutants())?;
    }
    images::driver_mutants()?;
    if let Verdict::Found(what) | Verdict::Silent(what) = attempt(0, None)? {
        bail!("without any defect: {what}");
    }
    println!("    without any defect nothing is found");

    let (mut all, mut survived) = (0, 0);
    let mut enter = |mutant: &Mutant, verdict, start: Instant| {
        let result = judge(mutant, verdict);
        if !mutant.equivalent {
            all += 1;
            survived += usize::from(result.is_err());
        }
        let (name, time) = (&mutant.name, start.elapsed().as_secs());
        match result {
            Ok(how) => tally.enter(GROUP, &format!("{name}: {how} ({time} s)"), Ok(())),
            Err(e) => tally.enter(GROUP, &format!("{name} ({time} s)"), Err(e)),
        }
    };
    let mut silent = Vec::new();
    let queue = Mutex::new(mutants.iter());
    let next = || queue.lock().ok()?.next();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for lane in 0..lanes {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(mutant) = next() {
                    let start = Instant::now();
                    let verdict = attempt(lane, Some(mutant));
                    // Fails only when nobody wants to know any more.
                    let _ = sender.send((mutant, verdict, start));
                }
            });
        }
        drop(sender);
        for (mutant, verdict, start) in receiver {
            match verdict {
                Ok(Verdict::Silent(how)) => silent.push((mutant, how)),
                verdict => enter(mutant, verdict, start),
            }
        }
    });
    // A machine that is slow, or the emulator, silences tests as well: once more, alone.
    let mut twice = 0;
    for (mutant, how) in silent {
        println!("    {}: {how}; once more", mutant.name);
        let start = Instant::now();
        let verdict = attempt(0, Some(mutant));
        twice += usize::from(matches!(verdict, Ok(Verdict::Silent(_))));
        enter(mutant, verdict, start);
    }
    println!("    {twice} were found by silence, twice");
    Ok((all, survived))
}

/// How a mutant was found, or that it was rightly said that it cannot be.
fn judge(mutant: &Mutant, verdict: Result<Verdict>) -> Result<String> {
    match (verdict?, mutant.equivalent) {
        (Verdict::Found(how) | Verdict::Silent(how), false) => Ok(how),
        (Verdict::Survived, false) => bail!("survived"),
        (Verdict::Survived, true) => Ok("survived, as the list says".into()),
        (Verdict::Found(how) | Verdict::Silent(how), true) => {
            bail!("the list says that no test finds it: {how}")
        }
    }
}

/// The list, `tests/driver/mutants.txt`.
fn list(top: &Path) -> Result<Vec<Mutant>> {
    let text = fs::read_to_string(top.join("tests/driver/mutants.txt"))?;
    let mut mutants: Vec<Mutant> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (fields, equivalent) = match line.split_once("\tequivalent: ") {
            Some((fields, _)) => (fields, true),
            None => (line, false),
        };
        let [name, file, expression] = fields.split('\t').collect::<Vec<_>>()[..] else {
            bail!("not a mutant: {line}");
        };
        ensure!(
            mutants.iter().all(|other| other.name != name),
            "two mutants are called {name}"
        );
        mutants.push(Mutant {
            name: name.into(),
            file: file.into(),
            expression: expression.into(),
            equivalent,
        });
    }
    Ok(mutants)
}

/// Build the driver, with a defect or without, in a lane of its own and run its tests.
fn attempt(lane: usize, mutant: Option<&Mutant>) -> Result<Verdict> {
    let source = paths::driver_mutants().join(lane.to_string());
    if !source.exists() {
        copy(Path::new("/src"), &source)?;
    }
    let module = match mutant {
        Some(mutant) => {
            let (file, before) = mutate(&source, mutant)?;
            let module = build(&source);
            // It is newer than what was built, so the next build takes it again.
            fs::write(file, before)?;
            module?
        }
        None => build(&source)?,
    };
    let image = format!("driver-mutant-{lane}");
    images::driver_mutant(&module, &image)?;
    let (text, output) = mock::start(&image, &Amount::MUTANTS, FEW_AIDS, &[])?;
    if !text.contains("BEGIN ") {
        let why = String::from_utf8_lossy(&output.stderr);
        let what = format!("the VM did not come up: {}, {}", output.status, why.trim());
        return Ok(Verdict::Silent(what));
    }
    Ok(verdict(&text))
}

/// The parts of the tree that the driver is built from.
fn copy(top: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let parts = ["Kbuild", "drivers", "rust"].map(|part| top.join(part));
    let status = Command::new("cp").arg("-r").args(parts).arg(to).status()?;
    ensure!(status.success(), "the driver cannot be copied");
    Ok(())
}

/// Put a defect into a copy; which file that is in, and what this was before.
fn mutate(source: &Path, mutant: &Mutant) -> Result<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    files(source, &mutant.file, &mut found)?;
    ensure!(found.len() == 1, "files of that name: {found:?}");
    let file = found.remove(0);
    let before = fs::read(&file)?;
    let output = Command::new("sed")
        .args(["-E", &mutant.expression])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "sed cannot read the expression");
    ensure!(output.stdout != before, "the expression changes nothing");
    fs::write(&file, output.stdout)?;
    Ok((file, before))
}

/// Files of that name which are compiled into the driver.
fn files(directory: &Path, name: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                files(&path, name, found)?;
            }
        } else if path.ends_with(name) {
            found.push(path);
        }
    }
    Ok(())
}

fn build(source: &Path) -> Result<PathBuf> {
    let output = Command::new("make")
        .args(["-s", "-C", "build/kernel/kdir", "VMBEAM_DEBUG=y"])
        .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
        .arg(format!("M={}", source.display()))
        .arg("modules")
        .output()?;
    ensure!(
        output.status.success(),
        "it does not build: {}",
        last_lines(&String::from_utf8_lossy(&output.stderr), 20)
    );
    Ok(source.join("drivers/vmbeam/vmbeam.ko"))
}

/// What shows that something is wrong, in what a VM printed.
fn verdict(text: &str) -> Verdict {
    if text.lines().any(|line| line == "PASSED") {
        return Verdict::Survived;
    }
    let found = text.lines().find_map(|line| line.strip_prefix("FOUND "));
    // A driver that lets the kernel panic, or hang, is found as well.
    let panic = || text.lines().find(|line| line.contains("Kernel panic"));
    let part = || {
        text.lines()
            .rev()
            .find_map(|line| line.strip_prefix("BEGIN "))
    };
    let during = |what: &str| format!("{what}, in {}", part().unwrap_or("no test"));
    match (found, panic()) {
        (Some(found), _) => Verdict::Found(found.to_owned()),
        (_, Some(panic)) => Verdict::Silent(during(panic)),
        _ => Verdict::Silent(during("the machine hangs")),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// How many the issue wants at least.
    const ENOUGH: usize = 60;

    #[test]
    fn the_list_fits_the_driver() {
        let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let mutants = list(top).unwrap();
        let wanted = mutants.iter().filter(|mutant| !mutant.equivalent);
        assert!(wanted.count() >= ENOUGH);

        let copied = std::env::temp_dir().join(format!("driver-mutants-{}", std::process::id()));
        copy(top, &copied).unwrap();
        for mutant in mutants {
            let changed = mutate(&copied, &mutant).context(mutant.name);
            let (file, before) = changed.unwrap();
            fs::write(file, before).unwrap();
        }
        fs::remove_dir_all(&copied).unwrap();
    }

    #[test]
    fn failures_panics_and_silence_are_told_apart() {
        let said = |text| match verdict(text) {
            Verdict::Survived => "survived".to_owned(),
            Verdict::Found(how) => format!("found: {how}"),
            Verdict::Silent(how) => format!("silent: {how}"),
        };
        assert_eq!(said("BEGIN a\nEND 0\nPASSED\n"), "survived");
        assert_eq!(
            said("BEGIN a\nnot ok 1 x\nFOUND a: not ok 1 x\n"),
            "found: a: not ok 1 x"
        );
        assert_eq!(
            said("BEGIN a\nBEGIN b\nKernel panic - why\n"),
            "silent: Kernel panic - why, in b"
        );
        assert_eq!(
            said("BEGIN a\nEND 0\nBEGIN b\n"),
            "silent: the machine hangs, in b"
        );
    }
}
