// SPDX-License-Identifier: GPL-2.0-only

//! Configuration.

mod hooks;
mod metrics;

use serde::Deserialize;
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use vmbeam_control_protocol::replacement_of;

pub use hooks::HookConfig;
use hooks::RawHook;
pub use metrics::MetricsAt;
use metrics::RawMetrics;

/// Where the configuration normally is.
pub const CONFIG_PATH: &str = "/etc/vmbeam/vmbeamd.toml";
/// Where the command line reaches the daemon.
pub const CONTROL_SOCKET: &str = "/run/vmbeam/control.sock";
/// Where QEMU is to put the sockets of the host VMs' ports.
pub const AGENT_SOCKETS: &str = "/run/vmbeam/agents";

/// Where migrations are noted, so that they survive the daemon.
pub const STATE_DIR: &str = "/var/lib/vmbeam";

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line of the file is not acceptable.
    #[error("{}:{line}: {}{message}", file.display(), key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1 on.
        line: usize,
        /// Which key, if the line has one.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
}

/// How to learn the domid of a host VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domid {
    /// Run this command with the name appended; it prints the number.
    Command(Vec<String>),
    /// It is known.
    Fixed(u32),
}

/// A host VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVmConfig {
    /// Its name, as `xl` knows it.
    pub name: String,
    /// Socket of its serial port.
    pub socket: PathBuf,
    /// How to learn its domid.
    pub domid: Domid,
    /// Prints which domains there are.
    pub list: Vec<String>,
    /// Prints what the domain whose domid is appended has of the host's memory.
    pub memory: Vec<String>,
    /// It is the one that is to replace this one: it is there only while that lasts.
    pub replaces: Option<String>,
}

impl HostVmConfig {
    /// The host VM that replaces this one, until it has its name.
    fn replacement(&self) -> Self {
        let name = replacement_of(&self.name);
        Self {
            socket: self.socket.with_file_name(format!("{name}.sock")),
            replaces: Some(self.name.clone()),
            name,
            ..self.clone()
        }
    }
}

/// The daemon's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the command line reaches the daemon.
    pub control_socket: PathBuf,
    /// The driver's device.
    pub device: PathBuf,
    /// Where migrations are noted, so that they survive the daemon.
    pub state_dir: PathBuf,
    /// How long an agent may take over one request.
    pub agent_timeout: Duration,
    /// Whether host VMs are told whether they may start their guests when they boot.
    pub autostart: bool,
    /// Prints the UUID of the domain whose domid is appended.
    pub uuid_command: Vec<String>,
    /// Where metrics can be read, if anywhere.
    pub metrics: Option<MetricsAt>,
    /// What is run before and after a move.
    pub hooks: Vec<HookConfig>,
    /// Host VMs.
    pub host_vms: Vec<HostVmConfig>,
    /// Pairs that may swap, each with its names in order.
    pub pairs: BTreeSet<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    daemon: RawDaemon,
    metrics: Option<RawMetrics>,
    #[serde(default)]
    hook: Vec<RawHook>,
    #[serde(default)]
    host_vm: Vec<RawHostVm>,
    #[serde(default)]
    pair: Vec<RawPair>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDaemon {
    control_socket: Option<Spanned<PathBuf>>,
    device: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    agent_timeout_seconds: Option<Spanned<u64>>,
    autostart: Option<bool>,
    domid_command: Option<Spanned<Vec<String>>>,
    uuid_command: Option<Spanned<Vec<String>>>,
    list_command: Option<Spanned<Vec<String>>>,
    memory_command: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHostVm {
    name: Spanned<String>,
    socket: Option<Spanned<PathBuf>>,
    domid: Option<Spanned<u32>>,
    replaceable: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    between: Spanned<Vec<String>>,
}

/// Makes errors that name the line and the key of a place in the text.
struct Place<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn error(&self, span: Option<Range<usize>>, message: impl Into<String>) -> ConfigError {
        let at = span.map_or(0, |s| s.start).min(self.text.len());
        let before = self.text.get(..at).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let key = self
            .text
            .lines()
            .nth(line - 1)
            .and_then(|l| l.split_once('='))
            .map(|(k, _)| k.trim().to_owned());
        ConfigError::Line {
            file: self.file.into(),
            line,
            key,
            message: message.into(),
        }
    }
}

impl Config {
    /// Read and check a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::Read {
            file: file.into(),
            error,
        })?;
        Self::parse(file, &text)
    }

    /// Check the text of a file.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let place = Place { file, text };
        let raw: Raw =
            toml::from_str(text).map_err(|e| place.error(e.span(), e.message().to_owned()))?;

        let command = |given: Option<Spanned<Vec<String>>>, or: &[&str]| match given {
            None => Ok(or.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()),
            Some(c) if c.get_ref().is_empty() => {
                Err(place.error(Some(c.span()), "the command is empty"))
            }
            Some(c) => Ok(c.into_inner()),
        };
        let list = command(raw.daemon.list_command, &["xl", "list"])?;
        let memory = command(raw.daemon.memory_command, &["vmbeam", "memory"])?;
        let uuid_command = command(raw.daemon.uuid_command, &["xl", "list", "-v"])?;
        let command = command(raw.daemon.domid_command, &["xl", "domid"])?;
        let control_socket = match raw.daemon.control_socket {
            None => CONTROL_SOCKET.into(),
            Some(s) => {
                check_socket(s.get_ref()).map_err(|why| place.error(Some(s.span()), why))?;
                s.into_inner()
            }
        };
        let agent_timeout = match raw.daemon.agent_timeout_seconds {
            None => Duration::from_secs(300),
            Some(s) if !(1..=3600).contains(s.get_ref()) => {
                return Err(place.error(Some(s.span()), "must be between 1 and 3600"));
            }
            Some(s) => Duration::from_secs(s.into_inner()),
        };

        let metrics = match &raw.metrics {
            None => None,
            Some(m) => Some(
                m.at()
                    .map_err(|why| place.error(Some(m.listen.span()), why))?,
            ),
        };

        let hooks = hooks::check(raw.hook, &place)?;

        let mut names = BTreeSet::new();
        let mut host_vms = Vec::new();
        let mut replacements = Vec::new();
        for vm in raw.host_vm {
            let taken = |is: &dyn Fn(&HostVmConfig) -> bool| {
                let other = host_vms.iter().find(|vm| is(vm));
                other.map(|vm: &HostVmConfig| vm.name.clone())
            };
            let span = vm.name.span();
            let name = vm.name.into_inner();
            if name.is_empty() || name.contains('/') || !is_plain(&name) {
                return Err(place.error(Some(span), "not a possible name of a host VM"));
            }
            if name.bytes().all(|b| b.is_ascii_digit()) {
                // `xl destroy 3` is for domain 3, whatever has that name.
                let message = "a name of digits only is a domid for xl; give the host VM another";
                return Err(place.error(Some(span), message));
            }
            if !names.insert(name.clone()) {
                return Err(place.error(Some(span), format!("host VM {name} appears twice")));
            }
            let domid = match vm.domid {
                None => Domid::Command(command.clone()),
                // 0x7ff0 is the first number that Xen reserves.
                Some(d) if !(1..0x7ff0).contains(d.get_ref()) => {
                    return Err(place.error(Some(d.span()), "not the domid of a host VM"));
                }
                Some(d) => {
                    if let Some(other) = taken(&|vm| vm.domid == Domid::Fixed(*d.get_ref())) {
                        let message = format!("host VM {other} has this domid");
                        return Err(place.error(Some(d.span()), message));
                    }
                    Domid::Fixed(d.into_inner())
                }
            };
            let (socket, at) = match vm.socket {
                Some(socket) => (socket.get_ref().clone(), socket.span()),
                None => (Path::new(AGENT_SOCKETS).join(format!("{name}.sock")), span),
            };
            check_socket(&socket).map_err(|why| place.error(Some(at.clone()), why))?;
            // Each would be told of the other's guests.
            if let Some(other) = taken(&|vm| vm.socket == socket) {
                let message = format!("host VM {other} has the socket {}", socket.display());
                return Err(place.error(Some(at), message));
            }
            let vm_config = HostVmConfig {
                name,
                socket,
                domid,
                list: list.clone(),
                memory: memory.clone(),
                replaces: None,
            };
            if let Some(at) = vm.replaceable.filter(|r| *r.get_ref()) {
                if matches!(vm_config.domid, Domid::Fixed(_)) {
                    let message = "not with a fixed domid, since what replaces it has another one";
                    return Err(place.error(Some(at.span()), message));
                }
                replacements.push((vm_config.replacement(), at.span()));
            }
            host_vms.push(vm_config);
        }

        let mut pairs = BTreeSet::new();
        for (vm, at) in replacements {
            let same = |o: &HostVmConfig| o.name == vm.name || o.socket == vm.socket;
            if host_vms.iter().any(same) {
                let message = format!(
                    "what replaces it is called {}, with the socket {}, which another host VM has",
                    vm.name,
                    vm.socket.display()
                );
                return Err(place.error(Some(at), message));
            }
            check_socket(&vm.socket).map_err(|why| place.error(Some(at), why))?;
            pairs.extend(vm.replaces.clone().map(|a| ordered(a, vm.name.clone())));
            host_vms.push(vm);
        }
        for pair in raw.pair {
            let span = pair.between.span();
            let names_of_pair = pair.between.into_inner();
            let Ok([a, b]) = <[String; 2]>::try_from(names_of_pair) else {
                return Err(place.error(Some(span), "a pair has two host VMs"));
            };
            for name in [&a, &b] {
                if !names.contains(name) {
                    let message = format!("there is no [[host_vm]] named {name}");
                    return Err(place.error(Some(span), message));
                }
            }
            if a == b {
                return Err(place.error(Some(span), "a pair has two different host VMs"));
            }
            pairs.insert(ordered(a, b));
        }

        Ok(Self {
            control_socket,
            device: raw
                .daemon
                .device
                .unwrap_or_else(|| vmbeam_uapi::DEVICE_PATH.into()),
            state_dir: raw.daemon.state_dir.unwrap_or_else(|| STATE_DIR.into()),
            agent_timeout,
            autostart: raw.daemon.autostart.unwrap_or(true),
            uuid_command,
            metrics,
            hooks,
            host_vms,
            pairs,
        })
    }

    /// Whether guests of these two host VMs may change places.
    pub fn allows(&self, a: &str, b: &str) -> bool {
        self.pairs.contains(&ordered(a.into(), b.into()))
    }
}

/// Whether it can name a host VM: what is seen is all there is of it.
fn is_plain(name: &str) -> bool {
    vmbeam_wire::is_plain(name) && name.trim() == name
}

/// Whether there can be a socket of this name.
fn check_socket(path: &Path) -> Result<(), &'static str> {
    if !path.is_absolute() {
        return Err("must be an absolute path");
    }
    match UnixAddress::from_pathname(path) {
        Ok(_) => Ok(()),
        Err(_) => Err("too long for the path of a socket, or not a path; the most is 107 bytes"),
    }
}

fn ordered(a: String, b: String) -> (String, String) {
    if a <= b {
        (a, b)
    } else {
        (b, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("vmbeamd.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn denied_by_default() {
        let c = parse("[[host_vm]]\nname = \"A\"\n[[host_vm]]\nname = \"B\"\ndomid = 7\n").unwrap();
        assert!(!c.allows("A", "B"));
        assert_eq!(c.host_vms[0].socket, Path::new("/run/vmbeam/agents/A.sock"));
        assert_eq!(
            c.host_vms[0].domid,
            Domid::Command(vec!["xl".into(), "domid".into()])
        );
        assert_eq!(c.host_vms[1].domid, Domid::Fixed(7));
    }

    #[test]
    fn metrics_are_off_unless_asked_for() {
        assert_eq!(parse("").unwrap().metrics, None);
        let at = |listen: &str| {
            let config = parse(&format!("[metrics]\nlisten = \"{listen}\"\n")).unwrap();
            config.metrics.unwrap()
        };
        assert_eq!(at("/run/m.sock"), MetricsAt::Socket("/run/m.sock".into()));
        assert_eq!(
            at("[::1]:9187"),
            MetricsAt::Port("[::1]:9187".parse().unwrap())
        );
    }

    #[test]
    fn guests_may_move_to_what_replaces_their_host_vm() {
        let text = "[[host_vm]]\nname = \"A\"\nsocket = \"/s/a.sock\"\nreplaceable = ";
        let c = parse(&format!("{text}true\n")).unwrap();
        let [old, new] = &c.host_vms[..] else {
            panic!("{c:?}")
        };
        assert_eq!((&*new.name, new.replaces.as_deref()), ("A.new", Some("A")));
        assert_eq!(new.socket, Path::new("/s/A.new.sock"));
        assert_eq!((&old.replaces, &old.domid), (&None, &new.domid));
        assert!(c.allows("A", "A.new") && c.pairs.len() == 1);
        assert_eq!(parse(&format!("{text}false\n")).unwrap().host_vms.len(), 1);
    }

    #[test]
    fn pairs_go_both_ways() {
        let c = parse(
            "[[host_vm]]\nname = \"A\"\n[[host_vm]]\nname = \"B\"\n[[pair]]\nbetween = [\"B\", \"A\"]\n",
        )
        .unwrap();
        assert!(c.allows("A", "B") && c.allows("B", "A") && !c.allows("A", "A"));
    }

    #[test]
    fn the_shipped_example_is_right() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vmbeamd.toml");
        assert!(Config::load(&file).unwrap().allows("A", "B"));
    }

    #[test]
    fn names_that_are_unusual_but_possible() {
        for name in [
            "two words",
            "it's",
            "\u{e9}t\u{e9}",
            "back\\slash",
            "4a",
            "x.y-z_1",
        ] {
            let text = format!("[[host_vm]]\nname = '''{name}'''\n");
            assert_eq!(parse(&text).unwrap().host_vms[0].name, name);
        }
    }

    #[test]
    fn a_socket_has_to_fit_into_an_address() {
        let long = format!("/{}", "x".repeat(107));
        let fits = &long[..107];
        let listen = |path: &str| parse(&format!("[metrics]\nlisten = \"{path}\"\n"));
        let control = |path: &str| parse(&format!("[daemon]\ncontrol_socket = \"{path}\"\n"));
        let socket = |path: &str| {
            let vm = "[[host_vm]]\nname = \"A\"\n";
            parse(&format!("{vm}socket = \"{path}\"\n"))
        };
        for of in [&listen as &dyn Fn(&str) -> _, &control, &socket] {
            assert!(of(fits).is_ok());
            let e = of(&long).unwrap_err();
            assert!(e.contains("too long for the path of a socket"), "{e}");
            assert!(of("/a\\u0000b").is_err());
        }
        let name = "n".repeat(100);
        let e = parse(&format!("[[host_vm]]\nname = \"{name}\"\n")).unwrap_err();
        assert!(e.starts_with("vmbeamd.toml:2: name: too long"), "{e}");
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, expected) in [
            ("[[host_vm]]\nname = 5\n", "vmbeamd.toml:2: name: "),
            (
                "[[host_vm]]\nname = \"A\"\nsockte = \"x\"\n",
                "vmbeamd.toml:3: sockte: ",
            ),
            (
                "[[host_vm]]\nname = \"A/B\"\n",
                "vmbeamd.toml:2: name: not a possible name",
            ),
            (
                "[[host_vm]]\nname = \"A\"\n[[host_vm]]\nname = \"A\"\n",
                "vmbeamd.toml:4: name: host VM A",
            ),
            (
                "[[host_vm]]\nname = \"A\"\ndomid = 0\n",
                "vmbeamd.toml:3: domid: not the domid",
            ),
            (
                "[[host_vm]]\nname = \"A\"\n\n[[pair]]\nbetween = [\"A\", \"C\"]\n",
                "vmbeamd.toml:5: between: there is no",
            ),
            (
                "[[host_vm]]\nname = \"A\"\n[[pair]]\nbetween = [\"A\"]\n",
                "vmbeamd.toml:4: between: a pair has two",
            ),
            (
                "[[host_vm]]\nname = \"A\"\n[[pair]]\nbetween = [\"A\", \"A\"]\n",
                "vmbeamd.toml:4: between: a pair has two different",
            ),
            (
                "[daemon]\nagent_timeout_seconds = 0\n",
                "vmbeamd.toml:2: agent_timeout_seconds: must be",
            ),
            (
                "[daemon]\ndomid_command = []\n",
                "vmbeamd.toml:2: domid_command: the command",
            ),
            (
                "[daemon]\nuuid_command = []\n",
                "vmbeamd.toml:2: uuid_command: the command",
            ),
            (
                "[daemon]\n\n[metrics]\nlisten = \"0.0.0.0:9187\"\n",
                "vmbeamd.toml:4: listen: must be an address of this machine only",
            ),
            (
                "[metrics]\nlisten = \"9187\"\n",
                "vmbeamd.toml:2: listen: must be the path",
            ),
            ("[metrics]\nport = 1\n", "vmbeamd.toml:2: port: unknown"),
            (
                "[[host_vm]]\nname = \"3\"\n",
                "vmbeamd.toml:2: name: a name of digits only",
            ),
            (
                "[[host_vm]]\nname = \"A\"\ndomid = 4\nreplaceable = true\n",
                "vmbeamd.toml:4: replaceable: not with a fixed domid",
            ),
            (
                "[[host_vm]]\nname = \"A\"\nreplaceable = true\n[[host_vm]]\nname = \"A.new\"\n",
                "vmbeamd.toml:3: replaceable: what replaces it is called A.new",
            ),
            (
                "[[host_vm]]\nname = \"A\"\ndomid = 4\n[[host_vm]]\nname = \"B\"\ndomid = 4\n",
                "vmbeamd.toml:6: domid: host VM A has this domid",
            ),
            (
                "[[host_vm]]\nname = \"A\"\n[[host_vm]]\nname = \"B\"\n\
                 socket = \"/run/vmbeam//agents/./A.sock\"\n",
                "vmbeamd.toml:5: socket: host VM A has the socket ",
            ),
            (
                "[[host_vm]]\nname = \"A\"\nsocket = \"run/A.sock\"\n",
                "vmbeamd.toml:3: socket: must be an absolute path",
            ),
            (
                "[[host_vm]]\nname = \"A\\nB\"\n",
                "vmbeamd.toml:2: name: not a possible name",
            ),
            (
                "[[host_vm]]\nname = \"A\\u202e\"\n",
                "vmbeamd.toml:2: name: not a possible name",
            ),
            (
                "[[host_vm]]\nname = \"A \"\n",
                "vmbeamd.toml:2: name: not a possible name",
            ),
            ("[[host_vm]\n", "vmbeamd.toml:1: "),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.starts_with(expected), "{e}");
        }
    }
}
