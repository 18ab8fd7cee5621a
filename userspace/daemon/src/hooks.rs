// SPDX-License-Identifier: GPL-2.0-only

//! Programs of the operator that are run before and after a guest's move, with the rights of
//! the daemon and no others.
//!
//! For whom one was begun is in a file until the other has ended, so that neither is forgotten,
//! nor run twice without being told so.

use crate::config::HookConfig;
use crate::durable;
use crate::exchange::{refused, SwapError};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::{info, warn};
use vmbeam_control_protocol::{GuestRef, JobOutcome};
use vmbeam_xen::command::run_while;

/// The file, in the directory of the journal.
const FILE: &str = "hooks.json";

/// Where a guest is that was to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Moved,
    Stayed,
    Unknown,
}

impl Ending {
    fn of(outcome: Option<JobOutcome>) -> Self {
        match outcome {
            Some(JobOutcome::Done) => Self::Moved,
            Some(JobOutcome::Refused | JobOutcome::RolledBack) => Self::Stayed,
            _ => Self::Unknown,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Stayed => "stayed",
            Self::Unknown => "unknown",
        }
    }
}

/// A move for which the first one was begun, and the second one has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    guest: String,
    from: String,
    to: String,
    job: u64,
    /// The second one was begun, and told this.
    after: Option<Ending>,
}

impl Note {
    fn is_of(&self, from: &GuestRef) -> bool {
        self.guest == from.guest && self.from == from.host_vm
    }

    /// The same program is run `again` if it may have been run for the same before.
    fn command(&self, program: &Path, hook: &str, again: bool) -> Command {
        let mut command = Command::new(program);
        command
            .arg(hook)
            .env("VMBEAM_HOOK", hook)
            .env("VMBEAM_JOB", self.job.to_string())
            .env("VMBEAM_GUEST", &self.guest)
            .env("VMBEAM_FROM", &self.from)
            .env("VMBEAM_TO", &self.to)
            .env("VMBEAM_AGAIN", if again { "yes" } else { "no" })
            // With what it has begun it can be ended.
            .process_group(0);
        command
    }
}

/// Which there are, and which have to be run still.
#[derive(Debug)]
pub(crate) struct Hooks {
    hooks: Vec<HookConfig>,
    file: PathBuf,
    notes: Mutex<Vec<Note>>,
}

impl Hooks {
    /// With what the last daemon knew. To know nothing would be to run one twice.
    pub(crate) fn load(hooks: Vec<HookConfig>, dir: &Path) -> io::Result<Self> {
        let file = dir.join(FILE);
        let notes = durable::read(&file).map_err(|e| {
            let why = format!(
                "{}: {e}; mend it, or remove it if no guest was on its way",
                file.display()
            );
            io::Error::other(why)
        })?;
        let notes = Mutex::new(notes);
        Ok(Self { hooks, file, notes })
    }

    fn notes(&self) -> MutexGuard<'_, Vec<Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is so when it is durable.
    fn change(&self, change: impl FnOnce(&mut Vec<Note>)) -> io::Result<()> {
        let mut notes = self.notes();
        let mut changed = notes.clone();
        change(&mut changed);
        if changed != *notes {
            durable::write(&self.file, &changed)?;
            *notes = changed;
        }
        Ok(())
    }

    /// What is to be run for a guest: its own, or those of all others.
    pub(crate) fn of(&self, guest: &str) -> Option<&HookConfig> {
        let own = |h: &&HookConfig| h.guest.as_deref() == Some(guest);
        let general = |h: &&HookConfig| h.guest.is_none();
        let all = &self.hooks;
        all.iter().find(own).or_else(|| all.iter().find(general))
    }

    /// A guest is about to move, unless this fails. `go_on` is asked again and again.
    pub(crate) fn before(
        &self,
        job: u64,
        (from, to): (&GuestRef, &str),
        go_on: impl Fn() -> Result<(), SwapError>,
    ) -> Result<(), SwapError> {
        let Some(hook) = self.of(&from.guest) else {
            return Ok(());
        };
        let again = self.notes().iter().any(|n| n.is_of(from));
        let note = Note {
            guest: from.guest.clone(),
            from: from.host_vm.clone(),
            to: to.into(),
            job,
            after: None,
        };
        let noted = self.change(|notes| {
            notes.retain(|n| !n.is_of(from));
            notes.push(note.clone());
        });
        noted.map_err(|e| refused(format!("cannot note that hooks are run: {e}")))?;
        let Some(program) = &hook.before else {
            return Ok(());
        };
        info!(job, program = %program.display(), again, "hook before a move");
        let mut command = note.command(program, "before_move", again);
        let result = run(&mut command, hook, || go_on().is_ok());
        result.map_err(|why| {
            self.forget(from);
            match go_on() {
                Err(e) => refused(e.message),
                Ok(()) => refused(format!(
                    "the hook before the move, {}, failed: {why}",
                    program.display()
                )),
            }
        })
    }

    /// Whether those of this job have been begun, and not all ended.
    pub(crate) fn are_begun(&self, from: &GuestRef, job: u64) -> bool {
        let mine = |n: &Note| n.is_of(from) && n.job == job;
        self.notes().iter().any(mine)
    }

    /// A guest's move has ended, of which nothing is known if there is no outcome.
    pub(crate) fn after(&self, from: &GuestRef, outcome: Option<JobOutcome>) {
        let Some(mut note) = self.notes().iter().find(|n| n.is_of(from)).cloned() else {
            return;
        };
        let hook = self.of(&from.guest);
        if let Some((hook, program)) = hook.and_then(|h| Some((h, h.after.as_ref()?))) {
            let again = note.after.is_some();
            // It ends as it did.
            let ending = note.after.unwrap_or(Ending::of(outcome));
            note.after = Some(ending);
            let noted = self.change(|notes| {
                notes.retain(|n| !n.is_of(from));
                notes.push(note.clone());
            });
            if let Err(e) = noted {
                warn!(job = note.job, "cannot note that hooks are run: {e}");
            }
            info!(job = note.job, program = %program.display(), again, "hook after a move");
            let mut command = note.command(program, "after_move", again);
            command.env("VMBEAM_OUTCOME", ending.word());
            if let Err(why) = run(&mut command, hook, || true) {
                let shown = program.display();
                warn!(
                    job = note.job,
                    "the hook after the move of guest {}, {shown}, failed: {why}", note.guest
                );
            }
        }
        self.forget(from);
    }

    fn forget(&self, from: &GuestRef) {
        if let Err(e) = self.change(|notes| notes.retain(|n| !n.is_of(from))) {
            warn!("cannot note that hooks were run, so the next is told that it is run again: {e}");
        }
    }

    /// Source and destination of those who have one that must be run still.
    pub(crate) fn left(&self) -> Vec<(GuestRef, GuestRef)> {
        let has = |n: &&Note| self.of(&n.guest).is_some_and(|h| h.after.is_some());
        let here = |host_vm: &str, guest: &str| GuestRef {
            host_vm: host_vm.into(),
            guest: guest.into(),
        };
        let notes = self.notes();
        let left = notes.iter().filter(has);
        left.map(|n| (here(&n.from, &n.guest), here(&n.to, &n.guest)))
            .collect()
    }
}

/// Run one to its end; an error says why it did not get there.
fn run(command: &mut Command, hook: &HookConfig, go_on: impl Fn() -> bool) -> Result<(), String> {
    let out = run_while(command, hook.timeout, go_on).map_err(|e| e.to_string())?;
    match out.status.success() {
        true => Ok(()),
        false => {
            let last = out.err.trim().lines().last().unwrap_or("it says nothing");
            Err(format!("{}: {last}", out.status))
        }
    }
}
