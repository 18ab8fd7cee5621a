// SPDX-License-Identifier: GPL-2.0-only

//! A toolstack that only plays with memory: it saves and restores guests of fake host VMs.

use super::*;
use vmbeam_xen::stream::Scanner;

pub(super) fn toolstack(message: &str) -> HvError {
    HvError {
        code: AgentErrorCode::Toolstack,
        message: message.into(),
    }
}

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut r = kind.to_le_bytes().to_vec();
    r.extend((body.len() as u32).to_le_bytes());
    r.extend(body);
    r.resize(r.len().next_multiple_of(8), 0);
    r
}

/// A record of pages, each a range of its own.
fn ranges(kind: u32, pfns: &[u64]) -> Vec<u8> {
    if pfns.is_empty() {
        return Vec::new();
    }
    let mut body = (pfns.len() as u64).to_le_bytes().to_vec();
    for pfn in pfns {
        body.extend(pfn.to_le_bytes());
        body.extend(1u64.to_le_bytes());
    }
    record(kind, &body)
}

/// What `xl save` writes first.
fn head() -> Vec<u8> {
    let mut s = b"Xen saved domain, xl format\n \0 \r".to_vec();
    for word in [0x0102_0304u32, 3, 0, 0] {
        s.extend(word.to_le_bytes());
    }
    s.extend(b"LibxlFmt");
    s.extend([0; 8]);
    s.extend(record(1, &[]));
    s.extend(u64::MAX.to_le_bytes());
    s.extend([0; 32]);
    s
}

/// With `--staged`: which pages there are, before the guest is suspended.
fn announced(pages: &[PageRun]) -> Vec<u8> {
    let all: Vec<u64> = pages.iter().map(|p| p.pfn).collect();
    [ranges(0x14, &all), record(0x15, &[])].concat()
}

/// The rest, once it is.
fn saved(pages: &[PageRun], external: bool) -> Vec<u8> {
    let ordinary = |p: &&PageRun| external && p.kind == PageKind::Ordinary;
    let outside: Vec<u64> = pages.iter().filter(ordinary).map(|p| p.pfn).collect();
    let inside: Vec<u64> = pages
        .iter()
        .filter(|p| !ordinary(p))
        .map(|p| p.pfn)
        .collect();
    let mut s = ranges(0x13, &outside);
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

/// A guest that is being saved: it is paused when it may be, and runs again if that
/// is given up.
#[derive(Debug)]
pub(super) struct FakeSave {
    host: Host,
    guest: u32,
    external: bool,
    stream: Vec<u8>,
    at: usize,
    /// The guest runs, and has not been suspended.
    waits: bool,
    /// From here on it has been.
    rest: usize,
}

impl FakeSave {
    pub(super) fn start(
        host: &Host,
        guest: u32,
        external: bool,
        staged: bool,
    ) -> Result<Self, HvError> {
        let mut save = Self {
            host: host.clone(),
            guest,
            external,
            stream: head(),
            at: 0,
            waits: true,
            rest: 0,
        };
        if !staged {
            save.suspend()?;
            save.rest = 0;
            return Ok(save);
        }
        if lock(host).trouble != Trouble::StageHangs {
            save.stream.extend(announced(&save.pages()?));
        }
        Ok(save)
    }

    fn pages(&self) -> Result<Vec<PageRun>, HvError> {
        let host = lock(&self.host);
        let guest = host.guests.get(&self.guest);
        let pages = guest.map(|g| g.pages.clone());
        pages.ok_or_else(|| no_guest(self.guest))
    }

    fn suspend(&mut self) -> Result<(), HvError> {
        let mut host = lock(&self.host);
        let trouble = host.trouble;
        host.suspended += 1;
        let guest = host.guests.get_mut(&self.guest);
        let guest = guest.ok_or_else(|| no_guest(self.guest))?;
        guest.paused = true;
        if trouble == Trouble::TablesMove {
            let (was, is) = (PageKind::PageTable, PageKind::Ordinary);
            let tables: Vec<usize> = (0..guest.pages.len())
                .filter(|i| guest.pages[*i].kind == was)
                .take(2)
                .collect();
            for at in tables {
                guest.pages[at].kind = is;
                guest.pages[at + 1].kind = was;
            }
        }
        self.waits = false;
        self.rest = self.stream.len();
        self.stream.extend(saved(&guest.pages, self.external));
        Ok(())
    }

    fn resume(&self) {
        if let Some(g) = lock(&self.host).guests.get_mut(&self.guest) {
            g.paused = false;
        }
    }
}

impl Outgoing for FakeSave {
    fn go(&mut self) -> Result<(), HvError> {
        assert!(self.waits, "the guest does not wait to be suspended");
        self.suspend()?;
        let trouble = lock(&self.host).trouble;
        if matches!(trouble, Trouble::Balloons | Trouble::BalloonsOnce) {
            self.resume();
            // Each in the words of one of the two checks that find it.
            return Err(toolstack(match trouble {
                Trouble::BalloonsOnce => {
                    lock(&self.host).trouble = Trouble::None;
                    "xc: error: p2m generation count changed. Migration aborted."
                }
                _ => "xc: error: The domain's memory changed while it was staged (pfn 0x7)",
            }));
        }
        Ok(())
    }

    fn pull(&mut self) -> Result<(Vec<u8>, bool), HvError> {
        let trouble = lock(&self.host).trouble;
        let half = self.at > self.rest;
        match trouble {
            Trouble::StageFails if self.waits => {
                return Err(toolstack("the save has failed"));
            }
            Trouble::SaveHangs if !self.waits => {
                std::thread::sleep(Duration::from_millis(20));
                return Ok((Vec::new(), false));
            }
            Trouble::SaveFails if !self.waits && half => {
                self.resume();
                return Err(toolstack("the save has failed"));
            }
            Trouble::SaveCrashes if !self.waits && half => {
                lock(&self.host).trouble = Trouble::None;
                if let Some(g) = lock(&self.host).guests.get_mut(&self.guest) {
                    g.ended = Some(GuestState::Shutdown);
                    g.paused = false;
                }
                return Err(toolstack("the guest did not suspend"));
            }
            Trouble::SaveReboots | Trouble::SaveEnds if !self.waits && half => {
                let mut host = lock(&self.host);
                host.trouble = Trouble::None;
                let mut guest = host.guests.remove(&self.guest).unwrap();
                guest.paused = false;
                if trouble == Trouble::SaveReboots {
                    host.guests.insert(self.guest + 1, guest);
                }
                return Err(toolstack("the guest did not suspend"));
            }
            Trouble::SaveDies if !self.waits && half => {
                return Err(toolstack("the save was killed"));
            }
            _ => {}
        }
        let end = (self.at + 60_000).min(self.stream.len());
        let data = self.stream[self.at..end].to_vec();
        if data.is_empty() && self.waits {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.at = end;
        let end = end == self.stream.len() && !self.waits;
        if end && trouble == Trouble::SaveRuns {
            self.resume();
        }
        Ok((data, end))
    }

    fn abort(&mut self) -> Result<(), HvError> {
        if !self.waits && lock(&self.host).trouble != Trouble::SaveDies {
            self.resume();
        }
        Ok(())
    }
}

/// A guest that is being restored.
#[derive(Debug)]
pub(super) struct FakeRestore {
    host: Host,
    name: String,
    stream: Vec<u8>,
    staged: bool,
    /// It, once it is made.
    made: Option<u32>,
}

impl FakeRestore {
    pub(super) fn start(host: &Host, name: &str, staged: bool) -> Self {
        Self {
            host: host.clone(),
            name: name.into(),
            stream: Vec::new(),
            staged,
            made: None,
        }
    }

    fn scan(&self) -> Result<Scanner, HvError> {
        let mut scanner = Scanner::default();
        scanner
            .feed(&self.stream)
            .map_err(|e| toolstack(&e.to_string()))?;
        Ok(scanner)
    }

    /// Make the guest, in frames that no other guest has, with contents of no meaning.
    fn make(&self, pages: u64) -> u32 {
        let mut host = lock(&self.host);
        let gfns = host.unused(pages);
        let page = |(pfn, gfn): (u64, &u64)| PageRun {
            pfn,
            gfn: *gfn,
            nr: 1,
            kind: PageKind::Ordinary,
        };
        for (pfn, gfn) in (0..).zip(&gfns) {
            if host.has(*gfn) {
                host.memory.insert(*gfn, 0xdead_0000_0000 + pfn % 3);
            }
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
        domid
    }
}

impl Incoming for FakeRestore {
    fn staged(&mut self) -> Result<Option<u32>, HvError> {
        let scanner = self.scan()?;
        let contents = scanner.contents();
        if lock(&self.host).trouble == Trouble::NoBridge {
            return Err(toolstack("there is no such bridge"));
        }
        if self.made.is_none() && self.staged && contents.staged {
            self.made = Some(self.make(contents.populated));
        }
        Ok(self.made)
    }

    fn push(&mut self, data: &[u8]) -> Result<usize, HvError> {
        let early = self.staged && self.made.is_none();
        let trouble = lock(&self.host).trouble;
        if trouble == Trouble::RestoreSleeps && !early {
            lock(&self.host).trouble = Trouble::None;
            std::thread::sleep(Duration::from_secs(7));
        }
        if trouble == Trouble::RestoreStalls && !early {
            std::thread::sleep(Duration::from_millis(20));
            return Ok(0);
        }
        // A part of it, to be asked again.
        let taken = data.len().min(50_000);
        self.stream.extend(&data[..taken]);
        Ok(taken)
    }

    fn finish(&mut self) -> Result<bool, HvError> {
        let scanner = self.scan()?;
        let contents = scanner.contents();
        if !contents.complete {
            return Err(toolstack("the stream is cut off"));
        }
        let trouble = lock(&self.host).trouble;
        if matches!(trouble, Trouble::RestoreFails | Trouble::NoBridge) {
            self.abort()?;
            return Err(toolstack("the restore has failed"));
        }
        let pages = contents.external_pages() + contents.data_pages;
        let domid = self.made.unwrap_or_else(|| self.make(pages));
        let mut host = lock(&self.host);
        let guest = host.guests.get_mut(&domid).ok_or_else(|| no_guest(domid))?;
        for page in &mut guest.pages {
            page.kind = match page.pfn {
                8 => PageKind::XenstoreRing,
                9 => PageKind::ConsoleRing,
                pfn if contents.external.iter().any(|r| r.contains(&pfn)) => PageKind::Ordinary,
                // Without external pages nobody knows.
                pfn if contents.external.is_empty() && pfn % 16 != 3 => PageKind::Ordinary,
                _ => PageKind::PageTable,
            };
        }
        Ok(true)
    }

    /// What there is of it is destroyed.
    fn abort(&mut self) -> Result<(), HvError> {
        if let Some(domid) = self.made.take() {
            lock(&self.host).guests.remove(&domid);
        }
        Ok(())
    }
}
