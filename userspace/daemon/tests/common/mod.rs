// SPDX-License-Identifier: GPL-2.0-only

//! Two host VMs made of nothing: agents with guests in ordinary memory, a
//! driver that swaps it, and peers that misbehave.

#![allow(dead_code, reason = "every test file uses a part of it")]

mod driver;
mod host;
pub mod peer;
mod toolstack;
mod trouble;

pub use driver::*;
pub use host::*;
pub use trouble::Trouble;

use nix::sys::socket::{shutdown, Shutdown};
use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use vmbeam_agent::definitions::Files;
use vmbeam_agent::gate::Gate;
use vmbeam_agent::toolstack::{Incoming, Outgoing};
use vmbeam_agent::{Agent, HvError, Hypervisor};
use vmbeam_agent_protocol::{
    AgentErrorCode, CpuFeatures, Facts, Guest, GuestKind, GuestState, Inspection, Need, Toolstack,
    Uuid,
};
use vmbeam_control_protocol::{EventKind, FromDaemon, GuestRef, HostMemory, SwapRequest, ToDaemon};
use vmbeam_uapi::sys::{FEATURE_KEEP, FEATURE_RELOCATE, FEATURE_SWAP};
use vmbeam_uapi::{AddFailed, Checked, Errno, Error, Info, Mode, Op, Run, Spent, Status, Step};
use vmbeam_wire::{encode, Decoder, VERSION};
use vmbeam_xen::{Page, PageKind, PageRun};
use vmbeamd::driver::{DriverSession, Sessions};
use vmbeamd::{Config, Daemon};

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
    /// Whether host VMs are told that they may start guests.
    pub autostart: bool,
    /// Whether A may be replaced.
    pub replaceable: bool,
    /// What the configuration has besides.
    pub more: String,
    /// The domids of host VMs that have a fixed one.
    pub domids: HashMap<String, u32>,
    daemon: Option<Daemon>,
    /// Where agents listen.
    agents: Mutex<Vec<UnixListener>>,
}

/// Others need the time that what it started would still take.
impl Drop for World {
    fn drop(&mut self) {
        for listener in &*self.agents.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        // Nobody waits for it.
        if let Some(daemon) = self.daemon.take() {
            std::thread::spawn(move || daemon.stop());
        }
    }
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
        // Each has all of its memory, whatever its domid.
        let full = serde_json::to_string(&HostMemory::default()).unwrap();
        for domid in 1..=6 {
            std::fs::write(dir.path().join(format!("memory-{domid}")), &full).unwrap();
        }
        let driver = FakeDriver {
            // A is domain 5 after it was restarted.
            hosts: ["A", "B", "C", "D", "A"]
                .iter()
                .zip(1..)
                .map(|(name, domid)| (domid, hosts[*name].clone()))
                .collect(),
            faults: Mutex::default(),
            modes: Mutex::default(),
            kept: Arc::default(),
            busy: Arc::default(),
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
            autostart: false,
            replaceable: false,
            more: String::new(),
            daemon: None,
            agents: Mutex::default(),
        }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    /// Run real agents for these host VMs.
    pub fn agents(&self, names: &[&str]) {
        for name in names {
            let listener = agent(&self.socket(name), self.hosts[*name].clone());
            self.agents.lock().unwrap().push(listener);
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
            "[daemon]\ncontrol_socket = \"{dir}/{control}\"\nstate_dir = \"{dir}/state\"\nagent_timeout_seconds = {}\nautostart = {}\n",
            self.timeout, self.autostart
        );
        // The UUID in the line of the file that begins with the domid.
        // The shell does it alone: to start one more program costs more than the question.
        let find =
            format!("while read -r id uuid; do [ $id != $0 ] || echo $uuid; done <'{dir}/uuids'");
        text.push_str(&format!("uuid_command = [\"sh\", \"-c\", {find:?}]\n"));
        // What is in the file of that domid, and the next time what is in the next one.
        let print = format!(
            "cd '{dir}'; if [ $1 ] && [ -e refuses-$0 ]; then exit 1; fi; if [ $1 ]; then echo $0 $1 >>reserved; if [ -e filled-$0 ]; then mv filled-$0 memory-$0; fi; fi; {{ read -r m <memory-$0 || [ \"$m\" ]; }} && echo \"$m\" && if [ -e next-$0 ]; then mv next-$0 memory-$0; fi"
        );
        text.push_str(&format!("memory_command = [\"sh\", \"-c\", {print:?}]\n"));
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
            if self.replaceable && name == "A" {
                text.push_str("replaceable = true\n");
            }
        }
        text.push_str("[[pair]]\nbetween = [\"A\", \"B\"]\n[[pair]]\nbetween = [\"C\", \"D\"]\n");
        text.push_str(&self.more);
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        Daemon::start(config, self.driver.clone()).map_err(|e| format!("{e:#}"))
    }

    /// Where the daemon notes migrations.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// How many migrations it has a record of.
    pub fn records(&self) -> usize {
        let files = std::fs::read_dir(self.journal()).unwrap();
        let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
        names
            .filter(|n| n.starts_with("migration-") && n.ends_with(".json"))
            .count()
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
        let mut answers = self.request(request);
        loop {
            match answers.next() {
                Some(answer) if answer.is_last() => return answer,
                Some(_) => {}
                None => panic!("the daemon hung up, or is silent"),
            }
        }
    }

    fn request(&self, request: &ToDaemon) -> Answers {
        let mut stream = UnixStream::connect(self.control()).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream.write_all(&encode(1, 1, request).unwrap()).unwrap();
        let decoder = Decoder::strict();
        Answers { stream, decoder }
    }

    /// Wait until an agent is connected, or is not and the problem mentions
    /// something.
    pub fn wait_agent(&self, name: &str, problem: Option<&str>) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut events = None;
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
            match (problem, &mut events) {
                // A question makes the daemon ask in turn, as many programs as there are host VMs.
                (None, Some(events)) => wait_until_it_appears(events, name),
                // It may have come before anybody followed.
                (None, none) => {
                    let mut follow = self.request(&ToDaemon::Events);
                    let limit = deadline.saturating_duration_since(Instant::now());
                    let limit = limit.max(Duration::from_secs(1));
                    follow.stream.set_read_timeout(Some(limit)).unwrap();
                    follow.next();
                    *none = Some(follow);
                }
                (Some(_), _) => std::thread::sleep(Duration::from_millis(50)),
            }
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

    /// Wait until the guest of this host VM stands still.
    #[track_caller]
    pub fn wait_paused(&self, name: &str) {
        wait_until("the guest stands still", || self.paused(name));
    }
}

/// Wait for this, but not for ever.
#[track_caller]
pub fn wait_until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "not so after 60 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the daemon says to one request, until it hangs up or is silent for too long.
struct Answers {
    stream: UnixStream,
    decoder: Decoder,
}

impl Iterator for Answers {
    type Item = FromDaemon;

    fn next(&mut self) -> Option<FromDaemon> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame.decode().unwrap());
            }
            match self.decoder.fill(&mut self.stream) {
                Ok(1..) => {}
                Ok(0) => return None,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// Until the agent of this host VM can be talked to, or nothing more is said.
fn wait_until_it_appears(events: &mut Answers, name: &str) {
    let appears = |answer: FromDaemon| match answer {
        FromDaemon::Event(e) => {
            e.event == EventKind::AgentAppears && e.host_vm.as_deref() == Some(name)
        }
        _ => true,
    };
    events.any(appears);
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
