// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM's use of its disk: write blocks, past every cache, and read back what
//! was written before, wherever the guest was then.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::aio::Block;
use crate::aio::Writer;
use crate::aio::BLOCK;
use crate::fill::pattern;
use crate::meter::wait_for;
use crate::meter::Meter;

const O_DIRECT: i32 = 0o40000;

/// Each operation costs the device model some milliseconds.
const PAUSE: Duration = Duration::from_millis(20);

/// What the write of this number puts into its block.
fn fill(block: &mut Block, seed: u64, number: u64) {
    for (i, word) in block.0.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => number,
            _ => pattern(seed ^ number, i as u64),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn open(path: &Path) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)
        .ok()
}

/// Write and verify for ever, once the disk is there.
pub fn work(path: &Path, seed: u64, meter: &Meter) -> Result<()> {
    use_disk(wait_for(|| open(path)), seed, meter)
        .with_context(|| format!("disk {}", path.display()))
}

fn use_disk(mut file: File, seed: u64, meter: &Meter) -> Result<()> {
    let blocks = file.seek(SeekFrom::End(0))? / BLOCK as u64;
    ensure!(blocks > 0, "it is empty");
    // Which write was the last one to each block; the first is number 1.
    let mut last = vec![0_u64; blocks as usize];
    let (mut wanted, mut found) = (Block::new(), Block::new());
    let mut writer = Writer::new(file.try_clone()?)?;
    let mut ticks = meter.ticks();
    for number in 1.. {
        let target = number % blocks;
        writer
            .start(target * BLOCK as u64, |block| fill(block, seed, number))
            .with_context(|| format!("cannot write block {target}"))?;

        // Another one, while it is on its way.
        let index = (number * 7 + 1) % blocks;
        let written = last[index as usize];
        if written != 0 && index != target {
            file.read_exact_at(&mut found.0, index * BLOCK as u64)
                .with_context(|| format!("cannot read block {index}"))?;
            fill(&mut wanted, seed, written);
            ensure!(
                wanted.0 == found.0,
                "block {index} is not as write {written} left it"
            );
        }
        thread::sleep(PAUSE);
        writer
            .finish()
            .with_context(|| format!("cannot write block {target}"))?;
        last[target as usize] = number;
        ticks.tick();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_block_that_somebody_else_wrote() {
        let path = std::env::temp_dir().join(format!("labtool-disk-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(8 * BLOCK as u64).unwrap();
        let other = file.try_clone().unwrap();
        let meter: &'static Meter = Box::leak(Box::new(Meter::new()));
        let user = thread::spawn(move || use_disk(file, 1, meter));
        // Twice around without a word, then somebody writes.
        let () = wait_for(|| (meter.done() > 16).then_some(()));
        while !user.is_finished() {
            other.write_all_at(&[0; BLOCK], 3 * BLOCK as u64).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        let error = user.join().unwrap().unwrap_err().to_string();
        assert!(error.starts_with("block 3 is not as write "), "{error}");
    }
}
