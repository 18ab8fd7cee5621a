// SPDX-License-Identifier: GPL-2.0-only

//! A transport for what `xl save` writes, and when it said what.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Result;

use crate::meter::wait_for;

const BLOCK: u64 = 1 << 20;

/// Standard input to a TCP connection, once the other side listens, or to standard output;
/// the bytes are counted on standard error.
pub fn carry(address: Option<&str>) -> Result<()> {
    let mut output: Box<dyn Write> = match address {
        Some(address) => Box::new(wait_for(|| TcpStream::connect(address).ok())),
        None => Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
    };
    // Not the standard library's handles, which have buffers, nor its copy, which splices page by
    // page: the virtual network wants large writes.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut block = Vec::new();
    let mut bytes = 0;
    while Read::by_ref(&mut input)
        .take(BLOCK)
        .read_to_end(&mut block)?
        > 0
    {
        output.write_all(&block)?;
        bytes += block.len();
        block.clear();
    }
    eprintln!("CARRIED {bytes}");
    Ok(())
}

/// Each line of standard input with the seconds since this was started.
pub fn stamp() -> Result<()> {
    let start = Instant::now();
    for line in io::stdin().lines() {
        println!("{:.3} {}", start.elapsed().as_secs_f64(), line?);
    }
    Ok(())
}
