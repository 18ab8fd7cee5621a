// SPDX-License-Identifier: GPL-2.0-only

//! An agent that lies about a guest's frames. All else is the product's own agent.

use std::io;
use std::io::Read;
use std::io::Write;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use vmbeam_agent::port;
use vmbeam_agent::port::Port;
use vmbeam_agent::Agent;
use vmbeam_agent::PORT_NAME;
use vmbeam_agent_protocol::{FrameRun, FromAgent};
use vmbeam_wire::{encode, Decoder};
use vmbeam_xen::PageKind;
use vmbeam_xen::Xen;

/// Pages that no guest here has, far behind all others.
const FAR: u64 = 1 << 24;
/// A frame that no host VM here has.
const BEYOND: u64 = 1 << 40;

/// What is told instead of the truth.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Lie {
    /// A frame is behind two pages.
    Twice,
    /// A frame is beyond the memory of the host VM.
    Beyond,
    /// Pages have other numbers than the guest gives them.
    Pages,
    /// Frames of another guest of this host VM.
    OtherGuest,
}

/// Answer the daemon, for ever. `other` is the guest whose frames are told.
pub fn lie(lie: Lie, other: u32) -> Result<()> {
    let mut frames = None;
    if matches!(lie, Lie::OtherGuest) {
        let pages = Xen::open()?.pages(other)?;
        let ordinary = pages.iter().filter(|p| p.kind == PageKind::Ordinary);
        let longest = ordinary.max_by_key(|p| p.nr).context("it has no pages")?;
        frames = Some((longest.gfn, u64::from(longest.nr)));
    }
    let mut port = Port::open(&port::find(PORT_NAME)?)?;
    let mut agent = Agent::new(Xen::open()?);
    loop {
        port.wait_for_host()?;
        let mut liar = Liar {
            port: &mut port,
            decoder: Decoder::strict(),
            lie,
            frames,
        };
        if let Err(e) = agent.serve(&mut liar) {
            println!("dropped the conversation: {e}");
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// The port, behind somebody who changes frame lists.
struct Liar<'a> {
    port: &'a mut Port,
    decoder: Decoder,
    lie: Lie,
    frames: Option<(u64, u64)>,
}

impl Liar<'_> {
    /// Change a list whose beginning this is.
    fn change(&self, runs: &mut Vec<FrameRun>) {
        let [first, .., last] = &mut runs[..] else {
            return;
        };
        match (self.lie, self.frames) {
            (Lie::Twice, _) => last.gfn = first.gfn,
            (Lie::Beyond, _) => first.gfn = BEYOND,
            (Lie::Pages, _) => last.pfn += FAR,
            (Lie::OtherGuest, Some((gfn, most))) => {
                let nr = u64::from(first.nr).min(most);
                let rest = FrameRun {
                    pfn: first.pfn + nr,
                    gfn: first.gfn + nr,
                    // At most what it was.
                    nr: first.nr - nr as u32,
                };
                (first.gfn, first.nr) = (gfn, nr as u32);
                if rest.nr > 0 {
                    runs.insert(1, rest);
                }
            }
            (Lie::OtherGuest, None) => {}
        }
    }
}

impl Read for Liar<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.port.read(buf)
    }
}

impl Write for Liar<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.decoder.push(buf);
        while let Some(frame) = self.decoder.next_frame().map_err(io::Error::other)? {
            let mut message = frame.decode().map_err(io::Error::other)?;
            if let FromAgent::FramesChunk { runs, .. } = &mut message {
                self.change(runs);
            }
            let bytes = encode(frame.request, frame.session, &message).map_err(io::Error::other)?;
            self.port.write_all(&bytes)?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.port.flush()
    }
}
