// SPDX-License-Identifier: GPL-2.0-only

//! Between the command line and the daemon.

use crate::evacuation::{EvacuateReport, EvacuateRequest};
use crate::event::Event;
use crate::guest::GuestRef;
use crate::job::JobReport;
use crate::memory::HostVmMemory;
use crate::report::{CheckReport, HostVmReport, MigrateReport, Phase, PlanReport, SwapReport};
use crate::request::{Failure, MigrateRequest, Mode, SwapRequest};
use crate::upkeep::{UpkeepReport, UpkeepRequest};
use serde::{Deserialize, Serialize};
use vmbeam_wire::message::{name, short, Message, MAX_TEXT};

/// From the command line to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDaemon {
    /// Device and agents. Answer: [`FromDaemon::Check`].
    Check,
    /// Host VMs and their guests. Answer: [`FromDaemon::List`].
    List,
    /// What is going on. Answer: [`FromDaemon::Status`].
    Status,
    /// Swap two guests. Answer: any number of [`FromDaemon::Progress`], then
    /// [`FromDaemon::Swapped`].
    Swap(SwapRequest),
    /// Migrate a guest. Answer: [`FromDaemon::Job`], any number of
    /// [`FromDaemon::Progress`], then [`FromDaemon::Migrated`].
    Migrate(MigrateRequest),
    /// Could all guests of a host VM migrate? Changes nothing. Answer:
    /// [`FromDaemon::Plan`].
    Plan {
        /// The host VM that is to be left.
        from: String,
        /// The host VM where its guests are to go.
        to: String,
        /// How their memory gets there.
        mode: Mode,
    },
    /// Cancel a migration; have an evacuation stop after the guest that moves, an upkeep after
    /// the step that it is at, and, when it has been told that, cancel the guest's move. Answer: [`FromDaemon::Done`]; the job's own
    /// answer tells whether it was in time.
    Abort {
        /// Number of the job.
        job: u64,
    },
    /// Do nothing more about what a job settles, or forget what became of an evacuation or an
    /// upkeep.
    /// Answer: [`FromDaemon::Done`].
    Dismiss {
        /// Number of the job.
        job: u64,
    },
    /// Which host VMs are in maintenance? Answer: [`FromDaemon::Maintenance`].
    Maintenance,
    /// Begin or end the maintenance of a host VM. Answer: [`FromDaemon::Done`] when that is
    /// durable.
    SetMaintenance {
        /// Its name.
        host_vm: String,
        /// Nothing is started there, and no guest arrives.
        on: bool,
    },
    /// Move all guests of a host VM. Answer: [`FromDaemon::Job`], then as [`Self::Watch`]. The
    /// job does not need the client.
    Evacuate(EvacuateRequest),
    /// How is an evacuation getting on? Answer: any number of [`FromDaemon::Moving`],
    /// [`FromDaemon::Waiting`] and [`FromDaemon::Progress`], then [`FromDaemon::Evacuated`]. Or
    /// an upkeep? Answer: any number of [`FromDaemon::Said`], then [`FromDaemon::Ended`].
    Watch {
        /// Number of the job.
        job: u64,
    },
    /// What have the host VMs of the host's memory? Answer: [`FromDaemon::Memory`].
    Memory,
    /// What happens from now on? Answer: [`FromDaemon::Event`], again and again, until the daemon
    /// stops.
    Events,
    /// This process does an upkeep, and is there as long as it does not hang up. Answer:
    /// [`FromDaemon::Taken`] if another one does the same; and else [`FromDaemon::Job`], any
    /// number of [`FromDaemon::Stop`], then [`FromDaemon::Done`] once it has said how it ended.
    Work(UpkeepRequest),
    /// This process still does what it has begun when an earlier daemon was there. Answer: as
    /// [`Self::Work`].
    WorkOn {
        /// Number of the job.
        job: u64,
    },
    /// The process that does an upkeep says this. Answer: [`FromDaemon::Done`].
    Say {
        /// Number of the job.
        job: u64,
        /// For whoever watches.
        line: String,
    },
    /// The process that does an upkeep has come to its end. Answer: [`FromDaemon::Done`] when
    /// that is durable.
    End {
        /// Number of the job.
        job: u64,
        /// How.
        report: UpkeepReport,
    },
}

impl Message for ToDaemon {
    const KIND: u16 = 3;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Swap(r) => [&r.from, &r.to].iter().try_for_each(|g| {
                name("a host VM's name", &g.host_vm)?;
                name("a guest's name", &g.guest)
            }),
            Self::Migrate(r) => {
                name("a host VM's name", &r.from.host_vm)?;
                name("a guest's name", &r.from.guest)?;
                name("a host VM's name", &r.to)
            }
            Self::Plan { from, to, .. } => {
                name("a host VM's name", from)?;
                name("a host VM's name", to)
            }
            Self::SetMaintenance { host_vm, .. } => name("a host VM's name", host_vm),
            Self::Evacuate(r) => r.check(),
            Self::Work(r) => r.check(),
            Self::Say { line, .. } => short("a line", line, MAX_TEXT),
            Self::End { report, .. } => report.check(),
            _ => Ok(()),
        }
    }
}

/// From the daemon to the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromDaemon {
    /// What is there and what is missing.
    Check(CheckReport),
    /// Host VMs and guests.
    List(Vec<HostVmReport>),
    /// Jobs, the latest last.
    Status(Vec<JobReport>),
    /// How far a swap is.
    Progress {
        /// What it is doing.
        phase: Phase,
        /// Pages done.
        done: u64,
        /// Pages to do; 0 if not known.
        total: u64,
    },
    /// A swap is complete.
    Swapped(Box<SwapReport>),
    /// The request failed.
    Error {
        /// How badly.
        failure: Failure,
        /// The same for a person.
        message: String,
    },
    /// The request is this job from now on.
    Job {
        /// Its number.
        id: u64,
    },
    /// A migration is complete, or would be possible.
    Migrated(Box<MigrateReport>),
    /// What is in the way of a host VM's guests.
    Plan(PlanReport),
    /// What was asked for has been noted.
    Done,
    /// Host VMs that are in maintenance.
    Maintenance(Vec<String>),
    /// An evacuation begins to move this guest.
    Moving {
        /// The guest, and where it is.
        guest: GuestRef,
        /// Where it goes.
        to: String,
        /// Which of them it is, from 1 on.
        number: u32,
        /// Of how many.
        of: u32,
    },
    /// An evacuation waits for something else.
    Waiting {
        /// For what.
        what: String,
    },
    /// An evacuation has come to its end.
    Evacuated(Box<EvacuateReport>),
    /// What each host VM has of the host's memory.
    Memory(Vec<HostVmMemory>),
    /// Something has happened.
    Event(Event),
    /// Another process does the same already.
    Taken {
        /// Number of its job.
        id: u64,
    },
    /// Somebody wants the process to stop.
    Stop {
        /// How often that was wanted so far: once to stop after the step that it is at, twice to
        /// cancel a guest's move.
        times: u32,
    },
    /// The process that does an upkeep has said this.
    Said {
        /// For a person.
        line: String,
    },
    /// An upkeep has come to its end.
    Ended(Box<UpkeepReport>),
}

impl FromDaemon {
    /// Whether nothing follows this answer.
    pub fn is_last(&self) -> bool {
        !matches!(
            self,
            Self::Progress { .. }
                | Self::Job { .. }
                | Self::Moving { .. }
                | Self::Waiting { .. }
                | Self::Event(_)
                | Self::Stop { .. }
                | Self::Said { .. }
        )
    }
}

impl Message for FromDaemon {
    const KIND: u16 = 4;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Error { message, .. } => short("an error", message, 4 * MAX_TEXT),
            _ => Ok(()),
        }
    }
}
