// SPDX-License-Identifier: GPL-2.0-only

//! What must be known to go on with a rejuvenation that did not get to its end. It is in
//! a small file, because nothing else tells it: which guests have left, and which domain
//! the host VM was.

use super::Args;
use indicatif::HumanDuration;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::xxh3_64;

/// Version of the file's format.
const VERSION: u32 = 2;
/// Differs after each restart of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Guests may be in the host VM.
    Leaving,
    /// None is: it may be shut down.
    Empty,
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

fn boot_id() -> Result<String, String> {
    fs::read_to_string(BOOT_ID)
        .map(|id| id.trim().to_owned())
        .map_err(|e| format!("{BOOT_ID}: {e}"))
}

/// Tells one configuration from another.
fn digest(config: &Path) -> Result<u64, String> {
    fs::read(config)
        .map(|text| xxh3_64(&text))
        .map_err(|e| format!("{}: {e}", config.display()))
}

impl State {
    /// One that begins.
    pub(super) fn new(
        (host_vm, to): (&str, &str),
        domid: u32,
        hypervisor: String,
        guests: Vec<String>,
    ) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            version: VERSION,
            host_vm: host_vm.into(),
            to: to.into(),
            begun: now.map_or(0, |n| n.as_secs()),
            boot: boot_id()?,
            domid,
            hypervisor,
            guests,
            stage: Stage::Leaving,
        })
    }

    pub(super) fn read(file: &Path) -> Result<Option<Self>, String> {
        /// What every version of the format has.
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{}: {e}", file.display())),
        };
        if let Ok(Any { version }) = serde_json::from_slice(&text) {
            if version != VERSION {
                return Err(format!(
                    "{}: version {version} of the format, this vmbeam knows version {VERSION}; use the vmbeam that wrote it",
                    file.display()
                ));
            }
        }
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            format!(
                "{}: {e}; move the guests back by `vmbeam migrate`, and remove the file",
                file.display()
            )
        })
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        let write = || {
            let dir = file.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(dir)?;
            let new = file.with_extension("new");
            let mut out = File::create(&new)?;
            out.write_all(&serde_json::to_vec_pretty(self)?)?;
            out.sync_all()?;
            fs::rename(&new, file)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|e: std::io::Error| {
            format!("cannot write {}: {e}; see --state-dir", file.display())
        })
    }

    fn ago(&self) -> String {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(self.begun);
        HumanDuration(begun.elapsed().unwrap_or_default()).to_string()
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
        let (name, ago, file) = (&self.host_vm, self.ago(), file.display());
        if self.boot != boot_id()? {
            return Err(format!(
                "a rejuvenation of host VM {name} was begun {ago} ago, and the host was restarted since, with whatever ran on it; see `vmbeam list`, and remove {file}"
            ));
        }
        let Some(now) = domid else {
            if self.stage == Stage::Leaving {
                return Err(format!(
                    "a rejuvenation of host VM {name} was begun {ago} ago, and its guests had not all left; now `{} list` shows no such host VM: look whether it runs, and if it does not, start it, and remove {file}",
                    args.xl.display()
                ));
            }
            return Ok(());
        };
        match self.stage {
            Stage::Leaving | Stage::Empty if now == self.domid => Ok(()),
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
