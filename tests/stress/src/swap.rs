// SPDX-License-Identifier: GPL-2.0-only

//! `XENMEM_swap_frames` as the tests call it, without the driver.

use std::collections::BTreeMap;

use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::control;
use crate::control::MEMORY_OP;
use crate::xen;
use crate::xen::Buffer;
use crate::xen::PAGE;

/// `XENMEM_swap_frames`
pub const SWAP_FRAMES: u64 = 48;
/// `XENMEM_SWAP_check`
pub const CHECK: u32 = 1;
/// `XENMEM_SWAP_to_a`
pub const TO_A: u32 = 1 << 3;
/// `XENMEM_SWAP_to_b`
pub const TO_B: u32 = 1 << 4;
/// `XENMEM_SWAP_undo`: a relocation that is an undo.
pub const UNDO: u32 = 1 << 5;
/// Most runs of a call.
pub const MAX_RUNS: usize = 1024;
/// `-ESRCH` is the answer to a domain that does not exist.
const ESRCH: i64 = 3;
/// The version of the interface that the tests are written for.
pub const VERSION: u32 = 5;
/// Bytes of the structure.
const STRUCTURE: usize = 96;
/// Where the counters are.
const STATS: usize = 256;
/// How many counters there are.
pub const NR_STATS: u32 = 12;
const RUNS: usize = PAGE;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First gfn of the first domain.
    pub a: u64,
    /// First gfn of the second domain.
    pub b: u64,
    /// Pairs.
    pub nr: u32,
}

/// What came of a call.
#[derive(Debug)]
pub struct Outcome {
    /// Result.
    pub rc: i64,
    /// Pairs that were swapped.
    pub swapped: u64,
    /// Status of each pair.
    pub status: Vec<i32>,
}

/// Memory for calls of up to so many pairs.
#[derive(Debug)]
pub struct Swapper {
    /// The structure, runs from the second page on, statuses behind them.
    pub buffer: Buffer,
    statuses: usize,
}

impl Swapper {
    /// For calls of up to so many pairs.
    pub fn new(pairs: usize) -> Result<Self> {
        let statuses = RUNS + (MAX_RUNS * 24).next_multiple_of(PAGE);
        let swapper = Self {
            buffer: Buffer::new((statuses + pairs * 4).div_ceil(PAGE))?,
            statuses,
        };
        // Two domains of which one cannot be: only a version that is understood comes as
        // far as to look for them.
        swapper.fill(0x7ff4, 0, CHECK, &[], 0);
        let rc = swapper.issue()?;
        ensure!(
            rc == -ESRCH,
            "this hypervisor has no XENMEM_swap_frames of version {VERSION}: {}",
            control::error(rc)
        );
        Ok(swapper)
    }

    /// Address of the statuses.
    pub fn statuses(&self) -> u64 {
        self.buffer.address() + self.statuses as u64
    }

    /// Fill the structure and the runs in.
    pub fn fill(&self, a: u16, b: u16, flags: u32, runs: &[Run], pairs: u64) {
        let mut bytes = [0u8; STRUCTURE];
        bytes[..2].copy_from_slice(&a.to_le_bytes());
        bytes[2..4].copy_from_slice(&b.to_le_bytes());
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&(runs.len() as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.buffer.address() + RUNS as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.statuses().to_le_bytes());
        bytes[32..40].copy_from_slice(&pairs.to_le_bytes());
        bytes[64..72].copy_from_slice(&(self.buffer.address() + STATS as u64).to_le_bytes());
        bytes[72..76].copy_from_slice(&NR_STATS.to_le_bytes());
        self.buffer.put(0, &bytes);
        self.buffer.put(STATS, &[0; NR_STATS as usize * 8]);
        for (i, run) in runs.iter().enumerate() {
            let mut bytes = [0u8; 24];
            bytes[..8].copy_from_slice(&run.a.to_le_bytes());
            bytes[8..16].copy_from_slice(&run.b.to_le_bytes());
            bytes[16..20].copy_from_slice(&run.nr.to_le_bytes());
            self.buffer.put(RUNS + i * 24, &bytes);
        }
    }

    /// Issue the call that was filled in.
    pub fn issue(&self) -> Result<i64> {
        // SAFETY: the structure and what it points to are in the buffer.
        unsafe { xen::hypercall(MEMORY_OP, [SWAP_FRAMES, self.buffer.address(), 0, 0, 0]) }
    }

    /// A 64-bit field of the structure.
    pub fn field(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.buffer.get(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Pairs that were dealt with, and pairs swapped.
    pub fn progress(&self) -> (u64, u64) {
        (self.field(40), self.field(STATS))
    }

    /// Frames that were moved to the first domain, and to the second one.
    pub fn moved(&self) -> [u64; 2] {
        [self.field(80), self.field(88)]
    }

    /// Batches in which pairs were dealt with.
    pub fn batches(&self) -> u64 {
        self.field(STATS + 8)
    }

    /// A whole call.
    pub fn call(&self, a: u16, b: u16, flags: u32, runs: &[Run]) -> Result<Outcome> {
        let pairs = runs.iter().map(|r| u64::from(r.nr)).sum();
        self.fill(a, b, flags, runs, pairs);
        let rc = self.issue()?;
        let (done, swapped) = self.progress();
        ensure!(
            done <= pairs && swapped <= done,
            "done is {done} and swapped {swapped} of {pairs} pairs"
        );
        let mut status = vec![0; done as usize];
        for (i, s) in status.iter_mut().enumerate() {
            let mut bytes = [0; 4];
            self.buffer.get(self.statuses + i * 4, &mut bytes);
            *s = i32::from_le_bytes(bytes);
        }
        let zero = status.iter().filter(|s| **s == 0).count() as u64;
        ensure!(
            flags & CHECK != 0 || zero == swapped,
            "{swapped} pairs swapped, {zero} statuses say so"
        );
        ensure!(
            rc < 0 || done == pairs,
            "result {} after {done} of {pairs} pairs",
            control::error(rc)
        );
        Ok(Outcome {
            rc,
            swapped,
            status,
        })
    }
}

/// Count the statuses of the swaps of one test; unexpected ones are errors.
#[derive(Debug, Default)]
pub struct Statuses(BTreeMap<i32, u64>);

impl Statuses {
    /// Count those of a call.
    pub fn add(&mut self, status: &[i32], allowed: &[Errno]) -> Result<()> {
        for s in status {
            *self.0.entry(*s).or_default() += 1;
            ensure!(
                *s == 0 || allowed.iter().any(|e| *e as i32 == -s),
                "a pair was refused with {}",
                control::error((*s).into())
            );
        }
        Ok(())
    }

    /// Count those that another thread has counted.
    pub fn merge(&mut self, other: Self) {
        for (status, count) in other.0 {
            *self.0.entry(status).or_default() += count;
        }
    }

    /// How many pairs were swapped.
    pub fn swapped(&self) -> u64 {
        self.0.get(&0).copied().unwrap_or(0)
    }

    /// For the report.
    pub fn text(&self) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(s, n)| match s {
                0 => format!("{n} pairs swapped"),
                s => format!("{n} {}", control::error((*s).into())),
            })
            .collect();
        parts.join(", ")
    }
}
