// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam replace`: a new host VM is created beside an old one, whose guests move to it, once;
//! then it gets the old one's name.
//!
//! Every step looks first whether it is done already. What cannot be seen is in a small
//! file ([`state`]).

mod memory;
pub(crate) mod report;
mod state;
mod takeover;

use crate::client::ClientError;
use crate::exit;
use crate::restart::Config;
use crate::upkeep::{record, seconds, stop, waiting, Options, Stop, Upkeep, LOOK};
use crate::worker;
use report::Report;
use state::{Size, Stage, State};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{
    replacement_of, Guest, GuestKind, GuestState, JobKind, MoveOutcome, UpkeepRequest,
};

/// Options of `vmbeam replace`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Host VM that is to be replaced
    host_vm: String,
    /// Configuration of the new one, with the name of the old one
    #[arg(long, value_name = "FILE", required_unless_present = "undo")]
    config: Option<PathBuf>,
    /// Memory that the new host VM has when it starts. The rest, up to what the configuration
    /// says, comes with the guests, if these can bring theirs
    #[arg(long, value_name = "MIB")]
    start_with: Option<u64>,
    /// Go back: the guests that have moved return, one by one, and the new host VM is
    /// removed. Not any more once the old one is empty
    #[arg(long, conflicts_with_all = ["config", "dry_run"])]
    undo: bool,
    /// What is started when the host boots
    #[arg(long, value_name = "DIR", default_value = "/etc/xen/auto")]
    auto_dir: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// One replacement.
struct Replacement<'a> {
    args: &'a Args,
    up: Upkeep<'a>,
    report: Report,
    /// What the new host VM is called until it has the name of the old one.
    to: String,
}

/// What is in a guest's way wherever it is to go.
fn blocker(guest: &Guest) -> Option<String> {
    let name = &guest.name;
    match (guest.state, guest.kind) {
        (GuestState::Dying, _) => None,
        (GuestState::Running, GuestKind::Pv) => None,
        (GuestState::Running, _) => Some(format!(
            "guest {name} is not a PV guest; move it by other means, or shut it down"
        )),
        _ => Some(format!(
            "guest {name} does not run; let it run (`xl unpause`), or end it"
        )),
    }
}

impl Replacement<'_> {
    fn size(&self, file: &Path, config: &Config) -> Result<Size, String> {
        let memory = config.mib("memory").ok_or_else(|| {
            format!(
                "{}: there is no line `memory = MIB`, and the host must have that",
                file.display()
            )
        })?;
        let most = config.mib("maxmem").unwrap_or(memory);
        let start = self.args.start_with.unwrap_or(memory);
        if start > most {
            return Err(format!(
                "host VM {} has {most} MiB at most, so it cannot --start-with {start} MiB",
                self.to
            ));
        }
        Ok(Size { start, most })
    }

    /// The configuration of the new host VM, but for its name and the port of its agent, which
    /// are the old one's.
    fn configuration(&self, file: &Path, state: &State) -> Result<String, String> {
        let config = Config::read(file, &state.host_vm)?;
        if config.value("uuid").is_some() {
            return Err(format!(
                "{}: there is a line `uuid`, and two host VMs cannot have one; remove it",
                file.display()
            ));
        }
        let port = format!("path={},", state.port.display());
        if !config.text.contains(&port) {
            return Err(format!(
                "{}: no port for an agent on {}, where that of host VM {} is; correct its device_model_args",
                file.display(),
                state.port.display(),
                state.host_vm
            ));
        }
        let own = format!("path={},", state.own_port().display());
        let Size { start, most } = state.size;
        // Of two lines that say the same the toolstack takes the last.
        Ok(format!(
            "{}\nname = \"{}\"\nmemory = {start}\nmaxmem = {most}\n",
            config.text.replace(&port, &own),
            self.to
        ))
    }

    /// What the new host VM is created from.
    fn file(&self) -> PathBuf {
        self.up.file.with_extension("cfg")
    }

    /// The socket where vmbeamd looks for the agent of the new host VM while it has no other name.
    fn new_port(&self, state: &State) -> PathBuf {
        state.port.with_file_name(format!("{}.sock", self.to))
    }

    fn sample(&mut self, state: &mut State) {
        state.memory.sample(&self.up.toolstack);
        self.report.memory = state.memory;
        self.report.peak_extra_mib = state.memory.peak_extra_mib();
    }

    /// A step begins.
    fn step(&mut self, step: &'static str, state: &mut State) -> Instant {
        self.report.base.step = step;
        self.sample(state);
        Instant::now()
    }

    /// It is at its end.
    fn done(&mut self, started: Instant, state: &mut State) {
        let step = self.report.base.step;
        self.report.seconds.set(step, seconds(started));
        self.sample(state);
    }

    /// Note how far it is, before anything is done that needs that.
    fn reach(&self, state: &mut State, stage: Stage) -> Result<(), Stop> {
        state.stage = stage;
        state.write(&self.up.file).map_err(stop(exit::INCOMPLETE))
    }

    /// The host must have what the new host VM starts with.
    fn room(&self, size: Size) -> Option<String> {
        let free = self.up.toolstack.free_mib().ok()?;
        (free < size.start).then(|| {
            format!("the host has {free} MiB of free memory, and the new host VM starts with {} MiB; --start-with gives it less", size.start)
        })
    }

    /// What must be known, from an earlier run or from what is there now. Collects
    /// what is in the way.
    fn begin(&mut self, file: &Path) -> Result<State, Stop> {
        let refuse = stop(exit::REFUSED);
        let name = &self.args.host_vm;
        let config = Config::read(file, name).map_err(&refuse)?;
        let size = self.size(file, &config).map_err(&refuse)?;
        self.report.new_mib = Some(size);
        let check = self.up.look(name)?;
        let pair = |(a, b): &(String, String)| [a, b] == [name, &self.to];
        if !check.pairs.iter().any(pair) {
            return Err(refuse(format!(
                "host VM {name} may not be replaced; add `replaceable = true` to its [[host_vm]] in vmbeamd's configuration, and restart vmbeamd"
            )));
        }
        let domains = self.up.toolstack.domains().map_err(&refuse)?;
        if let Some(state) = State::read(&self.up.file).map_err(&refuse)? {
            let taken = state.take_up(&domains, Some(file), &self.up.file);
            taken.map_err(&refuse)?;
            self.report.base.resumed = true;
            return Ok(state);
        }
        let Some(domid) = domains.named(name).map_err(&refuse)? else {
            return Err(refuse(format!(
                "host VM {name} is not running, so there is nothing to replace; start it by `{} create {}`",
                self.up.toolstack.program.display(),
                file.display()
            )));
        };
        if let Some(other) = domains.named(&self.to).map_err(&refuse)? {
            return Err(refuse(format!(
                "there is a host VM {} already, domain {other}, that no replacement has left; shut it down, or give it another name",
                self.to
            )));
        }
        self.up.mover.wait_until_idle([name, &self.to])?;
        let (_, guests) = self.up.guests(name).map_err(&refuse)?;
        let mut blockers: Vec<_> = guests.iter().filter_map(blocker).collect();
        blockers.extend(self.room(size));
        // The guests that start there then bring no memory.
        let small = config.mib("memory") < Some(size.most);
        let entry = takeover::entry(&self.args.auto_dir, name).map_err(&refuse)?;
        if let (true, Some(entry)) = (small, entry) {
            blockers.push(format!(
                "{} would start host VM {name} from {} when the host boots, with less memory than guests there may use; give it all of its memory there, and let it --start-with less",
                entry.display(),
                file.display()
            ));
        }
        self.report.base.blockers = blockers;
        self.report.moved = guests.iter().map(waiting).collect();
        let port = check.agents.iter().find(|a| a.host_vm == *name);
        let port = port.map(|a| PathBuf::from(&a.socket)).unwrap_or_default();
        let hypervisor = self.up.hypervisor(name)?.unwrap_or("unknown".into());
        let memory = self.report.memory;
        let state =
            State::new(name, domid, hypervisor, port, (file, size), memory).map_err(&refuse)?;
        self.configuration(file, &state).map_err(refuse)?;
        Ok(state)
    }

    /// The new host VM begins, beside the old one.
    fn create(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let started = self.step("create", state);
        self.reach(state, Stage::Creating)?;
        // Another one that begins meanwhile would reckon with the same memory.
        let turn = loop {
            self.up.must_go_on()?;
            match record::turn(&self.up.options.state_dir, "host-memory").map_err(&incomplete)? {
                Some(turn) => break turn,
                None => std::thread::sleep(LOOK),
            }
        };
        let there = self.up.toolstack.domid(&self.to).map_err(&incomplete)?;
        if there.is_none() {
            if let Some(why) = self.room(state.size) {
                return Err(incomplete(why));
            }
            eprintln!(
                "creating host VM {} from {}",
                self.to,
                state.config.display()
            );
            let text = self
                .configuration(&state.config, state)
                .map_err(&incomplete)?;
            record::write(&self.file(), text.as_bytes()).map_err(&incomplete)?;
            takeover::link(&self.new_port(state), &state.own_port()).map_err(&incomplete)?;
            let created = self.up.toolstack.create(&self.file());
            created.map_err(&incomplete)?;
        }
        drop(turn);
        let created = self.up.toolstack.domid(&self.to).map_err(&incomplete)?;
        let Some(domid) = created else {
            return Err(incomplete(format!(
                "host VM {} was created, but is not there; see `xl list`, and its console",
                self.to
            )));
        };
        // The toolstack lets it have only what it starts with.
        if state.size.is_small() {
            let allowed = self.up.toolstack.allow(domid, state.size.most);
            allowed.map_err(&incomplete)?;
        }
        state.new = Some(domid);
        self.done(started, state);
        self.reach(state, Stage::Checking)
    }

    /// The new host VM is up, and can take the guests.
    fn verify(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let name = state.host_vm.clone();
        let new = state.new.unwrap_or_default();
        let started = self.step("boot", state);
        self.up.wait_for_agent(&self.to, new, || {
            let domains = self.up.toolstack.domains().map_err(&incomplete)?;
            match domains.has(new) {
                true => Ok(()),
                false => Err(incomplete(format!(
                    "the new host VM, domain {new}, has ended; see its console"
                ))),
            }
        })?;
        state.answered = true;
        self.reach(state, Stage::Checking)?;
        self.done(started, state);
        let started = self.step("check", state);
        self.up.mover.wait_until_idle([&name, &self.to])?;
        self.report.base.hypervisor_after = self.up.hypervisor(&self.to)?;
        let (blockers, guests) = self.up.survey(&name, &self.to)?;
        self.report.moved = guests;
        self.done(started, state);
        match blockers.is_empty() {
            true => Ok(()),
            false => Err(incomplete(blockers.join("; "))),
        }
    }

    /// The new host VM is of no use, and goes; the old one goes on.
    fn give_up(&mut self, state: &mut State, why: Stop) -> Stop {
        // A person who does not want to wait has not said that.
        if self.up.mover.interrupt.is_wanted() {
            return why;
        }
        let step = self.report.base.step;
        eprintln!("vmbeam: {step}: {why}; removing host VM {}", self.to);
        let removed = self.remove_new(state);
        self.report.base.step = step;
        match removed {
            Ok(()) => stop(exit::ROLLED_BACK)(why.to_string()),
            Err(e) => stop(exit::INCOMPLETE)(format!("{why}; and then: {e}")),
        }
    }

    /// Nothing is left of the new host VM, which has no guest.
    fn remove_new(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let started = self.step("undo", state);
        if state.stage != Stage::Removing {
            self.reach(state, Stage::Undoing)?;
        }
        let domains = self.up.toolstack.domains().map_err(&incomplete)?;
        let new = match state.new {
            Some(new) => Some(new),
            None => domains.named(&self.to).map_err(&incomplete)?,
        };
        if let Some(new) = new.filter(|new| domains.has(*new)) {
            let silence = match state.answered {
                true => (state.stage == Stage::Removing).then(|| self.up.shutdown_timeout()),
                // No guest gets to an agent that has never answered.
                false => Some(Duration::ZERO),
            };
            self.up.must_be_empty(&self.to, new, silence)?;
            self.reach(state, Stage::Removing)?;
            self.report.base.forced = self.up.end(&self.to, new)?;
        }
        takeover::remove(&self.new_port(state)).map_err(&incomplete)?;
        takeover::remove(&self.file()).map_err(&incomplete)?;
        self.done(started, state);
        self.up.forget()
    }

    /// All guests move, those as well that were started meanwhile.
    fn move_guests(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let name = state.host_vm.clone();
        let started = self.step("move", state);
        self.up.mover.wait_until_idle([&name, &self.to])?;
        let (blockers, mut guests) = self.up.survey(&name, &self.to)?;
        if !blockers.is_empty() {
            return Err(incomplete(blockers.join("; ")));
        }
        for guest in &guests {
            if !state.guests.contains(&guest.guest) {
                state.guests.push(guest.guest.clone());
            }
        }
        self.reach(state, Stage::Moving)?;
        let (result, memory) = state.memory.during(&self.up.toolstack, || {
            self.up.move_all(&mut guests, &name, &self.to)
        });
        state.memory = memory;
        self.report.moved = guests;
        self.done(started, state);
        result?;
        self.up.must_be_empty(&name, state.domid, None)?;
        self.reach(state, Stage::Empty)
    }

    /// The old host VM ends, if it has not.
    fn end_old(&mut self, state: &mut State) -> Result<(), Stop> {
        self.up.must_go_on()?;
        let domains = self.up.toolstack.domains();
        if !domains.map_err(stop(exit::INCOMPLETE))?.has(state.domid) {
            return Ok(());
        }
        let name = state.host_vm.clone();
        let started = self.step("shutdown", state);
        // One that has begun to shut down does not answer any more.
        let told = state.stage == Stage::Ending;
        let silence = told.then(|| self.up.shutdown_timeout());
        self.up.must_be_empty(&name, state.domid, silence)?;
        self.reach(state, Stage::Ending)?;
        self.report.base.forced = self.up.end(&name, state.domid)?;
        self.done(started, state);
        Ok(())
    }

    /// The new host VM gets the name of the old one, and what goes by it.
    fn take_over(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        self.up.must_go_on()?;
        let started = self.step("takeover", state);
        let name = &state.host_vm;
        let new = state.new.unwrap_or_default();
        let domains = self.up.toolstack.domains().map_err(&incomplete)?;
        match domains.named(name).map_err(&incomplete)? {
            Some(domid) if domid == new => {}
            None => {
                eprintln!("renaming host VM {} to {name}", self.to);
                let renamed = self.up.toolstack.rename(new, name);
                renamed.map_err(&incomplete)?;
            }
            Some(other) => {
                return Err(incomplete(format!(
                    "somebody else has started a host VM {name}, domain {other}, and the guests run in {}, domain {new}; shut that one down",
                    self.to
                )))
            }
        }
        // What the old one had is free: from now on guests can start in the new one as in any.
        if state.size.is_small() {
            let filled = self.up.toolstack.fill(new, state.size.most);
            filled.map_err(&incomplete)?;
        }
        takeover::remove(&self.new_port(state)).map_err(&incomplete)?;
        takeover::wait_until_free(&state.port);
        let port = || takeover::link(&state.port, &state.own_port()).map_err(&incomplete);
        port()?;
        let started_from = takeover::start_from(&self.args.auto_dir, name, &state.config);
        started_from.map_err(&incomplete)?;
        self.up.wait_for_agent(name, new, port)?;
        port()?;
        takeover::remove(&self.file()).map_err(&incomplete)?;
        self.done(started, state);
        self.up.forget()
    }

    /// The way back, of what is in this state.
    fn undo(&mut self, state: &mut State) -> Result<(), Stop> {
        let incomplete = stop(exit::INCOMPLETE);
        let name = state.host_vm.clone();
        if state.stage == Stage::Removing {
            return self.remove_new(state);
        }
        self.reach(state, Stage::Undoing)?;
        self.up.mover.wait_until_idle([&name, &self.to])?;
        let domains = self.up.toolstack.domains().map_err(&incomplete)?;
        if state.new.is_some_and(|new| domains.has(new)) && !state.guests.is_empty() {
            let started = self.step("move", state);
            let result = self.bring_back(&name);
            self.done(started, state);
            result?;
        }
        self.remove_new(state)
    }

    /// What has moved returns, guest by guest: vmbeamd gives the old host VM, whose memory went away
    /// with them, a reserve for each.
    fn bring_back(&mut self, name: &str) -> Result<(), Stop> {
        loop {
            let (blockers, mut guests) = self.up.survey(&self.to, name)?;
            if guests.is_empty() {
                return Ok(());
            }
            if !blockers.is_empty() {
                return Err(stop(exit::INCOMPLETE)(blockers.join("; ")));
            }
            let rest = guests.split_off(guests.len().min(1));
            let result = self.up.move_all(&mut guests, &self.to, name);
            let returned = &mut self.report.returned;
            returned.retain(|g| g.outcome == MoveOutcome::Moved);
            returned.extend(guests.into_iter().chain(rest));
            result?;
        }
    }

    /// A person wants to go back.
    fn undo_asked(&mut self) -> Result<(), Stop> {
        let refuse = stop(exit::REFUSED);
        let name = &self.args.host_vm;
        let Some(mut state) = State::read(&self.up.file).map_err(&refuse)? else {
            return Err(refuse(format!(
                "no replacement of host VM {name} was begun, so there is nothing to undo"
            )));
        };
        let domains = self.up.toolstack.domains().map_err(&refuse)?;
        let taken = state.take_up(&domains, None, &self.up.file);
        taken.map_err(&refuse)?;
        if matches!(state.stage, Stage::Empty | Stage::Ending) {
            return Err(refuse(format!(
                "all guests of host VM {name} are in the new one, and the old one may be shut down already: go on without --undo; `vmbeam replace` with the old configuration goes back after that"
            )));
        }
        self.known(&state);
        self.undo(&mut state)?;
        self.report.base.step = "undone";
        Ok(())
    }

    fn known(&mut self, state: &State) {
        self.report.base.hypervisor_before = Some(state.hypervisor.clone());
        self.report.base.domid_before = Some(state.domid);
        self.report.memory = state.memory;
        self.report.new_mib = Some(state.size);
    }

    fn run(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        self.report.base.step = "preflight";
        self.report.memory.sample(&self.up.toolstack);
        let name = &self.args.host_vm;
        self.up.alone(name, "rejuvenate")?;
        let Some(file) = &self.args.config else {
            return self.undo_asked();
        };
        let mut state = self.begin(file)?;
        self.known(&state);
        self.report.seconds.set("preflight", seconds(started));
        if !self.report.base.blockers.is_empty() {
            return Err(stop(exit::REFUSED)(self.report.base.blockers.join("; ")));
        }
        if self.args.options.dry_run {
            return Ok(());
        }
        if state.stage >= Stage::Undoing {
            self.undo(&mut state)?;
            return Err(stop(exit::ROLLED_BACK)(
                "an earlier run had begun to undo it, and that is done".into(),
            ));
        }
        if state.stage == Stage::Creating {
            let created = self.create(&mut state);
            created.map_err(|e| self.give_up(&mut state, e))?;
        }
        self.report.base.domid_after = state.new;
        if state.stage == Stage::Checking {
            let verified = self.verify(&mut state);
            verified.map_err(|e| self.give_up(&mut state, e))?;
        }
        if state.stage < Stage::Empty {
            self.move_guests(&mut state)?;
        }
        self.end_old(&mut state)?;
        self.take_over(&mut state)?;
        self.report.base.hypervisor_after = self.up.hypervisor(&state.host_vm)?;
        self.report.base.step = "done";
        Ok(())
    }
}

/// In this process; gives the exit status.
fn here(socket: &Path, args: &Args) -> Result<u8, ClientError> {
    let started = Instant::now();
    let name = &args.host_vm;
    let mut job = Replacement {
        args,
        up: Upkeep::new("replace", name, socket, &args.options)?,
        report: Report::new(args),
        to: replacement_of(name),
    };
    let result = job.run();
    let Replacement { up, report, .. } = job;
    up.conclude(result, report, started)
}

/// All that makes a difference to what is done.
fn that_matters(args: &Args) -> String {
    let config = args.config.as_ref().and_then(|c| c.canonicalize().ok());
    let same = Args {
        config: config.or(args.config.clone()),
        options: args.options.that_matter(),
        ..args.clone()
    };
    format!("{same:?}")
}

/// `is_worker`: this is the process that does it.
pub(crate) fn run(socket: &Path, args: &Args, is_worker: bool) -> Result<ExitCode, ClientError> {
    let request = || UpkeepRequest {
        kind: JobKind::Replace,
        host_vm: args.host_vm.clone(),
        to: replacement_of(&args.host_vm),
        arguments: that_matters(args),
    };
    worker::run(socket, &args.options, is_worker, request, || {
        here(socket, args)
    })
}
