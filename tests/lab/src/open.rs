// SPDX-License-Identifier: GPL-2.0-only

//! `make lab`: the topology, open to a person.

use std::io::IsTerminal;
use std::io::Read;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::machine::socket;
use crate::progress::Progress;
use crate::topology::Sizes;
use crate::topology::Topology;

/// Boot, then hand the terminal to the host's console until the person leaves it.
pub fn run(sizes: Sizes, progress: &Progress) -> Result<()> {
    let (_topology, _) = Topology::boot(sizes, progress)?;
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
        println!("Standard input is no terminal: the lab stops when it is closed.");
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    println!("\nThe lab is stopped; its logs are in build/logs/.");
    Ok(())
}
