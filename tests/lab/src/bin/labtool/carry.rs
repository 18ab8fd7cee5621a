// SPDX-License-Identifier: GPL-2.0-only

//! A transport for what `xl save` writes, and when it said what.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Result;

use crate::meter::wait_for;

/// Standard input to a TCP connection, once the other side listens; the bytes are counted on standard error.
pub fn carry(address: &str) -> Result<()> {
    let mut stream = wait_for(|| TcpStream::connect(address).ok());
    // Not the standard library's handle, which has a buffer.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let bytes = io::copy(&mut input, &mut stream)?;
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
