// SPDX-License-Identifier: GPL-2.0-only

//! One TCP connection of a guest VM to the host management VM, which is to survive
//! whatever happens to the guest: numbers go there and back, none missing, none
//! twice.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use serde_json::json;

use crate::meter::wait_for;
use crate::meter::Meter;

/// Numbers that are sent at once.
const NUMBERS: usize = 128;
const BLOCK: usize = NUMBERS * 8;

/// Blocks that are under way at most.
const WINDOW: usize = 8;

/// The network of the lab moves some dozens of packets in a second.
const PAUSE: Duration = Duration::from_millis(50);

fn block(first: u64) -> Vec<u8> {
    (first..first + NUMBERS as u64)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// Talk for ever, once the other side can be reached.
pub fn talk(address: &str, meter: &Meter) -> Result<()> {
    let mut stream = wait_for(|| TcpStream::connect(address).ok());
    stream.set_nodelay(true)?;
    let mut reader = stream.try_clone()?;
    let (sent, under_way) = mpsc::sync_channel::<Vec<u8>>(WINDOW);
    let writer = thread::spawn(move || -> Result<()> {
        for first in (0..).step_by(NUMBERS) {
            let block = block(first);
            stream.write_all(&block).context("cannot send")?;
            sent.send(block).context("nobody waits for the answer")?;
            thread::sleep(PAUSE);
        }
        Ok(())
    });
    let mut ticks = meter.ticks();
    let mut answer = vec![0; BLOCK];
    while let Ok(block) = under_way.recv() {
        reader.read_exact(&mut answer).context("no answer")?;
        if answer != block {
            bail!("after {} blocks, another one came back", meter.done());
        }
        ticks.tick();
    }
    match writer.join() {
        Ok(result) => result,
        Err(_) => bail!("the sender panicked"),
    }
}

/// The other side: accept connections, answer, and report each second what there was.
pub fn listen(address: &str) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("LISTENING");
    for (number, stream) in (1..).zip(listener.incoming()) {
        let meter: &'static Meter = Box::leak(Box::new(Meter::new()));
        let stream = stream?;
        meter.watch(move |meter| answer(stream, meter));
        thread::spawn(move || loop {
            thread::sleep(Duration::from_secs(1));
            let report = json!({
                "connection": number,
                "blocks": meter.done(),
                "gap_ms": meter.take_gap_ms(),
                "fault": meter.fault(),
            });
            println!("{report}");
            if meter.fault().is_some() {
                break;
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, meter: &Meter) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut ticks = meter.ticks();
    let mut got = vec![0; BLOCK];
    for first in (0..).step_by(NUMBERS) {
        stream.read_exact(&mut got).context("the guest is gone")?;
        if got != block(first) {
            bail!("instead of the block of {first} came another one");
        }
        stream.write_all(&got).context("cannot answer")?;
        ticks.tick();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (there, listener.accept().unwrap().0)
    }

    #[test]
    fn listener_finds_a_block_that_is_missing() {
        let (mut guest, host) = pair();
        guest.write_all(&block(0)).unwrap();
        guest.write_all(&block(2 * NUMBERS as u64)).unwrap();
        let error = answer(host, &Meter::new()).unwrap_err().to_string();
        assert_eq!(error, "instead of the block of 128 came another one");
    }

    #[test]
    fn guest_finds_an_answer_that_came_twice() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let guest = thread::spawn(move || talk(&address, &Meter::new()));
        let mut host = listener.accept().unwrap().0;
        host.write_all(&block(0)).unwrap();
        host.write_all(&block(0)).unwrap();
        let error = guest.join().unwrap().unwrap_err().to_string();
        assert_eq!(error, "after 1 blocks, another one came back");
    }

    #[test]
    fn guest_finds_a_connection_that_broke() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let guest = thread::spawn(move || talk(&address, &Meter::new()));
        drop(listener.accept().unwrap());
        assert!(guest.join().unwrap().is_err());
    }
}
