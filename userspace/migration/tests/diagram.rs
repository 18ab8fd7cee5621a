// SPDX-License-Identifier: GPL-2.0-only

//! The machine as Documentation/migration.rst draws it, drawn by the machine: which command
//! follows which, and why. With VMBEAM_WRITE_DIAGRAM set the drawing is replaced.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::path::Path;
use vmbeam_migration::{Command, Event, Memory, Presence, Seen, Side, State, Step, Why};

/// Where the drawing is.
const BEGIN: &str = ".. machine: begin\n";
const END: &str = ".. machine: end\n";

fn step(step: Step) -> &'static str {
    match step {
        Step::Stage => "STAGE",
        Step::Stream => "STREAM",
        Step::Swap { torn: false, .. } => "SWAP",
        Step::Swap { torn: true, .. } => "SWAP, torn",
        Step::Resume => "RESUME",
        Step::Destroy => "DESTROY",
    }
}

fn name(command: Command) -> String {
    let at = |side| match side {
        Side::Source => "in A",
        Side::Destination => "in B",
    };
    match command {
        Command::Write(s) => format!("write {}", step(s)),
        Command::Stage => "stage".into(),
        Command::Stream => "save and restore".into(),
        Command::Prepare => "find the pairs".into(),
        Command::Commit => "swap".into(),
        Command::Copy => "copy and verify".into(),
        Command::SwapBack => "swap back".into(),
        Command::Look => "look".into(),
        Command::Resume(side) => format!("let run {}", at(side)),
        Command::Destroy(side) => format!("destroy {}", at(side)),
        Command::Remove => "remove the record".into(),
        Command::Wait(why) => match why {
            Why::Failed => "wait: failed".into(),
            Why::Presence(side) => format!("wait: unknown {}", at(side)),
            Why::Memory => "wait: memory unknown".into(),
            Why::Torn => "wait: torn".into(),
        },
        Command::End(outcome) => format!("end: {outcome:?}"),
    }
}

fn seen() -> Vec<Event> {
    let hosts = [Presence::Up, Presence::Gone, Presence::Unknown];
    let memories = [
        Memory::Source,
        Memory::Destination,
        Memory::Torn,
        Memory::Unknown,
    ];
    let mut all = Vec::new();
    for source in hosts {
        for destination in hosts {
            for memory in memories {
                for (half, runs) in [(false, false), (false, true), (true, false), (true, true)] {
                    all.push(Event::Seen(Seen {
                        source,
                        destination,
                        memory,
                        half,
                        runs,
                    }));
                }
            }
        }
    }
    all
}

/// What can be answered to a command, and how that is called.
fn answers(command: Command) -> Vec<(&'static str, Vec<Event>)> {
    let prepared = [true, false].map(|copies| Event::Prepared { copies });
    let done = ("done", vec![Event::Done]);
    let failed = ("failed", vec![Event::Failed]);
    match command {
        Command::Write(_) | Command::Remove => {
            vec![done, failed, ("perhaps", vec![Event::Perhaps])]
        }
        Command::Prepare => vec![("done", prepared.into()), failed],
        Command::SwapBack => vec![done, failed, ("torn", vec![Event::Torn])],
        Command::Look => vec![("seen", seen()), failed],
        Command::Resume(_) => vec![done, failed, ("no guest", vec![Event::NoGuest])],
        Command::Wait(_) => vec![("in time", vec![Event::Done])],
        Command::End(_) => vec![],
        _ => vec![done, failed],
    }
}

/// Each command on the way forward, and each on another, with what follows.
fn draw() -> String {
    let swap = |torn| Step::Swap { copies: true, torn };
    let steps = [
        Step::Stage,
        Step::Stream,
        swap(false),
        swap(true),
        Step::Resume,
        Step::Destroy,
    ];
    let mut states = vec![
        State::new(true, true),
        State::new(true, false),
        State::new(false, false),
    ];
    states.extend(steps.map(State::recovered));
    let mut known: HashSet<State> = states.iter().copied().collect();
    let mut rows: Vec<(bool, String, &str)> = Vec::new();
    let mut next: Vec<BTreeSet<String>> = Vec::new();
    let mut at = 0;
    while at < states.len() {
        let state = states[at];
        at += 1;
        let command = state.command();
        for (answer, events) in answers(command) {
            let row = (!state.is_forward(), name(command), answer);
            let i = rows.iter().position(|r| *r == row).unwrap_or_else(|| {
                rows.push(row);
                next.push(BTreeSet::new());
                rows.len() - 1
            });
            for event in events {
                let then = state.step(event);
                next[i].insert(name(then.command()));
                if known.insert(then) {
                    states.push(then);
                }
            }
        }
    }
    let mut text = String::new();
    for (forward, title) in [(true, "forward"), (false, "undoing, or finding out")] {
        writeln!(text, "   {title}").unwrap();
        let mut last = "";
        for (row, next) in rows.iter().zip(&next).filter(|(r, _)| r.0 != forward) {
            let command = if row.1 == last { "" } else { &row.1 };
            last = &row.1;
            let mut answer = row.2;
            let mut command = command;
            for (i, follows) in next.iter().enumerate() {
                let more = if i + 1 < next.len() { "," } else { "" };
                writeln!(text, "     {command:<20} {answer:<9} -> {follows}{more}").unwrap();
                (command, answer) = ("", "");
            }
        }
    }
    text
}

#[test]
fn the_documentation_draws_the_machine() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Documentation/migration.rst");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (drawn, after) = rest.split_once(END).unwrap();
    let now = format!("\n::\n\n{}\n", draw());
    if std::env::var_os("VMBEAM_WRITE_DIAGRAM").is_some() {
        std::fs::write(&file, format!("{before}{BEGIN}{now}{END}{after}")).unwrap();
        return;
    }
    assert!(
        drawn == now,
        "run this test with VMBEAM_WRITE_DIAGRAM=1, and look at the difference"
    );
}
