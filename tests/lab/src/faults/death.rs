// SPDX-License-Identifier: GPL-2.0-only

//! Who dies when, and where the guest VM is then.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::migrate;
use crate::product;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

pub const LIMIT: Duration = Duration::from_secs(600);

/// What the command line shows, in order.
const PHASES: [&str; 7] = [
    "staging",
    "frame lists",
    "dry run",
    "saving",
    "swapping",
    "resuming",
    "cleaning up",
];
/// From here on the guest is the destination's.
const NO_RETURN: &str = "resuming";

/// How often a state may be missed: some last for milliseconds.
pub const TRIES: u32 = 4;
/// Each of them is so much later than the one before, in milliseconds.
pub const LATER_MS: u32 = 100;
/// How long a victim that is not there yet is waited for, in seconds.
const PATIENCE_S: u32 = 30;
/// How long a victim has been at its work when it is killed, in microseconds.
const AT_WORK_US: u32 = 500_000;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The daemon in the host's management VM.
    Daemon,
    /// An agent.
    Agent(&'static str),
    /// `xl save` or `xl restore`.
    Xl(&'static str),
    /// Its helper, which has the stream.
    Helper(&'static str),
    /// A whole host VM.
    HostVm(&'static str),
    /// The same by its own doing: its management VM touches memory that is not there.
    Glutton(&'static str),
}

impl Victim {
    pub fn name(self) -> String {
        match self {
            Self::Daemon => "the daemon".to_owned(),
            Self::Agent(vm) => format!("{vm}'s agent"),
            Self::Xl(vm) => format!("{vm}'s xl"),
            Self::Helper(vm) => format!("the helper of {vm}'s xl"),
            Self::HostVm(vm) | Self::Glutton(vm) => format!("host VM {vm}"),
        }
    }

    /// The host VM that is gone with it.
    fn takes(self) -> Option<&'static str> {
        match self {
            Self::HostVm(vm) | Self::Glutton(vm) => Some(vm),
            _ => None,
        }
    }
}

/// Who is killed when.
pub const DEATHS: [(Victim, &str); 24] = [
    (Victim::Xl("A"), "staging"),
    (Victim::Xl("B"), "staging"),
    (Victim::Helper("A"), "staging"),
    (Victim::Helper("B"), "staging"),
    (Victim::Agent("A"), "staging"),
    (Victim::Agent("B"), "staging"),
    (Victim::Daemon, "staging"),
    (Victim::Xl("A"), "saving"),
    (Victim::Xl("B"), "saving"),
    (Victim::Helper("A"), "saving"),
    (Victim::Helper("B"), "saving"),
    (Victim::Agent("A"), "saving"),
    (Victim::Agent("B"), "saving"),
    (Victim::Daemon, "saving"),
    (Victim::Agent("A"), "frame lists"),
    (Victim::Agent("B"), "frame lists"),
    (Victim::Daemon, "frame lists"),
    (Victim::Agent("A"), "swapping"),
    (Victim::Agent("B"), "swapping"),
    (Victim::Daemon, "swapping"),
    (Victim::Agent("B"), "resuming"),
    (Victim::Daemon, "resuming"),
    (Victim::Agent("A"), "cleaning up"),
    (Victim::Daemon, "cleaning up"),
];

/// Kill somebody; the guest must be where the state diagram says, and come home.
pub fn die(topology: &Topology, victim: Victim, phase: &str) -> Result<()> {
    let place = until(topology, victim, phase)?;
    let after = rank(phase)? >= rank(NO_RETURN)?;
    // Between READY and the point of no return the daemon goes on or undoes.
    let expected: &[&str] = match victim {
        _ if after => &["B"],
        Victim::Agent(_) if phase == "swapping" => &["A", "B"],
        _ => &["A"],
    };
    ensure!(
        expected.contains(&place),
        "the guest runs in {place}, expected {expected:?}"
    );
    println!("    it runs in {place}");
    home(topology)
}

fn rank(phase: &str) -> Result<usize> {
    PHASES
        .iter()
        .position(|p| *p == phase)
        .with_context(|| format!("no phase {phase}"))
}

/// Migrate from A to B and kill somebody in this state. Gives where the guest runs then.
pub fn until(topology: &Topology, victim: Victim, phase: &str) -> Result<&'static str> {
    for number in 0..TRIES {
        let held = match victim {
            // These begin their work in the middle of a state.
            Victim::Xl(_) | Victim::Helper(_) => {
                begin(topology, "", phase)?;
                true
            }
            _ => stopped_at(topology, phase, number * LATER_MS)? == phase,
        };
        if held && kill(topology, victim)? {
            finish(topology, victim)?;
            return place(topology, victim);
        }
        // Too late or too early. Let it come to its end, and begin again.
        resume(topology)?;
        ended(topology)?;
        home(topology)?;
    }
    bail!(
        "{} could not be caught while {phase}, {TRIES} times",
        victim.name()
    )
}

/// Start a migration and stop the daemon when it has shown this for so many milliseconds;
/// gives what it shows then.
pub fn stopped_at(topology: &Topology, phase: &str, ms: u32) -> Result<String> {
    let pid = product::PID_FILE;
    let text = topology.machine.host.sh(
        &format!(
            "rm -f /run/lab/migrate.out; {} >/run/lab/migrate.out 2>&1 & echo $! >/run/lab/migrate.pid; \
             labtool catch --stop $(cat {pid}) --printer $! --file /run/lab/migrate.out \
             --text '{phase}' --after {ms}",
            migrate::command("A", "B", "")
        ),
        LIMIT,
    )?;
    let last = PHASES
        .iter()
        .filter_map(|p| text.rfind(p).map(|at| (at, *p)))
        .max();
    let (_, last) = last.with_context(|| format!("vmbeam migrate printed: {text}"))?;
    Ok(last.to_owned())
}

/// Start a migration in the background and wait until it shows this.
pub fn begin(topology: &Topology, options: &str, phase: &str) -> Result<()> {
    topology.machine.host.sh(
        &format!(
            "rm -f /run/lab/migrate.out /run/lab/migrate.code; \
             {{ {}; echo $? >/run/lab/migrate.code; }} >/run/lab/migrate.out 2>&1 & \
             echo $! >/run/lab/migrate.pid; \
             until grep -qs {phase} /run/lab/migrate.out; do usleep 5000; done",
            migrate::command("A", "B", options)
        ),
        LIMIT,
    )?;
    Ok(())
}

pub fn resume(topology: &Topology) -> Result<()> {
    topology
        .machine
        .host
        .sh(&format!("kill -CONT $(cat {})", product::PID_FILE), SHORT)?;
    Ok(())
}

/// False if the victim is not there, or not any more.
pub fn kill(topology: &Topology, victim: Victim) -> Result<bool> {
    let machine = &topology.machine;
    let at_work = |vm, find: &str| -> Result<bool> {
        let text = machine.vm(vm).sh(
            &format!(
                "end=$(($(date +%s) + {PATIENCE_S})); \
                 until p=$({find}) || [ $(date +%s) -ge $end ]; do usleep 50000; done; \
                 usleep {AT_WORK_US}; kill -9 $p && echo KILLED; true"
            ),
            SHORT,
        )?;
        Ok(text.contains("KILLED"))
    };
    match victim {
        Victim::Daemon => {
            let pid = product::PID_FILE;
            machine.host.sh(&format!("kill -9 $(cat {pid})"), SHORT)?;
        }
        Victim::Agent(vm) => {
            machine.vm(vm).sh("killall -9 vmbeam-agent", SHORT)?;
        }
        Victim::Xl(vm) => {
            let word = if vm == "A" { "save" } else { "restore" };
            // Not by its command line alone: the shell that looks has the word in its own.
            let find = format!(
                "for p in $(pidof xl); do grep -q {word} /proc/$p/cmdline && echo $p; done | grep ."
            );
            return at_work(vm, &find);
        }
        Victim::Helper(vm) => return at_work(vm, "pidof libxl-save-helper"),
        Victim::HostVm(vm) => {
            machine.host.sh(&format!("xl destroy {vm}"), SHORT)?;
        }
        // More than there can be in a reserve.
        Victim::Glutton(vm) => {
            machine.vm(vm).sh(
                // No zeroes: the host hypervisor would take those back.
                "setsid sh -c 'tr \\\\0 x </dev/zero >/run/lab/glutton' >/dev/null 2>&1 </dev/null &",
                SHORT,
            )?;
            machine.host.sh(
                &format!("while xl domid {vm} >/dev/null 2>&1; do usleep 100000; done"),
                LIMIT,
            )?;
        }
    }
    Ok(true)
}

/// Start again what a supervisor would, and wait until nothing is to be done any more.
pub fn finish(topology: &Topology, victim: Victim) -> Result<()> {
    if let Victim::Agent(vm) = victim {
        product::start_agent(topology, vm)?;
    }
    if victim == Victim::Daemon {
        ended(topology)?;
        product::start_daemon(topology)?;
    } else {
        resume(topology)?;
        ended(topology)?;
    }
    if victim.takes().is_none() {
        product::wait_for_agents(topology)?;
    }
    migrate::settled(topology)
}

/// Wait until the command line has ended; nobody reaps it here.
pub fn ended(topology: &Topology) -> Result<()> {
    topology.machine.host.sh(
        "pid=$(cat /run/lab/migrate.pid); \
         while grep -qs '^State:.[^Z]' /proc/$pid/status; do usleep 50000; done",
        LIMIT,
    )?;
    Ok(())
}

/// Where the guest runs, after all; it must be one place. What was left in the other is
/// destroyed when an agent that was away is back.
pub fn place(topology: &Topology, victim: Victim) -> Result<&'static str> {
    let start = Instant::now();
    loop {
        let mut running = Vec::new();
        let mut there = 0;
        for vm in ["A", "B"] {
            if victim.takes() == Some(vm) {
                continue;
            }
            let guests = migrate::guests(topology.machine.vm(vm))?;
            there += guests.len();
            let runs = |(name, state): &(String, String)| name == GUEST && !state.contains('p');
            running.extend(guests.iter().any(runs).then_some(vm));
        }
        ensure!(running.len() <= 1, "the guest runs in both");
        if let ([place], 1) = (&running[..], there) {
            topology::wait_for_check(topology.machine.vm(place), LIMIT)?;
            return Ok(place);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "the guest runs in {running:?}, {there} guests are there"
        );
        thread::sleep(Duration::from_millis(500));
    }
}

/// Let the guest run in A, where the next one begins.
pub fn home(topology: &Topology) -> Result<()> {
    // One that was destroyed is listed until its last page is free, without a name.
    let guests = migrate::guests(&topology.machine.b)?;
    if guests.iter().any(|(name, _)| name == GUEST) {
        migrate::migrate(topology, "B", "A", "")?;
    }
    migrate::runs_only_in(topology, "A").map(drop)
}
