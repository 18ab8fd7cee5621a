// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam rejuvenate`: the guests leave a host VM, which is restarted with another
//! guest hypervisor, and come back.
//!
//! Every step looks first whether it is done already. What cannot be seen is in a small
//! file ([`state`]).

pub(crate) mod report;
mod state;

use crate::client::ClientError;
use crate::exit;
use crate::moves::TOGETHER;
use crate::restart::Config;
use crate::upkeep::{seconds, stop, waiting, Options, Stop, Upkeep};
use crate::worker;
use report::Report;
use state::{Stage, State};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use vmbeam_control_protocol::{
    needed_mib, no_room, replacement_of, CheckReport, GuestMove, JobKind, MoveOutcome,
    UpkeepRequest,
};

/// Options of `vmbeam rejuvenate`.
#[derive(Clone, Debug, clap::Args)]
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
    /// Take the host VM as the new one although somebody else has restarted it since an
    /// earlier run
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    options: Options,
}

/// One rejuvenation.
struct Rejuvenation<'a> {
    args: &'a Args,
    up: Upkeep<'a>,
    report: Report,
}

impl Rejuvenation<'_> {
    /// Where the guests go: as told, or to the only host VM that they may go to.
    fn destination(&self, check: &CheckReport) -> Result<String, String> {
        let name = &self.args.host_vm;
        if let Some(to) = &self.args.to {
            return Ok(to.clone());
        }
        let partners = check.pairs.iter().filter_map(|(a, b)| match () {
            () if a == name => Some(b),
            () if b == name => Some(a),
            () => None,
        });
        let mut partners = partners.filter(|p| **p != replacement_of(name));
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
        Config::read(&self.args.config, name).map_err(&refuse)?;
        let check = self.up.look(name)?;
        let to = self.destination(&check).map_err(&refuse)?;
        let domid = self.up.toolstack.domid(name).map_err(&refuse)?;
        if let Some(mut state) = State::read(&self.up.file).map_err(&refuse)? {
            if state.to != to {
                return Err(refuse(format!(
                    "host VM {name} is being rejuvenated with its guests in {}; end that first, by --to {0}",
                    state.to
                )));
            }
            let taken = state.take_up(domid, self.args, &self.up.file);
            taken.map_err(&refuse)?;
            self.report.base.resumed = true;
            return Ok(state);
        }
        let Some(domid) = domid else {
            return Err(refuse(format!(
                "host VM {name} is not running, so there is nothing to rejuvenate; start it by `{} create {}`",
                self.up.toolstack.program.display(),
                self.args.config.display()
            )));
        };
        self.up.mover.wait_until_idle([name, &to])?;
        let planned = self.up.survey(name, &to);
        let (blockers, leaving) = planned.map_err(|e| refuse(e.to_string()))?;
        let guests = leaving.iter().map(|g| g.guest.clone()).collect();
        self.report.base.blockers = blockers;
        self.report.evacuated = leaving;
        let hypervisor = self.up.hypervisor(name)?;
        let hypervisor = hypervisor.unwrap_or("unknown".into());
        State::new((name, &to), domid, hypervisor, guests).map_err(refuse)
    }

    /// All guests leave, those as well that were started since the first run.
    fn evacuate(&mut self, state: &mut State) -> Result<(), Stop> {
        self.report.base.step = "evacuate";
        let (name, to) = (state.host_vm.clone(), state.to.clone());
        self.up.mover.wait_until_idle([&name, &to])?;
        let (blockers, mut guests) = self.up.survey(&name, &to)?;
        for guest in &guests {
            if !state.guests.contains(&guest.guest) {
                state.guests.push(guest.guest.clone());
            }
        }
        if !blockers.is_empty() {
            return Err(stop(exit::INCOMPLETE)(blockers.join("; ")));
        }
        state.write(&self.up.file).map_err(stop(exit::INCOMPLETE))?;
        let result = self.up.move_all(&mut guests, &name, &to);
        self.report.evacuated = guests;
        result?;
        // Somebody may have started another one meanwhile.
        self.up.must_be_empty(&name, state.domid, None)?;
        self.reach(state, Stage::Empty)
    }

    /// Note how far it is, before anything is done that needs that.
    fn reach(&self, state: &mut State, stage: Stage) -> Result<(), Stop> {
        state.stage = stage;
        state.write(&self.up.file).map_err(stop(exit::INCOMPLETE))
    }

    /// The host VM ends, if it is still the one that it was, and begins again.
    fn restart(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let name = &state.host_vm.clone();
        self.up.must_go_on()?;
        // Whatever its name is by now.
        let domains = self.up.toolstack.domains().map_err(&incomplete)?;
        let told = state.stage == Stage::Ending;
        if (told || state.stage == Stage::Empty) && domains.has(state.domid) {
            self.report.base.step = "shutdown";
            let started = Instant::now();
            let silence = told.then(|| self.up.shutdown_timeout());
            self.up.must_be_empty(name, state.domid, silence)?;
            self.reach(state, Stage::Ending)?;
            let ended = self.up.end(name, state.domid);
            self.report.seconds.set("shutdown", seconds(started));
            self.report.base.forced = ended?;
        }
        self.up.must_go_on()?;
        if self
            .up
            .toolstack
            .domid(name)
            .map_err(&incomplete)?
            .is_none()
        {
            self.report.base.step = "create";
            let started = Instant::now();
            eprintln!(
                "creating host VM {name} from {}",
                self.args.config.display()
            );
            self.reach(state, Stage::Creating)?;
            let created = self.up.toolstack.create(&self.args.config);
            self.report.seconds.set("create", seconds(started));
            created.map_err(|e| {
                incomplete(format!(
                    "{e}; host VM {name} does not run, and its guests run in {}; mend the configuration, or give an older one",
                    state.to
                ))
            })?;
        }
        match (
            state.is_created(),
            self.up.toolstack.domid(name).map_err(&incomplete)?,
        ) {
            (Some(created), Some(domid)) if created == domid => Ok(()),
            (None, Some(domid)) if domid != state.domid => {
                let created = state.created(domid, &self.args.config);
                created.map_err(&incomplete)?;
                state.write(&self.up.file).map_err(incomplete)
            }
            _ => Err(incomplete(format!(
                "host VM {name} was created, but is not there; see `xl list`, and its console"
            ))),
        }
    }

    /// Until the new host VM's agent answers.
    fn wait_for_agent(&mut self, state: &State) -> Result<(), Stop> {
        self.report.base.step = "boot";
        let started = Instant::now();
        let Some(domid) = state.is_created() else {
            return Ok(());
        };
        self.up.wait_for_agent(&state.host_vm, domid, || Ok(()))?;
        self.report.base.domid_after = Some(domid);
        self.report.seconds.set("boot", seconds(started));
        Ok(())
    }

    /// The new host VM can take the guests back.
    fn verify(&mut self, state: &State) -> Result<Vec<GuestMove>, Stop> {
        self.report.base.step = "check";
        let (name, to) = (&state.host_vm, &state.to);
        let started = Instant::now();
        self.up.mover.wait_until_idle([name, to])?;
        self.report.base.hypervisor_after = self.up.hypervisor(name)?;
        let plan = self.up.mover.plan(to, name)?;
        let (_, there) = self.up.guests(name).map_err(stop(exit::INCOMPLETE))?;
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
        self.report.seconds.set("check", seconds(started));
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
        self.report.base.step = "return";
        let started = Instant::now();
        let (mut guests, gone): (Vec<_>, Vec<_>) = guests
            .into_iter()
            .partition(|g| g.outcome != MoveOutcome::Gone);
        let result = self.up.move_all(&mut guests, &state.to, &state.host_vm);
        self.report.returned = guests;
        self.report.returned.extend(gone);
        self.report.seconds.set("return", seconds(started));
        result?;
        self.up.forget()
    }

    fn run(&mut self) -> Result<(), Stop> {
        self.report.base.step = "preflight";
        let started = Instant::now();
        self.up.alone(&self.args.host_vm, "replace")?;
        let mut state = self.begin()?;
        self.report.base.to.clone_from(&state.to);
        self.report.base.hypervisor_before = Some(state.hypervisor.clone());
        self.report.base.domid_before = Some(state.domid);
        self.report.seconds.set("preflight", seconds(started));
        if !self.report.base.blockers.is_empty() {
            return Err(stop(exit::REFUSED)(self.report.base.blockers.join("; ")));
        }
        if self.args.options.dry_run {
            return Ok(());
        }
        if state.stage == Stage::Leaving {
            let started = Instant::now();
            let result = self.evacuate(&mut state);
            self.report.seconds.set("evacuate", seconds(started));
            result?;
        }
        self.restart(&mut state)?;
        self.wait_for_agent(&state)?;
        let guests = self.verify(&state)?;
        self.come_back(&state, guests)?;
        self.report.base.step = "done";
        Ok(())
    }
}

/// In this process; gives the exit status.
fn here(socket: &Path, args: &Args) -> Result<u8, ClientError> {
    let started = Instant::now();
    let name = &args.host_vm;
    let mut job = Rejuvenation {
        args,
        up: Upkeep::new("rejuvenate", name, socket, &args.options)?,
        report: Report::new(args),
    };
    let result = job.run();
    let Rejuvenation { up, report, .. } = job;
    up.conclude(result, report, started)
}

/// All that makes a difference to what is done.
fn that_matters(args: &Args) -> String {
    let config = args.config.canonicalize().ok();
    let same = Args {
        config: config.unwrap_or_else(|| args.config.clone()),
        options: args.options.that_matter(),
        ..args.clone()
    };
    format!("{same:?}")
}

/// `is_worker`: this is the process that does it.
pub(crate) fn run(socket: &Path, args: &Args, is_worker: bool) -> Result<ExitCode, ClientError> {
    let request = || UpkeepRequest {
        kind: JobKind::Rejuvenate,
        host_vm: args.host_vm.clone(),
        to: args.to.as_ref().unwrap_or(&args.host_vm).clone(),
        arguments: that_matters(args),
    };
    worker::run(socket, &args.options, is_worker, request, || {
        here(socket, args)
    })
}
