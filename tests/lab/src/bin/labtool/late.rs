// SPDX-License-Identifier: GPL-2.0-only

//! Writes of a guest VM that nobody waits for: some are on their way to the disk whenever it is
//! suspended, which those of a program that waits for each are not, since Linux lets such a program
//! end its call first.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::fcntl::posix_fadvise;
use nix::fcntl::PosixFadviseAdvice;

use crate::disk::Block;
use crate::disk::BLOCK;
use crate::disk::O_DIRECT;
use crate::meter::wait_for;
use crate::meter::Meter;

/// Blocks at the end of the disk, and so the most writes that are on their way.
pub const BLOCKS: u64 = 8;
/// After so many rounds, wait for all writes and look at what is on the disk.
const ROUNDS: u64 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// Write and look for ever, once the disk is there.
pub fn work(path: &Path, seed: u64, meter: &Meter) -> Result<()> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
    };
    let file = wait_for(|| open(0).ok());
    let direct = open(O_DIRECT).context("opened once more")?;
    use_disk(&file, &direct, seed, meter).with_context(|| format!("disk {}", path.display()))
}

fn use_disk(file: &File, direct: &File, seed: u64, meter: &Meter) -> Result<()> {
    let blocks = crate::disk::blocks(file)?;
    ensure!(blocks > BLOCKS, "it is too small");
    let offset = |index: u64| (blocks - BLOCKS + index) * BLOCK as u64;
    let (mut wanted, mut found) = (Block::new(), Block::new());
    let mut ticks = meter.ticks();
    for round in 1.. {
        for index in 0..BLOCKS {
            wanted.fill(seed, round * BLOCKS + index);
            file.write_all_at(&wanted.0, offset(index))?;
        }
        // Begins to write what is not being written already, and goes on.
        let length = BLOCKS as usize * BLOCK;
        posix_fadvise(
            file,
            offset(0) as i64,
            length as i64,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )?;
        if round % ROUNDS == 0 {
            file.sync_data().context("its writes")?;
            for index in 0..BLOCKS {
                direct.read_exact_at(&mut found.0, offset(index))?;
                wanted.fill(seed, round * BLOCKS + index);
                ensure!(
                    wanted.0 == found.0,
                    "late block {index} is not as round {round} left it"
                );
            }
            ticks.tick();
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
