// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam rejuvenate` with a real daemon and real agents; the toolstacks of the host
//! VMs only play with memory, that of the host is a script.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
#[path = "rejuvenate/lab.rs"]
mod lab;
mod upkeep;

use common::{lock, Trouble};
use lab::Lab;
use upkeep::{assert_like_the_example, interrupt, spawn, wait_for, Done};

#[test]
fn the_guests_leave_and_come_back_to_another_hypervisor() {
    let lab = Lab::start();
    let done = lab.run(&["--dry-run"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(lab.calls().is_empty());
    assert!(!lab.path("state/rejuvenate-A.json").exists());

    let done = lab.run(&[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.names("evacuated"), ["guest", "second"]);
    assert_eq!(done.names("returned"), ["guest", "second"]);
    let r = &done.report;
    assert_eq!(r["hypervisor_before"], "Fake 1.0");
    assert_eq!(r["hypervisor_after"], "Fake 2.0");
    assert_eq!(
        (&r["domid_before"], &r["domid_after"]),
        (&1.into(), &5.into())
    );
    assert_eq!((&r["forced"], &r["step"]), (&false.into(), &"done".into()));
    assert_eq!(lab.calls(), ["shutdown -F 1", "create"]);
    lab.assert_done();
}

#[test]
fn reports_are_like_the_examples() {
    let lab = Lab::start();
    let done = lab.run(&["--dry-run"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_like_the_example("look.json", &done);

    lock(&lab.w.hosts["A"]).guests.get_mut(&2).unwrap().paused = true;
    let done = lab.run(&["--dry-run"]);
    assert_eq!(done.code, 3, "{done:?}");
    assert_like_the_example("blocked.json", &done);
    lock(&lab.w.hosts["A"]).guests.get_mut(&2).unwrap().paused = false;

    lab.put("refuse-create", "");
    let done = lab.run(&[]);
    assert_eq!(done.code, 5, "{done:?}");
    assert_like_the_example("stuck.json", &done);
    lab.remove("refuse-create");

    let done = lab.run(&[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_like_the_example("done.json", &done);
}

#[test]
fn a_host_vm_that_does_not_shut_down_is_destroyed() {
    for trouble in ["hang-shutdown", "refuse-shutdown"] {
        let lab = Lab::start();
        lab.put(trouble, "");
        let done = lab.run(&["--shutdown-timeout", "1"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.report["forced"], true);
        assert_eq!(lab.calls(), ["shutdown -F 1", "destroy 1", "create"]);
        lab.assert_done();
    }
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_changed() {
    let lab = Lab::start();
    let refused = |args: &[&str], words: &str| {
        let done = lab.run(args);
        assert_eq!(done.code, 3, "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
        assert!(done.stderr.contains("nothing was changed"), "{done:?}");
    };
    lock(&lab.w.hosts["B"]).free_mib = 2;
    lock(&lab.w.hosts["A"]).guests.get_mut(&2).unwrap().paused = true;
    refused(&[], "2 MiB of free memory");
    refused(&["--dry-run"], "second does not run");
    refused(&["--config", "/nonexistent"], "/nonexistent: ");
    lab.put("B.cfg", "name = 'B'\n");
    let b = lab.path("B.cfg");
    refused(
        &["--config", b.to_str().unwrap()],
        "which is not the host VM",
    );
    lab.put("B.cfg", "type = 'hvm'\n");
    refused(&["--config", b.to_str().unwrap()], "there is no line `name");
    refused(&["--to", "C"], "[[pair]]");
    refused(&["--xl", "/nonexistent/xl"], "--xl");
    lab.remove("domid-A");
    refused(&[], "nothing to rejuvenate");
    assert!(lab.calls().is_empty());

    let mut fixed = Lab::new();
    fixed.w.domid_command = None;
    fixed.w.agents(&["A", "B"]);
    fixed.w.start();
    let done = fixed.run(&[]);
    assert!(
        done.code == 3 && done.stderr.contains("remove `domid`"),
        "{done:?}"
    );
}

/// A toolstack that cannot answer has not said that the host VM is gone.
#[test]
fn no_question_that_fails_costs_a_guest() {
    std::thread::scope(|s| {
        for nr in 0..8 {
            s.spawn(move || {
                let lab = Lab::start();
                lab.put("asked", "0\n");
                lab.put("fail-at", &format!("{nr}\n"));
                let done = lab.run(&[]);
                if lab.calls().contains(&"shutdown -F 1".into()) {
                    let left = done.names("evacuated");
                    assert_eq!(left, ["guest", "second"], "question {nr}: {done:?}");
                }
                let mut code = done.code;
                for _ in 0..3 {
                    if code != 0 {
                        code = lab.run(&[]).code;
                    }
                }
                assert_eq!(code, 0, "question {nr}");
                lab.assert_done();
            });
        }
    });
}

#[test]
fn every_step_can_fail_and_is_gone_on_with() {
    let lab = Lab::start();
    // On the way out.
    lock(&lab.w.hosts["B"]).trouble = Trouble::RestoreFails;
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"evacuate".into()),
        "{done:?}"
    );
    assert_eq!(lab.running("A"), ["guest", "second"]);
    lock(&lab.w.hosts["B"]).trouble = Trouble::None;
    // A guest that was started meanwhile leaves with the others.
    lock(&lab.w.hosts["A"]).add_guest(7, "late", 16);

    // The new configuration is of no use.
    lab.put("refuse-create", "");
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"create".into()),
        "{done:?}"
    );
    assert!(done.stderr.contains("out of luck") && done.stderr.contains("goes on from here"));
    assert_eq!(lab.running("B"), ["guest", "late", "resident", "second"]);
    lab.remove("refuse-create");

    // Not with another destination.
    let done = lab.run(&["--to", "D"]);
    assert!(done.code == 3 && done.stderr.contains("--to B"), "{done:?}");

    // It comes up without what it needs.
    lock(&lab.w.hosts["A"]).trouble = Trouble::Stock;
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"check".into()),
        "{done:?}"
    );
    assert!(done.stderr.contains("Debian's toolstack"), "{done:?}");

    // On the way back.
    lock(&lab.w.hosts["A"]).trouble = Trouble::RestoreFails;
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"return".into()),
        "{done:?}"
    );
    lock(&lab.w.hosts["A"]).trouble = Trouble::None;
    // One has been shut down by its owner.
    lock(&lab.w.hosts["B"])
        .guests
        .retain(|_, g| g.name != "late");
    let done = lab.run(&[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.report["resumed"], true);
    assert_eq!(done.report["returned"][2]["outcome"], "gone");
    // It was shut down once, and the hypervisor before that is known.
    assert_eq!(lab.calls(), ["shutdown -F 1", "create", "create"]);
    assert_eq!(done.report["hypervisor_before"], "Fake 1.0");
    lab.assert_done();
}

#[test]
fn the_new_host_vm_has_time_and_blocks_no_signals() {
    let lab = Lab::start();
    lab.put("slow-create", "");
    let done = lab.run(&["--create-timeout", "1"]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"create".into()),
        "{done:?}"
    );
    assert!(done.stderr.contains("did not end within 1 s"), "{done:?}");
    lab.remove("slow-create");
    assert_eq!(lab.run(&[]).code, 0);
    lab.assert_done();
    let mask = std::fs::read_to_string(lab.path("mask")).unwrap();
    assert_eq!(mask.trim(), "SigBlk:\t0000000000000000");
}

#[test]
fn an_agent_that_does_not_come_back_is_not_waited_for_for_ever() {
    let mut lab = Lab::start();
    let done = {
        let child = spawn(lab.command(&["--boot-timeout", "1"]));
        // The daemon goes away with the host VM, and comes back without an agent.
        wait_for("A is created", || {
            lab.path("version").metadata().unwrap().len() == 9 && lab.calls().len() == 2
        });
        lab.w.stop();
        Done::of(child.wait_with_output().unwrap())
    };
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"boot".into()),
        "{done:?}"
    );
    assert!(done.stderr.contains("--boot-timeout"), "{done:?}");
    lab.w.start();
    lab.w.wait_agent("A", None);
    lab.w.wait_agent("B", None);
    assert_eq!(lab.run(&[]).code, 0);
    lab.assert_done();
}

#[test]
fn ctrl_c_stops_between_steps() {
    let lab = Lab::start();
    lab.put("hang-shutdown", "");
    let child = spawn(lab.command(&[]));
    wait_for("A is being shut down", || !lab.calls().is_empty());
    interrupt(&child);
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"shutdown".into()),
        "{done:?}"
    );
    assert_eq!(done.report["interrupted"], true);
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
    lab.remove("hang-shutdown");
    let done = lab.run(&[]);
    assert_eq!(done.code, 0, "{done:?}");
    lab.assert_done();
}

/// An earlier run may have found it empty long ago.
#[test]
fn a_host_vm_that_does_not_say_that_it_is_empty_is_not_shut_down() {
    let lab = Lab::start();
    lab.put("hang-shutdown", "");
    let child = spawn(lab.command(&[]));
    wait_for("A is being shut down", || !lab.calls().is_empty());
    interrupt(&child);
    assert_eq!(Done::of(child.wait_with_output().unwrap()).code, 5);
    lab.remove("hang-shutdown");
    let file = lab.path("state/rejuvenate-A.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, kept.replace("\"ending\"", "\"empty\"")).unwrap();
    lock(&lab.w.hosts["A"]).add_guest(7, "late", 16);
    let silent = lock(&lab.w.hosts["A"]);
    let done = lab.run(&[]);
    drop(silent);
    done.assert_ended(5, "shutdown");
    let words = "nothing is shut down whose agent does not say that it has no guest";
    assert!(done.stderr.contains(words), "{done:?}");
    let done = lab.run(&[]);
    done.assert_ended(5, "shutdown");
    assert!(done.stderr.contains("a new guest, late"), "{done:?}");
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
    lock(&lab.w.hosts["A"]).guests.remove(&7);
    assert_eq!(lab.run(&[]).code, 0);
    lab.assert_done();
}

/// A rejuvenation that has failed on the way back; A is domain 5.
fn failed_on_the_way_back(lab: &Lab) {
    lock(&lab.w.hosts["A"]).trouble = Trouble::RestoreFails;
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"return".into()),
        "{done:?}"
    );
    lock(&lab.w.hosts["A"]).trouble = Trouble::None;
}

#[track_caller]
fn assert_refused(lab: &Lab, args: &[&str], words: &str) {
    let calls = lab.calls();
    let done = lab.run(args);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stderr.contains(words), "{done:?}");
    assert!(done.stderr.contains("nothing was changed"), "{done:?}");
    assert_eq!(lab.calls(), calls);
}

#[test]
fn what_an_earlier_run_has_left_is_no_success_of_this_one() {
    let lab = Lab::start();
    failed_on_the_way_back(&lab);
    // Somebody has restarted it meanwhile.
    lab.put("domid-A", "1\n");
    for args in [&[][..], &["--dry-run"]] {
        assert_refused(
            &lab,
            args,
            "as domain 1; --adopt takes that one, and brings guest, second",
        );
    }
    let done = lab.run(&["--adopt"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.names("returned"), ["guest", "second"]);
    lab.assert_done();
}

#[test]
fn another_configuration_than_it_was_created_from_is_not_passed_over() {
    let lab = Lab::start();
    failed_on_the_way_back(&lab);
    lab.put("other.cfg", "name = 'A'\n");
    let other = lab.path("other.cfg");
    assert_refused(
        &lab,
        &["--config", other.to_str().unwrap()],
        "was created again already, from another configuration",
    );
    assert_eq!(lab.run(&[]).code, 0);
    lab.assert_done();
}

#[test]
fn nothing_is_gone_on_with_after_the_host_was_restarted() {
    let lab = Lab::start();
    failed_on_the_way_back(&lab);
    let file = lab.path("state/rejuvenate-A.json");
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    state["boot"] = "another".into();
    std::fs::write(&file, state.to_string()).unwrap();
    assert_refused(&lab, &[], "the host was restarted since");
    state["version"] = 1.into();
    std::fs::write(&file, state.to_string()).unwrap();
    assert_refused(&lab, &[], "use the vmbeam that wrote it");
}

#[test]
fn a_host_vm_that_cannot_be_found_is_not_shut_down_with_its_guests() {
    let lab = Lab::start();
    lock(&lab.w.hosts["B"]).trouble = Trouble::RestoreFails;
    let done = lab.run(&[]);
    assert_eq!(
        (done.code, &done.report["step"]),
        (5, &"evacuate".into()),
        "{done:?}"
    );
    lock(&lab.w.hosts["B"]).trouble = Trouble::None;
    // It has another name, or the toolstack fails for a while.
    std::fs::rename(lab.path("domid-A"), lab.path("domid-other")).unwrap();
    assert_refused(&lab, &[], "shows no such host VM");
    std::fs::rename(lab.path("domid-other"), lab.path("domid-A")).unwrap();
    lab.put("fail-list", "");
    assert_refused(&lab, &[], "is it the host's toolstack");
    lab.remove("fail-list");
    assert_eq!(lab.running("A"), ["guest", "second"]);
    assert_eq!(lab.run(&[]).code, 0);
    lab.assert_done();
}
