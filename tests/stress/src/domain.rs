// SPDX-License-Identifier: GPL-2.0-only

//! A domain that runs the guest.

use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::control;
use crate::mailbox;
use crate::mailbox::Mailbox;
use crate::xen::Foreign;

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.bin"));
const SHIFT: u64 = 12;
/// Length of a vCPU's registers in the saved state, and of the header's record.
const CPU: usize = 1032;
const HEADER: usize = 24;

/// A running domain.
#[derive(Debug)]
pub struct Domain {
    /// Its number.
    pub domid: u16,
    /// Which of the domains of its test it is.
    pub index: u64,
    /// First gfn of its window, which no other domain has.
    pub base: u64,
    /// Frames of its window.
    pub nr: u64,
    /// Pages that it has apart from the window.
    pub low: u64,
    vcpus: u32,
    mailboxes: Option<Foreign>,
    alive: bool,
}

/// First gfn of a domain's window: 4 GiB and up, where no other domain, dom0
/// included, has memory. So an M2P entry alone tells whose a frame is.
pub fn window(index: u64) -> u64 {
    0x10_0000 + index * 0x8_0000
}

impl Domain {
    /// Create the `index`-th domain with a window of `nr` frames, populated in
    /// extents of 2 MiB if `large`.
    pub fn new(index: u64, vcpus: u32, nr: u64, large: bool, cpus: &[u32]) -> Result<Self> {
        let domid = control::create(vcpus)?;
        let low: Vec<u64> = (mailbox::IMAGE >> SHIFT..mailbox::LOW_END >> SHIFT).collect();
        let mut domain = Self {
            domid,
            index,
            base: window(index),
            nr,
            low: low.len() as u64,
            vcpus,
            mailboxes: None,
            alive: true,
        };
        control::populate(domid, 0, &low)?;
        let order = if large { 9 } else { 0 };
        let extents: Vec<u64> = (domain.base..domain.base + nr)
            .step_by(1 << order)
            .collect();
        control::populate(domid, order, &extents)?;
        domain.load(&low)?;
        for vcpu in 0..vcpus {
            let cpu = cpus[(index as usize + vcpu as usize) % cpus.len()];
            control::bind(domid, vcpu, cpu)?;
        }
        domain.start()?;
        Ok(domain)
    }

    fn load(&mut self, low: &[u64]) -> Result<()> {
        let memory = Foreign::all(self.domid, low)?;
        for i in 0..low.len() {
            for word in memory.frame(i) {
                word.store(0, Relaxed);
            }
        }
        memory.put(0, IMAGE);
        // Identity mapped: the first GiB, and the two that the window is in.
        const TABLE: u64 = 3;
        const LARGE: u64 = 0x83;
        let table = |n: u64| ((mailbox::TABLES - mailbox::IMAGE) >> SHIFT) as usize + n as usize;
        let address = |n: u64| (mailbox::TABLES + (n << SHIFT)) | TABLE;
        memory.frame(table(0))[0].store(address(1), Relaxed);
        let first = self.base >> 18;
        for (n, gib) in [0, first, first + 1].into_iter().enumerate() {
            memory.frame(table(1))[gib as usize].store(address(2 + n as u64), Relaxed);
            for entry in 0..512 {
                let value = ((gib << 30) + (entry << 21)) | LARGE;
                memory.frame(table(2 + n as u64))[entry as usize].store(value, Relaxed);
            }
        }
        let pages: Vec<u64> = (0..self.vcpus.into())
            .map(|v| (mailbox::MAILBOXES >> SHIFT) + v)
            .collect();
        self.mailboxes = Some(Foreign::all(self.domid, &pages)?);
        Ok(())
    }

    /// Let the vCPUs start in long mode, at the entry of the image.
    fn start(&self) -> Result<()> {
        let saved = control::hvm_context(self.domid)?;
        // Only Xen knows what goes into the header.
        let mut state = saved
            .get(..8 + HEADER)
            .context("no state of a domain")?
            .to_vec();
        for vcpu in 0..self.vcpus {
            let mut cpu = [0u8; CPU];
            let mut put = |offset: usize, value: u64, bytes: usize| {
                cpu[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            };
            let mailbox = mailbox::MAILBOXES + (u64::from(vcpu) << SHIFT);
            let stack = mailbox::STACKS + (u64::from(vcpu) + 1) * 0x4000 - 8;
            put(512 + 6 * 8, mailbox, 8);
            put(512 + 7 * 8, stack, 8);
            put(640, mailbox::IMAGE, 8);
            put(648, 0x202, 8);
            put(656, 0x8001_0033, 8);
            put(672, mailbox::TABLES, 8);
            put(680, 0x620, 8);
            put(720, 0xffff_0ff0, 8);
            put(728, 0x400, 8);
            for (i, selector) in [8, 16, 16, 16, 16, 16].into_iter().enumerate() {
                put(736 + 4 * i, selector, 4);
                put(768 + 4 * i, 0xffff_ffff, 4);
            }
            put(792, 0x67, 4);
            for (i, rights) in [0xa9b, 0xc93, 0xc93, 0xc93, 0xc93, 0xc93, 0x8b]
                .into_iter()
                .enumerate()
            {
                put(888 + 4 * i, rights, 4);
            }
            put(992, 0x500, 8);
            state.extend(u16::to_le_bytes(2));
            state.extend((vcpu as u16).to_le_bytes());
            state.extend((CPU as u32).to_le_bytes());
            state.extend(cpu);
        }
        state.extend([0; 8]);
        control::set_hvm_context(self.domid, &state)?;
        control::unpause(self.domid)
    }

    /// A vCPU's mailbox.
    pub fn mailbox(&self, vcpu: u32) -> &Mailbox {
        static NONE: Mailbox = Mailbox::new();
        match &self.mailboxes {
            // SAFETY: the mailbox consists of atomics.
            Some(pages) => unsafe { pages.shared(vcpu as usize) },
            None => &NONE,
        }
    }

    /// Every vCPU's.
    pub fn all(&self) -> impl Iterator<Item = &Mailbox> {
        (0..self.vcpus).map(|v| self.mailbox(v))
    }

    /// Let a vCPU begin.
    pub fn run(&self, vcpu: u32, command: u64, args: &[u64]) {
        let m = self.mailbox(vcpu);
        for (slot, value) in m.arg.iter().zip(args) {
            slot.store(*value, Relaxed);
        }
        for slot in m.result.iter().chain(&m.gaps).chain(&m.errors) {
            slot.store(0, Relaxed);
        }
        m.stop.store(0, Relaxed);
        m.command.store(command, Release);
    }

    /// Wait for a vCPU's end; `stop` tells it to.
    pub fn wait(&self, vcpu: u32, stop: bool, limit: Duration) -> Result<()> {
        let m = self.mailbox(vcpu);
        m.stop.store(stop.into(), Relaxed);
        let start = Instant::now();
        while m.command.load(Acquire) != 0 {
            self.check_alive()?;
            ensure!(
                start.elapsed() < limit,
                "vCPU {vcpu} of d{} hangs",
                self.domid
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// An error if the domain crashed.
    pub fn check_alive(&self) -> Result<()> {
        let living = control::info(self.domid)?.is_some_and(|(_, alive)| alive);
        ensure!(living, "d{} crashed", self.domid);
        Ok(())
    }

    /// Pages that it has.
    pub fn pages(&self) -> Result<u64> {
        Ok(control::info(self.domid)?.context("no such domain")?.0)
    }

    /// Every gfn of its window.
    pub fn gfns(&self) -> Vec<u64> {
        (self.base..self.base + self.nr).collect()
    }

    /// Destroy it.
    pub fn destroy(&mut self) -> Result<()> {
        self.mailboxes = None;
        if std::mem::take(&mut self.alive) {
            control::destroy(self.domid)?;
        }
        Ok(())
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let _ = self.destroy();
    }
}
