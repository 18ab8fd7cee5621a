// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam replace` with a real daemon and real agents; the toolstacks of the host
//! VMs only play with memory, that of the host is a script, and what a device model does with its
//! socket is done by a thread.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
#[path = "replace/lab.rs"]
mod lab;
mod upkeep;

use common::{lock, Trouble};
use lab::{domains, Lab};
use std::collections::HashMap;
use std::process::Command;
use upkeep::{assert_like_the_example, interrupt, spawn, wait_for, Done};
use vmbeam_control_protocol::HostMemory;

#[test]
fn the_new_host_vm_gets_the_guests_and_the_name() {
    let lab = Lab::start();
    let done = lab.run(&["--dry-run"]);
    done.assert_ended(0, "preflight");
    assert!(lab.calls().is_empty());
    lab.assert_as_before();

    let done = lab.run(&[]);
    done.assert_ended(0, "done");
    assert_eq!(done.names("moved"), ["guest", "second"]);
    let r = &done.report;
    assert_eq!(r["hypervisor_before"], "Fake 1.0");
    assert_eq!(r["hypervisor_after"], "Fake 2.0");
    assert_eq!(
        (&r["domid_before"], &r["domid_after"]),
        (&1.into(), &5.into())
    );
    assert_eq!(
        (&r["forced"], &r["peak_extra_mib"]),
        (&false.into(), &300.into())
    );
    assert_eq!(r["new_mib"], serde_json::json!({"start": 300, "most": 300}));
    assert_eq!(lab.calls(), ["create", "shutdown -F 1", "rename 5 A"]);
    lab.assert_replaced();
}

#[test]
fn it_is_a_job_and_so_is_its_undoing() {
    let lab = Lab::start();
    let run = |args: &[&str]| Done::of(lab.job(args).output().unwrap());
    lock(&lab.new).trouble = Trouble::RestoreFails;
    let done = run(&[]);
    done.assert_ended(5, "move");
    lock(&lab.new).trouble = Trouble::None;
    assert!(done.stderr.contains("goes on from here"), "{done:?}");
    let done = run(&["--undo"]);
    done.assert_ended(0, "undone");
    lab.assert_as_before();
}

#[test]
fn what_has_replaced_a_host_vm_can_be_replaced() {
    let lab = Lab::start();
    lab.run(&[]).assert_ended(0, "done");
    lab.put("next", "6\n");
    let done = lab.run(&[]);
    done.assert_ended(0, "done");
    assert_eq!(done.names("moved"), ["guest", "second"]);
    assert_eq!(lab.running()[0], ["guest", "second"]);
    let expected = HashMap::from([(6, "A".into())]);
    assert_eq!(domains(lab.w.dir.path()), expected);
    // It is reached by its name.
    lab.w.wait_agent("A", None);
    assert!(lab.path("A.sock").canonicalize().unwrap().exists());
}

#[test]
fn the_new_host_vm_can_start_small_but_not_at_boot() {
    let lab = Lab::start();
    let done = lab.run(&["--start-with", "200"]);
    done.assert_ended(0, "done");
    assert_eq!(
        done.report["new_mib"],
        serde_json::json!({"start": 200, "most": 300})
    );
    let calls = [
        "create",
        "mem-max 5 300",
        "shutdown -F 1",
        "rename 5 A",
        "mem-set 5 300",
    ];
    assert_eq!(lab.calls(), calls);
    let created = std::fs::read_to_string(lab.path("config-5")).unwrap();
    assert!(
        created.ends_with("\nname = \"A.new\"\nmemory = 200\nmaxmem = 300\n"),
        "{created}"
    );
    lab.assert_replaced();

    let lab = Lab::start();
    let text = std::fs::read_to_string(lab.path("A-new.cfg")).unwrap();
    lab.put("A-new.cfg", &(text + "maxmem = 900\n"));
    let done = lab.run(&[]);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(
        done.stderr
            .contains("auto/A.cfg would start host VM A from"),
        "{done:?}"
    );
    // Nothing starts it then.
    lab.remove("auto/A.cfg");
    let done = lab.run(&[]);
    done.assert_ended(0, "done");
    assert_eq!(lab.calls()[..2], ["create", "mem-max 5 900"]);
}

#[test]
fn a_host_vm_that_is_not_replaced_has_no_second_one() {
    let lab = Lab::start();
    let shown = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
        let out = command
            .arg("--socket")
            .arg(lab.w.control())
            .args(args)
            .output();
        String::from_utf8(out.unwrap().stdout).unwrap()
    };
    for args in [&["list"][..], &["check", "--device", "/nonexistent"]] {
        let text = shown(args);
        assert!(!text.contains("host VM A.new"), "{text}");
        assert!(!text.lines().any(|l| l.starts_with("A.new")), "{text}");
    }
}

#[test]
fn reports_are_like_the_examples() {
    let lab = Lab::start();
    let done = lab.run(&["--dry-run"]);
    done.assert_ended(0, "preflight");
    assert_like_the_example("replace-look.json", &done);
    lab.put("refuse-create", "");
    let done = lab.run(&[]);
    done.assert_ended(4, "create");
    assert_like_the_example("replace-undone.json", &done);
    lab.remove("refuse-create");
    let done = lab.run(&[]);
    done.assert_ended(0, "done");
    assert_like_the_example("replace-done.json", &done);
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_changed() {
    let lab = Lab::start();
    let refused = |args: &[&str], words: &str| {
        let done = lab.run(args);
        assert_eq!(done.code, 3, "{done:?}");
        assert!(done.stderr.contains(words), "{words}: {done:?}");
        assert!(done.stderr.contains("nothing was changed"), "{done:?}");
    };
    lock(&lab.w.hosts["A"]).guests.get_mut(&2).unwrap().paused = true;
    refused(&[], "guest second does not run");
    lock(&lab.w.hosts["A"]).guests.get_mut(&2).unwrap().paused = false;
    let text = std::fs::read_to_string(lab.path("A-new.cfg")).unwrap();
    for (from, to, words) in [
        (
            "memory = 300",
            "memory = 701",
            "the host has 700 MiB of free memory, and the new host VM starts with 701 MiB",
        ),
        ("name = \"A\"", "name = \"B\"", "which is not the host VM"),
        ("# new", "uuid = \"1\"", "two host VMs cannot have one"),
        ("A.sock", "other.sock", "no port for an agent on"),
        ("memory", "#memory", "no line `memory = MIB`"),
    ] {
        lab.put("other.cfg", &text.replace(from, to));
        let other = lab.path("other.cfg");
        refused(&["--config", other.to_str().unwrap()], words);
    }
    refused(&["--undo"], "nothing to undo");
    refused(&["--start-with", "301"], "has 300 MiB at most");
    lab.put("domid-A.new", "5\n");
    refused(&[], "there is a host VM A.new already, domain 5");
    lab.remove("domid-A.new");
    lab.put("state/rejuvenate-A.json", "{}");
    refused(&[], "in the middle of `vmbeam rejuvenate`");
    lab.remove("state/rejuvenate-A.json");
    lab.remove("domid-A");
    refused(&[], "nothing to replace");
    assert!(lab.calls().is_empty());

    let mut plain = Lab::new();
    plain.w.replaceable = false;
    plain.w.start();
    plain.w.wait_agent("A", None);
    let done = plain.run(&[]);
    assert!(
        done.code == 3 && done.stderr.contains("add `replaceable = true`"),
        "{done:?}"
    );
}

#[test]
fn two_at_once_are_refused_and_memory_is_counted() {
    let lab = Lab::start();
    lab.put("hang-shutdown", "");
    let child = spawn(lab.command(&[]));
    wait_for("A is being shut down", || lab.calls().len() == 2);
    let done = lab.run(&[]);
    assert!(
        done.code == 3 && done.stderr.contains("is running; wait for it"),
        "{done:?}"
    );
    lab.remove("hang-shutdown");
    lab.remove("domid-A");
    assert_eq!(Done::of(child.wait_with_output().unwrap()).code, 0);
    lab.assert_replaced();

    // Another host VM is about to be created: this one waits, and then there is not enough.
    let lab = Lab::start();
    std::fs::create_dir_all(lab.path("state")).unwrap();
    let file = std::fs::File::create(lab.path("state/host-memory.lock")).unwrap();
    let other = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let child = spawn(lab.command(&[]));
    wait_for("it has begun", || lab.stage() == "creating");
    for name in ["B", "C"] {
        lab.put(&format!("domid-{name}.new"), "1\n");
    }
    drop(other);
    let done = Done::of(child.wait_with_output().unwrap());
    done.assert_ended(4, "create");
    assert!(done.stderr.contains("the host has 100 MiB"), "{done:?}");
    for name in ["B", "C"] {
        lab.remove(&format!("domid-{name}.new"));
    }
    lab.assert_as_before();
}

/// What does not come up, or cannot take the guests, goes.
#[test]
fn the_old_host_vm_goes_on_if_the_new_one_is_of_no_use() {
    let lab = Lab::start();
    // It is not created.
    lab.put("refuse-create", "");
    let done = lab.run(&[]);
    done.assert_ended(4, "create");
    assert!(done.stderr.contains("out of luck") && done.stderr.contains("everything was put back"));
    lab.remove("refuse-create");
    lab.assert_as_before();
    // It does not boot.
    lab.put("no-boot", "");
    let done = lab.run(&["--boot-timeout", "1"]);
    done.assert_ended(4, "boot");
    assert!(done.stderr.contains("--boot-timeout"), "{done:?}");
    lab.assert_as_before();
    // It ends.
    let child = spawn(lab.command(&[]));
    wait_for("it waits for the agent", || lab.stage() == "checking");
    lab.remove("domid-A.new");
    let done = Done::of(child.wait_with_output().unwrap());
    done.assert_ended(4, "boot");
    assert!(done.stderr.contains("domain 5, has ended"), "{done:?}");
    lab.remove("no-boot");
    lab.assert_as_before();
    // It lacks what it needs: a toolstack, a CPU feature, memory.
    lock(&lab.new).trouble = Trouble::Stock;
    let done = lab.run(&[]);
    done.assert_ended(4, "check");
    assert!(done.stderr.contains("Debian's toolstack"), "{done:?}");
    lock(&lab.new).trouble = Trouble::None;
    lock(&lab.w.hosts["A"]).trouble = Trouble::NewerCpu;
    let done = lab.run(&[]);
    done.assert_ended(4, "check");
    assert!(done.stderr.contains("lacks CPU features"), "{done:?}");
    lab.assert_as_before();
    lock(&lab.w.hosts["A"]).trouble = Trouble::None;
    lock(&lab.new).free_mib = 2;
    let done = lab.run(&[]);
    done.assert_ended(4, "check");
    assert!(done.stderr.contains("2 MiB of free memory"), "{done:?}");
    lab.assert_as_before();
    assert_eq!(lab.running()[0], ["guest", "second"]);
    lock(&lab.new).free_mib = 1000;
    lab.run(&[]).assert_ended(0, "done");
    lab.assert_replaced();
}

#[test]
fn a_guest_that_does_not_get_there_is_gone_on_with_or_all_come_back() {
    for undo in [false, true] {
        let lab = half_way();
        assert_eq!(lab.running(), [["second"], ["guest"]]);
        // Another configuration is not what it was begun with.
        lab.put("other.cfg", "name = \"A\"\nmemory = 300\n");
        let other = lab.path("other.cfg");
        let done = lab.run(&["--config", other.to_str().unwrap()]);
        assert!(done.code == 3 && done.stderr.contains("--undo"), "{done:?}");
        if undo {
            // It fails on the way back as well.
            lock(&lab.w.hosts["A"]).trouble = Trouble::RestoreFails;
            lab.run(&["--undo"]).assert_ended(5, "move");
            lock(&lab.w.hosts["A"]).trouble = Trouble::None;
            let done = lab.run(&["--undo"]);
            done.assert_ended(0, "undone");
            assert_eq!(done.names("returned"), ["guest"]);
            lab.assert_as_before();
        } else {
            let done = lab.run(&[]);
            done.assert_ended(0, "done");
            assert_eq!(done.names("moved"), ["second"]);
            assert_eq!(done.report["resumed"], true);
            lab.assert_replaced();
        }
    }
}

/// Killed at one of its calls of the toolstack, or at the first one in a stage, before or after
/// that is done.
fn killed_in(lab: &Lab, args: &[&str], at: &str, after: bool) -> bool {
    lab.put("kill-at", &format!("{at}\n"));
    if after {
        lab.put("kill-after", "");
    }
    let done = lab.run(args);
    lab.remove("kill-at");
    done.code == 137
}

/// It does not get away without having waited for the new host VM.
fn killed(at: &str, after: bool) -> Option<Lab> {
    let lab = Lab::start();
    lab.put("boots-late", "");
    killed_in(&lab, &[], at, after).then_some(lab)
}

/// More than there are calls of the toolstack, but `info`, in a replacement, and in an undo.
const CALLS: u32 = 12;
const UNDO_CALLS: u32 = 8;

/// For each of its calls, until there are no more, with at least one in each of these stages. What
/// is tried says in which one it was killed; none if there is no such call.
fn each_call(most: u32, stages: &[&str], try_it: impl Fn(u32) -> Option<String> + Sync) {
    let met: Vec<_> = std::thread::scope(|s| {
        let one = |nr| {
            let try_it = &try_it;
            s.spawn(move || try_it(nr))
        };
        let all: Vec<_> = (1..=most).map(one).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // The last one is behind the end.
    assert_eq!(met.last(), Some(&None), "more calls than {most}: {met:?}");
    let never = stages.iter().find(|s| !met.contains(&Some((**s).into())));
    assert_eq!(never, None, "{met:?}");
}

/// Those with calls of the toolstack; before the first one nothing is written down.
const STAGES: [&str; 5] = ["", "creating", "checking", "empty", "ending"];

#[test]
fn whenever_it_is_killed_it_is_gone_on_with() {
    for after in [false, true] {
        each_call(CALLS, &STAGES, |nr| {
            let lab = killed(&nr.to_string(), after)?;
            let stage = lab.stage();
            let done = lab.run(&[]);
            assert_eq!(done.code, 0, "call {nr}: {done:?}");
            lab.assert_replaced();
            Some(stage)
        });
    }
}

#[test]
fn whenever_it_is_killed_it_is_undone_until_the_old_host_vm_is_empty() {
    each_call(CALLS, &STAGES, |nr| {
        let lab = killed(&nr.to_string(), true)?;
        let (begun, stage) = (lab.path("state/replace-A.json").exists(), lab.stage());
        let empty = matches!(&*stage, "empty" | "ending");
        let done = lab.run(&["--undo"]);
        match (begun, empty) {
            (true, false) => {
                done.assert_ended(0, "undone");
                lab.assert_as_before();
            }
            (true, true) => {
                assert_eq!(done.code, 3, "call {nr}: {done:?}");
                assert!(done.stderr.contains("go on without --undo"), "{done:?}");
                assert_eq!(lab.run(&[]).code, 0, "call {nr}");
                lab.assert_replaced();
            }
            (false, _) => assert_eq!(done.code, 3, "call {nr}: {done:?}"),
        }
        Some(stage)
    });
}

/// One guest has moved, and another one could not.
fn half_way() -> Lab {
    let lab = Lab::start();
    lock(&lab.new).trouble = Trouble::RestoreFails;
    lab.run(&[]).assert_ended(5, "move");
    lock(&lab.new).trouble = Trouble::None;
    let request = ["migrate", "guest", "--from", "A", "--to", "A.new"];
    let mut migrate = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
    migrate.arg("--socket").arg(lab.w.control()).args(request);
    assert!(migrate.output().unwrap().status.success());
    lab
}

#[test]
fn an_undo_that_is_killed_is_gone_on_with() {
    each_call(UNDO_CALLS, &["moving", "undoing", "removing"], |nr| {
        let lab = half_way();
        if !killed_in(&lab, &["--undo"], &nr.to_string(), nr % 2 == 0) {
            return None;
        }
        let stage = lab.stage();
        let begun = stage != "moving";
        // With the configuration that is what nobody wanted any more.
        let args = match (begun, nr % 3) {
            (true, 0) => &[][..],
            _ => &["--undo"],
        };
        let done = lab.run(args);
        let code = if args.is_empty() { 4 } else { 0 };
        assert_eq!(done.code, code, "call {nr}: {done:?}");
        lab.assert_as_before();
        Some(stage)
    });
}

/// The old host VM has given its memory to the new one.
#[test]
fn what_comes_back_finds_a_reserve() {
    let lab = half_way();
    let gave = HostMemory {
        pages: 280_000,
        max_pages: 311_552,
        cache: 128,
        entries: 30_000,
        host_free: 20 << 8,
    };
    let text = |memory: &HostMemory| serde_json::to_string(memory).unwrap();
    lab.put("memory-1", &text(&gave));
    let done = lab.run(&["--undo"]);
    done.assert_ended(5, "move");
    let words = "it would die without a reserve, and the host has no more than 20 MiB for it";
    assert!(done.stderr.contains(words), "{done:?}");
    let more = HostMemory {
        host_free: 200 << 8,
        ..gave
    };
    lab.put("memory-1", &text(&more));
    let cache = 16_384;
    lab.put("filled-1", &text(&HostMemory { cache, ..more }));
    let done = lab.run(&["--undo"]);
    done.assert_ended(0, "undone");
    assert_eq!(done.names("returned"), ["guest"]);
    assert!(!lab.path("filled-1").exists(), "A got no reserve");
    lab.assert_as_before();
}

#[test]
fn a_host_vm_that_does_not_say_that_it_is_empty_is_not_shut_down() {
    let no_end = |lab: &Lab, host: &common::Host, args: &[&str], step: &str| {
        lock(host).add_guest(7, "late", 16);
        let silent = lock(host);
        let done = lab.run(args);
        drop(silent);
        done.assert_ended(5, step);
        let words = "nothing is shut down whose agent does not say that it has no guest";
        assert!(done.stderr.contains(words), "{done:?}");
        let done = lab.run(args);
        done.assert_ended(5, step);
        assert!(done.stderr.contains("a new guest, late"), "{done:?}");
        let ends = |call: &String| call.starts_with("shutdown") || call.starts_with("destroy");
        assert!(!lab.calls().iter().any(ends), "{:?}", lab.calls());
        lock(host).guests.remove(&7);
    };
    // The old one, by a run that goes on where another one has found it to be empty.
    let lab = killed("empty", false).unwrap();
    assert_eq!(lab.stage(), "empty");
    no_end(&lab, &lab.w.hosts["A"].clone(), &[], "shutdown");
    lab.run(&[]).assert_ended(0, "done");
    lab.assert_replaced();
    // The new one, which could not take the guests when it was looked at.
    let lab = Lab::start();
    lock(&lab.new).free_mib = 2;
    assert!(killed_in(&lab, &[], "undoing", false));
    assert_eq!(lab.stage(), "undoing");
    no_end(&lab, &lab.new.clone(), &["--undo"], "undo");
    lab.run(&["--undo"]).assert_ended(0, "undone");
    lab.assert_as_before();
}

#[test]
fn ctrl_c_stops_between_steps() {
    let lab = Lab::start();
    lab.put("no-boot", "");
    let child = spawn(lab.command(&[]));
    wait_for("it waits for the agent", || lab.stage() == "checking");
    interrupt(&child);
    let done = Done::of(child.wait_with_output().unwrap());
    done.assert_ended(5, "boot");
    assert_eq!(done.report["interrupted"], true);
    lab.remove("no-boot");
    lab.put("hang-shutdown", "");
    let child = spawn(lab.command(&[]));
    wait_for("A is being shut down", || lab.calls().len() == 2);
    interrupt(&child);
    let done = Done::of(child.wait_with_output().unwrap());
    done.assert_ended(5, "shutdown");
    // It does not want to end.
    let done = lab.run(&["--shutdown-timeout", "1"]);
    done.assert_ended(0, "done");
    assert_eq!(done.report["forced"], true);
    lab.assert_replaced();
}

#[test]
fn what_an_earlier_run_has_left_must_still_be_there() {
    let lab = Lab::start();
    lock(&lab.new).trouble = Trouble::RestoreFails;
    lab.run(&[]).assert_ended(5, "move");
    lock(&lab.new).trouble = Trouble::None;
    let file = lab.path("state/replace-A.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    let refused = |key: &str, value: serde_json::Value, words: &str| {
        let mut state: serde_json::Value = serde_json::from_str(&kept).unwrap();
        state[key] = value;
        std::fs::write(&file, state.to_string()).unwrap();
        let done = lab.run(&[]);
        assert!(
            done.code == 3 && done.stderr.contains(words),
            "{words}: {done:?}"
        );
    };
    refused("boot", "another".into(), "the host was restarted since");
    refused("version", 7.into(), "use the vmbeam that wrote it");
    refused(
        "domid",
        3.into(),
        "somebody else has ended that host VM since, domain 3",
    );
    refused("new", 3.into(), "the new host VM, domain 3, is gone since");
    std::fs::write(&file, kept).unwrap();
    // A guest that is started in the old one meanwhile moves as well.
    lock(&lab.w.hosts["A"]).add_guest(7, "late", 16);
    let done = lab.run(&[]);
    done.assert_ended(0, "done");
    assert_eq!(lab.running()[1], ["guest", "late", "second"]);
}
