// SPDX-License-Identifier: GPL-2.0-only

//! A plain transfer over the virtual network, timed.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use serde_json::json;

const CHUNK: usize = 1 << 20;

/// Send bytes and wait until the receiver has them all.
pub fn send(address: &str, bytes: u64) -> Result<()> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    let buffer = vec![0x5a_u8; CHUNK];
    let start = Instant::now();
    stream.write_all(&bytes.to_le_bytes())?;
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK as u64) as usize;
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    // The receiver answers when it has everything.
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let seconds = start.elapsed().as_secs_f64();
    if u64::from_le_bytes(answer) != bytes {
        bail!(
            "the receiver counted {} bytes instead of {bytes}",
            u64::from_le_bytes(answer)
        );
    }
    println!("{}", json!({ "bytes": bytes, "seconds": seconds }));
    Ok(())
}

/// Take one transfer.
pub fn receive(address: &str) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("LISTENING");
    let (mut stream, _) = listener.accept()?;
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    let bytes = u64::from_le_bytes(header);
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    while got < bytes {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            bail!("the sender closed after {got} of {bytes} bytes");
        }
        got += n as u64;
    }
    stream.write_all(&got.to_le_bytes())?;
    Ok(())
}
