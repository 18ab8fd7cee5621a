// SPDX-License-Identifier: GPL-2.0-only

//! Relocations: guests move into a host VM that has less memory than its guest hypervisor
//! believes. What it may not hold is refused before anything is begun.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/moves.rs"]
mod moves;

use common::{lock, World};
use moves::{
    assert_runs_only_in, contents, error, exchange, left_as, report, request, swap_of,
    wait_until_runs_only_in, world,
};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{EvacuateRequest, Failure, FromDaemon, HostMemory, Mode, ToDaemon};
use vmbeam_uapi::{Errno, Mode as BindMode};

/// One that may take everything.
const SMALL: HostMemory = HostMemory {
    pages: 160_000,
    max_pages: 311_552,
    cache: 40_000,
    entries: 190_000,
    host_free: 0,
};

fn write(w: &World, file: &str, memory: HostMemory) {
    let text = serde_json::to_string(&memory).unwrap();
    std::fs::write(w.dir.path().join(file), text).unwrap();
}

/// What is said of B from now on.
fn said_of_b(w: &World, memory: HostMemory) {
    write(w, "memory-2", memory);
}

/// A has everything, and B has nothing of half of what a guest will get there.
fn small() -> World {
    let w = world();
    said_of_b(&w, SMALL);
    lock(&w.hosts["B"]).start_small(1024..1536);
    w
}

fn migrate_by(w: &World, mode: Mode, verify: bool) -> FromDaemon {
    let mut request = request("A", "B");
    (request.mode, request.verify) = (mode, verify);
    w.ask(&ToDaemon::Migrate(request))
}

fn modes(w: &World) -> Vec<BindMode> {
    let mut modes: Vec<BindMode> = lock(&w.driver.modes).drain(..).collect();
    modes.dedup();
    modes
}

fn absent(w: &World, name: &str) -> HashSet<u64> {
    lock(&w.hosts[name]).absent.clone()
}

#[test]
fn a_small_destination_gets_frames_and_nobody_looks_at_what_is_not_there() {
    for (mode, unstaged) in [(Mode::Auto, false), (Mode::Relocate, true)] {
        let w = small();
        lock(&w.hosts["A"]).unstaged = unstaged;
        let (_, pages) = contents(&w, "A").unwrap();
        let r = report(migrate_by(&w, mode, false));
        assert_eq!(r.mode, Mode::Relocate);
        assert_eq!((r.pages_swapped, r.pages_empty), (1024 - 64 - 2, 0));
        // 512 of 1024, but for page tables and rings.
        assert_eq!(r.relocated, 512 - 32 - 2);
        assert_runs_only_in(&w, "B", &pages);
        assert_eq!(lock(&w.hosts["B"]).touched, 0);
        assert_eq!(absent(&w, "A").len() as u64, r.relocated);
        assert_eq!(modes(&w), [BindMode::Swap, BindMode::ToB]);
    }
}

#[test]
fn every_page_is_right_if_somebody_wants_to_know() {
    let w = small();
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate_by(&w, Mode::Auto, true));
    assert_eq!(r.pages_verified, 1024 - 64 - 2);
    assert_runs_only_in(&w, "B", &pages);
    assert_eq!(lock(&w.hosts["B"]).touched, 0);
}

#[test]
fn what_has_all_its_memory_is_swapped_with() {
    let w = world();
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate_by(&w, Mode::Auto, true));
    assert_eq!((r.mode, r.relocated), (Mode::Swap, 0));
    assert_runs_only_in(&w, "B", &pages);
    assert_eq!(modes(&w), [BindMode::Swap, BindMode::Keep]);
}

/// Nor is it known then what it may hold, by whatever mode.
#[test]
fn what_does_not_tell_takes_and_gives_nothing() {
    for (domid, name) in [(1, "A"), (2, "B")] {
        let w = small();
        std::fs::remove_file(w.dir.path().join(format!("memory-{domid}"))).unwrap();
        let why = format!(
            "nothing can be moved from or to host VM {name}, whose reserve is not known: `sh -c"
        );
        for mode in [Mode::Auto, Mode::Relocate, Mode::Swap, Mode::Copy] {
            assert_refused(&w, mode, &why);
        }
        assert_eq!(lock(&w.hosts["B"]).touched, 0);
    }
}

/// All that ask are told this, and nothing is done.
#[track_caller]
fn assert_refused(w: &World, mode: Mode, expected: &str) {
    let (_, pages) = contents(w, "A").unwrap();
    let mut request = request("A", "B");
    (request.mode, request.dry_run) = (mode, true);
    let dry = report(w.ask(&ToDaemon::Migrate(request)));
    assert!(dry.blockers.iter().any(|b| b.contains(expected)), "{dry:?}");
    let (failure, message) = error(migrate_by(w, mode, false));
    assert_eq!(failure, Failure::Refused);
    assert!(message.contains(expected), "{message}");
    let plan = ToDaemon::Plan {
        from: "A".into(),
        to: "B".into(),
        mode,
    };
    let FromDaemon::Plan(plan) = w.ask(&plan) else {
        panic!()
    };
    let guests = plan.guests.iter().flat_map(|g| &g.blockers);
    let told = guests.chain(&plan.blockers).any(|b| b.contains(expected));
    assert!(told, "{plan:?}");
    assert_runs_only_in(w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
    assert!(lock(&w.hosts["B"]).guests.is_empty());
}

#[test]
fn what_the_destination_may_not_hold_is_refused_with_figures() {
    let w = small();
    let fresh = HostMemory {
        max_pages: 160_000 + 256,
        ..SMALL
    };
    said_of_b(&w, fresh);
    let may = "host VM B has 625 MiB and may have 626 MiB, and with guest guest it may need 629 MiB; `xl mem-max B 628` lets it";
    assert_refused(&w, Mode::Auto, may);
    assert_refused(&w, Mode::Relocate, may);
    let dry = HostMemory {
        cache: 108,
        ..SMALL
    };
    said_of_b(&w, dry);
    let reserve = "host VM B has a reserve of 0 MiB, and guest guest may touch";
    for mode in [Mode::Auto, Mode::Relocate, Mode::Swap, Mode::Copy] {
        assert_refused(&w, mode, reserve);
    }
    // A swap takes no more than the restore, a copy all of the guest.
    said_of_b(&w, SMALL);
    lock(&w.driver.faults).old = true;
    let old = "the driver or the host hypervisor cannot relocate memory";
    assert_refused(&w, Mode::Auto, old);
    lock(&w.driver.faults).old = false;
    // Nor may the source be without anything when what a guest leaves is scrubbed.
    let gave = HostMemory {
        pages: 280_000,
        max_pages: 311_552,
        cache: 3,
        entries: 30_000,
        host_free: 4092,
    };
    write(&w, "memory-1", gave);
    let dry = "host VM A has a reserve of 3 pages, and could die of giving memory away, and the host has no more than 15 MiB for it: shut something else down";
    assert_refused(&w, Mode::Auto, dry);
}

#[test]
fn all_guests_together_may_be_too_much() {
    let w = small();
    lock(&w.hosts["A"]).add_guest(2, "other", 800);
    let tight = HostMemory {
        max_pages: 160_000 + 1100,
        ..SMALL
    };
    said_of_b(&w, tight);
    let request = EvacuateRequest {
        from: "A".into(),
        to: "B".into(),
        mode: Mode::Auto,
        dry_run: true,
        wait_seconds: 20,
        ..EvacuateRequest::default()
    };
    let FromDaemon::Evacuated(report) = w.ask(&ToDaemon::Evacuate(request)) else {
        panic!()
    };
    assert_eq!(report.blockers.len(), 1, "{report:?}");
    let why = &report.blockers[0];
    assert!(
        why.contains("with all guests together it may need"),
        "{why}"
    );
}

#[test]
fn pages_that_are_not_there_at_the_source_need_no_frame() {
    for verify in [false, true] {
        let w = small();
        {
            let mut a = lock(&w.hosts["A"]);
            let pages = a.guests[&1].pages.clone();
            a.start_small(pages[100..110].iter().map(|p| p.gfn));
            a.start_small(pages[600..610].iter().map(|p| p.gfn));
        }
        let (_, pages) = contents(&w, "A").unwrap();
        let r = report(migrate_by(&w, Mode::Auto, verify));
        // Page 99 + 16 is a table: 18 of these 20 are ordinary.
        assert_eq!(r.pages_empty + r.pages_swapped, 1024 - 64 - 2);
        assert!((18..=20).contains(&r.pages_empty), "{r:?}");
        assert!(r.pages_refused.is_empty() && r.pages_copied == 0, "{r:?}");
        assert_runs_only_in(&w, "B", &pages);
        assert_eq!(lock(&w.hosts["A"]).touched, 0);
    }
}

#[test]
fn a_maximum_that_the_hypervisor_finds_too_low_refuses_before_the_guest_is_suspended() {
    let w = small();
    let (_, pages) = contents(&w, "A").unwrap();
    let gfn = lock(&w.hosts["A"]).guests[&1].pages[20].gfn;
    let full = -(Errno::ENOSPC as i32);
    lock(&w.driver.faults).refuse.insert(gfn, full);
    let (failure, message) = error(migrate_by(&w, Mode::Auto, false));
    assert_eq!(failure, Failure::RolledBack);
    assert!(
        message.contains("host VM B may have 477 more pages, and not the other 1 that would come"),
        "{message}"
    );
    assert_runs_only_in(&w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

#[test]
fn a_reserve_that_has_shrunk_meanwhile_refuses_before_the_guest_is_suspended() {
    let w = small();
    let (_, pages) = contents(&w, "A").unwrap();
    let low = HostMemory {
        cache: 300,
        ..SMALL
    };
    write(&w, "next-2", low);
    let (failure, message) = error(migrate_by(&w, Mode::Auto, false));
    assert_eq!(failure, Failure::RolledBack);
    assert!(
        message.contains("the reserve of host VM B has shrunk to 1 MiB, and 16 MiB are needed"),
        "{message}"
    );
    assert_runs_only_in(&w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

/// What is found in the pause is not passed over because there was enough before.
#[test]
fn more_to_be_copied_than_before_must_be_in_the_reserve_as_well() {
    for (cache, good) in [(4096 + 100, false), (4096 + 200, true)] {
        let w = small();
        let (_, pages) = contents(&w, "A").unwrap();
        // Something maps pages of the guest when it is suspended.
        let gfns: Vec<u64> = lock(&w.hosts["A"]).guests[&1].pages[20..200]
            .iter()
            .map(|p| p.gfn)
            .collect();
        lock(&w.driver.faults).busy_when_suspended = gfns;
        let low = HostMemory { cache, ..SMALL };
        write(&w, "next-2", low);
        let answer = migrate_by(&w, Mode::Auto, false);
        if good {
            assert!(report(answer).pages_copied > 100);
            assert_runs_only_in(&w, "B", &pages);
            continue;
        }
        let (failure, message) = error(answer);
        assert_eq!(failure, Failure::RolledBack);
        let words = "the reserve of host VM B has shrunk to 16 MiB, and 17 MiB are needed";
        assert!(message.contains(words), "{message}");
        assert_runs_only_in(&w, "A", &pages);
        assert_eq!(lock(&w.hosts["B"]).touched, 0);
    }
}

/// A command that hangs when it is to tell, or to fill, the reserve of B holds nobody up beyond the
/// limits of the migration, and what it has begun ends with it.
#[test]
fn limits_hold_against_a_command_that_hangs() {
    for (file, limits) in [
        // Asked for while the guest is suspended.
        ("next-2", (None, Some(5000))),
        ("next-2", (Some(5), None)),
        ("filled-2", (Some(5), None)),
    ] {
        let w = small();
        lock(&w.hosts["A"]).unstaged = true;
        let (_, pages) = contents(&w, "A").unwrap();
        if file == "filled-2" {
            let dry = HostMemory {
                cache: 108,
                host_free: 20_000,
                ..SMALL
            };
            said_of_b(&w, dry);
        }
        nix::unistd::mkfifo(&w.dir.path().join(file), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut request = request("A", "B");
        (request.timeout_seconds, request.max_downtime_ms) = limits;
        let (_, message) = error(w.ask(&ToDaemon::Migrate(request)));
        let name = match limits.0 {
            Some(_) => "--timeout",
            None => "--max-downtime",
        };
        assert!(message.contains(name), "{message}");
        assert!(message.contains("it was ended"), "{message}");
        assert_runs_only_in(&w, "A", &pages);
    }
}

/// Nor does one that only asks hold anybody up, before anything is begun.
#[test]
fn the_timeout_holds_in_preflight() {
    for dry_run in [true, false] {
        let w = small();
        let (_, pages) = contents(&w, "A").unwrap();
        let file = w.dir.path().join("memory-2");
        std::fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut request = request("A", "B");
        (request.dry_run, request.timeout_seconds) = (dry_run, Some(2));
        let asked = Instant::now();
        let (_, message) = error(w.ask(&ToDaemon::Migrate(request)));
        let said = "it was not done after 2 s, the --timeout";
        assert_eq!(message.matches(said).count(), 1, "{message}");
        // The command itself may take 10 s.
        assert!(asked.elapsed() < Duration::from_secs(9));
        assert_runs_only_in(&w, "A", &pages);
    }
}

/// What the command was asked to fill.
fn reserved(w: &World) -> Vec<String> {
    let text = std::fs::read_to_string(w.dir.path().join("reserved")).unwrap_or_default();
    text.lines().map(|l| l.replace("--reserve=", "")).collect()
}

/// Whoever gives or takes a guest gets a reserve before, of what the host has; nobody asks for more
/// than there is, and a dry run changes nothing.
#[test]
fn reserves_are_filled_before_a_move() {
    let w = small();
    let gave = HostMemory {
        pages: 280_000,
        max_pages: 311_552,
        cache: 3,
        entries: 30_000,
        host_free: 4093,
    };
    let dry = HostMemory {
        cache: 108,
        host_free: 20_000,
        ..SMALL
    };
    let reserve = 8192 + 1024 / 16 + 4096;
    let filled = HostMemory {
        cache: reserve,
        ..SMALL
    };
    write(&w, "memory-1", gave);
    said_of_b(&w, dry);
    let mut dry_run = request("A", "B");
    dry_run.dry_run = true;
    let planned = report(w.ask(&ToDaemon::Migrate(dry_run)));
    assert_eq!(planned.blockers, [""; 0]);
    assert_eq!(reserved(&w), [""; 0]);
    write(
        &w,
        "filled-1",
        HostMemory {
            cache: 4096,
            ..gave
        },
    );
    write(&w, "filled-2", filled);
    report(migrate_by(&w, Mode::Auto, false));
    let wanted = format!("2 {reserve}");
    assert_eq!(reserved(&w), ["1 4096", &wanted, "1 4096", "2 4096"]);
    // The host has given it to somebody else meanwhile.
    let w = small();
    said_of_b(&w, dry);
    let (_, pages) = contents(&w, "A").unwrap();
    std::fs::write(w.dir.path().join("refuses-2"), "").unwrap();
    let (failure, message) = error(migrate_by(&w, Mode::Auto, false));
    assert_eq!(failure, Failure::Refused);
    let words = "host VM B got no reserve for this move: `sh -c";
    assert!(message.contains(words), "{message}");
    assert_runs_only_in(&w, "A", &pages);
    assert_eq!(lock(&w.hosts["A"]).suspended, 0);
}

/// The hypervisor takes what a host VM has no use for any more out of its reserve, and gives it to
/// the host. What was undone leaves nobody in debt because of that.
#[test]
fn a_reserve_that_was_cut_comes_back_if_the_guest_does() {
    let backed = HostMemory {
        cache: 40_000,
        entries: 40_000,
        ..SMALL
    };
    let moves = 512 - 32 - 2;
    let w = small();
    said_of_b(&w, backed);
    // B had got what it gave back.
    let b = HostMemory {
        pages: backed.pages - moves,
        cache: backed.cache - moves,
        ..backed
    };
    write(&w, "next-2", b);
    lock(&w.driver.faults).fail_at = Some(700);
    let (failure, message) = error(migrate_by(&w, Mode::Auto, false));
    assert_eq!(failure, Failure::RolledBack, "{message}");
    let again = format!("2 {}", backed.cache);
    assert_eq!(reserved(&w), ["1 4096", "1 4096", "2 4096", &again]);
}

/// Pages that are not there at the source cannot be swapped, whatever the destination has.
#[test]
fn a_small_host_vm_is_left_for_a_full_one_by_relocation() {
    let w = world();
    {
        let mut a = lock(&w.hosts["A"]);
        let pages = a.guests[&1].pages.clone();
        a.start_small(pages[600..700].iter().map(|p| p.gfn));
    }
    write(&w, "memory-1", SMALL);
    let (_, pages) = contents(&w, "A").unwrap();
    let r = report(migrate_by(&w, Mode::Auto, false));
    assert_eq!(
        (r.mode, r.pages_copied, r.relocated),
        (Mode::Relocate, 0, 0)
    );
    assert!(r.pages_refused.is_empty() && r.pages_empty > 90, "{r:?}");
    assert_runs_only_in(&w, "B", &pages);
    assert_eq!(lock(&w.hosts["A"]).touched, 0);
    // Only by what can.
    let w = world();
    write(&w, "memory-1", SMALL);
    lock(&w.driver.faults).old = true;
    assert_eq!(report(migrate_by(&w, Mode::Auto, false)).mode, Mode::Swap);
}

#[test]
fn what_is_undone_gives_the_memory_back() {
    // In the middle of the swap, and behind it.
    for late in [false, true] {
        let w = small();
        let (_, pages) = contents(&w, "A").unwrap();
        let before = absent(&w, "B");
        match late {
            false => lock(&w.driver.faults).fail_at = Some(700),
            true => {
                // What is verified is wrong.
                let gfn = lock(&w.hosts["A"]).guests[&1].pages[700].gfn;
                lock(&w.driver.faults).spoil = Some(gfn);
            }
        }
        let (failure, message) = error(migrate_by(&w, Mode::Auto, true));
        assert_eq!(failure, Failure::RolledBack, "{message}");
        assert_eq!(absent(&w, "A"), HashSet::new());
        assert_eq!(absent(&w, "B"), before);
        // What does not come back has a reserve.
        assert_eq!(reserved(&w), ["1 4096", "1 4096", "2 4096"]);
        if !late {
            assert_runs_only_in(&w, "A", &pages);
        }
    }
}

/// The guest of a move that is undone stands still: a command that hangs when it is to fill the
/// reserve of its host VM holds it up for seconds. What is missing then comes once it runs.
#[test]
fn a_guest_that_comes_back_does_not_wait_for_its_reserve() {
    let w = small();
    let (_, pages) = contents(&w, "A").unwrap();
    let filled = w.dir.path().join("filled-1");
    nix::unistd::mkfifo(&filled, nix::sys::stat::Mode::S_IRWXU).unwrap();
    lock(&w.driver.faults).fail_at = Some(700);
    std::thread::scope(|s| {
        let answer = s.spawn(|| migrate_by(&w, Mode::Auto, false));
        w.wait_paused("A");
        let suspended = Instant::now();
        while w.paused("A") {
            assert!(suspended.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        // The next one that asks is answered.
        write(&w, "memory-1", HostMemory::default());
        let (failure, message) = error(answer.join().unwrap());
        assert_eq!(failure, Failure::RolledBack, "{message}");
    });
    assert_eq!(reserved(&w), ["1 4096", "1 4096", "2 4096"]);
    assert_runs_only_in(&w, "A", &pages);
}

/// Also if there is nothing to destroy at the destination any more.
#[test]
fn a_guest_that_comes_back_gets_its_reserve_whatever_became_of_its_copy() {
    let (mut w, pages) = left_as(|w, _| swap_of(w), |record| record.mode = Mode::Relocate);
    lock(&w.hosts["B"]).guests.clear();
    w.start();
    wait_until_runs_only_in(&w, "A", &pages);
    assert_eq!(reserved(&w), ["1 4096", "2 4096"]);
}

/// A daemon that was killed behind the swap: what is undone goes back the other way.
#[test]
fn recovery_knows_how_the_memory_went() {
    for relocated in [false, true] {
        let (mut w, pages) = left_as(
            |w, _| {
                let state = swap_of(w);
                exchange(w, &state);
                if relocated {
                    let mut a = lock(&w.hosts["A"]);
                    let gfns: Vec<u64> = a.guests[&1].pages[20..120]
                        .iter()
                        .filter(|p| p.kind == vmbeam_xen::PageKind::Ordinary)
                        .map(|p| p.gfn)
                        .collect();
                    a.start_small(gfns.into_iter());
                }
                state
            },
            |record| {
                if relocated {
                    record.mode = Mode::Relocate;
                }
            },
        );
        w.start();
        wait_until_runs_only_in(&w, "A", &pages);
        let back = match relocated {
            true => BindMode::ToA,
            false => BindMode::Swap,
        };
        assert_eq!(modes(&w), [back]);
        assert_eq!(absent(&w, "A"), HashSet::new());
    }
}

#[test]
fn everybody_can_see_what_is_there() {
    let mut w = World::new();
    w.metrics = Some(w.dir.path().join("metrics.sock").display().to_string());
    w.start();
    said_of_b(&w, SMALL);
    std::fs::remove_file(w.dir.path().join("memory-1")).unwrap();
    let mut stream = UnixStream::connect(w.dir.path().join("metrics.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    for (kind, pages) in [
        ("had", 160_000),
        ("max", 311_552),
        ("reserve", 40_000),
        ("missing", 190_000),
    ] {
        let line = format!("vmbeam_host_vm_pages{{host_vm=\"B\",kind=\"{kind}\"}} {pages}\n");
        assert!(text.contains(&line), "{text}");
    }
    assert!(!text.contains("host_vm=\"A\",kind"), "{text}");
    let FromDaemon::Memory(all) = w.ask(&ToDaemon::Memory) else {
        panic!()
    };
    let of = |name: &str| &all.iter().find(|m| m.host_vm == name).unwrap().memory;
    assert_eq!(*of("B"), Ok(SMALL));
    assert!(of("A").is_err());
}
