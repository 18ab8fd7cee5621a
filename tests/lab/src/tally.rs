// SPDX-License-Identifier: GPL-2.0-only

//! Counting what passed and what did not.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

/// Counts of all groups.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u32,
    failures: Vec<String>,
    skips: Vec<String>,
    /// Groups, and the seconds that each took.
    spent: Vec<(String, u64)>,
}

impl Tally {
    /// Note how long a group took.
    pub fn spent(&mut self, group: &str, time: Duration) {
        self.spent.push((group.into(), time.as_secs()));
    }

    /// Enter one result.
    pub fn enter(&mut self, group: &str, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                println!("ok - {group}: {name}");
                self.passed += 1;
            }
            Err(e) => {
                println!("not ok - {group}: {name}: {e:#}");
                // The closing lines may be all that is kept of a run.
                self.failures
                    .push(format!("{group}: {name}: {}", short(&e)));
            }
        }
    }

    /// Run a test function and enter its result.
    pub fn case(&mut self, group: &str, name: &str, test: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let result = test();
        let name = format!("{name} ({:.1} s)", start.elapsed().as_secs_f64());
        self.enter(group, &name, result);
    }

    fn skip(&mut self, group: &str, name: &str) {
        println!("ok - {group}: {name}");
        self.skips.push(format!("{group}: {name}"));
    }

    /// Enter the results in the output of a program that prints TAP or KTAP, or what
    /// Rust's test harness prints. A program with no result at all is a failure.
    pub fn lines(&mut self, group: &str, text: &str) {
        let before = self.total();
        let mut planned = None;
        let mut seen = 0;
        for line in text.lines() {
            let line = line.trim();
            if let Some(count) = line.strip_prefix("1..").and_then(|n| n.parse::<u32>().ok()) {
                planned = Some(count);
            } else if let Some(name) = line.strip_prefix("not ok ") {
                seen += 1;
                self.enter(group, clean(name), Err(anyhow::anyhow!("see above")));
            } else if let Some(name) = line.strip_prefix("ok ") {
                seen += 1;
                if name.contains("# SKIP") {
                    self.skip(group, clean(name));
                } else {
                    self.enter(group, clean(name), Ok(()));
                }
            } else if let Some((name, result)) = line
                .strip_prefix("test ")
                .and_then(|l| l.rsplit_once(" ... "))
            {
                match result.strip_prefix("ignored") {
                    Some(why) => self.skip(group, &format!("{name}{why}")),
                    None if result == "ok" => self.enter(group, name, Ok(())),
                    None => self.enter(group, name, Err(anyhow::anyhow!("{result}"))),
                }
            }
        }
        if self.total() == before {
            self.enter(
                group,
                "ran its tests",
                Err(anyhow::anyhow!("no result was printed")),
            );
        } else if planned.is_some_and(|count| count != seen) {
            self.enter(
                group,
                "ran all of its tests",
                Err(anyhow::anyhow!(
                    "{seen} of {} reported",
                    planned.unwrap_or_default()
                )),
            );
        }
    }

    /// Run a program here, show what it prints and enter its results.
    pub fn program(&mut self, group: &str, command: &mut Command) {
        self.printed(group, stream(command));
    }

    /// Enter the results of a program that ran.
    pub fn printed(&mut self, group: &str, printed: Result<(String, bool)>) {
        match printed {
            Ok((text, success)) => {
                let failures = self.failures.len();
                self.lines(group, &text);
                if !success && self.failures.len() == failures {
                    self.enter(group, "exit status", Err(anyhow::anyhow!("not 0")));
                }
            }
            Err(e) => self.enter(group, "start", Err(e)),
        }
    }

    fn total(&self) -> usize {
        self.passed as usize + self.failures.len() + self.skips.len()
    }

    /// Print the closing lines; true if nothing failed and something passed.
    pub fn close(&self) -> bool {
        for name in &self.skips {
            println!("skipped: {name}");
        }
        for name in &self.failures {
            println!("failed: {name}");
        }
        let spent = self.spent.iter().map(|(group, s)| format!("{group} {s} s"));
        println!("time: {}", spent.collect::<Vec<_>>().join(", "));
        let skipped = match self.skips.len() {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        println!(
            "{} passed, {} failed{skipped}",
            self.passed,
            self.failures.len()
        );
        self.failures.is_empty() && self.passed > 0
    }
}

/// The reason of a failure, on one line of a length that can be read.
fn short(error: &anyhow::Error) -> String {
    const LENGTH: usize = 600;
    let line = format!("{error:#}").replace('\n', " | ");
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

/// The description behind the number of a result, if it has one.
fn clean(name: &str) -> &str {
    let (number, rest) = name.split_once(' ').unwrap_or(("", name));
    let rest = if number.bytes().all(|b| b.is_ascii_digit()) || number == "-" {
        rest
    } else {
        name
    };
    rest.trim_start_matches("- ")
}

/// Run a command; its output, with standard error, and whether it succeeded.
pub fn stream(command: &mut Command) -> Result<(String, bool)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let Some(out) = child.stdout.take() else {
        bail!("no output");
    };
    let mut text = String::new();
    for line in BufReader::new(out).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        // Results are printed again, with their group, when they are entered.
        if !line.starts_with("ok ") && !line.starts_with("test ") {
            println!("    {line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text, child.wait()?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> (u32, usize, usize) {
        let mut tally = Tally::default();
        tally.lines("group", text);
        (tally.passed, tally.failures.len(), tally.skips.len())
    }

    #[test]
    fn results_are_counted() {
        assert_eq!(
            count("1..3\nok 1 - a\nok 2 b # SKIP why\nnot ok 3 - c\n"),
            (1, 1, 1)
        );
        assert_eq!(
            count("test a ... ok\ntest b ... FAILED\ntest c ... ignored\n"),
            (1, 1, 1)
        );
        assert_eq!(count("test a ... ignored, wants more\n"), (0, 0, 1));
    }

    #[test]
    fn silence_and_missing_results_are_failures() {
        assert_eq!(count("something else\n"), (0, 1, 0));
        assert_eq!(count("1..2\nok 1 - a\n"), (1, 1, 0));
    }

    #[test]
    fn numbers_are_taken_off() {
        for line in ["1 - name", "- name", "12 name", "name"] {
            assert_eq!(clean(line), "name");
        }
        assert_eq!(clean("- 0001-x.patch: applies"), "0001-x.patch: applies");
    }
}
