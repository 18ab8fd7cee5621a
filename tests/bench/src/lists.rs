// SPDX-License-Identifier: GPL-2.0-only

//! What a frame list costs on its way from both guest hypervisors to the hypercall, by the
//! size of the guest VM: time and memory, with the product's own code and no boot.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use anyhow::Context;
use anyhow::Result;
use vmbeam_agent::Agent;
use vmbeam_agent_protocol::FrameList;
use vmbeam_bench::Part;
use vmbeamd::config::Domid;
use vmbeamd::config::HostVmConfig;
use vmbeamd::join::join;
use vmbeamd::join::Joined;
use vmbeamd::link::Link;

use crate::clock::timed;
use crate::guest::Hv;
use crate::guest::Synthetic;
use crate::guest::Tables;
use crate::memory;
use crate::session::Session;

const GIB: u64 = 1 << 18;
/// Names, pages of a run, page tables. The last one is that of staged migrations.
const SHAPES: [Shape; 4] = [
    ("2 MiB runs", 512, Tables::Spread),
    ("64 KiB runs", 16, Tables::Spread),
    ("4 KiB runs", 1, Tables::Spread),
    ("2 MiB runs, tables together", 512, Tables::Together),
];
type Shape = (&'static str, u64, Tables);
/// Sizes in GiB.
const SIZES: [u64; 5] = [1, 4, 16, 64, 256];
/// The two lists differ in the order of their runs.
const ORDERS: [u64; 2] = [0x9e37_79b9, 0x85eb_ca6b];

/// Longer than any list takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// What an agent used.
struct Agents {
    gather: f64,
    send: f64,
    memory: usize,
}

/// An agent that serves one conversation.
fn agent(listener: &UnixListener, guest: Synthetic) -> Result<Agents> {
    let (mut stream, _) = listener.accept()?;
    let hv = Hv::new(guest);
    let ((served, seconds), memory) = memory::peak(|| timed(|| Agent::new(&hv).serve(&mut stream)));
    served?;
    let gather = hv.seconds.get();
    Ok(Agents {
        gather,
        send: seconds - gather,
        memory,
    })
}

/// The daemon's side of two agents with a guest each: both lists as the daemon takes them,
/// the bytes of one, and what the first agent used.
fn lists(
    guests: [Synthetic; 2],
    receive: impl FnOnce(&mut [Link; 2]) -> Result<[FrameList; 2]>,
) -> Result<([FrameList; 2], u64, Agents)> {
    let socket = |i| PathBuf::from(format!("/tmp/vmbeam-bench-{}-{i}", std::process::id()));
    let mut agents = Vec::new();
    let mut links = Vec::new();
    for (i, guest) in guests.into_iter().enumerate() {
        let vm = HostVmConfig {
            name: String::new(),
            socket: socket(i),
            domid: Domid::Fixed(1),
            list: Vec::new(),
            memory: Vec::new(),
            replaces: None,
        };
        let listener = UnixListener::bind(&vm.socket)?;
        agents.push(thread::spawn(move || agent(&listener, guest)));
        let connected = Link::connect(&vm, PATIENCE, Default::default());
        fs::remove_file(&vm.socket)?;
        let mut link = connected?;
        link.hello(Some(PATIENCE))?;
        links.push(link);
    }
    let mut links = <[Link; 2]>::try_from(links).map_err(|_| anyhow!("not two agents"))?;
    let lists = receive(&mut links)?;
    let bytes = links[0].traffic().bytes;
    drop(links);
    let mut used = agents
        .into_iter()
        .map(|a| a.join().map_err(|_| anyhow!("an agent panicked"))?);
    let first = used.next().context("no agent")??;
    used.try_for_each(|a| a.map(|_| ()))?;
    Ok((lists, bytes, first))
}

fn receive(link: &mut Link) -> Result<FrameList> {
    Ok(link.frames(1, |_| ())?)
}

/// Enters time and memory of the stages of one round.
struct Meter<'a> {
    part: &'a mut Part,
    shape: &'a str,
    mib: f64,
    total: f64,
}

impl Meter<'_> {
    fn stage<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let ((result, seconds), bytes) = memory::peak(|| timed(work));
        let value = result.with_context(|| name.to_owned())?;
        self.enter("lists.memory", name, bytes as f64, "bytes");
        self.time(name, seconds);
        Ok(value)
    }

    fn time(&mut self, name: &str, seconds: f64) {
        self.total += seconds;
        self.enter("lists.time", name, seconds, "s");
    }

    fn enter(&mut self, what: &str, name: &str, value: f64, unit: &str) {
        let series = format!("{}, {name}", self.shape);
        self.part.add(what, &series, self.mib, value, unit);
    }
}

/// One round of one size and shape; the seconds.
fn round(part: &mut Part, shape: Shape, gib: u64) -> Result<f64> {
    let guests = ORDERS.map(|order| Synthetic {
        pages: gib * GIB,
        run: shape.1,
        order,
        tables: shape.2,
    });
    let mut meter = Meter {
        part,
        shape: shape.0,
        mib: (gib << 10) as f64,
        total: 0.0,
    };
    // The agents of a real swap work at the same time, each in its own host VM, and so do the
    // two threads of the daemon. Here one after the other, so that neither is timed while the
    // other works.
    let (lists, bytes, agent) = lists(guests, |[a, b]| {
        let one = meter.stage("daemon: receive one", || receive(a))?;
        Ok([one, receive(b)?])
    })?;
    meter.time("agent: gather", agent.gather);
    meter.time("agent: send", agent.send);
    meter.enter("lists.memory", "agent", agent.memory as f64, "bytes");
    meter.enter("lists.wire", "one list", bytes as f64, "bytes");
    let joined: Joined = meter.stage("daemon: join", || Ok(join(&lists[0], &lists[1])))?;
    drop(lists);
    let mut session = Session::default();
    meter.stage("driver: add", || session.add_all(&joined.runs))?;
    let calls = meter.stage("driver: batches", || {
        let mut status = vec![0; joined.pages as usize];
        Ok(session.commit(&mut status))
    })?;
    let total = meter.total;
    meter.enter("lists.time", "all", total, "s");
    meter.enter("lists.calls", "hypercalls", calls as f64, "");
    Ok(total)
}

/// All shapes and sizes, up to `most` GiB; `rounds` of each of the small ones.
pub fn run(most: u64, rounds: usize) -> Result<()> {
    let mut part = Part::new("lists");
    for shape in SHAPES {
        for gib in SIZES.into_iter().filter(|gib| *gib <= most) {
            println!("==> lists: {gib} GiB, {}", shape.0);
            let rounds = (rounds as u64 * 4 / gib).clamp(3, rounds as u64);
            // The first one warms up.
            let result = round(&mut Part::default(), shape, gib).and_then(|_| {
                let times = (0..rounds).map(|_| round(&mut part, shape, gib));
                times.collect::<Result<Vec<f64>>>()
            });
            match result {
                Ok(times) => {
                    let most = times.into_iter().fold(0.0, f64::max);
                    println!("    {most:.4} s at most, {rounds} rounds");
                }
                Err(e) => {
                    println!("    refused: {e:#}");
                    part.missing
                        .push(format!("lists: {gib} GiB in {}: {e:#}", shape.0));
                    break;
                }
            }
        }
    }
    part.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every page of both guests is joined or stays, whatever the shape.
    #[test]
    fn the_whole_way() {
        for shape in SHAPES {
            let guests = ORDERS.map(|order| Synthetic {
                pages: 4096,
                run: shape.1,
                order,
                tables: shape.2,
            });
            let ([a, b], _, _) = lists(guests, |[a, b]| Ok([receive(a)?, receive(b)?])).unwrap();
            assert_eq!((a.pages(), b.pages()), (4096, 4096));
            let joined = join(&a, &b);
            assert_eq!(joined.pages + joined.kept.values().sum::<u64>(), 4096);
            // The page tables are the same on both sides, the special pages are not.
            let tables = match shape.2 {
                Tables::Spread => 8,
                Tables::Together => 8 + 1,
            };
            let rest = 4096 - tables;
            assert!((rest - 8..rest).contains(&joined.pages), "{}", joined.pages);
        }
    }
}
