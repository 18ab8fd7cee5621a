// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam swap`

use crate::client::{Client, ClientError};
use crate::display::Display;
use crate::exit;
use crate::output;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{FromDaemon, Seconds, SwapCounts, SwapReport, SwapRequest, ToDaemon};

/// The report of a swap.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Swap")]
pub(crate) struct Json<'a> {
    /// The first guest, as HOST_VM/GUEST.
    from: String,
    /// The second guest.
    to: String,
    /// Nothing was changed because nothing was to be.
    dry_run: bool,
    /// Memory of the first guest.
    guest_mib: u64,
    /// Pages that either guest has.
    pages_listed: u64,
    /// Pages that changed places; in a dry run, that would have.
    pages_swapped: u64,
    /// Pages that did not, by reason.
    pages_refused: &'a BTreeMap<String, u64>,
    /// Some pairs of frames that the hypervisor refused.
    refused_examples: Vec<Example<'a>>,
    /// Swapped pages found to be right on both sides.
    pages_verified: u64,
    /// Pages that were not swapped and are unchanged, counted on each side.
    unmoved_verified: u64,
    /// Pages that are not what they should be.
    mismatches: u64,
    /// Some of them.
    mismatch_examples: &'a [u64],
    /// Runs handed to the driver.
    runs: u64,
    /// What took how long.
    seconds: &'a Seconds,
    #[serde(flatten)]
    counts: SwapCounts,
    /// Messages to and from both agents.
    wire_messages: u64,
    /// Their bytes.
    wire_bytes: u64,
}

/// A refused pair of frames.
#[derive(Serialize, JsonSchema)]
struct Example<'a> {
    /// Why.
    reason: &'a str,
    /// Frame of the first host VM.
    gfn_from: u64,
    /// Frame of the second one.
    gfn_to: u64,
}

impl<'a> From<&'a SwapReport> for Json<'a> {
    fn from(r: &'a SwapReport) -> Self {
        Self {
            from: r.from.to_string(),
            to: r.to.to_string(),
            dry_run: r.dry_run,
            guest_mib: r.guest_mib,
            pages_listed: r.pages_listed,
            pages_swapped: r.pages_swapped,
            pages_refused: &r.pages_refused,
            refused_examples: r
                .refused_examples
                .iter()
                .map(|(reason, a, b)| Example {
                    reason,
                    gfn_from: *a,
                    gfn_to: *b,
                })
                .collect(),
            pages_verified: r.pages_verified,
            unmoved_verified: r.unmoved_verified,
            mismatches: r.mismatches,
            mismatch_examples: &r.mismatch_examples,
            runs: r.runs,
            seconds: &r.seconds,
            counts: r.counts,
            wire_messages: r.traffic.messages,
            wire_bytes: r.traffic.bytes,
        }
    }
}

fn print(r: &SwapReport, verify: bool) {
    let refused: u64 = r.pages_refused.values().sum();
    if r.dry_run {
        println!("{} <-> {}: dry run, nothing was changed", r.from, r.to);
        println!(
            "  could swap      {} of {} pages",
            r.pages_swapped, r.pages_listed
        );
    } else {
        println!("{} <-> {}: swapped", r.from, r.to);
        println!(
            "  swapped         {} of {} pages",
            r.pages_swapped, r.pages_listed
        );
    }
    println!("  stay            {refused} pages");
    for (reason, nr) in &r.pages_refused {
        println!("    {nr:>9} {}", reason.replace('_', " "));
    }
    for (reason, a, b) in &r.refused_examples {
        println!(
            "    for example frames {a:#x} and {b:#x}: {}",
            reason.replace('_', " ")
        );
    }
    if r.dry_run {
        return;
    }
    println!("  swap            {:.6} s", r.seconds.commit);
    println!("  whole job       {:.3} s", r.seconds.total);
    println!("  hypercalls      {}", r.counts.hypercalls);
    println!("  TLB flushes     {}", r.counts.tlb_flushes);
    println!("  P2M entries     {} written", r.counts.p2m_writes);
    println!(
        "  superpages      {} exchanged whole, {} split, {} put together",
        r.counts.superpages, r.counts.splits, r.counts.merges
    );
    println!(
        "  agent traffic   {} messages, {} bytes",
        r.traffic.messages, r.traffic.bytes
    );
    if verify {
        println!(
            "  verified        {} swapped pages on both sides",
            r.pages_verified
        );
        println!("                  {} pages that stayed", r.unmoved_verified);
        println!("  mismatches      {}", r.mismatches);
        for pfn in &r.mismatch_examples {
            println!("    for example page {pfn:#x}");
        }
    }
}

pub(crate) fn run(
    client: Client,
    request: SwapRequest,
    runs: Option<&Path>,
    json: bool,
) -> Result<ExitCode, ClientError> {
    let verify = request.verify;
    let mut display = Display::new();
    let last = client.ask(&ToDaemon::Swap(request), |part| {
        if let FromDaemon::Progress { phase, done, total } = part {
            display.show(*phase, *done, *total);
        }
    });
    display.clear();
    let FromDaemon::Swapped(report) = last? else {
        return Err(ClientError::Unexpected);
    };
    if let Some(path) = runs {
        std::fs::write(path, serde_json::to_vec(&report.run_list)?).map_err(|error| {
            ClientError::Write {
                path: path.to_owned(),
                error,
            }
        })?;
    }
    if json {
        output::json(&Json::from(&*report))?;
    } else {
        print(&report, verify);
    }
    Ok(if report.mismatches == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FAILED)
    })
}
