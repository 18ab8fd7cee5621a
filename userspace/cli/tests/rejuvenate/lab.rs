// SPDX-License-Identifier: GPL-2.0-only

//! Two host VMs, one of which is rejuvenated.

#![allow(dead_code, reason = "every test file uses a part of it")]

use crate::common::{lock, World};
use crate::upkeep::{self, Done};
use std::path::PathBuf;
use std::process::Command;

/// Two guests in A; B has one of its own.
pub struct Lab {
    pub w: World,
}

impl Lab {
    pub fn new() -> Self {
        let mut w = World::new();
        w.domid_command = Some(upkeep::toolstack(w.dir.path()));
        lock(&w.hosts["A"]).add_guest(2, "second", 64);
        lock(&w.hosts["A"]).version = Some(w.dir.path().join("version"));
        lock(&w.hosts["B"]).guests.clear();
        lock(&w.hosts["B"]).add_guest(1, "resident", 64);
        let lab = Self { w };
        lab.put("domid-A", "1\n");
        lab.put("version", "Fake 1.0\n");
        lab.put("A.cfg", "# new\nname = \"A\"\n");
        lab
    }

    pub fn start() -> Self {
        let mut lab = Self::new();
        lab.w.agents(&["A", "B"]);
        lab.w.start();
        for name in ["A", "B"] {
            lab.w.wait_agent(name, None);
        }
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

    /// `vmbeam` with these arguments.
    pub fn vmbeam(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
        command.arg("--socket").arg(self.w.control()).args(args);
        command
    }

    /// The rejuvenation, in the process itself.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.job(args);
        command.arg("--here");
        command
    }

    /// The same as a job.
    pub fn job(&self, args: &[&str]) -> Command {
        let mut command = self.vmbeam(&["rejuvenate", "A", "--json"]);
        command.arg("--state-dir").arg(self.path("state"));
        if !args.contains(&"--xl") {
            command.arg("--xl").arg(self.path("xl"));
        }
        if !args.contains(&"--config") {
            command.arg("--config").arg(self.path("A.cfg"));
        }
        command.args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// What was asked of the toolstack, but for questions.
    pub fn calls(&self) -> Vec<String> {
        upkeep::calls(self.w.dir.path())
    }

    pub fn running(&self, host_vm: &str) -> Vec<String> {
        lock(&self.w.hosts[host_vm]).running()
    }

    #[track_caller]
    pub fn assert_done(&self) {
        assert_eq!(self.running("A"), ["guest", "second"]);
        assert_eq!(self.running("B"), ["resident"]);
        assert!(!self.path("state/rejuvenate-A.json").exists());
    }
}
