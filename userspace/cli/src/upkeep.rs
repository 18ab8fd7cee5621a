// SPDX-License-Identifier: GPL-2.0-only

//! What `vmbeam rejuvenate` and `vmbeam replace` share: they end host VMs and create others,
//! by the host's toolstack, and have the daemon move guests in between. Each of their steps
//! looks first whether it is done.

pub(crate) mod record;
pub(crate) mod report;

use crate::client::{Client, ClientError};
use crate::exit;
use crate::interrupt::Interrupt;
use crate::mode::MemoryMode;
use crate::moves::{Mover, TOGETHER};
use crate::output;
use crate::restart::{Ending, Toolstack};
use nix::fcntl::Flock;
use report::{Base, Report, Seconds};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    no_room, AgentReport, CheckReport, FromDaemon, Guest, GuestMove, GuestState, MoveOutcome,
    ToDaemon,
};

/// How often to look whether the agent is there.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

/// How long an agent may take to say that it has no guest, if it has to.
const ANSWER: Duration = Duration::from_secs(10);

/// Options of both.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The host's toolstack; run with `list`, `create FILE`, `shutdown -F DOMID` and
    /// `destroy DOMID`, for a replacement also with `info free_memory`, `mem-max DOMID MIB`,
    /// `mem-set DOMID MIB` and `rename DOMID NAME`
    #[arg(long, value_name = "PROGRAM", default_value = "xl")]
    pub(crate) xl: PathBuf,
    /// How long a host VM may take to shut down before it is destroyed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) shutdown_timeout: u32,
    /// How long `create` may take, which grows with the host VM's memory
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub(crate) create_timeout: u32,
    /// How long it may take until its agent answers
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub(crate) boot_timeout: u32,
    /// Give up a guest's move, and let it go on where it was, after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// How long to wait for jobs of vmbeamd that are not at an end yet
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait: u32,
    /// How memory gets there
    #[arg(long, value_enum, default_value = "auto")]
    mode: MemoryMode,
    /// Where to note what has been done
    #[arg(long, value_name = "DIR", default_value = "/var/lib/vmbeam")]
    pub(crate) state_dir: PathBuf,
    /// Only find out what is in the way, and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the number of the job, and leave it: `vmbeam watch` follows it
    #[arg(long, conflicts_with_all = ["dry_run", "here"])]
    pub(crate) detach: bool,
    /// Do it in this process, and make no job of it
    #[arg(long)]
    pub(crate) here: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// Whether it is no job. To look is none.
    pub(crate) fn is_here(&self) -> bool {
        self.here || self.dry_run
    }

    /// How long to wait for the daemon.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.wait.into())
    }

    /// Those that make a difference to what is done.
    pub(crate) fn that_matter(&self) -> Self {
        Self {
            detach: false,
            json: false,
            ..self.clone()
        }
    }
}

/// Why it ends before it is done.
#[derive(Debug)]
pub(crate) struct Stop {
    code: u8,
    why: String,
}

pub(crate) fn stop(code: u8) -> impl Fn(String) -> Stop {
    move |why| Stop { code, why }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<ClientError> for Stop {
    fn from(e: ClientError) -> Self {
        stop(exit::INCOMPLETE)(e.to_string())
    }
}

/// Where it works: the daemon, the host's toolstack, and the file that says how far it is.
pub(crate) struct Upkeep<'a> {
    pub(crate) options: &'a Options,
    socket: &'a Path,
    pub(crate) mover: Mover<'a>,
    pub(crate) toolstack: Toolstack,
    pub(crate) file: PathBuf,
    /// Nobody else does such a thing to this host VM.
    turn: Option<Flock<File>>,
}

pub(crate) fn waiting(guest: &Guest) -> GuestMove {
    GuestMove::new(&guest.name, guest.pages.div_ceil(256))
}

pub(crate) fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

impl<'a> Upkeep<'a> {
    /// To do this to this host VM.
    pub(crate) fn new(
        what: &str,
        host_vm: &str,
        socket: &'a Path,
        options: &'a Options,
    ) -> Result<Self, ClientError> {
        if host_vm.contains('/') {
            return Err(ClientError::Refused(format!(
                "{host_vm} is not the name of a host VM"
            )));
        }
        Ok(Self {
            options,
            socket,
            mover: Mover {
                socket,
                mode: options.mode.into(),
                timeout_seconds: options.timeout,
                wait_seconds: options.wait,
                interrupt: Interrupt::catch(socket)?,
            },
            toolstack: Toolstack {
                program: options.xl.clone(),
                create_timeout: Duration::from_secs(options.create_timeout.into()),
            },
            file: options.state_dir.join(format!("{what}-{host_vm}.json")),
            turn: None,
        })
    }

    /// Nobody else does such a thing to this host VM now, nor has left one of the other sort. Whoever
    /// only looks is in nobody's way.
    pub(crate) fn alone(&mut self, host_vm: &str, other: &str) -> Result<(), Stop> {
        let refuse = stop(exit::REFUSED);
        let dir = &self.options.state_dir;
        let left = dir.join(format!("{other}-{host_vm}.json"));
        if left.exists() {
            return Err(refuse(format!(
                "host VM {host_vm} is in the middle of `vmbeam {other}`; have that come to its end first, or remove {}",
                left.display()
            )));
        }
        if self.options.dry_run {
            return Ok(());
        }
        self.turn = record::turn(dir, &format!("upkeep-{host_vm}")).map_err(&refuse)?;
        match self.turn {
            Some(_) => Ok(()),
            None => Err(refuse(format!(
                "another `vmbeam replace` or `vmbeam rejuvenate` of host VM {host_vm} is running; wait for it"
            ))),
        }
    }

    pub(crate) fn check(&self) -> Result<CheckReport, ClientError> {
        match Client::connect(self.socket)?.ask(&ToDaemon::Check, |_| {})? {
            FromDaemon::Check(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the daemon knows, which must have this host VM, and no fixed number for it; not while
    /// somebody works on it.
    pub(crate) fn look(&self, name: &str) -> Result<CheckReport, Stop> {
        let refuse = stop(exit::REFUSED);
        let check = self
            .check()
            .map_err(|e| stop(exit::FAILED)(e.to_string()))?;
        let Some(agent) = check.agents.iter().find(|a| a.host_vm == name) else {
            return Err(refuse(format!(
                "there is no host VM named {name} in vmbeamd's configuration; add a [[host_vm]]"
            )));
        };
        if agent.domid_fixed {
            return Err(refuse(format!(
                "vmbeamd's configuration gives host VM {name} a fixed domid, which changes when it is restarted; remove `domid` there"
            )));
        }
        if crate::maintenance::ask(self.socket)?.contains(&name.to_owned()) {
            return Err(refuse(format!(
                "host VM {name} is in maintenance, so its guests could not come back; `vmbeam maintenance {name} off` ends that"
            )));
        }
        Ok(check)
    }

    /// The guest hypervisor of a host VM, as its agent says it.
    pub(crate) fn hypervisor(&self, name: &str) -> Result<Option<String>, ClientError> {
        let agents = self.check()?.agents.into_iter();
        let mut its = agents.filter(|a: &AgentReport| a.host_vm == name);
        Ok(its.find_map(|a| a.connected).map(|v| v.hypervisor))
    }

    /// The guests of a host VM, and its domid as the daemon sees it.
    pub(crate) fn guests(&self, host_vm: &str) -> Result<(u32, Vec<Guest>), String> {
        let host_vms = self.mover.list().map_err(|e| e.to_string())?;
        let vm = host_vms.into_iter().find(|vm| vm.name == host_vm);
        let vm = vm.ok_or_else(|| format!("vmbeamd does not know host VM {host_vm}"))?;
        Ok((vm.domid?, vm.guests?))
    }

    /// All that is in the way of the guests of a host VM, and they.
    pub(crate) fn survey(
        &self,
        from: &str,
        to: &str,
    ) -> Result<(Vec<String>, Vec<GuestMove>), ClientError> {
        let plan = self.mover.plan(from, to)?;
        let mut blockers = plan.blockers;
        blockers.extend(no_room(to, TOGETHER, plan.needed_mib, plan.free_mib));
        let guests = plan.guests.iter().map(|p| waiting(&p.guest)).collect();
        blockers.extend(plan.guests.into_iter().flat_map(|p| p.blockers));
        Ok((blockers, guests))
    }

    pub(crate) fn must_go_on(&self) -> Result<(), Stop> {
        if self.mover.interrupt.is_wanted() {
            return Err(stop(exit::INCOMPLETE)("it was interrupted".into()));
        }
        Ok(())
    }

    /// Move guests, until one does not get there. It is a job of the daemon, which does not
    /// need this program; the next run of it waits for that.
    pub(crate) fn move_all(
        &self,
        guests: &mut Vec<GuestMove>,
        from: &str,
        to: &str,
    ) -> Result<(), Stop> {
        self.must_go_on()?;
        if guests.is_empty() {
            return Ok(());
        }
        let done = self.mover.go(guests, from, to)?;
        *guests = done.guests;
        if !done.blockers.is_empty() {
            return Err(stop(exit::INCOMPLETE)(done.blockers.join("; ")));
        }
        let left_out =
            |g: &&GuestMove| !matches!(g.outcome, MoveOutcome::Moved | MoveOutcome::Waiting);
        let Some(guest) = guests.iter().find(left_out) else {
            // Nor does it go on with guests that were left behind.
            return match guests.iter().all(|g| g.outcome == MoveOutcome::Moved) {
                true => Ok(()),
                false => Err(stop(exit::INCOMPLETE)("it was interrupted".into())),
            };
        };
        let code = match guest.outcome {
            MoveOutcome::Failed => exit::FAILED,
            _ => exit::INCOMPLETE,
        };
        Err(stop(code)(format!(
            "guest {} did not get to {to}: {}",
            guest.guest,
            guest.reasons.join("; ")
        )))
    }

    /// Nothing is shut down that has a guest, which would die, or that cannot tell. An agent may
    /// be silent, if at all, only for so long.
    pub(crate) fn must_be_empty(
        &self,
        name: &str,
        domid: u32,
        silence: Option<Duration>,
    ) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let started = Instant::now();
        let (seen, left) = loop {
            // What is written down of a guest that has left may still be on its way.
            self.mover.wait_until_idle([name; 2])?;
            let why = match self.guests(name) {
                Ok(told) => break told,
                Err(why) => why,
            };
            if !self.toolstack.domains().map_err(&incomplete)?.has(domid) {
                return Ok(());
            }
            match started.elapsed() >= silence.unwrap_or(ANSWER) {
                true if silence.is_some() => return Ok(()),
                true => {
                    return Err(incomplete(format!(
                        "{why}; nothing is shut down whose agent does not say that it has no guest"
                    )))
                }
                false => {}
            }
            self.must_go_on()?;
            std::thread::sleep(LOOK);
        };
        if seen != domid {
            return Err(incomplete(format!(
                "host VM {name} is another domain by now, {seen}; nothing was shut down"
            )));
        }
        // What is being torn down is none any more.
        match left.iter().find(|g| g.state != GuestState::Dying) {
            None => Ok(()),
            Some(guest) => Err(incomplete(format!(
                "host VM {name} has a new guest, {}; nothing was shut down",
                guest.name
            ))),
        }
    }

    /// How long the agent may be silent of a host VM that was told to end.
    pub(crate) fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.options.shutdown_timeout.into())
    }

    /// End a host VM that has no guest any more; says whether it had to be destroyed.
    pub(crate) fn end(&self, name: &str, domid: u32) -> Result<bool, Stop> {
        if !self
            .toolstack
            .domains()
            .map_err(stop(exit::INCOMPLETE))?
            .has(domid)
        {
            return Ok(false);
        }
        eprintln!("shutting down host VM {name}");
        let limit = self.shutdown_timeout();
        let interrupt = || self.mover.interrupt.is_wanted();
        let ending = self.toolstack.end(name, domid, limit, interrupt);
        match ending.map_err(stop(exit::INCOMPLETE))? {
            Ending::Orderly => Ok(false),
            Ending::Forced => Ok(true),
            Ending::Interrupted => self.must_go_on().map(|()| false),
        }
    }

    /// Until the agent answers in the host VM of this name, which must be this domain. `again` is
    /// done each time that it does not.
    pub(crate) fn wait_for_agent(
        &self,
        name: &str,
        domid: u32,
        mut again: impl FnMut() -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let started = Instant::now();
        let limit = Duration::from_secs(self.options.boot_timeout.into());
        eprintln!("waiting for the agent of host VM {name}");
        loop {
            self.must_go_on()?;
            let why = match self.guests(name) {
                Ok((seen, _)) if seen == domid => return Ok(()),
                Ok(_) => "vmbeamd still sees the old one".into(),
                Err(why) => why,
            };
            if started.elapsed() >= limit {
                return Err(stop(exit::INCOMPLETE)(format!(
                    "the agent of host VM {name} did not answer within {} s of its start: {why}; see the host VM's console, or --boot-timeout",
                    limit.as_secs()
                )));
            }
            again()?;
            std::thread::sleep(LOOK);
        }
    }

    /// All is done: there is nothing to go on with.
    pub(crate) fn forget(&self) -> Result<(), Stop> {
        std::fs::remove_file(&self.file).map_err(|e| {
            stop(exit::FAILED)(format!(
                "all is done, but {} cannot be removed: {e}; remove it",
                self.file.display()
            ))
        })
    }

    /// Print the report; what it ended with is the exit status.
    pub(crate) fn conclude<R: Report>(
        &self,
        result: Result<(), Stop>,
        mut report: R,
        started: Instant,
    ) -> Result<u8, ClientError> {
        let begun = self.file.exists();
        let mut code = 0;
        let (base, spent): (&mut Base, &mut Seconds) = report.parts();
        spent.set("total", seconds(started));
        if let Err(stop) = result {
            code = stop.code;
            // Only what has been begun can be gone on with.
            if code == exit::INCOMPLETE && !begun {
                code = exit::REFUSED;
            }
            base.interrupted = self.mover.interrupt.is_wanted();
            base.error = Some(stop.why);
        }
        let (step, error) = (base.step, base.error.clone());
        let both = output::is_elsewhere();
        if both || self.options.json {
            output::json(&report)?;
        }
        if both || !self.options.json {
            report.print(self.options);
        }
        if let Some(why) = error {
            eprintln!("vmbeam: {step}: {why}");
            eprintln!(
                "vmbeam: {}",
                match (begun, code) {
                    (_, exit::ROLLED_BACK) => "everything was put back",
                    (false, _) | (true, exit::REFUSED) => "nothing was changed",
                    (true, exit::FAILED) =>
                        "see `vmbeam status`; the same command goes on from here",
                    (true, _) =>
                        "every guest runs in one place; the same command goes on from here",
                }
            );
        }
        Ok(code)
    }
}
