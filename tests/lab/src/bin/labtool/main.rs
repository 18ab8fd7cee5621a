// SPDX-License-Identifier: GPL-2.0-only

//! What the lab needs inside its machines, in one program.

mod aio;
mod carry;
mod catch;
mod disk;
mod exec;
mod fill;
mod frames;
mod grant;
mod lie;
mod meter;
mod net;
mod provide;
mod talk;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(about = "The lab's helper inside its machines")]
enum Tool {
    /// Run commands that arrive as JSON lines on a port.
    Exec {
        /// Name of this machine, told to the harness.
        #[arg(long)]
        name: String,
        /// Name of the virtio-serial port, or path of another device.
        #[arg(long)]
        port: String,
    },
    /// Fill memory with a pattern and check it for ever.
    Fill(fill::Arguments),
    /// Answer a guest that `fill` with `--talk-to` runs in.
    Listen {
        /// Address to listen on.
        address: String,
    },
    /// Send standard input to a TCP connection or to standard output, and count it.
    Carry {
        /// Where the other side listens.
        address: Option<String>,
    },
    /// Stop a process when another one has printed something.
    Catch(catch::Arguments),
    /// Put the time before each line.
    Stamp,
    /// Send bytes to `net-recv` and print the seconds that it took.
    NetSend {
        /// Where `net-recv` listens.
        address: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Receive one transfer of `net-send`.
    NetRecv {
        /// Address to listen on.
        address: String,
    },
    /// Give a restored guest the memory that its saved state lacks, by copying.
    ProvideMemory(provide::Arguments),
    /// Grant a page to another domain, for as long as this runs; prints the reference.
    Share {
        /// Domid of the other domain.
        #[arg(long)]
        with: u16,
    },
    /// Map a page that the management VM has granted, for as long as this runs.
    MapShared {
        /// What `share` has printed.
        reference: u32,
    },
    /// Be an agent that lies about the frames of guests.
    Lie {
        /// How.
        how: lie::Lie,
        /// Domid of the guest whose frames are told instead.
        #[arg(long, default_value_t = 0)]
        other: u32,
    },
    /// Remember the host's M2P table and frames of both host VMs.
    FramesSave(frames::Arguments),
    /// Compare with what `frames-save` remembered.
    FramesCompare(frames::Arguments),
    /// Print the domid and the number of pages of each domain.
    Pages,
}

fn main() -> Result<()> {
    match Tool::parse() {
        Tool::Exec { name, port } => exec::exec(&name, &port),
        Tool::Fill(arguments) => fill::fill(arguments),
        Tool::Listen { address } => talk::listen(&address),
        Tool::Carry { address } => carry::carry(address.as_deref()),
        Tool::Catch(arguments) => catch::catch(&arguments),
        Tool::Stamp => carry::stamp(),
        Tool::NetSend { address, bytes } => net::send(&address, bytes),
        Tool::NetRecv { address } => net::receive(&address),
        Tool::ProvideMemory(arguments) => provide::provide(&arguments),
        Tool::Share { with } => grant::share(with),
        Tool::MapShared { reference } => grant::map(reference),
        Tool::Lie { how, other } => lie::lie(how, other),
        Tool::FramesSave(arguments) => frames::save(&arguments),
        Tool::FramesCompare(arguments) => frames::compare(&arguments),
        Tool::Pages => frames::pages(),
    }
}
