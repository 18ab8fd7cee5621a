// SPDX-License-Identifier: GPL-2.0-only

//! What must be known to go on with a rejuvenation that did not get to its end. It is in
//! a small file, because nothing else tells it: which guests have left, and which domain
//! the host VM was.

use super::Args;
use crate::upkeep::record::{self, boot_id, digest};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the file's format.
const VERSION: u32 = 2;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Guests may be in the host VM.
    Leaving,
    /// None is: it is to be shut down.
    Empty,
    /// It was told to, so that its agent may be silent.
    Ending,
    /// A domain of its name that was not there is the new one.
    Creating,
    /// The new one is there.
    Created {
        /// Its domid.
        domid: u32,
        /// What it was created from.
        config: u64,
    },
}

/// What must be known to go on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    pub(super) host_vm: String,
    pub(super) to: String,
    /// When it began, in seconds since 1970.
    begun: u64,
    /// The host's boot id: domids mean nothing after another boot.
    boot: String,
    /// Domid before the restart.
    pub(super) domid: u32,
    /// Guest hypervisor before the restart.
    pub(super) hypervisor: String,
    /// Guests that are to come back.
    pub(super) guests: Vec<String>,
    pub(super) stage: Stage,
}

impl State {
    /// One that begins.
    pub(super) fn new(
        (host_vm, to): (&str, &str),
        domid: u32,
        hypervisor: String,
        guests: Vec<String>,
    ) -> Result<Self, String> {
        Ok(Self {
            version: VERSION,
            host_vm: host_vm.into(),
            to: to.into(),
            begun: record::now(),
            boot: boot_id()?,
            domid,
            hypervisor,
            guests,
            stage: Stage::Leaving,
        })
    }

    pub(super) fn read(file: &Path) -> Result<Option<Self>, String> {
        record::read(file, VERSION)
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        record::note(file, self)
    }

    /// The domain that is there now is the new one.
    pub(super) fn created(&mut self, domid: u32, config: &Path) -> Result<(), String> {
        let config = digest(config)?;
        self.stage = Stage::Created { domid, config };
        Ok(())
    }

    /// The domid of the new one, once it is there.
    pub(super) fn is_created(&self) -> Option<u32> {
        match self.stage {
            Stage::Created { domid, .. } => Some(domid),
            _ => None,
        }
    }

    /// Whether what an earlier run has left is what is there now; `domid` is that of the
    /// host VM, if it runs.
    pub(super) fn take_up(
        &mut self,
        domid: Option<u32>,
        args: &Args,
        file: &Path,
    ) -> Result<(), String> {
        let (name, ago, file) = (&self.host_vm, record::ago(self.begun), file.display());
        if self.boot != boot_id()? {
            return Err(format!(
                "a rejuvenation of host VM {name} was begun {ago} ago, and the host was restarted since, with whatever ran on it; see `vmbeam list`, and remove {file}"
            ));
        }
        let Some(now) = domid else {
            if self.stage == Stage::Leaving {
                return Err(format!(
                    "a rejuvenation of host VM {name} was begun {ago} ago, and its guests had not all left; now `{} list` shows no such host VM: look whether it runs, and if it does not, start it, and remove {file}",
                    args.options.xl.display()
                ));
            }
            return Ok(());
        };
        match self.stage {
            Stage::Leaving | Stage::Empty | Stage::Ending if now == self.domid => Ok(()),
            Stage::Creating if now != self.domid => self.created(now, &args.config),
            Stage::Created { domid, config } if now == domid => {
                if config == digest(&args.config)? {
                    return Ok(());
                }
                Err(format!(
                    "host VM {name} was created again already, from another configuration than {}; go on with that one, or shut the host VM down to have it created from this one",
                    args.config.display()
                ))
            }
            _ if args.adopt => self.created(now, &args.config),
            _ => Err(format!(
                "a rejuvenation of host VM {name} was begun {ago} ago, and somebody else has restarted the host VM since, as domain {now}; --adopt takes that one, and brings {} back to it; if that is done, remove {file}",
                self.guests.join(", ")
            )),
        }
    }
}
