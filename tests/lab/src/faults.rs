// SPDX-License-Identifier: GPL-2.0-only

//! Somebody dies while a guest VM migrates. Wherever it was, the guest runs in exactly
//! one place afterwards, with its memory, and migrates again.
//!
//! The daemon is stopped (SIGSTOP) as soon as the command line shows a state, so that the
//! migration stays in it while the victim is killed.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::migrate;
use crate::product;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const GROUP: &str = "faults";
const LIMIT: Duration = Duration::from_secs(600);

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
const TRIES: u32 = 4;
/// Each of them is so much later than the one before, in milliseconds.
const LATER_MS: u32 = 100;
/// How long a victim that is not there yet is waited for, in seconds.
const PATIENCE_S: u32 = 30;
/// How long a victim has been at its work when it is killed, in microseconds.
const AT_WORK_US: u32 = 500_000;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
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
}

impl Victim {
    fn name(self) -> String {
        match self {
            Self::Daemon => "the daemon".to_owned(),
            Self::Agent(vm) => format!("{vm}'s agent"),
            Self::Xl(vm) => format!("{vm}'s xl"),
            Self::Helper(vm) => format!("the helper of {vm}'s xl"),
            Self::HostVm(vm) => format!("host VM {vm}"),
        }
    }
}

/// Who is killed when.
const DEATHS: [(Victim, &str); 22] = [
    (Victim::Xl("A"), "staging"),
    (Victim::Xl("B"), "staging"),
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

/// Run the tests, on a topology whose guest VM runs in A and only there.
pub fn run(tally: &mut Tally, topology: &Topology, progress: &Progress) {
    let mut free = None;
    tally.case(GROUP, "a migration there and back, undisturbed", || {
        // The empty guest VM of group `nested` has the name.
        let [a, b] = [&topology.machine.a, &topology.machine.b];
        if !migrate::guests(a)?.is_empty() && !migrate::guests(b)?.is_empty() {
            migrate::make_room(topology)?;
        }
        home(topology)?;
        migrate::migrate(topology, "A", "B", "")?;
        home(topology)?;
        free = Some(migrate::free_memory(topology)?);
        Ok(())
    });
    let Some(free) = free else {
        return;
    };
    let no_leak = || {
        let now = migrate::free_memory(topology)?;
        ensure!(now == free, "free in A and B: {free:?}, then {now:?}");
        Ok(())
    };
    let mut case = |name: &str, test: &dyn Fn() -> Result<()>| {
        let mut failed = false;
        tally.case(GROUP, name, || test().inspect_err(|_| failed = true));
        // The next one begins with a guest VM in A, whatever became of this one.
        if failed {
            let again = "everything is as it was before that one";
            tally.case(GROUP, again, || recover(topology));
        }
    };
    for (victim, phase) in DEATHS {
        let name = format!("kill -9 of {} while {phase}", victim.name());
        case(&name, &|| {
            die(topology, victim, phase)?;
            no_leak()
        });
    }
    case("refused: too little memory at the destination", &|| {
        full(topology)?;
        no_leak()
    });
    case("two at once: the second is refused", &|| {
        two(topology)?;
        no_leak()
    });
    case(
        "B's agent falls silent while saving: the guest goes on in A",
        &|| {
            silent(topology)?;
            no_leak()
        },
    );
    // Host VM B is another one afterwards, with other memory free.
    case("refused: a destination with fewer CPU features", &|| {
        other_cpu(topology, progress)
    });
    tally.case(GROUP, "host VM B is destroyed while swapping", || {
        lost_or_not(topology)
    });
    tally.case(GROUP, "host VM B is started again, the guest in A", || {
        topology.restart_host_vm("B", "", progress)?;
        product::wait_for_agents(topology)?;
        if migrate::guests(&topology.machine.a)?.is_empty() {
            topology.start_guest("A", "")?;
        }
        home(topology)?;
        migrate::migrate(topology, "A", "B", "")?;
        home(topology)
    });
    // Always the one whose guest it is not.
    for (vm, survivor, phase) in [
        ("B", "A", "staging"),
        ("B", "A", "saving"),
        ("B", "A", "frame lists"),
        ("A", "B", "resuming"),
        ("A", "B", "cleaning up"),
    ] {
        let victim = Victim::HostVm(vm);
        let name = format!("{} is destroyed while {phase}", victim.name());
        tally.case(GROUP, &name, || {
            let place = until(topology, victim, phase)?;
            ensure!(place == survivor, "the guest runs in {place}");
            Ok(())
        });
        tally.case(GROUP, &format!("host VM {vm} is started again"), || {
            topology.restart_host_vm(vm, "", progress)?;
            product::wait_for_agents(topology)?;
            migrate::migrate(topology, survivor, vm, "")?;
            home(topology)
        });
    }
}

/// Host VM B dies with some of the guest's memory, or before there is any in it: the guest
/// goes on in A with all of its memory, or is nowhere and that is said.
fn lost_or_not(topology: &Topology) -> Result<()> {
    let victim = Victim::HostVm("B");
    for number in 0..TRIES {
        let held = stopped_at(topology, "swapping", number * LATER_MS)? == "swapping";
        if held {
            kill(topology, victim)?;
            finish(topology, victim)?;
            break;
        }
        ensure!(number + 1 < TRIES, "it could not be caught while swapping");
        resume(topology)?;
        ended(topology)?;
        home(topology)?;
    }
    let said = topology
        .machine
        .host
        .sh("cat /run/lab/migrate.out", SHORT)?;
    let guests = migrate::guests(&topology.machine.a)?;
    if guests.is_empty() {
        ensure!(
            said.contains("the guest was lost with its host VM"),
            "no guest is left, and it printed: {}",
            said.trim()
        );
        println!("    it was lost with host VM B");
        // What the driver keeps of it is of no use to anybody, as it says.
        topology.machine.host.sh(
            "vmbeam records | sed -n 's/.*if a domain is gone: `\\(.*\\)`$/\\1/p' | sh -ex",
            SHORT,
        )?;
        return Ok(());
    }
    let place = place(topology, victim)?;
    println!("    it runs in {place}");
    Ok(())
}

/// An agent is there and says nothing: the guest goes on in A, although what was begun in B
/// cannot be cleaned up before it speaks again.
fn silent(topology: &Topology) -> Result<()> {
    let (host, b) = (&topology.machine.host, &topology.machine.b);
    begin(topology, "--timeout 20", "saving")?;
    b.sh("kill -STOP $(pidof vmbeam-agent)", SHORT)?;
    let output = host.run(
        "while [ ! -s /run/lab/migrate.code ]; do usleep 50000; done; \
         cat /run/lab/migrate.out; exit $(cat /run/lab/migrate.code)",
        LIMIT,
    );
    b.sh("kill -CONT $(pidof vmbeam-agent)", SHORT)?;
    let output = output?;
    ensure!(
        output.code == migrate::FAILED
            && output.text.contains("the --timeout: agent of host VM B")
            && output.text.contains("is tried again: the guest runs in A"),
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    product::wait_for_agents(topology)?;
    migrate::settled(topology)?;
    let place = place(topology, Victim::Agent("B"))?;
    ensure!(place == "A", "the guest runs in {place}");
    home(topology)
}

/// Start a migration in the background and wait until it shows this.
fn begin(topology: &Topology, options: &str, phase: &str) -> Result<()> {
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

/// Host VM B is started again without a feature that the guest has seen.
fn other_cpu(topology: &Topology, progress: &Progress) -> Result<()> {
    let host = &topology.machine.host;
    host.sh("xl destroy B", SHORT)?;
    topology.restart_host_vm("B", "cpuid=\"host,avx2=0\"", progress)?;
    product::wait_for_agents(topology)?;
    let output = host.run(&migrate::command("A", "B", ""), LIMIT)?;
    ensure!(
        output.code == migrate::REFUSED && output.text.contains("lacks CPU features"),
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    migrate::runs_only_in(topology, "A")?;
    host.sh("xl destroy B", SHORT)?;
    topology.restart_host_vm("B", "", progress)?;
    product::wait_for_agents(topology)
}

/// Kill somebody; the guest must be where the state diagram says, and come home.
fn die(topology: &Topology, victim: Victim, phase: &str) -> Result<()> {
    let place = until(topology, victim, phase)?;
    let after = rank(phase)? >= rank(NO_RETURN)?;
    // Between READY and the point of no return the daemon goes on or undoes.
    let expected: &[&str] = match victim {
        _ if after => &["B"],
        Victim::Agent(_) if !["staging", "saving"].contains(&phase) => &["A", "B"],
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
fn until(topology: &Topology, victim: Victim, phase: &str) -> Result<&'static str> {
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
fn stopped_at(topology: &Topology, phase: &str, ms: u32) -> Result<String> {
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

/// Whatever a test left behind: the daemon and both agents run, no migration goes on, and
/// the guest is in A.
fn recover(topology: &Topology) -> Result<()> {
    let pid = product::PID_FILE;
    let alive = topology.machine.host.run(
        &format!("grep -qs '^State:.[^Z]' /proc/$(cat {pid})/status && kill -CONT $(cat {pid})"),
        SHORT,
    )?;
    if alive.code != 0 {
        product::start_daemon(topology)?;
    }
    for vm in topology::HOST_VMS {
        if topology
            .machine
            .vm(vm)
            .run("pidof vmbeam-agent", SHORT)?
            .code
            != 0
        {
            product::start_agent(topology, vm)?;
        }
    }
    ended(topology)?;
    product::wait_for_agents(topology)?;
    migrate::settled(topology)?;
    home(topology)
}

fn resume(topology: &Topology) -> Result<()> {
    topology
        .machine
        .host
        .sh(&format!("kill -CONT $(cat {})", product::PID_FILE), SHORT)?;
    Ok(())
}

/// False if the victim is not there, or not any more.
fn kill(topology: &Topology, victim: Victim) -> Result<bool> {
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
    }
    Ok(true)
}

/// Start again what a supervisor would, and wait until nothing is to be done any more.
fn finish(topology: &Topology, victim: Victim) -> Result<()> {
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
    if !matches!(victim, Victim::HostVm(_)) {
        product::wait_for_agents(topology)?;
    }
    migrate::settled(topology)
}

/// Wait until the command line has ended; nobody reaps it here.
fn ended(topology: &Topology) -> Result<()> {
    topology.machine.host.sh(
        "pid=$(cat /run/lab/migrate.pid); \
         while grep -qs '^State:.[^Z]' /proc/$pid/status; do usleep 50000; done",
        LIMIT,
    )?;
    Ok(())
}

/// Where the guest runs, after all; it must be one place. What was left in the other is
/// destroyed when an agent that was away is back.
fn place(topology: &Topology, victim: Victim) -> Result<&'static str> {
    let start = Instant::now();
    loop {
        let mut running = Vec::new();
        let mut there = 0;
        for vm in ["A", "B"] {
            if victim == Victim::HostVm(vm) {
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
fn home(topology: &Topology) -> Result<()> {
    // One that was destroyed is listed until its last page is free, without a name.
    let guests = migrate::guests(&topology.machine.b)?;
    if guests.iter().any(|(name, _)| name == GUEST) {
        migrate::migrate(topology, "B", "A", "")?;
    }
    migrate::runs_only_in(topology, "A").map(drop)
}

/// Half of what the guest needs is free in B.
fn full(topology: &Topology) -> Result<()> {
    const HOG: &str = "hog";
    let b = &topology.machine.b;
    let [_, free] = migrate::free_memory(topology)?;
    let hog = free.saturating_sub(u64::from(topology.sizes.guest_mib) / 2);
    b.sh(
        // What a guest was created from is put aside where it has left.
        &format!("cfg=/etc/xen/{GUEST}.cfg; [ -e $cfg ] || cfg=$cfg.moved; xl create -p $cfg 'name=\"{HOG}\"' memory={hog}"),
        LIMIT,
    )?;
    let output = topology
        .machine
        .host
        .run(&migrate::command("A", "B", ""), LIMIT);
    b.sh(&format!("xl destroy {HOG}"), SHORT)?;
    let output = output?;
    ensure!(
        output.code == migrate::REFUSED && output.text.contains("of free memory"),
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    migrate::runs_only_in(topology, "A").map(drop)
}

/// A second migration of the same guest, and one the other way, while one is going on. Each
/// waits 10 seconds for the host VM; so that the first one takes longer, an agent of it stands
/// still meanwhile.
fn two(topology: &Topology) -> Result<()> {
    let (host, b) = (&topology.machine.host, &topology.machine.b);
    begin(topology, "", "saving")?;
    b.sh("kill -STOP $(pidof vmbeam-agent)", SHORT)?;
    let start = |name: &str, from, to| {
        format!(
            "{{ {}; echo code $?; }} >/run/lab/{name}.out 2>&1 & {name}=$!; ",
            migrate::command(from, to, "")
        )
    };
    let (same, opposite) = (start("same", "A", "B"), start("opposite", "B", "A"));
    let text = host.sh(
        &format!(
            "{same}{opposite}wait $same $opposite; cat /run/lab/same.out /run/lab/opposite.out"
        ),
        LIMIT,
    );
    b.sh("kill -CONT $(pidof vmbeam-agent)", SHORT)?;
    let text = text?;
    let code = format!("code {}", migrate::REFUSED);
    ensure!(
        text.matches(&code).count() == 2 && text.matches("is busy with another job").count() == 2,
        "they printed: {}",
        text.trim()
    );
    ended(topology)?;
    migrate::runs_only_in(topology, "B")?;
    home(topology)
}
