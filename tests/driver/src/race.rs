// SPDX-License-Identifier: GPL-2.0-only

//! Several threads, and a process that is killed, on one open file. What each
//! call answers is not determined; what must hold in the end is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::fork;
use nix::unistd::ForkResult;
use vmbeam_uapi::sys;

use crate::device::DEVICE;
use crate::domains::Domain;
use crate::model::World;
use crate::model::FRAMES;
use crate::model::HELD;

/// Pairs of the session; all of them can be swapped.
const PAIRS: u64 = FRAMES - HELD - 1;

/// Issue an ioctl with the structure that belongs to it.
pub fn ioctl<T>(file: &File, request: u32, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: `arg` is the structure that this ioctl takes; the pointers in it
    // are null or to arrays that outlive the call.
    let rc = unsafe { nix::libc::ioctl(file.as_raw_fd(), request.into(), std::ptr::from_mut(arg)) };
    Errno::result(rc).map(drop)
}

fn commit(file: &File, expected: u64, nr: u64) -> (Result<(), Errno>, sys::Commit) {
    let mut arg = sys::Commit {
        size: size_of::<sys::Commit>() as u32,
        expected,
        nr,
        ..Default::default()
    };
    (ioctl(file, sys::IOCTL_COMMIT, &mut arg), arg)
}

fn cancel(file: &File) -> Result<(), Errno> {
    ioctl(
        file,
        sys::IOCTL_CANCEL,
        &mut sys::Cancel { size: 8, flags: 0 },
    )
}

fn rollback(file: &File, expected: u64) -> (Result<(), Errno>, sys::Rollback) {
    let mut arg = sys::Rollback {
        size: 32,
        expected,
        ..Default::default()
    };
    (ioctl(file, sys::IOCTL_ROLLBACK, &mut arg), arg)
}

fn status(file: &File) -> Result<sys::Status> {
    let mut arg = sys::Status {
        size: size_of::<sys::Status>() as u32,
        ..Default::default()
    };
    ioctl(file, sys::IOCTL_STATUS, &mut arg)?;
    Ok(arg)
}

/// One worker: what it swapped, less what it put back. Any call may be cancelled by
/// another worker, and then says how far it came.
fn work(file: &File, seed: u64) -> Result<i64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cursor = 0;
    let mut balance = 0;
    for _ in 0..rng.usize(8..40) {
        match rng.u8(..16) {
            0 => {
                let (result, arg) = rollback(file, cursor);
                match result {
                    Ok(()) | Err(Errno::ECANCELED) => {
                        balance -= arg.restored as i64;
                        cursor = arg.cursor;
                    }
                    Err(Errno::ESTALE) => cursor = arg.cursor,
                    Err(Errno::EBADFD) => {}
                    Err(e) => bail!("ROLLBACK: {e}"),
                }
            }
            1 => {
                let now = status(file)?;
                ensure!(
                    now.cursor <= now.pairs && now.swapped <= now.cursor,
                    "{now:?}"
                );
            }
            2 => match cancel(file) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => bail!("CANCEL: {e}"),
            },
            3 => {
                let mut arg = sys::Check {
                    size: size_of::<sys::Check>() as u32,
                    nr: rng.u64(1..PAIRS),
                    ..Default::default()
                };
                match ioctl(file, sys::IOCTL_CHECK, &mut arg) {
                    Ok(()) | Err(Errno::ECANCELED) => {
                        ensure!(arg.done <= arg.nr && arg.refused == 0, "{arg:?}");
                    }
                    Err(e) => bail!("CHECK: {e}"),
                }
            }
            _ => {
                let (result, arg) = commit(file, cursor, rng.u64(1..5));
                match result {
                    Ok(()) | Err(Errno::ECANCELED) => {
                        ensure!(
                            arg.cursor - cursor == arg.swapped && arg.refused == 0,
                            "{arg:?}"
                        );
                        balance += arg.swapped as i64;
                        cursor = arg.cursor;
                    }
                    Err(Errno::ESTALE) => cursor = arg.cursor,
                    Err(Errno::EBADFD | Errno::EINVAL) => cursor = status(file)?.cursor,
                    Err(e) => bail!("COMMIT: {e}"),
                }
            }
        }
    }
    Ok(balance)
}

/// One race on domains 0 and 1, which hold what `world` says, before and after.
pub fn run(world: &mut World, domains: &[Domain], seed: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(DEVICE)?;
    let mut arg = sys::Bind {
        size: 32,
        domid_a: domains[0].domid(),
        domid_b: domains[1].domid(),
        ..Default::default()
    };
    ioctl(&file, sys::IOCTL_BIND, &mut arg)?;
    // One run a pair: the order of the frames is reversed.
    let runs: Vec<sys::Run> = (HELD + 1..FRAMES)
        .rev()
        .map(|gfn| sys::Run {
            gfn_a: gfn,
            gfn_b: gfn,
            nr: 1,
            reserved: 0,
        })
        .collect();
    let mut arg = sys::Add {
        size: 40,
        runs: runs.as_ptr() as u64,
        nr_runs: runs.len() as u32,
        ..Default::default()
    };
    ioctl(&file, sys::IOCTL_ADD, &mut arg)?;

    if seed % 8 == 0 {
        // Nobody has the file any more: all is as it was.
        killed(file, true, seed / 8)?;
        return look(world, domains, 0).context("after the last holder was killed");
    }
    if seed % 4 == 0 {
        killed(file.try_clone()?, false, seed / 4)?;
    } else {
        let workers: Vec<_> = (0..3)
            .map(|i| Ok((file.try_clone()?, seed * 3 + i)))
            .collect::<Result<_>>()?;
        // A descriptor of each worker; they close them at different times.
        let balance = thread::scope(|scope| {
            let threads: Vec<_> = workers
                .into_iter()
                .map(|(file, seed)| scope.spawn(move || work(&file, seed)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
                .sum::<Result<i64>>()
        })?;
        let now = status(&file)?;
        ensure!(
            balance == now.swapped as i64,
            "{balance} swapped in sum, but {now:?}"
        );
    }

    // The cursor tells where every frame is.
    let now = status(&file)?;
    ensure!(now.swapped == now.cursor && now.refused == 0, "{now:?}");
    look(world, domains, now.cursor).with_context(|| format!("{now:?}"))?;
    let mut cursor = now.cursor;
    while cursor > 0 {
        let (result, arg) = rollback(&file, cursor);
        result?;
        cursor = arg.cursor;
    }
    Ok(())
}

/// The pairs before the cursor are swapped, from the last frame downwards.
fn look(world: &World, domains: &[Domain], cursor: u64) -> Result<()> {
    let seen = [domains[0].tags()?, domains[1].tags()?];
    for gfn in 0..FRAMES {
        let away = gfn > HELD && FRAMES - 1 - gfn < cursor;
        let g = gfn as usize;
        for (d, seen) in seen.iter().enumerate() {
            let expected = world.frames[if away { 1 - d } else { d }][g];
            ensure!(
                seen[g] == expected,
                "frame {gfn} of domain {d}: {:x}, expected {expected:x}",
                seen[g]
            );
        }
    }
    Ok(())
}

/// A child inherits the file, commits all but the last pair one by one, and is
/// killed at any time. If it is to be the only one, this process closes the file.
fn killed(file: File, only: bool, seed: u64) -> Result<()> {
    // SAFETY: the child only makes system calls until it is killed.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let mut cursor = 0;
            while cursor < PAIRS - 1 {
                cursor = commit(&file, cursor, 1).1.cursor;
            }
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Parent { child } => {
            let goal = seed % PAIRS;
            let mut last = 0;
            while last < goal && last < PAIRS - 1 {
                let now = status(&file)?.cursor;
                ensure!(now >= last, "the cursor went from {last} to {now}");
                last = now;
                thread::yield_now();
            }
            if only {
                drop(file);
            }
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
            Ok(())
        }
    }
}
