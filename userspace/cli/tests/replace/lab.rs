// SPDX-License-Identifier: GPL-2.0-only

//! A host VM that can be replaced, and what a device model does with its socket.

use crate::common::{host, lock, uuid, FakeHypervisor, Host, World};
use crate::upkeep::{self, Done};
use nix::sys::socket::{shutdown, Shutdown};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use vmbeam_agent::Agent;

const TICK: Duration = Duration::from_millis(10);

/// A device model with the agent behind it, from the start of a domain to its end.
struct Model {
    socket: PathBuf,
    listener: UnixListener,
    client: Arc<Mutex<Option<UnixStream>>>,
}

impl Model {
    /// Makes its socket, whatever was there.
    fn start(socket: PathBuf, host: Host) -> Self {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let accepts = listener.try_clone().unwrap();
        let client = Arc::<Mutex<Option<UnixStream>>>::default();
        let current = client.clone();
        std::thread::spawn(move || {
            let mut agent = Agent::new(FakeHypervisor(host));
            for mut stream in accepts.incoming().map_while(Result::ok) {
                *current.lock().unwrap() = stream.try_clone().ok();
                let _ = agent.serve(&mut stream);
            }
        });
        Self {
            socket,
            listener,
            client,
        }
    }

    /// Removes what has the name of its socket, whatever that is.
    fn end(self) {
        // Nobody is accepted any more, and who was is cut off.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(client) = &*self.client.lock().unwrap() {
            let _ = shutdown(client.as_raw_fd(), Shutdown::Both);
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Domains by number, as the script has them.
pub fn domains(dir: &Path) -> HashMap<u32, String> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let name = |path: PathBuf| {
        let name = path
            .file_name()?
            .to_str()?
            .strip_prefix("domid-")?
            .to_owned();
        let domid = std::fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        Some((domid, name))
    };
    files.filter_map(|f| name(f.path())).collect()
}

/// When something came into this directory, left it or got another name.
fn changed(dir: &Path) -> Option<SystemTime> {
    dir.metadata().and_then(|m| m.modified()).ok()
}

/// Start and end device models as domains begin and end, as long as there is the directory.
fn run_models(dir: &Path, hosts: &HashMap<u32, Host>) {
    let mut models: HashMap<u32, Model> = HashMap::new();
    let mut seen = None;
    while let Some(now) = changed(dir) {
        // What was looked at just after a change may have been half of it.
        let settled = now.elapsed().is_ok_and(|age| age > 10 * TICK);
        if seen != Some(now) {
            run_models_of(dir, hosts, &mut models);
            seen = settled.then_some(now);
        }
        std::thread::sleep(TICK);
    }
    models.into_values().for_each(Model::end);
}

fn run_models_of(dir: &Path, hosts: &HashMap<u32, Host>, models: &mut HashMap<u32, Model>) {
    let now = domains(dir);
    let gone: Vec<_> = models
        .keys()
        .copied()
        .filter(|d| !now.contains_key(d))
        .collect();
    for domid in gone {
        models.remove(&domid).unwrap().end();
    }
    let there = |file: &str| dir.join(file).exists();
    let boots = !there("no-boot") && (!there("boots-late") || there("looked"));
    for domid in now.into_keys() {
        if models.contains_key(&domid) || domid != 1 && !boots {
            continue;
        }
        let config = std::fs::read_to_string(dir.join(format!("config-{domid}")));
        let socket = match &config {
            Ok(text) => text
                .split("path=")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap(),
            Err(_) => "A.sock",
        };
        let model = Model::start(dir.join(socket), hosts[&domid].clone());
        models.insert(domid, model);
    }
}

/// Two guests in A, which is domain 1; what replaces it is domain 5.
pub struct Lab {
    pub w: World,
    /// What is in the new one.
    pub new: Host,
}

impl Lab {
    pub fn new() -> Self {
        let mut w = World::new();
        w.domid_command = Some(upkeep::toolstack(w.dir.path()));
        w.replaceable = true;
        lock(&w.hosts["A"]).add_guest(2, "second", 64);
        let new = host(1 << 35, 0, 3);
        {
            let mut new = lock(&new);
            new.guests.clear();
            new.uuid = uuid("N");
            new.version = Some(w.dir.path().join("version"));
        }
        // What replaces the new one is what the old one was.
        let old = &w.hosts["A"];
        let hosts = HashMap::from([(1, old.clone()), (5, new.clone()), (6, old.clone())]);
        Arc::get_mut(&mut w.driver).unwrap().hosts = hosts.clone();
        let lab = Self { w, new };
        lab.put(
            "uuids",
            &format!("1 {0}\n5 {1}\n6 {0}\n", uuid("A"), uuid("N")),
        );
        lab.put("domid-A", "1\n");
        let port = lab.w.socket("A");
        let config = format!(
            "# new\nname = \"A\"\nmemory = 300\n\
             device_model_args = [\"-chardev\", \"socket,id=agent,path={},server=on\"]\n",
            port.display()
        );
        lab.put("A-new.cfg", &config);
        lab.put("A.cfg", "name = \"A\"\n");
        std::fs::create_dir(lab.path("auto")).unwrap();
        std::os::unix::fs::symlink("../A.cfg", lab.path("auto/A.cfg")).unwrap();
        let dir = lab.w.dir.path().to_owned();
        std::thread::spawn(move || run_models(&dir, &hosts));
        lab
    }

    pub fn start() -> Self {
        let mut lab = Self::new();
        lab.w.start();
        lab.w.wait_agent("A", None);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.w.dir.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// The replacement, in the process itself.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.job(args);
        command.arg("--here");
        command
    }

    /// The same as a job.
    pub fn job(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
        command.arg("--socket").arg(self.w.control());
        command.args(["replace", "A", "--json"]);
        for (option, file) in [
            ("--state-dir", "state"),
            ("--auto-dir", "auto"),
            ("--xl", "xl"),
        ] {
            command.arg(option).arg(self.path(file));
        }
        if !args.contains(&"--config") && !args.contains(&"--undo") {
            command.arg("--config").arg(self.path("A-new.cfg"));
        }
        command.args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    pub fn calls(&self) -> Vec<String> {
        upkeep::calls(self.w.dir.path())
    }

    /// Guests that run in the old host VM, and in the new one.
    pub fn running(&self) -> [Vec<String>; 2] {
        [&self.w.hosts["A"], &self.new].map(|host| lock(host).running())
    }

    /// What the state's file says of the stage.
    pub fn stage(&self) -> String {
        let text = std::fs::read(self.path("state/replace-A.json")).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        state["stage"].as_str().unwrap_or_default().into()
    }

    pub fn starts_at_boot(&self) -> PathBuf {
        self.path("auto/A.cfg").canonicalize().unwrap()
    }

    /// The new one is A, with all guests and all that goes by the name.
    #[track_caller]
    pub fn assert_replaced(&self) {
        let none = Vec::<String>::new();
        assert_eq!(
            self.running(),
            [none, vec!["guest".into(), "second".into()]]
        );
        let expected = HashMap::from([(5, "A".into())]);
        assert_eq!(domains(self.w.dir.path()), expected);
        assert_eq!(self.starts_at_boot(), self.path("A-new.cfg"));
        assert!(self.path("A.sock").is_symlink());
        self.assert_tidy();
        // The agent answers by its new name, and the other one is not missed.
        self.w.wait_agent("A", None);
    }

    /// The old one is as it was.
    #[track_caller]
    pub fn assert_as_before(&self) {
        let none = Vec::<String>::new();
        assert_eq!(
            self.running(),
            [vec!["guest".into(), "second".into()], none]
        );
        let expected = HashMap::from([(1, "A".into())]);
        assert_eq!(domains(self.w.dir.path()), expected);
        assert_eq!(self.starts_at_boot(), self.path("A.cfg"));
        assert!(!self.path("A.sock").is_symlink());
        self.assert_tidy();
    }

    #[track_caller]
    pub fn assert_tidy(&self) {
        for file in ["state/replace-A.json", "state/replace-A.cfg", "A.new.sock"] {
            assert!(
                !self.path(file).is_symlink() && !self.path(file).exists(),
                "{file}"
            );
        }
    }
}
