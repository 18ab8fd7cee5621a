// SPDX-License-Identifier: GPL-2.0-only

//! Two host VMs made of nothing: agents with guests in ordinary memory, a
//! driver that swaps it, and peers that misbehave.

#![allow(dead_code, reason = "every test file uses a part of it")]

pub mod peer;

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use vmbeam_agent::toolstack::{Incoming, Outgoing};
use vmbeam_agent::{Agent, HvError, Hypervisor};
use vmbeam_uapi::sys::FEATURE_SWAP;
use vmbeam_uapi::{AddFailed, Errno, Error, Info, Op, Prepared, Run, Spent, Status, Step};
use vmbeam_wire::message::{
    AgentErrorCode, Facts, FromDaemon, Guest, GuestKind, GuestRef, GuestState, SwapRequest,
    ToDaemon, Toolstack,
};
use vmbeam_wire::{encode, CpuFeatures, Decoder, Inspection, Need, Uuid, VERSION};
use vmbeam_xen::{Page, PageKind, PageRun};
use vmbeamd::driver::{DriverSession, Sessions};
use vmbeamd::{Config, Daemon};

/// Frames that each fake host VM has.
pub const MEMORY_END: u64 = 4096;

/// A guest of a fake host VM.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    pub name: String,
    /// One run for each.
    pub pages: Vec<PageRun>,
    pub paused: bool,
    /// It has shut down or crashed by itself, or is being torn down.
    pub ended: Option<GuestState>,
    /// What is in its way, and what it needs.
    pub inspection: Inspection,
}

/// A fake host VM: what is in its frames, and its guests by domid.
#[derive(Debug, Default)]
pub struct FakeHost {
    pub memory: HashMap<u64, u64>,
    pub guests: HashMap<u32, FakeGuest>,
    /// Memory that new guests may have.
    pub free_mib: u64,
    /// What its toolstack does wrong.
    pub trouble: Trouble,
    /// Bridges, disks and files that it does not have.
    pub lacks: Vec<String>,
    /// Its agent does not know questions about these.
    pub is_old: bool,
    /// The names of its guests cannot be read.
    pub nameless: bool,
    /// The file that says which guest hypervisor it has.
    pub version: Option<PathBuf>,
    /// What its firmware shows.
    pub uuid: Uuid,
}

/// What a fake toolstack is to do wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    None,
    /// It is Debian's.
    Stock,
    /// A save stops half way.
    SaveFails,
    /// A save never says anything.
    SaveHangs,
    /// A save dies and leaves the guest as it is.
    SaveDies,
    /// The guest crashes while it is being saved.
    SaveCrashes,
    /// An event comes after all pages were read, unless it is pending by then; either
    /// way it changes the memory of the guest that was saved.
    LateEvent,
    /// A restore takes nothing for 7 seconds, once, and its agent does nothing else.
    RestoreSleeps,
    /// A restore takes nothing, for as long as this lasts.
    RestoreStalls,
    /// A restore fails when it has everything.
    RestoreFails,
    /// The restored guest cannot be let run, so many times.
    ResumeFails(u32),
    /// The same once, and then it takes for as long as this lasts.
    ResumeFailsAndHolds,
    ResumeHolds,
    /// What is left over cannot be destroyed, so many times.
    DestroyFails(u32),
}

impl Trouble {
    /// Whether it is this one now, counting down.
    fn strikes(&mut self, make: fn(u32) -> Self) -> bool {
        match *self {
            Self::ResumeFails(n) if make(n) == *self => {
                *self = if n > 1 { make(n - 1) } else { Self::None };
                true
            }
            Self::DestroyFails(n) if make(n) == *self => {
                *self = if n > 1 { make(n - 1) } else { Self::None };
                true
            }
            _ => false,
        }
    }
}

impl FakeHost {
    /// The guest hypervisor notes an event in a frame of a guest.
    fn event(&mut self, gfn: u64) {
        self.memory.entry(gfn).and_modify(|word| *word ^= 1);
        self.trouble = Trouble::None;
    }

    /// Frames that no guest has, from 1024 on.
    fn unused(&self, nr: u64) -> Vec<u64> {
        let used: HashSet<u64> = self
            .guests
            .values()
            .flat_map(|g| g.pages.iter().map(|p| p.gfn))
            .collect();
        let gfns: Vec<u64> = (1024..MEMORY_END)
            .filter(|gfn| !used.contains(gfn))
            .take(nr as usize)
            .collect();
        assert_eq!(gfns.len() as u64, nr, "the fake host VM is too small");
        gfns
    }

    /// One more guest that runs, of ordinary pages.
    pub fn add_guest(&mut self, domid: u32, name: &str, pages: u64) {
        let page = |(pfn, gfn)| PageRun {
            pfn,
            gfn,
            nr: 1,
            kind: PageKind::Ordinary,
        };
        let guest = FakeGuest {
            name: name.into(),
            pages: (0..).zip(self.unused(pages)).map(page).collect(),
            paused: false,
            ended: None,
            inspection: Inspection::default(),
        };
        self.guests.insert(domid, guest);
    }

    /// Names of the guests that run, in order.
    pub fn running(&self) -> Vec<String> {
        let running = self
            .guests
            .values()
            .filter(|g| !g.paused && g.ended.is_none());
        let mut names: Vec<_> = running.map(|g| g.name.clone()).collect();
        names.sort();
        names
    }
}

pub type Host = Arc<Mutex<FakeHost>>;

pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap()
}

/// A host VM with one guest, named `guest`, of `pages` pages. Page tables at
/// every 16th page from `tables` on, the rings at 8 and 9. Each frame's content
/// is its number, plus `seed`.
pub fn host(seed: u64, pages: u64, tables: u64) -> Host {
    let mut host = FakeHost::default();
    for gfn in 0..MEMORY_END {
        host.memory.insert(gfn, seed + gfn);
    }
    let page = |pfn: u64| PageRun {
        pfn,
        // Runs of 32 frames in an order of their own.
        gfn: MEMORY_END - 32 * (pfn / 32 + 1) + pfn % 32 - seed % 32,
        nr: 1,
        kind: match pfn {
            8 => PageKind::XenstoreRing,
            9 => PageKind::ConsoleRing,
            _ if pfn % 16 == tables => PageKind::PageTable,
            _ => PageKind::Ordinary,
        },
    };
    host.guests.insert(
        1,
        FakeGuest {
            name: "guest".into(),
            pages: (0..pages).map(page).collect(),
            paused: false,
            ended: None,
            inspection: Inspection::default(),
        },
    );
    host.free_mib = 1000;
    Arc::new(Mutex::new(host))
}

/// What `xl save --external-memory` would write for these pages.
fn saved(pages: &[PageRun], external: bool) -> Vec<u8> {
    let record = |kind: u32, body: &[u8]| {
        let mut r = kind.to_le_bytes().to_vec();
        r.extend((body.len() as u32).to_le_bytes());
        r.extend(body);
        r.resize(r.len().next_multiple_of(8), 0);
        r
    };
    let ordinary = |p: &&PageRun| external && p.kind == PageKind::Ordinary;
    let outside: Vec<u64> = pages.iter().filter(ordinary).map(|p| p.pfn).collect();
    let inside: Vec<u64> = pages
        .iter()
        .filter(|p| !ordinary(p))
        .map(|p| p.pfn)
        .collect();
    let mut s = b"Xen saved domain, xl format\n \0 \r".to_vec();
    for word in [0x0102_0304u32, 3, 0, 0] {
        s.extend(word.to_le_bytes());
    }
    s.extend(b"LibxlFmt");
    s.extend([0; 8]);
    s.extend(record(1, &[]));
    s.extend(u64::MAX.to_le_bytes());
    s.extend([0; 32]);
    if !outside.is_empty() {
        let mut body = (outside.len() as u64).to_le_bytes().to_vec();
        for pfn in outside {
            body.extend(pfn.to_le_bytes());
            body.extend(1u64.to_le_bytes());
        }
        s.extend(record(0x13, &body));
    }
    for part in inside.chunks(64) {
        let mut body = (part.len() as u64).to_le_bytes().to_vec();
        body.extend(part.iter().flat_map(|pfn| pfn.to_le_bytes()));
        body.resize(body.len() + part.len() * 4096, 7);
        s.extend(record(1, &body));
    }
    s.extend(record(0, &[]));
    s.extend(record(0, &[]));
    s
}

fn toolstack(message: &str) -> HvError {
    HvError {
        code: AgentErrorCode::Toolstack,
        message: message.into(),
    }
}

/// A guest that is being saved: it is paused at once, and runs again if that
/// is given up.
#[derive(Debug)]
struct FakeSave {
    host: Host,
    guest: u32,
    stream: Vec<u8>,
    at: usize,
}

impl Outgoing for FakeSave {
    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError> {
        let trouble = lock(&self.host).trouble;
        match trouble {
            Trouble::SaveHangs => {
                std::thread::sleep(Duration::from_millis(20));
                return Ok((Vec::new(), false));
            }
            Trouble::SaveFails if self.at > 0 => {
                self.resume();
                return Err(toolstack("the save has failed"));
            }
            Trouble::SaveCrashes if self.at > 0 => {
                lock(&self.host).trouble = Trouble::None;
                if let Some(g) = lock(&self.host).guests.get_mut(&self.guest) {
                    g.ended = Some(GuestState::Shutdown);
                    g.paused = false;
                }
                return Err(toolstack("the guest did not suspend"));
            }
            Trouble::SaveDies if self.at > 0 => return Err(toolstack("the save was killed")),
            _ => {}
        }
        let end = (self.at + 60_000).min(self.stream.len());
        let data = self.stream[self.at..end].to_vec();
        self.at = end;
        Ok((data, end == self.stream.len()))
    }

    fn abort(&mut self) -> Result<(), HvError> {
        if lock(&self.host).trouble != Trouble::SaveDies {
            self.resume();
        }
        Ok(())
    }
}

impl FakeSave {
    fn resume(&self) {
        if let Some(g) = lock(&self.host).guests.get_mut(&self.guest) {
            g.paused = false;
        }
    }
}

/// A guest that is being restored.
#[derive(Debug)]
struct FakeRestore {
    host: Host,
    name: String,
    stream: Vec<u8>,
}

/// First domid of restored guests.
pub const RESTORED: u32 = 100;

impl Incoming for FakeRestore {
    fn push(&mut self, data: &[u8]) -> Result<usize, HvError> {
        if lock(&self.host).trouble == Trouble::RestoreSleeps {
            lock(&self.host).trouble = Trouble::None;
            std::thread::sleep(Duration::from_secs(7));
        }
        if lock(&self.host).trouble == Trouble::RestoreStalls {
            std::thread::sleep(Duration::from_millis(20));
            return Ok(0);
        }
        // A part of it, to be asked again.
        let taken = data.len().min(50_000);
        self.stream.extend(&data[..taken]);
        Ok(taken)
    }

    fn finish(&mut self) -> Result<bool, HvError> {
        let mut scanner = vmbeam_xen::stream::Scanner::default();
        let fed = scanner.feed(&self.stream);
        if fed.is_err() || !scanner.contents().complete {
            return Err(toolstack("the stream is cut off"));
        }
        let mut host = lock(&self.host);
        if host.trouble == Trouble::RestoreFails {
            return Err(toolstack("the restore has failed"));
        }
        // In frames that no other guest has, with contents of no meaning.
        let pages = scanner.contents().external_pages() + scanner.contents().data_pages;
        let gfns = host.unused(pages);
        let page = |(pfn, gfn): (u64, &u64)| PageRun {
            pfn,
            gfn: *gfn,
            nr: 1,
            kind: match pfn {
                8 => PageKind::XenstoreRing,
                9 => PageKind::ConsoleRing,
                _ if pfn % 16 == 3 => PageKind::PageTable,
                _ => PageKind::Ordinary,
            },
        };
        for (pfn, gfn) in (0..).zip(&gfns) {
            host.memory.insert(*gfn, 0xdead_0000_0000 + pfn % 3);
        }
        let domid = host.guests.keys().max().map_or(RESTORED, |m| RESTORED + m);
        host.guests.insert(
            domid,
            FakeGuest {
                name: self.name.clone(),
                pages: (0..).zip(&gfns).map(page).collect(),
                paused: true,
                ended: None,
                inspection: Inspection::default(),
            },
        );
        Ok(true)
    }

    fn abort(&mut self) -> Result<(), HvError> {
        Ok(())
    }
}

#[derive(Debug)]
struct FakeHypervisor(Host);

fn no_guest(guest: u32) -> HvError {
    HvError {
        code: AgentErrorCode::NoGuest,
        message: format!("no guest {guest}"),
    }
}

impl Hypervisor for FakeHypervisor {
    fn version(&self) -> String {
        let file = lock(&self.0).version.clone();
        file.and_then(|f| std::fs::read_to_string(f).ok())
            .map_or("Fake 1.0".into(), |text| text.trim().into())
    }

    fn host_vm(&self) -> Result<Uuid, String> {
        let uuid = lock(&self.0).uuid;
        let none = || "there is no /sys".to_owned();
        Some(uuid).filter(|u| !u.is_nil()).ok_or_else(none)
    }

    fn toolstack(&self) -> Toolstack {
        Toolstack {
            version: "fake 1".into(),
            problem: None,
        }
    }

    fn memory_end(&self) -> Result<u64, HvError> {
        Ok(MEMORY_END)
    }

    fn guests(&self) -> Result<Vec<Guest>, HvError> {
        let host = lock(&self.0);
        Ok(host
            .guests
            .iter()
            .map(|(domid, g)| Guest {
                name: match host.nameless {
                    true => format!("domain-{domid}"),
                    false => g.name.clone(),
                },
                domid: *domid,
                state: match g.ended {
                    Some(state) => state,
                    None if g.paused => GuestState::Paused,
                    None => GuestState::Running,
                },
                pages: g.pages.len() as u64,
                kind: GuestKind::Pv,
                cpu: Some(CpuFeatures::default()),
            })
            .collect())
    }

    fn pause(&self, guest: u32) -> Result<bool, HvError> {
        let mut host = lock(&self.0);
        let g = host.guests.get_mut(&guest).ok_or_else(|| no_guest(guest))?;
        Ok(std::mem::replace(&mut g.paused, true))
    }

    fn unpause(&self, guest: u32) -> Result<(), HvError> {
        let mut host = lock(&self.0);
        host.guests
            .get_mut(&guest)
            .ok_or_else(|| no_guest(guest))?
            .paused = false;
        Ok(())
    }

    fn pages(&self, guest: u32) -> Result<Vec<PageRun>, HvError> {
        let host = lock(&self.0);
        let guest = host.guests.get(&guest).ok_or_else(|| no_guest(guest))?;
        let mut runs: Vec<PageRun> = Vec::new();
        for page in &guest.pages {
            match runs.last_mut() {
                Some(last)
                    if last.kind == page.kind
                        && last.end() == page.pfn
                        && last.gfn + u64::from(last.nr) == page.gfn =>
                {
                    last.nr += 1;
                }
                _ => runs.push(*page),
            }
        }
        Ok(runs)
    }

    fn read(
        &self,
        _: u32,
        gfns: &[u64],
        seen: &mut dyn FnMut(usize, &Page),
    ) -> Result<(), HvError> {
        let mut host = lock(&self.0);
        for (i, gfn) in gfns.iter().enumerate() {
            let mut page = [0; 4096];
            page[..8].copy_from_slice(&host.memory[gfn].to_le_bytes());
            seen(i, &page);
        }
        // Not after a sample of them.
        if host.trouble == Trouble::LateEvent && gfns.len() > 512 {
            host.event(gfns[0]);
        }
        Ok(())
    }

    fn write(
        &self,
        _: u32,
        gfns: &[u64],
        fill: &mut dyn FnMut(usize, &mut Page),
    ) -> Result<(), HvError> {
        let mut host = lock(&self.0);
        for (i, gfn) in gfns.iter().enumerate() {
            let mut page = [0; 4096];
            fill(i, &mut page);
            let word = u64::from_le_bytes(page[..8].try_into().unwrap());
            host.memory.insert(*gfn, word);
        }
        Ok(())
    }

    fn inspect(&self, guest: u32, _: bool) -> Result<Inspection, HvError> {
        let host = lock(&self.0);
        if host.is_old {
            return Err(HvError {
                code: AgentErrorCode::BadRequest,
                message: "not a request".into(),
            });
        }
        let guest = host.guests.get(&guest).ok_or_else(|| no_guest(guest))?;
        Ok(guest.inspection.clone())
    }

    fn lacking(&self, needs: &[Need]) -> Vec<Need> {
        let host = lock(&self.0);
        let missing = |need: &&Need| host.lacks.contains(&need.name);
        needs.iter().filter(missing).cloned().collect()
    }

    fn facts(&self) -> Result<Facts, HvError> {
        let host = lock(&self.0);
        let problem = (host.trouble == Trouble::Stock).then(|| "it is Debian's toolstack".into());
        Ok(Facts {
            problem,
            free_mib: host.free_mib,
            cpu: CpuFeatures::default(),
        })
    }

    fn save(&self, guest: u32, external: bool) -> Result<Box<dyn Outgoing>, HvError> {
        let mut host = lock(&self.0);
        let g = host.guests.get_mut(&guest).ok_or_else(|| no_guest(guest))?;
        g.paused = true;
        Ok(Box::new(FakeSave {
            host: self.0.clone(),
            guest,
            stream: saved(&g.pages, external),
            at: 0,
        }))
    }

    fn raise_events(&self, guest: u32) -> Result<(), HvError> {
        let mut host = lock(&self.0);
        if host.trouble == Trouble::LateEvent {
            let guest = host.guests.get(&guest).ok_or_else(|| no_guest(guest))?;
            let page = guest.pages.iter().find(|p| p.kind == PageKind::Ordinary);
            let gfn = page.unwrap().gfn;
            host.event(gfn);
        }
        Ok(())
    }

    fn restore(&self, name: &str, _: bool) -> Result<Box<dyn Incoming>, HvError> {
        Ok(Box::new(FakeRestore {
            host: self.0.clone(),
            name: name.into(),
            stream: Vec::new(),
        }))
    }

    fn resume(&self, guest: u32) -> Result<(), HvError> {
        let trouble = lock(&self.0).trouble;
        if trouble == Trouble::ResumeFailsAndHolds {
            lock(&self.0).trouble = Trouble::ResumeHolds;
            return Err(toolstack("the guest cannot be resumed"));
        }
        while lock(&self.0).trouble == Trouble::ResumeHolds {
            std::thread::sleep(Duration::from_millis(5));
        }
        let state = lock(&self.0).guests.get(&guest).and_then(|g| g.ended);
        if state == Some(GuestState::Shutdown) {
            return Ok(());
        }
        if lock(&self.0).trouble.strikes(Trouble::ResumeFails) {
            return Err(toolstack("the guest cannot be resumed"));
        }
        self.unpause(guest)
    }

    fn destroy(&self, guest: u32) -> Result<(), HvError> {
        let mut host = lock(&self.0);
        if host.trouble.strikes(Trouble::DestroyFails) {
            return Err(toolstack("the guest cannot be destroyed"));
        }
        match host.guests.get(&guest) {
            Some(g) if !g.paused && g.ended.is_none() => return Err(toolstack("the guest runs")),
            Some(_) => {}
            None => return Ok(()),
        }
        // What is freed is scrubbed.
        let gone = host.guests.remove(&guest).ok_or_else(|| no_guest(guest))?;
        for page in gone.pages {
            host.memory.insert(page.gfn, 0);
        }
        Ok(())
    }
}

/// Run a real agent on a socket, one conversation after the other.
pub fn agent(socket: &Path, host: Host) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut agent = Agent::new(FakeHypervisor(host));
        for stream in listener.incoming() {
            let _ = agent.serve(&mut stream.unwrap());
        }
    });
}

/// Run something else on a socket: `talk` gets each connection.
pub fn impostor(
    socket: &Path,
    talk: impl Fn(&mut UnixStream) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            talk(&mut stream);
        }
    })
}

/// What the fake driver is to do wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Refuse to open a session.
    pub open: Option<Errno>,
    /// Refuse the pair with this frame in A with this status.
    pub refuse: HashMap<u64, i32>,
    /// Fail the commit once the cursor is here.
    pub fail_at: Option<u64>,
    /// Swap at most this many pairs a call.
    pub step: Option<u64>,
    /// Swap the wrong way at this frame in A.
    pub spoil: Option<u64>,
    /// Interrupt every other call.
    pub interrupt: bool,
    /// Panic in the middle of a commit.
    pub panic: bool,
    /// Say that the record of a half move is kept between domains 2 and 1.
    pub record: bool,
    /// Domains that have died, and whose domid another one has.
    pub reused: HashSet<u32>,
}

/// A driver that swaps the memory of fake host VMs.
#[derive(Debug)]
pub struct FakeDriver {
    pub hosts: HashMap<u32, Host>,
    pub faults: Mutex<Faults>,
}

struct FakeSession {
    a: Host,
    b: Host,
    domids: (u32, u32),
    ids: [u64; 2],
    faults: Faults,
    pairs: Vec<(u64, u64)>,
    refused: Vec<bool>,
    cursor: u64,
    calls: u64,
}

impl Sessions for FakeDriver {
    fn info(&self) -> Result<Info, Error> {
        Ok(Info {
            size: 40,
            features: FEATURE_SWAP,
            max_add_runs: 1000,
            batch_pairs: 512,
            max_runs: 1 << 20,
            max_pairs: 1 << 24,
            ..Default::default()
        })
    }

    fn open(
        &self,
        [domid_a, domid_b]: [u32; 2],
        expected: [u64; 2],
    ) -> Result<Box<dyn DriverSession>, Error> {
        let faults = lock(&self.faults).clone();
        if let Some(errno) = faults.open {
            return Err(Error {
                op: Op::Open,
                errno,
            });
        }
        let find = |d| {
            self.hosts.get(&d).cloned().ok_or(Error {
                op: Op::Open,
                errno: Errno::ESRCH,
            })
        };
        let id = |domid| 100 + u64::from(domid) + 1000 * u64::from(faults.reused.contains(&domid));
        let ids = [id(domid_a), id(domid_b)];
        if expected.iter().zip(ids).any(|(e, id)| *e != 0 && *e != id) {
            return Err(Error {
                op: Op::Open,
                errno: Errno::ESRCH,
            });
        }
        Ok(Box::new(FakeSession {
            ids,
            a: find(domid_a)?,
            b: find(domid_b)?,
            domids: (domid_a, domid_b),
            faults,
            pairs: Vec::new(),
            refused: Vec::new(),
            cursor: 0,
            calls: 0,
        }))
    }

    fn has_record(&self, domid_a: u32, domid_b: u32) -> Result<bool, Error> {
        let these = domid_a.min(domid_b) == 1 && domid_a.max(domid_b) == 2;
        Ok(lock(&self.faults).record && these)
    }
}

impl FakeSession {
    fn status_of(&self, pair: usize) -> i32 {
        let (a, b) = self.pairs[pair];
        if !lock(&self.a).memory.contains_key(&a) || !lock(&self.b).memory.contains_key(&b) {
            return -(Errno::ENOENT as i32);
        }
        self.faults.refuse.get(&a).copied().unwrap_or(0)
    }

    fn exchange(&self, pair: usize) {
        let (a, b) = self.pairs[pair];
        let (mut host_a, mut host_b) = (lock(&self.a), lock(&self.b));
        let (old_a, old_b) = (host_a.memory[&a], host_b.memory[&b]);
        let new_b = if self.faults.spoil == Some(a) {
            old_a + 1
        } else {
            old_a
        };
        host_a.memory.insert(a, old_b);
        host_b.memory.insert(b, new_b);
    }

    fn interrupted(&mut self) -> bool {
        self.calls += 1;
        self.faults.interrupt && self.calls % 2 == 1
    }
}

/// What is half swapped is swapped back when nobody has the session any more.
impl Drop for FakeSession {
    fn drop(&mut self) {
        if self.cursor < self.pairs.len() as u64 {
            self.faults.interrupt = false;
            let _ = self.rollback();
        }
    }
}

impl DriverSession for FakeSession {
    fn ids(&self) -> [u64; 2] {
        self.ids
    }

    fn add(&mut self, runs: &[Run]) -> Result<(), AddFailed> {
        for r in runs {
            let nr = u64::from(r.nr);
            self.pairs
                .extend((r.gfn_a..r.gfn_a + nr).zip(r.gfn_b..r.gfn_b + nr));
        }
        self.refused.resize(self.pairs.len(), false);
        Ok(())
    }

    fn prepare(&self, first: u64, status: &mut [i32]) -> Result<Prepared, Error> {
        let mut refused = 0;
        for (i, s) in status.iter_mut().enumerate() {
            *s = self.status_of(first as usize + i);
            refused += u64::from(*s < 0);
        }
        Ok(Prepared {
            done: status.len() as u64,
            refused,
        })
    }

    fn commit(&mut self, status: &mut [i32]) -> Result<Step, Error> {
        if self.interrupted() {
            return Err(Error {
                op: Op::Commit,
                errno: Errno::EINTR,
            });
        }
        let most = self
            .faults
            .step
            .unwrap_or(u64::MAX)
            .min(status.len() as u64);
        let mut step = Step {
            cursor: self.cursor,
            ..Default::default()
        };
        for s in status.iter_mut().take(most as usize) {
            if self.faults.fail_at == Some(self.cursor) {
                if step.cursor == self.cursor && step.swapped + step.refused == 0 {
                    return Err(Error {
                        op: Op::Commit,
                        errno: Errno::ESRCH,
                    });
                }
                break;
            }
            *s = self.status_of(self.cursor as usize);
            if *s == 0 {
                self.exchange(self.cursor as usize);
                step.swapped += 1;
            } else {
                self.refused[self.cursor as usize] = true;
                step.refused += 1;
            }
            self.cursor += 1;
            assert!(!self.faults.panic, "the driver panics, as it is told");
        }
        step.cursor = self.cursor;
        Ok(step)
    }

    fn status(&self) -> Result<Status, Error> {
        Ok(Status {
            domid_a: self.domids.0,
            domid_b: self.domids.1,
            pairs: self.pairs.len() as u64,
            cursor: self.cursor,
            ..Default::default()
        })
    }

    fn spent(&self) -> Spent {
        Spent {
            hypercalls: self.calls,
            tlb_flushes: 2 * self.calls,
            ..Default::default()
        }
    }

    fn rollback(&mut self) -> Result<Step, Error> {
        if self.interrupted() {
            return Err(Error {
                op: Op::Rollback,
                errno: Errno::EINTR,
            });
        }
        let most = self.faults.step.unwrap_or(u64::MAX);
        let mut step = Step::default();
        while self.cursor > 0 && step.swapped < most {
            self.cursor -= 1;
            if !self.refused[self.cursor as usize] {
                self.exchange(self.cursor as usize);
                step.swapped += 1;
            }
        }
        step.cursor = self.cursor;
        Ok(step)
    }
}

/// The UUID of a host VM, different in each byte.
pub fn uuid(name: &str) -> Uuid {
    let first = name.as_bytes()[0];
    Uuid::from_bytes(std::array::from_fn(|i| {
        first + 16 * (i as u8 % 8) + i as u8 / 8
    }))
}

/// A daemon with its sockets in a directory of its own.
pub struct World {
    pub dir: tempfile::TempDir,
    pub driver: Arc<FakeDriver>,
    pub hosts: HashMap<String, Host>,
    /// How long an agent may be silent, in seconds.
    pub timeout: u64,
    /// Prints the domid of A and which domains there are; fixed if there is none.
    pub domid_command: Option<PathBuf>,
    /// The same for the other host VMs.
    pub domid_of_all: bool,
    /// Where to offer metrics.
    pub metrics: Option<String>,
    /// The domids of host VMs that have a fixed one.
    pub domids: HashMap<String, u32>,
    daemon: Option<Daemon>,
}

impl World {
    /// Host VMs A, B, C and D with a guest each, none of them connected. A may
    /// swap with B, and C with D.
    pub fn new() -> Self {
        let hosts: HashMap<String, Host> = [
            ("A", 0, 3),
            ("B", 1 << 32, 5),
            ("C", 1 << 33, 3),
            ("D", 1 << 34, 3),
        ]
        .into_iter()
        .map(|(name, seed, tables)| (name.into(), host(seed, 1024, tables)))
        .collect();
        for (name, host) in &hosts {
            lock(host).uuid = uuid(name);
        }
        let dir = tempfile::tempdir().unwrap();
        let shown: Vec<_> = (1..)
            .zip(["A", "B", "C", "D", "A"])
            .map(|(domid, name)| format!("{domid} {}\n", uuid(name)))
            .collect();
        std::fs::write(dir.path().join("uuids"), shown.concat()).unwrap();
        let driver = FakeDriver {
            // A is domain 5 after it was restarted.
            hosts: ["A", "B", "C", "D", "A"]
                .iter()
                .zip(1..)
                .map(|(name, domid)| (domid, hosts[*name].clone()))
                .collect(),
            faults: Mutex::default(),
        };
        Self {
            dir,
            domids: (1..)
                .zip(["A", "B", "C", "D"])
                .map(|(d, n)| (n.into(), d))
                .collect(),
            driver: Arc::new(driver),
            hosts,
            timeout: 60,
            domid_command: None,
            domid_of_all: false,
            metrics: None,
            daemon: None,
        }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    /// Run real agents for these host VMs.
    pub fn agents(&self, names: &[&str]) {
        for name in names {
            agent(&self.socket(name), self.hosts[*name].clone());
        }
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Start the daemon.
    pub fn start(&mut self) {
        self.daemon = Some(self.start_on("control.sock").unwrap());
    }

    /// Start one with this control socket.
    pub fn start_on(&self, control: &str) -> Result<Daemon, String> {
        let dir = self.dir.path().display();
        let mut text = format!(
            "[daemon]\ncontrol_socket = \"{dir}/{control}\"\nstate_dir = \"{dir}/state\"\nagent_timeout_seconds = {}\n",
            self.timeout
        );
        // The UUID in the line of the file that begins with the domid.
        let find = format!("sed -n \"s/^$0 //p\" '{dir}/uuids'");
        text.push_str(&format!("uuid_command = [\"sh\", \"-c\", {find:?}]\n"));
        if let Some(command) = &self.domid_command {
            text.push_str(&format!("domid_command = [{command:?}, \"domid\"]\n"));
            text.push_str(&format!("list_command = [{command:?}, \"list\"]\n"));
        }
        if let Some(listen) = &self.metrics {
            text.push_str(&format!("[metrics]\nlisten = {listen:?}\n"));
        }
        for name in ["A", "B", "C", "D"] {
            text.push_str(&format!(
                "[[host_vm]]\nname = \"{name}\"\nsocket = \"{dir}/{name}.sock\"\n"
            ));
            if self.domid_command.is_none() || name != "A" && !self.domid_of_all {
                text.push_str(&format!("domid = {}\n", self.domids[name]));
            }
        }
        text.push_str("[[pair]]\nbetween = [\"A\", \"B\"]\n[[pair]]\nbetween = [\"C\", \"D\"]\n");
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        Daemon::start(config, self.driver.clone()).map_err(|e| format!("{e:#}"))
    }

    /// Where the daemon notes migrations.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn stop(&mut self) {
        self.take().stop();
    }

    /// The daemon, to be stopped by somebody else.
    pub fn take(&mut self) -> Daemon {
        self.daemon.take().unwrap()
    }

    /// Ask the daemon, as the command line does.
    pub fn ask(&self, request: &ToDaemon) -> FromDaemon {
        let mut stream = UnixStream::connect(self.control()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.write_all(&encode(1, 1, request).unwrap()).unwrap();
        let mut decoder = Decoder::strict();
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                let answer: FromDaemon = frame.decode().unwrap();
                if answer.is_last() {
                    return answer;
                }
            }
            assert_ne!(decoder.fill(&mut stream).unwrap(), 0, "the daemon hung up");
        }
    }

    /// Wait until an agent is connected, or is not and the problem mentions
    /// something.
    pub fn wait_agent(&self, name: &str, problem: Option<&str>) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let FromDaemon::Check(report) = self.ask(&ToDaemon::Check) else {
                panic!()
            };
            let agent = report
                .agents
                .into_iter()
                .find(|a| a.host_vm == name)
                .unwrap();
            match (problem, &agent.connected, &agent.problem) {
                (None, Some(_), _) => return String::new(),
                (Some(expected), None, Some(p)) if p.contains(expected) => return p.clone(),
                _ => assert!(Instant::now() < deadline, "{agent:?}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn swap(&self, from: &str, to: &str) -> FromDaemon {
        self.ask(&ToDaemon::Swap(request(from, to)))
    }

    /// What is in every frame of all host VMs.
    pub fn memory(&self) -> HashMap<String, HashMap<u64, u64>> {
        self.hosts
            .iter()
            .map(|(name, h)| (name.clone(), lock(h).memory.clone()))
            .collect()
    }

    pub fn paused(&self, name: &str) -> bool {
        lock(&self.hosts[name]).guests[&1].paused
    }
}

pub fn request(from: &str, to: &str) -> SwapRequest {
    let guest = |vm: &str| GuestRef {
        host_vm: vm.into(),
        guest: "guest".into(),
    };
    SwapRequest {
        from: guest(from),
        to: guest(to),
        verify: true,
        dry_run: false,
        list_runs: false,
    }
}

/// The header fields that an answer must repeat, and the payload, of the next request in
/// this version of the protocol.
pub fn read_request(stream: &mut UnixStream) -> Option<(u32, u64, Vec<u8>)> {
    loop {
        let mut header = [0u8; 28];
        stream.read_exact(&mut header).ok()?;
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).ok()?;
        if header[4..6] == VERSION.to_le_bytes() {
            return Some((
                u32::from_le_bytes(header[12..16].try_into().unwrap()),
                u64::from_le_bytes(header[16..24].try_into().unwrap()),
                rest.split_off(4),
            ));
        }
    }
}
