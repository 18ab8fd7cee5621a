// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam rejuvenate`: the guests leave a host VM, which is restarted with another
//! guest hypervisor, and come back.
//!
//! Every step looks first whether it is done already. What cannot be seen is in a small
//! file ([`state`]).

mod report;
mod state;

use crate::client::{Client, ClientError};
use crate::exit;
use crate::interrupt::Interrupt;
use crate::maintenance;
use crate::moves::{Mover, TOGETHER};
use crate::output;
use crate::restart::{check_config, Ending, Toolstack};
use crate::MemoryMode;
use report::{print_steps, Report};
use state::{Stage, State};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vmbeam_wire::message::{
    needed_mib, no_room, CheckReport, FromDaemon, Guest, GuestMove, GuestState, MoveOutcome,
    ToDaemon,
};

/// How often to look whether the agent is there.
const LOOK: Duration = Duration::from_secs(2);

/// Options of `vmbeam rejuvenate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host VM that is to be restarted
    host_vm: String,
    /// Host VM where its guests are meanwhile; not needed if only one is paired
    /// with it
    #[arg(long, value_name = "HOST_VM")]
    to: Option<String>,
    /// Configuration to create the host VM from, with the new guest hypervisor
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The host's toolstack; run with `list`, `shutdown -F DOMID`, `destroy DOMID`
    /// and `create FILE`
    #[arg(long, value_name = "PROGRAM", default_value = "xl")]
    xl: PathBuf,
    /// How long the host VM may take to shut down before it is destroyed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    shutdown_timeout: u32,
    /// How long `create` may take, which grows with the host VM's memory
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    create_timeout: u32,
    /// How long it may take until its agent answers
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    boot_timeout: u32,
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
    state_dir: PathBuf,
    /// Take the host VM as the new one although somebody else has restarted it since an
    /// earlier run
    #[arg(long)]
    adopt: bool,
    /// Only find out what is in the way, and say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why it ends before it is done.
#[derive(Debug)]
struct Stop {
    code: u8,
    why: String,
}

fn stop(code: u8) -> impl Fn(String) -> Stop {
    move |why| Stop { code, why }
}

impl From<ClientError> for Stop {
    fn from(e: ClientError) -> Self {
        stop(exit::INCOMPLETE)(e.to_string())
    }
}

/// One rejuvenation.
struct Rejuvenation<'a> {
    args: &'a Args,
    socket: &'a Path,
    mover: Mover<'a>,
    toolstack: Toolstack,
    file: PathBuf,
    report: Report,
}

fn waiting(guest: &Guest) -> GuestMove {
    GuestMove::new(&guest.name, guest.pages.div_ceil(256))
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

impl Rejuvenation<'_> {
    fn check(&self) -> Result<CheckReport, ClientError> {
        match Client::connect(self.socket)?.ask(&ToDaemon::Check, |_| {})? {
            FromDaemon::Check(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The guests of a host VM, and its domid as the daemon sees it.
    fn guests(&self, host_vm: &str) -> Result<(u32, Vec<Guest>), String> {
        let host_vms = self.mover.list().map_err(|e| e.to_string())?;
        let vm = host_vms.into_iter().find(|vm| vm.name == host_vm);
        let vm = vm.ok_or_else(|| format!("vmbeamd does not know host VM {host_vm}"))?;
        Ok((vm.domid?, vm.guests?))
    }

    /// Where the guests go: as told, or to the only host VM that they may go to.
    fn destination(&self, check: &CheckReport) -> Result<String, String> {
        let name = &self.args.host_vm;
        if let Some(to) = &self.args.to {
            return Ok(to.clone());
        }
        let mut partners = check.pairs.iter().filter_map(|(a, b)| match () {
            () if a == name => Some(b),
            () if b == name => Some(a),
            () => None,
        });
        match (partners.next(), partners.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(format!(
                "host VM {name} is in no [[pair]] of vmbeamd's configuration; add one"
            )),
            _ => Err(format!(
                "host VM {name} is paired with several others; say which by --to"
            )),
        }
    }

    /// What must be known, from an earlier run or from what is there now. Collects
    /// what is in the way.
    fn begin(&mut self) -> Result<State, Stop> {
        let refuse = stop(exit::REFUSED);
        let name = &self.args.host_vm;
        check_config(&self.args.config, name).map_err(&refuse)?;
        let check = self
            .check()
            .map_err(|e| stop(exit::FAILED)(e.to_string()))?;
        let Some(agent) = check.agents.iter().find(|a| a.host_vm == *name) else {
            return Err(refuse(format!(
                "there is no host VM named {name} in vmbeamd's configuration; add a [[host_vm]]"
            )));
        };
        if agent.domid_fixed {
            return Err(refuse(format!(
                "vmbeamd's configuration gives host VM {name} a fixed domid, which changes when it is restarted; remove `domid` there"
            )));
        }
        if maintenance::ask(self.socket)?.contains(name) {
            return Err(refuse(format!(
                "host VM {name} is in maintenance, so its guests could not come back; `vmbeam maintenance {name} off` ends that"
            )));
        }
        let to = self.destination(&check).map_err(&refuse)?;
        let domid = self.toolstack.domid(name).map_err(&refuse)?;
        if let Some(mut state) = State::read(&self.file).map_err(&refuse)? {
            if state.to != to {
                return Err(refuse(format!(
                    "host VM {name} is being rejuvenated with its guests in {}; end that first, by --to {0}",
                    state.to
                )));
            }
            let taken = state.take_up(domid, self.args, &self.file);
            taken.map_err(&refuse)?;
            self.report.resumed = true;
            return Ok(state);
        }
        let Some(domid) = domid else {
            return Err(refuse(format!(
                "host VM {name} is not running, so there is nothing to rejuvenate; start it by `{} create {}`",
                self.toolstack.program.display(),
                self.args.config.display()
            )));
        };
        self.mover.wait_until_idle([name, &to])?;
        let plan = self
            .mover
            .plan(name, &to)
            .map_err(|e| refuse(e.to_string()))?;
        self.report.blockers = plan.blockers;
        let together = no_room(&to, TOGETHER, plan.needed_mib, plan.free_mib);
        self.report.blockers.extend(together);
        let mut guests = Vec::new();
        for p in plan.guests {
            self.report.blockers.extend(p.blockers);
            self.report.evacuated.push(waiting(&p.guest));
            guests.push(p.guest.name);
        }
        let versions = self.check()?.agents.into_iter();
        let versions = versions.filter(|a| a.host_vm == *name);
        let hypervisor = versions.filter_map(|a| a.connected).next();
        let hypervisor = hypervisor.map_or("unknown".into(), |v| v.hypervisor);
        State::new((name, &to), domid, hypervisor, guests).map_err(refuse)
    }

    fn must_go_on(&self) -> Result<(), Stop> {
        if self.mover.interrupt.is_wanted() {
            return Err(stop(exit::INCOMPLETE)("it was interrupted".into()));
        }
        Ok(())
    }

    /// Move guests, until one does not get there. It is a job of the daemon, which does not
    /// need this program; the next run of it waits for that.
    fn move_all(&self, guests: &mut Vec<GuestMove>, from: &str, to: &str) -> Result<(), Stop> {
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

    /// All guests leave, those as well that were started since the first run.
    fn evacuate(&mut self, state: &mut State) -> Result<(), Stop> {
        self.report.step = "evacuate";
        let (name, to) = (state.host_vm.clone(), state.to.clone());
        self.mover.wait_until_idle([&name, &to])?;
        let plan = self.mover.plan(&name, &to)?;
        let mut blockers = plan.blockers;
        blockers.extend(no_room(&to, TOGETHER, plan.needed_mib, plan.free_mib));
        let mut guests = Vec::new();
        for p in plan.guests {
            blockers.extend(p.blockers);
            guests.push(waiting(&p.guest));
            if !state.guests.contains(&p.guest.name) {
                state.guests.push(p.guest.name);
            }
        }
        if !blockers.is_empty() {
            return Err(stop(exit::INCOMPLETE)(blockers.join("; ")));
        }
        state.write(&self.file).map_err(stop(exit::INCOMPLETE))?;
        let result = self.move_all(&mut guests, &name, &to);
        self.report.evacuated = guests;
        result?;
        // Somebody may have started another one meanwhile; it would die.
        let (_, left) = self.guests(&name).map_err(stop(exit::INCOMPLETE))?;
        // What is being torn down is none any more.
        match left.iter().find(|g| g.state != GuestState::Dying) {
            None => self.reach(state, Stage::Empty),
            Some(guest) => Err(stop(exit::INCOMPLETE)(format!(
                "host VM {name} has a new guest, {}; nothing was shut down",
                guest.name
            ))),
        }
    }

    /// Note how far it is, before anything is done that needs that.
    fn reach(&self, state: &mut State, stage: Stage) -> Result<(), Stop> {
        state.stage = stage;
        state.write(&self.file).map_err(stop(exit::INCOMPLETE))
    }

    /// The host VM ends, if it is still the one that it was, and begins again.
    fn restart(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let name = &state.host_vm.clone();
        self.must_go_on()?;
        // Whatever its name is by now.
        let domains = self.toolstack.domains().map_err(&incomplete)?;
        if state.stage == Stage::Empty && domains.has(state.domid) {
            self.report.step = "shutdown";
            let started = Instant::now();
            eprintln!("shutting down host VM {name}");
            let limit = Duration::from_secs(self.args.shutdown_timeout.into());
            let interrupt = &self.mover.interrupt;
            let ending = self
                .toolstack
                .end(name, state.domid, limit, || interrupt.is_wanted());
            self.report.seconds.shutdown = seconds(started);
            match ending.map_err(&incomplete)? {
                Ending::Orderly => {}
                Ending::Forced => self.report.forced = true,
                Ending::Interrupted => self.must_go_on()?,
            }
        }
        self.must_go_on()?;
        if self.toolstack.domid(name).map_err(&incomplete)?.is_none() {
            self.report.step = "create";
            let started = Instant::now();
            eprintln!(
                "creating host VM {name} from {}",
                self.args.config.display()
            );
            self.reach(state, Stage::Creating)?;
            let created = self.toolstack.create(&self.args.config);
            self.report.seconds.create = seconds(started);
            created.map_err(|e| {
                incomplete(format!(
                    "{e}; host VM {name} does not run, and its guests run in {}; mend the configuration, or give an older one",
                    state.to
                ))
            })?;
        }
        match (
            state.is_created(),
            self.toolstack.domid(name).map_err(&incomplete)?,
        ) {
            (Some(created), Some(domid)) if created == domid => Ok(()),
            (None, Some(domid)) if domid != state.domid => {
                let created = state.created(domid, &self.args.config);
                created.map_err(&incomplete)?;
                state.write(&self.file).map_err(incomplete)
            }
            _ => Err(incomplete(format!(
                "host VM {name} was created, but is not there; see `xl list`, and its console"
            ))),
        }
    }

    /// Until the new host VM's agent answers.
    fn wait_for_agent(&mut self, state: &State) -> Result<(), Stop> {
        self.report.step = "boot";
        let name = &state.host_vm;
        let started = Instant::now();
        let limit = Duration::from_secs(self.args.boot_timeout.into());
        eprintln!("waiting for the agent of host VM {name}");
        loop {
            self.must_go_on()?;
            let why = match self.guests(name) {
                Ok((domid, _)) if state.is_created() == Some(domid) => {
                    self.report.domid_after = Some(domid);
                    self.report.seconds.boot = seconds(started);
                    return Ok(());
                }
                Ok(_) => "vmbeamd still sees the old one".into(),
                Err(why) => why,
            };
            if started.elapsed() >= limit {
                return Err(stop(exit::INCOMPLETE)(format!(
                    "the agent of host VM {name} did not answer within {} s of its start: {why}; see the host VM's console, or --boot-timeout",
                    limit.as_secs()
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The new host VM can take the guests back.
    fn verify(&mut self, state: &State) -> Result<Vec<GuestMove>, Stop> {
        self.report.step = "check";
        let (name, to) = (&state.host_vm, &state.to);
        let started = Instant::now();
        self.mover.wait_until_idle([name, to])?;
        let agents = self.check()?.agents.into_iter();
        self.report.hypervisor_after = agents
            .filter(|a| a.host_vm == *name)
            .find_map(|a| a.connected)
            .map(|v| v.hypervisor);
        let plan = self.mover.plan(to, name)?;
        let (_, there) = self.guests(name).map_err(stop(exit::INCOMPLETE))?;
        let mut needed = 0;
        let mut blockers = plan.blockers;
        let mut guests = Vec::new();
        for guest in &state.guests {
            let here = plan.guests.iter().find(|p| p.guest.name == *guest);
            let mut moved = GuestMove::new(guest, 0);
            match here {
                Some(p) => {
                    blockers.extend(p.blockers.iter().cloned());
                    moved = waiting(&p.guest);
                    needed += needed_mib(p.guest.pages);
                }
                None if there.iter().any(|g| g.name == *guest) => continue,
                None => moved.outcome = MoveOutcome::Gone,
            }
            guests.push(moved);
        }
        // The destination's own guests stay there and need no room.
        blockers.extend(no_room(name, TOGETHER, needed, plan.free_mib));
        self.report.seconds.check = seconds(started);
        if blockers.is_empty() {
            return Ok(guests);
        }
        self.report.returned = guests;
        Err(stop(exit::INCOMPLETE)(format!(
            "{}; the guests run in {to}",
            blockers.join("; ")
        )))
    }

    /// The guests that left come back, and no others.
    fn come_back(&mut self, state: &State, guests: Vec<GuestMove>) -> Result<(), Stop> {
        self.report.step = "return";
        let started = Instant::now();
        let (mut guests, gone): (Vec<_>, Vec<_>) = guests
            .into_iter()
            .partition(|g| g.outcome != MoveOutcome::Gone);
        let result = self.move_all(&mut guests, &state.to, &state.host_vm);
        self.report.returned = guests;
        self.report.returned.extend(gone);
        self.report.seconds.back = seconds(started);
        result?;
        fs::remove_file(&self.file).map_err(|e| {
            stop(exit::FAILED)(format!(
                "all is done, but {} cannot be removed: {e}; remove it",
                self.file.display()
            ))
        })
    }

    fn run(&mut self) -> Result<(), Stop> {
        self.report.step = "preflight";
        let started = Instant::now();
        let mut state = self.begin()?;
        self.report.to.clone_from(&state.to);
        self.report.hypervisor_before = Some(state.hypervisor.clone());
        self.report.domid_before = Some(state.domid);
        self.report.seconds.preflight = seconds(started);
        if !self.report.blockers.is_empty() {
            return Err(stop(exit::REFUSED)(self.report.blockers.join("; ")));
        }
        if self.args.dry_run {
            return Ok(());
        }
        if state.stage == Stage::Leaving {
            let started = Instant::now();
            let result = self.evacuate(&mut state);
            self.report.seconds.evacuate = seconds(started);
            result?;
        }
        self.restart(&mut state)?;
        self.wait_for_agent(&state)?;
        let guests = self.verify(&state)?;
        self.come_back(&state, guests)?;
        self.report.step = "done";
        Ok(())
    }
}

pub(crate) fn run(socket: &Path, args: &Args) -> Result<ExitCode, ClientError> {
    let started = Instant::now();
    if args.host_vm.contains('/') {
        return Err(ClientError::Refused(format!(
            "{} is not the name of a host VM",
            args.host_vm
        )));
    }
    let mut job = Rejuvenation {
        args,
        socket,
        mover: Mover {
            socket,
            mode: args.mode.into(),
            timeout_seconds: args.timeout,
            wait_seconds: args.wait,
            interrupt: Interrupt::catch(socket)?,
        },
        toolstack: Toolstack {
            program: args.xl.clone(),
            create_timeout: Duration::from_secs(args.create_timeout.into()),
        },
        file: args
            .state_dir
            .join(format!("rejuvenate-{}.json", args.host_vm)),
        report: Report {
            host_vm: args.host_vm.clone(),
            dry_run: args.dry_run,
            ..Report::default()
        },
    };
    let result = job.run();
    let begun = job.file.exists();
    let mut report = job.report;
    report.seconds.total = seconds(started);
    let mut code = 0;
    if let Err(stop) = result {
        code = stop.code;
        // Only what has been begun can be gone on with.
        if code == exit::INCOMPLETE && !begun {
            code = exit::REFUSED;
        }
        report.interrupted = job.mover.interrupt.is_wanted();
        report.error = Some(stop.why);
    }
    if args.json {
        output::json(&report)?;
    } else {
        report.print();
        if args.dry_run {
            print_steps(args, &report);
        }
    }
    if let Some(why) = &report.error {
        eprintln!("vmbeam: {}: {why}", report.step);
        eprintln!(
            "vmbeam: {}",
            match (begun, code) {
                (false, _) | (true, exit::REFUSED) => "nothing was changed",
                (true, exit::FAILED) => "see `vmbeam status`; the same command goes on from here",
                (true, _) => "every guest runs in one place; the same command goes on from here",
            }
        );
    }
    Ok(ExitCode::from(code))
}
