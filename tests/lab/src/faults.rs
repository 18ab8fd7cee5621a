// SPDX-License-Identifier: GPL-2.0-only

//! Somebody dies while a guest VM migrates. Wherever it was, the guest runs in exactly
//! one place afterwards, with its memory, and migrates again.
//!
//! The daemon is stopped (SIGSTOP) as soon as the command line shows a state, so that the
//! migration stays in it while the victim is killed.

mod death;

use anyhow::ensure;
use anyhow::Result;

pub use self::death::home;
pub use self::death::LIMIT;

use self::death::begin;
use self::death::die;
use self::death::ended;
use self::death::finish;
use self::death::kill;
use self::death::place;
use self::death::resume;
use self::death::stopped_at;
use self::death::until;
use self::death::Victim;
use self::death::DEATHS;
use self::death::LATER_MS;
use self::death::TRIES;
use crate::migrate;
use crate::pages::Pages;
use crate::product;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const GROUP: &str = "faults";
/// Runs cases that begin with a guest VM in A, and puts everything back after one that failed.
struct Cases<'a> {
    group: &'static str,
    tally: &'a mut Tally,
    topology: &'a Topology,
    /// Free memory of both guest hypervisors.
    free: [u64; 2],
    /// Pages of the host that are free or a domain's, where they are relocated.
    pages: Option<u64>,
}

/// The host hypervisor may take so many pages more or fewer for itself: for what it notes of grants
/// and event channels.
const OF_THE_HYPERVISOR: u64 = 64;

impl Cases<'_> {
    fn case(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        let mut failed = false;
        self.tally
            .case(self.group, name, || test().inspect_err(|_| failed = true));
        if failed {
            let again = "everything is as it was before that one";
            self.tally
                .case(self.group, again, || recover(self.topology));
        }
    }

    /// The same, after which as much memory must be free.
    fn leaks_nothing(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        let (topology, free, pages) = (self.topology, self.free, self.pages);
        self.case(name, || {
            test()?;
            let now = migrate::free_memory(topology)?;
            ensure!(now == free, "free in A and B: {free:?}, then {now:?}");
            if let Some(pages) = pages {
                let now = Pages::look(topology)?;
                ensure!(
                    now.all().abs_diff(pages) <= OF_THE_HYPERVISOR,
                    "{pages} pages were the host's, then {now:?}"
                );
            }
            Ok(())
        });
    }

    /// Somebody dies in each state.
    fn deaths(&mut self) {
        let topology = self.topology;
        for (victim, phase) in DEATHS {
            let name = format!("kill -9 of {} while {phase}", victim.name());
            self.leaks_nothing(&name, || die(topology, victim, phase));
        }
    }
}

/// The deaths alone, where the guest VM's memory is relocated; at last B dies by its own doing.
/// The guest VM is in A then.
pub fn relocated(tally: &mut Tally, topology: &Topology, group: &'static str) -> Result<()> {
    let free = migrate::free_memory(topology)?;
    let mut cases = Cases {
        group,
        tally,
        topology,
        free,
        pages: Some(Pages::look(topology)?.all()),
    };
    cases.deaths();
    tally.case(
        group,
        "host VM B touches what is not there while a guest VM comes: it dies alone",
        || {
            let place = until(topology, Victim::Glutton("B"), "frame lists")?;
            ensure!(place == "A", "the guest runs in {place}");
            Ok(())
        },
    );
    Ok(())
}

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
    let mut cases = Cases {
        group: GROUP,
        tally,
        topology,
        free,
        pages: None,
    };
    cases.deaths();
    cases.leaks_nothing("refused: too little memory at the destination", || {
        full(topology)
    });
    cases.leaks_nothing("two at once: the second is refused", || two(topology));
    cases.leaks_nothing(
        "B's agent falls silent while saving: the guest goes on in A",
        || silent(topology),
    );
    // Host VM B is another one afterwards, with other memory free.
    cases.case("refused: a destination with fewer CPU features", || {
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
