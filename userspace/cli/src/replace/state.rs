// SPDX-License-Identifier: GPL-2.0-only

//! What must be known to go on with a replacement that did not get to its end, or to undo it.

use super::memory::Memory;
use crate::upkeep::record::{self, ago, boot_id, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use vmbeam_xen::domains::Domains;

/// Version of the file's format.
const VERSION: u32 = 1;

/// Memory of the new host VM in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Size {
    /// When it starts,
    pub(super) start: u64,
    /// and at most.
    pub(super) most: u64,
}

impl Size {
    pub(super) fn is_small(self) -> bool {
        self.start < self.most
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The new host VM may be there.
    Creating,
    /// It is, and no guest has been moved.
    Checking,
    /// Guests may be in both.
    Moving,
    /// None is in the old one, which is to be shut down: there is no way back.
    Empty,
    /// It was told to, so that its agent may be silent.
    Ending,
    /// The way back: guests may be in both, and the new one is removed at its end.
    Undoing,
    /// All are in the old one. The new one was told to shut down, or is gone already.
    Removing,
}

/// What must be known to go on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    pub(super) host_vm: String,
    /// When it began, in seconds since 1970.
    begun: u64,
    /// The host's boot id: domids mean nothing after another boot.
    boot: String,
    /// Domid of the old host VM.
    pub(super) domid: u32,
    /// Its guest hypervisor.
    pub(super) hypervisor: String,
    /// Where the port of its agent is.
    pub(super) port: PathBuf,
    /// What the new one is created from, as it was given.
    pub(super) config: PathBuf,
    digest: u64,
    pub(super) size: Size,
    /// Domid of the new one, once it is there.
    pub(super) new: Option<u32>,
    /// Its agent has answered: guests may have got there, by whatever way.
    #[serde(default)]
    pub(super) answered: bool,
    /// Guests that were to leave the old one.
    pub(super) guests: Vec<String>,
    pub(super) stage: Stage,
    pub(super) memory: Memory,
}

impl State {
    /// One that begins.
    pub(super) fn new(
        host_vm: &str,
        domid: u32,
        hypervisor: String,
        port: PathBuf,
        (config, size): (&Path, Size),
        memory: Memory,
    ) -> Result<Self, String> {
        let config = config
            .canonicalize()
            .map_err(|e| format!("{}: {e}", config.display()))?;
        Ok(Self {
            version: VERSION,
            host_vm: host_vm.into(),
            begun: record::now(),
            boot: boot_id()?,
            domid,
            hypervisor,
            port,
            digest: digest(&config)?,
            config,
            size,
            new: None,
            answered: false,
            guests: Vec::new(),
            stage: Stage::Creating,
            memory,
        })
    }

    pub(super) fn read(file: &Path) -> Result<Option<Self>, String> {
        record::read(file, VERSION)
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        record::note(file, self)
    }

    /// Where the device model of the new host VM makes the port of its agent. It is made there
    /// again whenever that host VM starts again by itself, so the name is its own for good.
    pub(super) fn own_port(&self) -> PathBuf {
        let name = format!("{}.{:x}.sock", self.host_vm, self.begun);
        self.port.with_file_name(name)
    }

    /// Whether what an earlier run has left is what is there now. One that is undone does not
    /// care what becomes of the old host VM, as long as there is one.
    pub(super) fn take_up(
        &self,
        domains: &Domains,
        config: Option<&Path>,
        file: &Path,
    ) -> Result<(), String> {
        let (name, begun, file) = (&self.host_vm, ago(self.begun), file.display());
        if self.boot != boot_id()? {
            return Err(format!(
                "a replacement of host VM {name} was begun {begun} ago, and the host was restarted since, with whatever ran on it; see `vmbeam list`, and remove {file}"
            ));
        }
        let lost = match self.stage {
            Stage::Creating | Stage::Checking | Stage::Removing => false,
            Stage::Moving | Stage::Undoing => !self.guests.is_empty(),
            // Nothing else replaces the old one.
            Stage::Empty | Stage::Ending => true,
        };
        if let Some(new) = self.new.filter(|new| !domains.has(*new)) {
            if lost {
                return Err(format!(
                    "a replacement of host VM {name} was begun {begun} ago, and the new host VM, domain {new}, is gone since, with whatever guests had moved to it; see `vmbeam list`, and remove {file}"
                ));
            }
        }
        let (Some(config), true) = (config, self.stage < Stage::Undoing) else {
            return Ok(());
        };
        if digest(config)? != self.digest {
            return Err(format!(
                "host VM {name} is being replaced by one from another configuration than {}, {}; go on with that one, or give that up by --undo",
                config.display(),
                self.config.display()
            ));
        }
        if self.stage < Stage::Empty && !domains.has(self.domid) {
            return Err(format!(
                "a replacement of host VM {name} was begun {begun} ago, and somebody else has ended that host VM since, domain {}; --undo brings its guests to the one that has its name, and removes the new one",
                self.domid
            ));
        }
        Ok(())
    }
}
