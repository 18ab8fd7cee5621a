// SPDX-License-Identifier: GPL-2.0-only

//! Whole sessions against a model of the hypervisor and of two domains.
//!
//! The ledger and its loops are the driver's, without a kernel around them. The model
//! refuses pairs at random, fails at random in the middle of a request and sends signals;
//! whatever happens, the frames must be where the ledger says. When the model lies, the
//! ledger must notice.

use proptest::prelude::*;
use vmbeam_core::{
    ledger::{
        Broken,
        NotAdded,
        Refusal,
        Tally, //
    },
    uapi, //
};

mod adding;
mod world;

use world::{
    Fate::{
        self,
        *, //
    },
    *,
};

/// What an honest hypervisor does.
fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![8 => Just(Swap), 1 => Just(Refuse), 1 => Just(Fail)];
    prop::collection::vec(fate, 1..200)
}

fn lie() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Claim), Just(Exaggerate), Just(Omit), Just(Positive)]
}

proptest! {
    #[test]
    fn ledger_and_frames_agree(
        runs in distinct_runs(),
        shuffle in any::<bool>(),
        fate in fates(),
        signal in 0u32..4,
        stops in prop::collection::vec(0u32..100, 0..6),
    ) {
        let mut runs = runs;
        if shuffle {
            runs.reverse();
        }
        let mut session = Session::default();
        for chunk in runs.chunks(7) {
            prop_assert_eq!(session.add(chunk), Ok(()));
        }
        let total: u32 = runs.iter().map(|run| run.nr).sum();
        prop_assert_eq!(session.counts().pairs, total);
        prop_assert_eq!(session.counts().state, uapi::STATE_LOADED);

        let mut world = World::new(fate);
        world.signal = signal;
        for stop in stops {
            let _ = session.commit(&mut world, stop.min(total));
            session.verify(&world);
        }
        for _ in 0..20 {
            session.rollback(&mut world).1.ok();
            session.verify(&world);
        }

        // In the end nothing is refused any more.
        let began = session.counts().state != uapi::STATE_LOADED;
        world.fate = vec![Swap];
        world.signal = 0;
        prop_assert_eq!(session.rollback(&mut world).1, Ok(()));
        prop_assert_eq!(session.counts().cursor, 0);
        prop_assert_eq!(session.counts().refused, 0);
        prop_assert!(!session.ledger.is_half_way());
        session.verify(&world);
        if began {
            prop_assert_eq!(session.counts().state, uapi::STATE_ROLLED_BACK);
        }
        prop_assert_eq!(world.broken, []);
    }

    #[test]
    fn a_rollback_uses_all_the_room(runs in distinct_runs(), room in 0u32..100) {
        let mut session = Session::default();
        session.add(&runs).unwrap();
        let total = session.counts().pairs;
        let mut world = World::new(vec![Swap]);
        prop_assert_eq!(session.commit(&mut world, total), Ok(()));

        world.room = room;
        let (tally, result) = session.rollback(&mut world);
        prop_assert_eq!(tally.swapped, room.min(total));
        prop_assert_eq!(session.counts().cursor, total - tally.swapped);
        prop_assert_eq!(result, if room < total { Err(ENOSPC) } else { Ok(()) });
        session.verify(&world);
    }

    #[test]
    fn a_lie_breaks_the_ledger_for_good(
        runs in distinct_runs(),
        lie in lie(),
        at in 0usize..60,
        on_the_way_back in any::<bool>(),
    ) {
        let mut session = Session::default();
        prop_assert_eq!(session.add(&runs), Ok(()));
        let total = session.counts().pairs;
        let mut world = World::new(vec![Swap]);
        let mut fate = vec![Swap; at % total as usize];
        fate.push(lie);
        fate.extend([Swap; 400]);
        if on_the_way_back {
            prop_assert_eq!(session.commit(&mut world, total), Ok(()));
            (world.fate, world.at) = (fate, 0);
            prop_assert_eq!(session.rollback(&mut world).1, Err(EIO));
        } else {
            world.fate = fate;
            prop_assert_eq!(session.commit(&mut world, total), Err(EIO));
        }
        prop_assert_eq!(&world.broken, &[Broken::Answer]);

        // The hypervisor is not asked again, whatever is wanted.
        let (counts, calls) = (session.counts(), world.calls);
        world.fate = vec![Swap];
        prop_assert!(session.ledger.is_half_way());
        prop_assert_eq!(session.ledger.may_add(), Err(Refusal::Broken));
        prop_assert_eq!(session.ledger.may_check(0, 0), Err(Refusal::Broken));
        prop_assert_eq!(session.ledger.may_commit(counts.cursor.into(), 0), Err(Refusal::Broken));
        prop_assert_eq!(session.ledger.may_roll_back(counts.cursor.into()), Err(Refusal::Broken));
        prop_assert_eq!(session.add(&[run(900, 900, 1)]), Err(NotAdded::Refused(Refusal::Broken)));
        prop_assert_eq!(session.ledger.roll_back(&mut session.batch, &mut world).1, Err(EIO));
        prop_assert_eq!(session.ledger.commit(total, &mut session.batch, &mut world).1, Err(EIO));
        prop_assert_eq!(session.ledger.check(0, 1, &mut session.batch, &mut world).1, Err(EIO));
        prop_assert_eq!((session.counts(), world.calls), (counts, calls));
        prop_assert_eq!(&world.broken[1..], &[Broken::Already; 3]);
    }

    #[test]
    fn a_lie_is_noticed_when_the_caller_cannot_be_told(
        runs in distinct_runs(),
        lie in lie(),
        at in 0usize..60,
        check in any::<bool>(),
    ) {
        let mut session = Session::default();
        prop_assert_eq!(session.add(&runs), Ok(()));
        let total = session.counts().pairs;
        let mut fate = vec![Swap; at % total as usize];
        fate.push(lie);
        fate.extend([Swap; 400]);
        let go = |deaf, fate: &[Fate]| {
            let (mut session, mut world) = (Session::default(), World::new(fate.to_vec()));
            session.add(&runs).unwrap();
            world.deaf = deaf;
            let (ledger, batch) = (&mut session.ledger, &mut session.batch);
            let (tally, result) = match check {
                true => ledger.check(0, total, batch, &mut world),
                false => ledger.commit(total, batch, &mut world),
            };
            (session, world, tally, result)
        };
        // It comes in the last hypercall.
        let calls = go(0, &fate).1.calls;
        let (session, world, tally, result) = go(calls, &fate);
        prop_assert_eq!(result, Err(EIO));
        prop_assert_eq!(&world.broken, &[Broken::Answer]);
        prop_assert!(session.ledger.is_half_way());
        if !check {
            prop_assert_eq!(tally.done as usize, world.told.len());
            prop_assert_eq!(session.counts().cursor, tally.done);
        }

        // Where all is well, what the caller lacks is what ends the call.
        let (session, world, _, result) = go(1, &[Swap]);
        prop_assert_eq!(result, Err(EFAULT));
        prop_assert_eq!(session.ledger.is_half_way(), !check && session.counts().cursor < total);
        prop_assert_eq!(world.broken, []);
    }

    #[test]
    fn a_check_tells_and_changes_nothing(
        runs in distinct_runs(),
        fate in fates(),
        first in 0u32..40,
    ) {
        let mut session = Session::default();
        session.add(&runs).unwrap();
        let Ok(end) = session.ledger.may_check(first.into(), 0) else {
            prop_assert!(first >= session.counts().pairs);
            return Ok(());
        };
        let mut world = World::new(fate);
        let before = session.counts();
        let (tally, result) = session.ledger.check(first, end, &mut session.batch, &mut world);
        prop_assert!(result == Err(ENOMEM) || first + tally.done == end);
        prop_assert_eq!(tally.done as usize, world.told.len());
        let refused = world.told.iter().filter(|status| **status != 0).count();
        prop_assert_eq!(tally.refused as usize, refused);
        prop_assert_eq!(session.counts(), before);
        session.verify(&world);
    }

    #[test]
    fn no_memory_no_runs(runs in distinct_runs(), allocations in 0u32..8) {
        let mut session = Session::default();
        session.add(&[run(1000, 1000, 1)]).unwrap();
        let before = (session.counts(), session.frames());
        ALLOCATIONS.set(allocations);
        let result = session.add(&runs);
        ALLOCATIONS.set(u32::MAX);
        if let Err(why) = result {
            prop_assert_eq!(why, NotAdded::Memory(NoMemory));
            prop_assert_eq!((session.counts(), session.frames()), before);
            prop_assert_eq!(session.add(&runs), Ok(()));
        }
    }
}

#[test]
fn states() {
    let mut session = Session::default();
    let mut world = World::new(vec![Swap]);
    let may_commit = |s: &Session| s.ledger.may_commit(s.counts().cursor.into(), 0).map(|_| ());
    let may_roll_back = |s: &Session| s.ledger.may_roll_back(s.counts().cursor.into());
    let no = Err(Refusal::State);

    assert_eq!(session.counts().state, uapi::STATE_EMPTY);
    assert_eq!(session.ledger.may_check(0, 0), Err(Refusal::State));
    assert_eq!(may_commit(&session), no);
    session.add(&[run(0, 0, 4)]).unwrap();
    assert_eq!(session.counts().state, uapi::STATE_LOADED);
    assert_eq!(
        (session.ledger.may_add(), may_roll_back(&session)),
        (Ok(()), no)
    );
    assert_eq!(session.ledger.may_commit(1, 0), Err(Refusal::Stale));
    assert_eq!(session.ledger.may_commit(0, 5), Err(Refusal::Range));
    assert_eq!(session.ledger.may_commit(0, u64::MAX), Err(Refusal::Range));
    assert_eq!(session.ledger.may_commit(0, 3), Ok(3));
    assert_eq!(session.ledger.may_check(4, 0), Err(Refusal::Range));
    assert_eq!(session.ledger.may_check(3, 1), Ok(4));
    session.commit(&mut world, 2).unwrap();
    assert_eq!(session.counts().state, uapi::STATE_COMMITTING);
    assert_eq!(
        (session.ledger.may_add(), session.ledger.is_half_way()),
        (no, true)
    );
    session.commit(&mut world, 4).unwrap();
    assert_eq!(session.counts().state, uapi::STATE_COMMITTED);
    assert_eq!(
        (may_commit(&session), session.ledger.is_half_way()),
        (no, false)
    );
    assert_eq!(session.ledger.may_roll_back(3), Err(Refusal::Stale));
    session.rollback(&mut world).1.unwrap();
    assert_eq!(session.counts().state, uapi::STATE_ROLLED_BACK);
    assert_eq!((may_commit(&session), may_roll_back(&session)), (no, no));
}

/// Chunks that were there are not any more.
#[test]
fn frames_that_are_not_given_back_break_the_ledger() {
    let mut broken = 0;
    for lookups in 0..20 {
        let mut session = Session::default();
        session.add(&[run(0, 0, 1)]).unwrap();
        let before = (session.counts(), session.frames());
        LOOKUPS.set(lookups);
        // The second one's frame of B is in use, when its frame of A has been taken.
        let result = session.add(&[run(5, 5, 1), run(6, 0, 1)]);
        LOOKUPS.set(u32::MAX);
        let usable = match result {
            Err(NotAdded::Broken) => Err(Refusal::Broken),
            Err(NotAdded::Memory(NoMemory) | NotAdded::InUse(1)) => Ok(()),
            other => panic!("{other:?}"),
        };
        assert_eq!(session.ledger.may_add(), usable);
        assert_eq!(session.ledger.is_half_way(), usable.is_err());
        assert_eq!((session.counts(), session.frames()), before);
        broken += u32::from(usable.is_err());
    }
    assert!(broken > 3);
}

/// Who calls the loops without having asked whether they make sense.
#[test]
fn a_commit_after_a_rollback_breaks_the_ledger() {
    let mut session = Session::default();
    let mut world = World::new(vec![Swap]);

    session.add(&[run(0, 0, 4)]).unwrap();
    session.commit(&mut world, 4).unwrap();
    session.rollback(&mut world).1.unwrap();
    let (tally, result) = session.ledger.commit(4, &mut session.batch, &mut world);
    assert_eq!((tally, result), (Tally::default(), Err(EIO)));
    assert_eq!(world.broken, [Broken::Invariant]);
    session.verify(&world);
}
