// SPDX-License-Identifier: GPL-2.0-only

//! Documentation/troubleshooting.rst has an entry for every message.
//!
//! There is no list of messages to be kept: each text of several words in the sources is
//! one, unless it is given to something that says what goes well. What `{}` stands for in
//! code is `...` there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Calls whose texts are for when all is well, or name a part of another message.
const QUIET: &[&str] = &[
    "println!",
    "info!",
    "debug!",
    "register",
    "with_template",
    "seq_print!",
    "short",
    "name",
    "bounded",
];

/// What looks like a message and is the result of something that went well, a part
/// that says nothing alone, or for the eye.
const NO_MESSAGES: &[&str] = &[
    "  ... s, down for ... s, ... pages swapped..., ... copied, ... sent",
    "  to ...:",
    "... pages do not match",
    "... and ...",
    "... and ... more",
    "expected pause",
    "expected to stand still for ... s, as the one before",
    "CPUID ...:... ... bit ...",
    "... ... by domain ...",
    "MSR ... bit ...",
    "...: ... pairs a hypercall, ... pairs a session",
    "...; apt knows no newer one",
    "$... $... $... $...",
    "Xen ..........",
    "`... ...`",
    "`xl ...`",
    "..., can move guests",
    "agent of host VM ...",
    "identity of host VM ...",
    "proven: domain ..., UUID ...",
    "libxenctrl 4....",
    "toolstack of host VM ...",
    "completed: the guest runs in ...",
    "digests after",
    "digests before",
    "...; ...",
    "dry run",
    "dry run, nothing was changed",
    "dry run: ...",
    "dry run: ... pages can be swapped",
    "dry run: possible",
    "frame lists",
    "guest ... needs",
    "host VM ...: ...",
    "job ..., ... -> ...: ...",
    "migrated: ... pages swapped (... relocated), ... copied, down for ... s",
    "not begun",
    "not there any more",
    "nothing was changed",
    "everything was put back",
    "...name = \"...\"memory = ...maxmem = ...",
    "renaming host VM ... to ...",
    "put back",
    "see `vmbeam status`; the same command goes on from here",
    "every guest runs in one place; the same command goes on from here",
    "shut down",
    "# Written by `vmbeam init`. /usr/share/doc/vmbeam/examples/vmbeamd.toml has all that can be set.",
    "swapped ... pages",
    "swapping back",
    "cleaning up",
    "undone: ...",
    "the guest runs in ...",
    "... of ... guests moved",
    "guest ... (... of ...)",
    "vmbeam-agent ... on ..., memory ends at frame ...",
    "vmbeamd ..., protocol ...; this is vmbeam ...",
    " (everything was put back)",
    " (refused; nothing was changed)",
    "NOT done",
    "  and back:",
    " (for example frames ... and ...)",
    "(no guests)",
    "... -> ... (... of ...)",
    "...: ... ...",
    "...... ...",
    "GET /metrics is all there is",
    "200 OK",
    "404 Not Found",
    "HTTP/1.1 ...rContent-Type: ...rContent-Length: ...rConnection: closerr",
    "Exchange machine memory between two host VMs",
    "HOST VM",
    "VMBeam developers",
    "Pages of migrated guests by how they got there",
    "Pages that the host hypervisor would not swap by reason",
    "Seconds that completed migrations took by phase; downtime overlaps others",
    "Whether the agent of a host VM is connected",
    "Xen saved domain, xl format 0 r",
    "all guests together need",
    "all guests together",
    "guest ...",
    " (... of them given)",
    "... MiB, at most ...; all of it is there",
    "small: ... MiB, at most ...; a reserve of ... MiB for ... MiB that are not there...",
    ": start nothing in it",
    "memory of host VM ...",
    "Host VM ...: ...",
    "Pages of a host VM: had, max (may be had), reserve, missing (places without one)",
    "an unknown number of",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    "can swap frames",
    "can swap ... pairs a session",
    "driver, for vmbeamd",
    "half moves",
    "job ...",
    "In maintenance: ...",
    "No host VM is in maintenance.",
    "guest ...: ...",
    "network bridge",
    "kernel file",
    "clean up",
    "creating host VM ... from ...",
    "host VMs",
    "hypervisor's source",
    "save, restore",
    "shutting down host VM ...",
    "trap '' PIPE; exec ...; exec \"$@\"",
    "3<&0 </dev/null",
    "3>&1 >/dev/null",
    "vmbeam: ...",
    "vmbeam: cancelling; once more to leave",
    "vmbeam: cancelling; once more to leave the job to vmbeamd",
    "vmbeam: stopping after this step; once more to cancel it",
    "waiting for the agent of host VM ...",
    "following vmbeamd",
    "running a hook",
    "begins: ... ... -> ...",
    "ends, ......",
    "its agent is there",
    "its agent is gone...",
    "maintenance begins",
    "maintenance ends",
    "... events are missing here, as they were not read fast enough",
    "job ...: ",
    ": ...",
    "clocks of host VMs ...",
    "within a second of each other",
    "host VM ...: ",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Sources in a directory, without those of tests.
fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "c") {
            into.push(path);
        }
    }
}

/// With `...` for what differs each time, be it Rust's or C's.
fn general(text: &str) -> String {
    let text = text.replace("{{", "").replace("}}", "");
    let mut found = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => {
                depth += 1;
                found.push_str("...");
            }
            '}' => depth -= 1,
            c if depth == 0 => found.push(c),
            _ => {}
        }
    }
    for conversion in ["%llu", "%u", "%d", "%s"] {
        found = found.replace(conversion, "...");
    }
    found
}

/// All messages, with a file that has it.
fn messages() -> BTreeMap<String, PathBuf> {
    let mut files = Vec::new();
    let parts = [
        "agent",
        "agent-protocol",
        "cli",
        "control-protocol",
        "daemon",
        "uapi",
        "wire",
        "xen",
    ];
    for part in parts {
        sources(&top().join("userspace").join(part).join("src"), &mut files);
    }
    sources(&top().join("drivers/vmbeam"), &mut files);
    files.retain(|file| !file.ends_with("tests.rs"));
    let mut found = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
        for (call, text) in source::texts(code) {
            let text = general(&text);
            if text.trim().contains(' ') && !QUIET.contains(&call.as_str()) {
                found.insert(text, file.clone());
            }
        }
    }
    found
}

/// The entries of the page.
fn entries() -> BTreeSet<String> {
    let page = fs::read_to_string(top().join("Documentation/troubleshooting.rst")).unwrap();
    page.lines()
        .filter_map(|line| line.strip_prefix("| ``")?.strip_suffix("``"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_message_has_an_entry_and_every_entry_a_message() {
    let messages = messages();
    assert!(messages.len() > 200, "only {} found", messages.len());
    let entries = entries();
    let mut wrong = String::new();
    for (message, file) in &messages {
        if !entries.contains(message) && !NO_MESSAGES.contains(&message.as_str()) {
            let file = file.strip_prefix(top()).unwrap_or(file);
            wrong += &format!("{}: no entry: {message}\n", file.display());
        }
    }
    for text in entries
        .iter()
        .map(String::as_str)
        .chain(NO_MESSAGES.iter().copied())
    {
        if !messages.contains_key(text) {
            wrong += &format!("no program says: {text}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn what_differs_is_left_out() {
    assert_eq!(general("{}: {x:?}, {{y}}"), "...: ..., y");
    assert_eq!(general("record %llu: %d"), "record ...: ...");
}
