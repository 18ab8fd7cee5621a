// SPDX-License-Identifier: GPL-2.0-only

//! Shutting a host VM down and creating it again, with the host's toolstack.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vmbeam_xen::command::{run, Output};
use vmbeam_xen::domains::Domains;

/// How long a command may take that changes one thing.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a host VM that is destroyed may take to be gone: all its memory is given back.
const DESTROY: Duration = Duration::from_secs(600);
/// How often to look.
const LOOK: Duration = Duration::from_millis(500);

/// The program that manages host VMs: `xl`, or what stands in for it.
#[derive(Debug)]
pub(crate) struct Toolstack {
    pub(crate) program: PathBuf,
    /// How long it may take to create a host VM.
    pub(crate) create_timeout: Duration,
}

/// How a host VM came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As it was told to.
    Orderly,
    /// It was not in time, and was destroyed.
    Forced,
    /// Somebody does not want to wait.
    Interrupted,
}

fn words(output: &Output) -> String {
    let lines: Vec<_> = output.err.lines().map(str::trim).collect();
    let said = lines[lines.len().saturating_sub(4)..].join("; ");
    if said.is_empty() {
        format!("it ended with {}", output.status)
    } else {
        said
    }
}

impl Toolstack {
    fn show(&self, arguments: &[&str]) -> String {
        format!("`{} {}`", self.program.display(), arguments.join(" "))
    }

    fn try_to(&self, arguments: &[&str], limit: Duration) -> Result<Output, String> {
        // In a group of its own: Ctrl-C is for this program, which ends the step.
        let mut command = Command::new(&self.program);
        command.args(arguments).process_group(0);
        run(&mut command, limit).map_err(|e| {
            format!(
                "{}: {e}; is it the host's toolstack (--xl)?",
                self.show(arguments)
            )
        })
    }

    fn must(&self, arguments: &[&str], limit: Duration) -> Result<Output, String> {
        let output = self.try_to(arguments, limit)?;
        if output.status.success() {
            return Ok(output);
        }
        Err(format!("{}: {}", self.show(arguments), words(&output)))
    }

    /// What runs. That it cannot be told is an error: nothing is known to be gone then.
    pub(crate) fn domains(&self) -> Result<Domains, String> {
        let mut command = Command::new(&self.program);
        Domains::list(command.arg("list"), COMMAND).map_err(|e| {
            format!(
                "{}: {e}; is it the host's toolstack (--xl)?",
                self.show(&["list"])
            )
        })
    }

    /// The domid of a host VM, if it runs.
    pub(crate) fn domid(&self, host_vm: &str) -> Result<Option<u32>, String> {
        self.domains()?.named(host_vm)
    }

    /// Wait until this domain does not run any more.
    fn wait_until_gone(
        &self,
        domid: u32,
        limit: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<bool, String> {
        let deadline = Instant::now() + limit;
        while self.domains()?.has(domid) {
            if Instant::now() >= deadline || stop() {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// End a host VM: in an orderly way if it does so in time.
    pub(crate) fn end(
        &self,
        host_vm: &str,
        domid: u32,
        limit: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<Ending, String> {
        // By its number: a host VM that has just been renamed, or another one of its name,
        // is not it. -F: by the power button, for host VMs without drivers for Xen.
        let number = domid.to_string();
        let asked = self.must(&["shutdown", "-F", &number], COMMAND);
        match &asked {
            Ok(_) if self.wait_until_gone(domid, limit, &stop)? => {
                return Ok(Ending::Orderly);
            }
            Ok(_) if stop() => return Ok(Ending::Interrupted),
            Ok(_) => eprintln!(
                "vmbeam: host VM {host_vm} has not shut down within {} s; destroying it",
                limit.as_secs()
            ),
            Err(e) => eprintln!("vmbeam: {e}; destroying host VM {host_vm}"),
        }
        self.must(&["destroy", &number], DESTROY)?;
        if self.wait_until_gone(domid, DESTROY, || false)? {
            Ok(Ending::Forced)
        } else {
            Err(format!(
                "host VM {host_vm} was destroyed, but does not go away; see `xl list`"
            ))
        }
    }

    /// Give a domain another name.
    pub(crate) fn rename(&self, domid: u32, name: &str) -> Result<(), String> {
        self.must(&["rename", &domid.to_string(), name], COMMAND)
            .map(drop)
    }

    /// Let a domain have so much memory, which it need not have yet.
    pub(crate) fn allow(&self, domid: u32, mib: u64) -> Result<(), String> {
        let arguments = ["mem-max", &domid.to_string(), &mib.to_string()];
        self.must(&arguments, COMMAND).map(drop)
    }

    /// Give a domain so much memory.
    pub(crate) fn fill(&self, domid: u32, mib: u64) -> Result<(), String> {
        let arguments = ["mem-set", &domid.to_string(), &mib.to_string()];
        self.must(&arguments, COMMAND).map(drop)
    }

    /// Memory of the host that nobody has, in MiB.
    pub(crate) fn free_mib(&self) -> Result<u64, String> {
        let asked = ["info", "free_memory"];
        let output = self.must(&asked, COMMAND)?;
        let said = output.out.trim();
        said.parse()
            .map_err(|_| format!("{} printed {said:?}", self.show(&asked)))
    }

    /// Create a host VM.
    pub(crate) fn create(&self, config: &Path) -> Result<(), String> {
        let config = config.to_string_lossy();
        self.must(&["create", &config], self.create_timeout)
            .map(drop)
    }
}

/// The configuration of a host VM, for the toolstack.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) text: String,
}

impl Config {
    /// It must be there, and be that of the host VM.
    pub(crate) fn read(file: &Path, host_vm: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let config = Self { text };
        match config.value("name") {
            Some(name) if name == host_vm => Ok(config),
            Some(name) => Err(format!(
                "{}: name is {name:?}, which is not the host VM that is to be created again; it must be {host_vm:?}",
                file.display()
            )),
            None => Err(format!(
                "{}: there is no line `name = \"{host_vm}\"`; is it the configuration of a host VM?",
                file.display()
            )),
        }
    }

    /// What a line `key = value` says.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        value(&self.text, key)
    }

    /// The same, in MiB.
    pub(crate) fn mib(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }
}

/// What a line `key = value` of a configuration says.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == key).then(|| value.trim().trim_matches(['"', '\'', ';']))
    })
}
