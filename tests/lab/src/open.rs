// SPDX-License-Identifier: GPL-2.0-only

//! `make lab`: the topology, open to a person.

use std::io::IsTerminal;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use crate::machine::socket;
use crate::progress::Progress;
use crate::topology::Sizes;
use crate::topology::Topology;

/// Of one command of a script.
const LIMIT: Duration = Duration::from_secs(1800);

/// Boot, then hand the terminal to the host's console until the person leaves it.
pub fn run(sizes: Sizes, progress: &Progress) -> Result<()> {
    let (topology, _) = Topology::boot(sizes, progress)?;
    println!(
        "\nThe lab is up. This terminal becomes the console of the host management VM.\n\n\
         \x20 on it:         xl list, vmbeam check, vmbeam list, vmbeam swap --help\n\
         \x20 console A      the guest management VM of host VM A (or B); leave it with Ctrl-^\n\
         \x20 xl console guest   in there: the guest VM; leave it with Ctrl-]\n\
         \x20 Ctrl-\\         here: stop the lab\n"
    );
    if std::io::stdin().is_terminal() {
        Command::new("socat")
            .arg("-,raw,echo=0,escape=0x1c")
            .arg(format!("UNIX-CONNECT:{}", socket("console").display()))
            .status()
            .context("cannot start socat")?;
    } else {
        println!("Each line is run where its first word says: host, A or B.");
        for line in std::io::stdin().lines() {
            obey(&topology, &line?);
        }
    }
    println!("\nThe lab is stopped; its logs are in build/logs/.");
    Ok(())
}

/// Run a line's command in the machine that it names, and print what comes of it.
fn obey(topology: &Topology, line: &str) {
    let machine = &topology.machine;
    let (place, command) = line.split_once(' ').unwrap_or((line, ""));
    let channel = match place {
        "host" => &machine.host,
        "A" | "B" => machine.vm(place),
        _ => return println!("{line:?} does not begin with host, A or B"),
    };
    let started = Instant::now();
    match channel.run(command, LIMIT) {
        Ok(output) => println!(
            "{}[{place}: status {} after {:.3} s]",
            output.text,
            output.code,
            started.elapsed().as_secs_f64()
        ),
        Err(e) => println!("[{place}: {e:#}]"),
    }
}
