// SPDX-License-Identifier: GPL-2.0-only

//! The driver's trace events, with the programs that people record them with: in a
//! plain VM, on the model of a hypervisor, while one selftest runs.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::driver::Amount;
use crate::images;
use crate::mock;
use crate::tally::Tally;

const GROUP: &str = "tracing";

/// bpftrace's compiler does not fit into what the other plain VMs have.
const MEMORY: &[&str] = &["-m", "3072"];

/// What `vmbeam_half -t record_and_adopt` makes the driver do: how often each event
/// comes. Half a move is kept, tried again, kept again, and undone.
const EVENTS: [(&str, usize); 4] = [
    ("vmbeam_batch_begin:", 8),
    ("vmbeam_batch_end:", 8),
    ("vmbeam_refused:", 4),
    ("vmbeam_record:", 2),
];

/// Run it.
pub fn run(tally: &mut Tally) {
    let booted =
        images::tracing().and_then(|()| mock::boot("tracing", &Amount::COVERAGE, "", MEMORY));
    let text = match booted {
        Ok(text) => text,
        Err(e) => return tally.enter(GROUP, "a plain VM boots", Err(e)),
    };
    for program in ["perf", "trace-cmd"] {
        tally.case(GROUP, &format!("{program} records every event"), || {
            let output = part(&text, program)?;
            for (event, expected) in EVENTS {
                let lines = output.lines().filter(|l| l.contains(event));
                // perf says `vmbeam:` before an event's name, and all say its fields.
                let found = lines.filter(|l| l.contains("domid_a=")).count();
                ensure!(found == expected, "{found} of {expected} {event} {output}");
            }
            Ok(())
        });
    }
    tally.case(GROUP, "bpftrace times the batches", || {
        let output = part(&text, "bpftrace")?;
        ensure!(
            output.contains("@batches: 8") && output.contains("@us:"),
            "printed: {output}"
        );
        Ok(())
    });
}

/// What a program printed, which must have ended well.
fn part<'a>(text: &'a str, program: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(&format!("BEGIN {program}\n"))
        .with_context(|| format!("{program} did not run"))?;
    let (output, end) = rest.split_once("END ").context("it did not end")?;
    ensure!(end.starts_with("0\n"), "it failed: {output}");
    Ok(output)
}
