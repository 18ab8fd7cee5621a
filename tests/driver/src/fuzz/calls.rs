// SPDX-License-Identifier: GPL-2.0-only

//! Requests that mean something, with a wrong value now and then.

use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;
use vmbeam_uapi::sys;

use super::place::bytes;
use super::place::structure;
use super::Fuzzer;
use super::Open;
use crate::model::Access;
use crate::model::Answer;
use crate::model::DOMAINS;
use crate::model::FRAMES;
use crate::model::MAX_ADD_RUNS;

impl Fuzzer {
    pub(super) fn info(&mut self, open: &Open) -> Result<()> {
        let place = self.place(size_of::<sys::Info>());
        let arg = sys::Info {
            size: 40,
            ..Default::default()
        };
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(&open.file, sys::IOCTL_INFO, place.address);
        let expected = if place.writable {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        };
        ensure!(
            result == expected,
            "INFO: {result:?}, expected {expected:?}"
        );
        if place.writable {
            let info: sys::Info = self.fetch(place.address)?;
            ensure!(info.max_add_runs == MAX_ADD_RUNS, "{info:?}");
        }
        Ok(())
    }

    pub(super) fn open(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Bind>());
        let mut domid = || match self.rng.u8(..24) {
            0 => 0,
            1 => 0x7000,
            2 => 0x7ff0 + self.rng.u32(..16),
            3 => self.rng.u32(0x10000..),
            _ => self.world.domids[self.rng.usize(..DOMAINS)],
        };
        let (domid_a, domid_b) = (domid(), domid());
        let flags = match self.rng.u8(..16) {
            ..6 => 0,
            6..8 => sys::BIND_KEEP,
            8..12 => sys::BIND_TO_B,
            12..15 => sys::BIND_TO_A,
            _ => self.rng.u32(..8),
        };
        // Which of two wrong domains a real hypervisor reports is not determined.
        if domid_a.min(domid_b) == 0 && domid_a.max(domid_b) == 0x7000 {
            return Ok(());
        }
        let mut id = |domid: u32| {
            let index = self.world.domids.iter().position(|d| *d == domid);
            let known = index.and_then(|index| self.world.ids[index]);
            match self.rng.u8(..16) {
                // Two wrong domains are one too many, as above.
                _ if domid_a.min(domid_b) == 0 => 0,
                0 => self.rng.u64(1 << 40..),
                1..4 => known.unwrap_or_default(),
                _ => 0,
            }
        };
        let arg = sys::Bind {
            size: 32,
            flags,
            domid_a,
            domid_b,
            id_a: id(domid_a),
            id_b: id(domid_b),
        };
        let mut expected = open.model.may_bind(&self.world, arg);
        if expected.is_ok() && !place.writable {
            expected = Err(Errno::EFAULT);
        }
        self.arena.write(place.address, bytes(&arg))?;
        let result = self.call(&open.file, sys::IOCTL_BIND, place.address);
        let after: sys::Bind = self.fetch(place.address)?;
        ensure!(
            result == expected,
            "{arg:x?}: {result:?}, expected {expected:?}"
        );
        if result.is_err() {
            ensure!(after == arg, "{after:x?} after an error");
            return Ok(());
        }
        let ids = [after.id_a, after.id_b];
        ensure!(
            self.world.told([domid_a, domid_b], ids),
            "{arg:x?}: {after:x?}, but {:x?}",
            self.world.ids
        );
        open.model.bind(&mut self.world, after);
        Ok(())
    }

    fn run(&mut self) -> sys::Run {
        let mut gfn = || match self.rng.u8(..40) {
            0 => self.rng.u64(..),
            1 => (1 << 52) - self.rng.u64(..4),
            2..4 => self.rng.u64(FRAMES..2 * FRAMES),
            _ => self.rng.u64(..FRAMES),
        };
        let (gfn_a, gfn_b) = (gfn(), gfn());
        let nr = match self.rng.u16(..2000) {
            0..20 => self.rng.u32((1 << 28) + 1..),
            20..60 => 0,
            // More than one hypercall.
            60..66 => self.rng.u32(4000..9000),
            _ => self.rng.u32(1..6),
        };
        let reserved = if self.rng.u8(..) < 3 {
            self.rng.u32(1..)
        } else {
            0
        };
        sys::Run {
            gfn_a,
            gfn_b,
            nr,
            reserved,
        }
    }

    pub(super) fn add(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Add>());
        let nr = self.rng.u32(1..5);
        let runs: Vec<sys::Run> = (0..nr).map(|_| self.run()).collect();
        let (address, elements) = self.array(nr.into(), 24);
        for (run, at) in runs.iter().zip((address..).step_by(24)) {
            self.arrays.write(at, bytes(run))?;
        }
        let nr_runs = match self.rng.u8(..32) {
            0 => 0,
            1 => self.rng.u32(MAX_ADD_RUNS + 1..),
            _ => nr,
        };
        let arg = sys::Add {
            size: 40,
            flags: 0,
            runs: address,
            nr_runs,
            bad_run: 0xcccc_cccc,
            total_runs: 7,
            total_pairs: 7,
        };
        let readable = elements >= u64::from(nr);
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.add(arg, readable.then_some(&runs[..]), access);
        self.compare(&open.file, sys::IOCTL_ADD, &place, arg, &answer)
    }

    pub(super) fn check(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Check>());
        let pairs = open.model.pairs();
        let usual = self.rng.u64(..=pairs.max(1) - 1);
        let first = self.number(usual);
        let nr = self.count(pairs.saturating_sub(first));
        let (status, elements) = self.wanted(if nr == 0 {
            pairs.saturating_sub(first)
        } else {
            nr
        });
        let moves_before = match self.rng.bool() {
            true => 0,
            false => {
                let usual = self.rng.u64(..=first);
                self.number(usual)
            }
        };
        let arg = sys::Check {
            size: size_of::<sys::Check>() as u32,
            flags: 0,
            first,
            nr,
            status,
            moves_before,
            done: 7,
            refused: 7,
            moves: 7,
        };
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.check(&self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_CHECK, &place, arg, &answer)?;
        if status != 0 && !answer.status.is_empty() {
            self.statuses(status, &answer)?;
        }
        Ok(())
    }

    /// How many pairs to ask for, of those that are left.
    fn count(&mut self, left: u64) -> u64 {
        let usual = if self.rng.bool() {
            0
        } else {
            self.rng.u64(..=left.min(64))
        };
        self.number(usual)
    }

    /// An array of statuses, or none.
    fn wanted(&mut self, nr: u64) -> (u64, u64) {
        if self.rng.u8(..4) == 0 {
            return (0, 0);
        }
        match self.array(nr, 4) {
            (0, _) => (0, 0),
            place => place,
        }
    }

    pub(super) fn commit(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Commit>());
        let cursor = open.model.cursor();
        let left = open.model.pairs() - cursor;
        let expected = self.number(cursor);
        let nr = self.count(left);
        let (status, elements) = self.wanted(if nr == 0 { left } else { nr });
        let arg = sys::Commit {
            size: size_of::<sys::Commit>() as u32,
            flags: 0,
            expected,
            nr,
            status,
            cursor: 7,
            swapped: 7,
            refused: 7,
            moved: 7,
        };
        let access = Access {
            structure: place.writable,
            elements,
        };
        let answer = open.model.commit(&mut self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_COMMIT, &place, arg, &answer)?;
        if status != 0 && !answer.status.is_empty() {
            self.statuses(status, &answer)?;
        }
        Ok(())
    }

    pub(super) fn rollback(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Rollback>());
        let expected = self.number(open.model.cursor());
        let arg = sys::Rollback {
            size: 32,
            flags: 0,
            expected,
            cursor: 7,
            restored: 7,
        };
        let access = Access {
            structure: place.writable,
            elements: 0,
        };
        let answer = open.model.rollback(&mut self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_ROLLBACK, &place, arg, &answer)
    }

    /// With a structure of any version, and sometimes as text.
    pub(super) fn status(&mut self, open: &Open) -> Result<()> {
        let (first, newest) = (
            <sys::Status as sys::Request>::FIRST_SIZE,
            size_of::<sys::Status>(),
        );
        let size = match self.rng.u8(..4) {
            0 => self.rng.usize(first..=newest),
            _ => newest,
        };
        let place = self.place(size);
        self.arena.write(
            place.address,
            &[size as u32, 0].map(u32::to_ne_bytes).concat(),
        )?;
        let result = self.call(&open.file, sys::IOCTL_STATUS, place.address);
        let expected = if place.writable {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        };
        ensure!(
            result == expected,
            "STATUS: {result:?}, expected {expected:?}"
        );
        if !place.writable {
            return Ok(());
        }
        let raw = self.arena.read(place.address, size).unwrap_or_default();
        let seen: sys::Status = structure(&raw);
        let expected = open.model.status(seen);
        ensure!(
            bytes(&seen)[..size] == bytes(&expected)[..size],
            "{seen:?}, expected {expected:?}"
        );
        // The end of a newer structure than the caller's is left alone.
        if let Some(rest) = self.arena.read(place.address + size as u64, newest - size) {
            ensure!(
                rest.iter().all(|b| *b == 0xcc),
                "wrote behind a structure of {size} bytes: {rest:x?}"
            );
        }
        if self.rng.u8(..8) == 0 {
            fdinfo(open, &expected)?;
        }
        Ok(())
    }

    /// Nothing works on the session while this thread calls.
    pub(super) fn cancel(&mut self, open: &Open) -> Result<()> {
        let place = self.place(size_of::<sys::Cancel>());
        let arg = sys::Cancel { size: 8, flags: 0 };
        let answer = Answer::fail(Errno::ENOENT, arg);
        self.compare(&open.file, sys::IOCTL_CANCEL, &place, arg, &answer)
    }

    /// The number of a record that there is, or of none.
    fn id(&mut self) -> u64 {
        let ids: Vec<u64> = self.world.records().map(|(record, _)| record.id).collect();
        let usual = self.rng.choice(ids).unwrap_or(7);
        self.number(usual)
    }

    pub(super) fn adopt(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Adopt>());
        let arg = sys::Adopt {
            size: 16,
            flags: 0,
            id: self.id(),
        };
        let answer = open.model.adopt(&mut self.world, arg);
        self.compare(&open.file, sys::IOCTL_ADOPT, &place, arg, &answer)
    }

    pub(super) fn abandon(&mut self, open: &mut Open) -> Result<()> {
        let place = self.place(size_of::<sys::Abandon>());
        let arg = sys::Abandon {
            size: 24,
            flags: 0,
            expected: self.number(open.model.cursor()),
            cursor: 7,
        };
        let access = Access {
            structure: place.writable,
            elements: 0,
        };
        let answer = open.model.abandon(&mut self.world, arg, access);
        self.compare(&open.file, sys::IOCTL_ABANDON, &place, arg, &answer)
    }

    pub(super) fn record(&mut self, open: &Open) -> Result<()> {
        let place = self.place(size_of::<sys::Record>());
        let id = self.id();
        let arg = sys::Record {
            size: size_of::<sys::Record>() as u32,
            id: if self.rng.bool() { 0 } else { id },
            ..Default::default()
        };
        let access = Access {
            structure: place.writable,
            elements: 0,
        };
        let answer = match open.model.state() {
            0 => self.world.next(arg, access),
            _ => Answer::fail(Errno::EBADFD, arg),
        };
        self.compare(&open.file, sys::IOCTL_RECORD, &place, arg, &answer)
    }
}

/// The session's lines of `/proc/self/fdinfo/`.
fn fdinfo(open: &Open, status: &sys::Status) -> Result<()> {
    let path = format!("/proc/self/fdinfo/{}", open.file.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let mut lines: Vec<String> = vec![
        format!("state:\t{}", sys::names::state(status.state)),
        "activity:\tnone".into(),
        format!("runs:\t{}", status.runs),
        format!("pairs:\t{}", status.pairs),
        format!("cursor:\t{}", status.cursor),
        format!("swapped:\t{}", status.swapped),
        format!("refused:\t{}", status.refused),
        format!("mode:\t{}", sys::names::mode(status.mode)),
        format!("moved:\t{}", status.moved),
    ];
    if ![0, 7].contains(&status.state) {
        lines.push(format!("domains:\t{} {}", status.domid_a, status.domid_b));
    }
    for line in lines {
        ensure!(
            text.contains(&format!("\nvmbeam-{line}\n")),
            "no line {line:?} in fdinfo:\n{text}"
        );
    }
    Ok(())
}
