// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam swap`

use crate::client::{Client, ClientError};
use crate::display::Display;
use crate::exit;
use crate::output;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use vmbeam_control_protocol::{FromDaemon, Seconds, SwapCounts, SwapReport, SwapRequest, ToDaemon};

/// The report as JSON: names as people write them.
#[derive(Serialize)]
struct Json<'a> {
    from: String,
    to: String,
    dry_run: bool,
    guest_mib: u64,
    pages_listed: u64,
    pages_swapped: u64,
    pages_refused: &'a BTreeMap<String, u64>,
    refused_examples: Vec<Example<'a>>,
    pages_verified: u64,
    unmoved_verified: u64,
    mismatches: u64,
    mismatch_examples: &'a [u64],
    runs: u64,
    seconds: &'a Seconds,
    #[serde(flatten)]
    counts: SwapCounts,
    wire_messages: u64,
    wire_bytes: u64,
}

/// A refused pair of frames.
#[derive(Serialize)]
struct Example<'a> {
    reason: &'a str,
    gfn_from: u64,
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
