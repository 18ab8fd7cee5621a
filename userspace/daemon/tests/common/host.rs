// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs made of nothing, and agents in them.

use super::toolstack::{toolstack, FakeRestore, FakeSave};
use super::*;

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
    /// Frames that are there only once they are touched.
    pub absent: HashSet<u64>,
    /// How many of them were touched.
    pub touched: u64,
    pub guests: HashMap<u32, FakeGuest>,
    /// Memory that new guests may have.
    pub free_mib: u64,
    /// What its toolstack does wrong.
    pub trouble: Trouble,
    /// Bridges, disks and files that it does not have.
    pub lacks: Vec<String>,
    /// Its agent does not know questions about these.
    pub is_old: bool,
    /// Its toolstack suspends a guest before its copy is made.
    pub unstaged: bool,
    /// How often a guest was suspended.
    pub suspended: u32,
    /// The names of its guests cannot be read.
    pub nameless: bool,
    /// The file that says which guest hypervisor it has.
    pub version: Option<PathBuf>,
    /// What its firmware shows.
    pub uuid: Uuid,
    /// Its /etc/xen, and where it notes whether it may start guests; nowhere if not given.
    pub dir: Option<PathBuf>,
    /// UUIDs of guests that do not have the one that goes with their name.
    pub uuids: HashMap<u32, Uuid>,
    /// By how much its clock is fast.
    pub fast: Duration,
}

impl FakeHost {
    /// The guest hypervisor notes an event in a frame of a guest.
    pub(super) fn event(&mut self, gfn: u64) {
        self.memory.entry(gfn).and_modify(|word| *word ^= 1);
        self.trouble = Trouble::None;
    }

    /// Frames that no guest has, from 1024 on.
    pub(super) fn unused(&self, nr: u64) -> Vec<u64> {
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

    /// Whether this frame is there.
    pub(super) fn has(&self, gfn: u64) -> bool {
        !self.absent.contains(&gfn)
    }

    /// It is there from now on, or not.
    pub(super) fn becomes(&mut self, gfn: u64, there: bool) {
        match there {
            true => self.absent.remove(&gfn),
            false => self.absent.insert(gfn),
        };
    }

    /// Somebody looks at it, or writes to it.
    fn touch(&mut self, gfn: u64) {
        self.touched += u64::from(self.absent.remove(&gfn));
    }

    /// These frames are not there yet.
    pub fn start_small(&mut self, gfns: impl Iterator<Item = u64>) {
        for gfn in gfns {
            self.memory.insert(gfn, 0);
            self.absent.insert(gfn);
        }
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

/// First domid of restored guests.
pub const RESTORED: u32 = 100;

/// The UUID of a guest of this name, unless it has another one.
pub fn guest_uuid(name: &str) -> Uuid {
    Uuid::from_bytes(xxhash_rust::xxh3::xxh3_128(name.as_bytes()).to_le_bytes())
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

#[derive(Debug)]
pub struct FakeHypervisor(pub Host);

pub(super) fn no_guest(guest: u32) -> HvError {
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
        let is_stock = lock(&self.0).trouble == Trouble::Stock;
        Toolstack {
            version: "fake 1".into(),
            problem: is_stock.then(|| "it is Debian's toolstack".into()),
        }
    }

    fn memory_end(&self) -> Result<u64, HvError> {
        Ok(MEMORY_END)
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + lock(&self.0).fast
    }

    fn guests(&self) -> Result<Vec<Guest>, HvError> {
        let host = lock(&self.0);
        let cpu = match host.trouble {
            Trouble::NewerCpu => {
                CpuFeatures::new(|leaf, _| (leaf == 7).then_some([0, 0x20, 0, 0]), |_| None)
            }
            _ => CpuFeatures::default(),
        };
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
                cpu: Some(cpu),
            })
            .collect())
    }

    fn uuids(&self) -> Result<Vec<(u32, Uuid)>, HvError> {
        let host = lock(&self.0);
        let uuid = |(domid, g): (&u32, &FakeGuest)| {
            let other = host.uuids.get(domid).copied();
            (*domid, other.unwrap_or_else(|| guest_uuid(&g.name)))
        };
        Ok(host.guests.iter().map(uuid).collect())
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
            host.touch(*gfn);
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
            host.touch(*gfn);
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
            stages: !host.unstaged,
        })
    }

    fn save(&self, guest: u32, external: bool, staged: bool) -> Result<Box<dyn Outgoing>, HvError> {
        Ok(Box::new(FakeSave::start(&self.0, guest, external, staged)?))
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

    fn drain(&self, _: u32) -> Result<(), HvError> {
        match lock(&self.0).trouble {
            Trouble::DiskBusy => Err(toolstack("disk 51712 has not done 1 of its requests")),
            _ => Ok(()),
        }
    }

    fn restore(&self, name: &str, _: bool, staged: bool) -> Result<Box<dyn Incoming>, HvError> {
        Ok(Box::new(FakeRestore::start(&self.0, name, staged)))
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
        let dies = host.trouble == Trouble::StaysDying;
        if let Some(g) = host.guests.get_mut(&guest).filter(|g| dies && g.paused) {
            g.ended = Some(GuestState::Dying);
            return Err(toolstack("the guest does not go away"));
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

    fn orphan(&self) -> Option<String> {
        (lock(&self.0).trouble == Trouble::Orphan).then(|| "17".into())
    }

    fn stands_still(&self, guest: u32) -> Result<bool, HvError> {
        let host = lock(&self.0);
        let guest = host.guests.get(&guest).ok_or_else(|| no_guest(guest))?;
        Ok(guest.paused || guest.ended.is_some())
    }

    fn files(&self) -> Result<Files, HvError> {
        let config = lock(&self.0).dir.clone().unwrap_or("/none".into());
        Ok(Files {
            auto: Some(config.join("auto")),
            saved: Some(config.join("save")),
            config,
            name_of: name_in,
        })
    }

    fn gate(&self) -> Gate {
        Gate(self.files().unwrap().config.join("run/may-start"))
    }
}

/// The name that a file of a fake host VM gives a guest, in its first line.
pub fn name_in(path: &Path) -> std::io::Result<Option<String>> {
    let text = std::fs::read_to_string(path)?;
    let name = text.lines().next().and_then(|l| l.strip_prefix("name="));
    Ok(name.map(str::to_owned))
}

/// Run a real agent on a socket, one conversation after the other.
pub fn agent(socket: &Path, host: Host) -> UnixListener {
    let listener = UnixListener::bind(socket).unwrap();
    let accepts = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut agent = Agent::new(FakeHypervisor(host));
        for mut stream in accepts.incoming().map_while(Result::ok) {
            let _ = agent.serve(&mut stream);
        }
    });
    listener
}
