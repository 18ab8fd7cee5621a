// SPDX-License-Identifier: GPL-2.0-only

//! What runs in the domains: no operating system, no interrupts. Every vCPU waits
//! for commands in its mailbox. A fault of any kind is a triple fault, which ends
//! the domain, which the test notices.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

#[path = "../src/mailbox.rs"]
#[allow(dead_code, reason = "some of it is for the other side")]
mod mailbox;

use mailbox::Mailbox;

const PAGE: u64 = 4096;
const MEMORY_OP: u64 = 12;
const GRANT_TABLE_OP: u64 = 20;
const SCHED_OP: u64 = 29;
const DECREASE_RESERVATION: u64 = 1;
const POPULATE_PHYSMAP: u64 = 6;
const SWAP_FRAMES: u64 = 48;
const DOMID_SELF: u16 = 0x7ff0;
/// One page that becomes Xen's hypercall page.
const HYPERCALLS: u64 = 0x1f_0000;
const MSR_HYPERCALLS: u32 = 0x4000_0000;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: an undefined instruction ends the domain.
        unsafe { asm!("ud2") }
    }
}

#[no_mangle]
#[link_section = ".text.start"]
extern "C" fn start(m: &'static Mailbox) -> ! {
    // SAFETY: the MSR takes the address of a page of ours, which nothing else uses.
    unsafe {
        asm!("wrmsr", in("ecx") MSR_HYPERCALLS, in("eax") HYPERCALLS as u32, in("edx") 0);
    }
    loop {
        match m.command.load(Acquire) {
            0 => {
                hypercall(SCHED_OP, 0, 0, 0);
                continue;
            }
            mailbox::WRITE => write(m),
            mailbox::COUNT => count(m),
            mailbox::BALLOON => balloon(m),
            mailbox::GRANT => grant(m),
            mailbox::FUZZ => fuzz(m),
            mailbox::EMULATE => emulate(m),
            mailbox::WATCH => watch(m),
            _ => {}
        }
        m.command.store(0, Release);
    }
}

fn hypercall(op: u64, a: u64, b: u64, c: u64) -> i64 {
    let result;
    // SAFETY: the page has an entry of 32 bytes for each hypercall.
    unsafe {
        asm!("call {}", in(reg) HYPERCALLS + op * 32, inout("rdi") a => _,
            inout("rsi") b => _, inout("rdx") c => _, out("rax") result, out("rcx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

fn arg(m: &Mailbox, index: usize) -> u64 {
    m.arg[index].load(Relaxed)
}

fn stopped(m: &Mailbox) -> bool {
    m.stop.load(Relaxed) != 0
}

/// A word of a frame.
fn word(frame: u64, index: u64) -> *mut u64 {
    (frame + index * 8) as *mut u64
}

/// Read-modify-write in one instruction, without LOCK: it is exact if nobody else
/// can reach the frame, and loses counts if somebody can.
fn increment(at: *mut u64) {
    // SAFETY: a word of a frame that the program told us to write to.
    unsafe { asm!("inc qword ptr [{}]", in(reg) at, options(nostack)) }
}

fn read(at: *mut u64) -> u64 {
    // SAFETY: as above.
    unsafe { at.read_volatile() }
}

fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Arguments: address, frames, own slot, shared word, bit mask of the slots of others.
/// Results: writes, checks, frames of ours that somebody else wrote to.
fn write(m: &Mailbox) {
    /// So few that their translations stay in the TLB.
    const GROUP: u64 = 64;
    let (base, nr, slot, shared) = (arg(m, 0), arg(m, 1), arg(m, 2), arg(m, 3));
    let (mut writes, mut checks, mut wrong) = (0, 0, 0);
    let mut group = 0;
    while !stopped(m) {
        for pass in 0..64 {
            let end = (group + GROUP).min(nr);
            for frame in group..end {
                increment(word(base + frame * PAGE, slot));
                increment(word(base + frame * PAGE, shared));
                writes += 1;
            }
            let checked = foreign_write(m, base + (group + pass % (end - group)) * PAGE);
            checks += u64::from(checked.is_some());
            wrong += u64::from(checked == Some(true));
        }
        group = if group + GROUP >= nr { 0 } else { group + GROUP };
        for (index, value) in [writes, checks, wrong].into_iter().enumerate() {
            m.result[index].store(value, Relaxed);
        }
    }
}

/// While no swap runs, nobody but this domain may write to its frame. None if a
/// swap ran meanwhile.
fn foreign_write(m: &Mailbox, frame: u64) -> Option<bool> {
    let others = arg(m, 4);
    let sum = || -> u64 {
        (0..64)
            .filter(|i| others >> i & 1 != 0)
            .fold(read(word(frame, 0)), |s, i| s.wrapping_add(read(word(frame, i))))
    };
    let begun = m.begun.load(Acquire);
    if m.ended.load(Acquire) != begun {
        return None;
    }
    let before = sum();
    for _ in 0..50 {
        core::hint::spin_loop();
    }
    let after = sum();
    (m.begun.load(Acquire) == begun).then_some(before != after)
}

/// Arguments: address, frames, word of the other domain, seed. Results: looks at a frame that
/// stayed, those in which the other domain wrote to it.
fn watch(m: &Mailbox) {
    /// As long as a batch may take, in instructions. Whoever touches a frame while there is
    /// no entry for it waits for the end of the batch, so most of the time none is touched.
    const BATCH: u64 = 1 << 21;
    /// The other one writes to each of its frames meanwhile.
    const TURN: u64 = 4096;
    let (base, nr, other) = (arg(m, 0), arg(m, 1), arg(m, 2));
    let mut random = Random(arg(m, 3));
    let (mut looks, mut wrong) = (0, 0);
    while !stopped(m) {
        delay(random.below(BATCH));
        // Leaving guest mode takes an emulator's translations away, so that the frame is
        // looked up anew.
        hypercall(SCHED_OP, 0, 0, 0);
        let frame = base + random.below(nr) * PAGE;
        let begun = m.begun.load(Acquire);
        let (id, before) = (read(word(frame, 0)), read(word(frame, other)));
        delay(TURN);
        let after = read(word(frame, other));
        // The same frame, and no swap began: it has been ours all the time.
        if read(word(frame, 0)) == id && m.begun.load(Acquire) == begun {
            looks += 1;
            wrong += u64::from(after != before);
        }
        m.result[0].store(looks, Relaxed);
        m.result[1].store(wrong, Relaxed);
    }
}

/// Spend about so many instructions.
fn delay(instructions: u64) {
    // SAFETY: counts a register down.
    unsafe {
        asm!("2:", "sub {0}, 2", "ja 2b", inout(reg) instructions | 1 => _, options(nostack, nomem))
    }
}

/// Arguments: address, frames to write to in turn (none: only count), word.
/// Results: rounds, longest gap, time stamp now, writes.
fn count(m: &Mailbox) {
    let (base, nr, slot) = (arg(m, 0), arg(m, 1), arg(m, 2));
    let (mut rounds, mut longest, mut last) = (0u64, 0, tsc());
    while !stopped(m) {
        if nr != 0 {
            increment(word(base + rounds * 97 % nr * PAGE, slot));
        }
        rounds += 1;
        let now = tsc();
        let gap = now.wrapping_sub(last);
        last = now;
        let class = &m.gaps[63 - (gap | 1).leading_zeros() as usize];
        class.store(class.load(Relaxed) + 1, Relaxed);
        if gap > longest {
            longest = gap;
            m.result[1].store(longest, Relaxed);
        }
        m.result[0].store(rounds, Relaxed);
        m.result[2].store(now, Relaxed);
    }
    m.result[3].store(if nr != 0 { rounds } else { 0 }, Relaxed);
}

#[repr(C)]
struct Reservation {
    extents: *const u64,
    nr: u64,
    order: u32,
    flags: u32,
    domid: u16,
}

fn reservation(op: u64, gfn: u64, order: u32) -> i64 {
    let r = Reservation { extents: &gfn, nr: 1, order, flags: 0, domid: DOMID_SELF };
    hypercall(MEMORY_OP, op, &raw const r as u64, 0)
}

/// Arguments: first gfn, frames, seed. Results: extents given back, attempts to
/// populate that failed.
fn balloon(m: &Mailbox) {
    let (base, nr) = (arg(m, 0), arg(m, 1));
    let mut random = Random(arg(m, 2));
    let (mut gone, mut failed) = (0, 0);
    while !stopped(m) {
        let order = if nr >= 512 && random.below(8) == 0 { 9 } else { 0 };
        let gfn = base + (random.below(nr >> order) << order);
        if reservation(DECREASE_RESERVATION, gfn, order) == 1 {
            gone += 1;
        }
        while reservation(POPULATE_PHYSMAP, gfn, order) != 1 {
            // Some of a large extent may be populated already: do it by frames.
            if order != 0 {
                for frame in gfn..gfn + (1 << order) {
                    reservation(DECREASE_RESERVATION, frame, 0);
                    while reservation(POPULATE_PHYSMAP, frame, 0) != 1 {
                        failed += 1;
                    }
                }
                break;
            }
            failed += 1;
        }
        m.result[0].store(gone, Relaxed);
        m.result[1].store(failed, Relaxed);
    }
}

#[repr(C)]
struct Map {
    address: u64,
    flags: u32,
    reference: u32,
    domid: u16,
    status: i16,
    handle: u32,
    bus: u64,
}

#[repr(C)]
struct Unmap {
    address: u64,
    bus: u64,
    handle: u32,
    status: i16,
}

/// Arguments: domain, first reference, references, address to map at, own slot,
/// seed. Results: writes, mappings refused, frames that changed while mapped.
fn grant(m: &Mailbox) {
    const HOST_MAP: u32 = 2;
    let (domid, first, nr, at, slot) = (arg(m, 0) as u16, arg(m, 1), arg(m, 2), arg(m, 3), arg(m, 4));
    let mut random = Random(arg(m, 5));
    let (mut writes, mut refused, mut moved) = (0, 0, 0);
    while !stopped(m) {
        let reference = (first + random.below(nr)) as u32;
        let mut map = Map { address: at, flags: HOST_MAP, reference, domid, status: 0, handle: 0, bus: 0 };
        let rc = hypercall(GRANT_TABLE_OP, 0, &raw mut map as u64, 1);
        // SAFETY: the hypercall has written it.
        let status = unsafe { (&raw const map.status).read_volatile() };
        if rc != 0 || status != 0 {
            refused += 1;
            continue;
        }
        let id = read(word(at, 0));
        for _ in 0..20 {
            increment(word(at, slot));
            writes += 1;
        }
        moved += u64::from(read(word(at, 0)) != id);
        let handle = unsafe { (&raw const map.handle).read_volatile() };
        let mut unmap = Unmap { address: at, bus: 0, handle, status: 0 };
        hypercall(GRANT_TABLE_OP, 1, &raw mut unmap as u64, 1);
        for (index, value) in [writes, refused, moved].into_iter().enumerate() {
            m.result[index].store(value, Relaxed);
        }
    }
}

/// Arguments: seed, calls, two domids. Results: calls, those that did not fail.
fn fuzz(m: &Mailbox) {
    static ARGUMENTS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];
    let mut random = Random(arg(m, 0));
    let (a, b) = (arg(m, 2), arg(m, 3));
    let base = ARGUMENTS.as_ptr() as u64;
    let mut passed = 0;
    for call in 0..arg(m, 1) {
        let domid = |r: &mut Random| match r.below(8) {
            0 => r.next() & 0xffff,
            1 => 0,
            2 => DOMID_SELF.into(),
            n if n & 1 == 0 => a,
            _ => b,
        };
        let pairs = 1 + random.below(4);
        let fields = [
            domid(&mut random) | domid(&mut random) << 16 | random.below(2) << 32,
            1 | arg(m, 4) << 32,
            base + 2048,
            base + 4096,
            pairs,
            0,
        ];
        for (i, slot) in ARGUMENTS.iter().take(17).enumerate() {
            slot.store(fields.get(i).copied().unwrap_or(0), Relaxed);
        }
        for (i, value) in [0x10_0000, 0x18_0000, pairs].into_iter().enumerate() {
            ARGUMENTS[256 + i].store(value, Relaxed);
        }
        for _ in 0..random.below(3) {
            let value = match random.below(4) {
                0 => random.next(),
                1 => 1 << random.below(64),
                2 => u64::MAX - random.below(16),
                _ => random.below(0x1000),
            };
            ARGUMENTS[random.below(9) as usize].store(value, Relaxed);
        }
        let pointer = match random.below(16) {
            0 => random.next(),
            1 => 0x8000_0000_0000_0000 | random.next(),
            2 => 0x3fff_f000 + random.below(4096),
            _ => base,
        };
        let extent = if random.below(8) == 0 { random.next() << 6 } else { 0 };
        let rc = hypercall(MEMORY_OP, SWAP_FRAMES | extent, pointer, 0);
        let class = &m.errors[if rc < 0 { (-rc).min(127) as usize } else { 0 }];
        class.store(class.load(Relaxed) + 1, Relaxed);
        passed += u64::from(rc >= 0);
        m.result[0].store(call + 1, Relaxed);
        m.result[1].store(passed, Relaxed);
    }
}

/// Store a value to some words by one instruction that the hypervisor emulates, which
/// the prefix asks for. Without the hypervisor's option it is a fault.
fn emulated_store(to: u64, words: u64, value: u64) {
    // SAFETY: words that the program told us to write to.
    unsafe {
        asm!("ud2", ".ascii \"xen\"", "rep stosq", inout("rdi") to => _,
            inout("rcx") words => _, in("rax") value, options(nostack));
    }
}

/// Copy words in the same way.
fn emulated_copy(to: u64, from: u64, words: u64) {
    // SAFETY: as above.
    unsafe {
        asm!("ud2", ".ascii \"xen\"", "rep movsq", inout("rdi") to => _,
            inout("rsi") from => _, inout("rcx") words => _, options(nostack));
    }
}

/// Arguments: address, frames, first word, chunks of a frame, value. Frame after frame,
/// chunk after chunk: read the number, store the value, copy the value.
/// Results: chunks written, numbers that were none.
fn emulate(m: &Mailbox) {
    static BUFFER: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    const HALF: u64 = mailbox::CHUNK / 2;
    let (base, nr, first, chunks, value) = (arg(m, 0), arg(m, 1), arg(m, 2), arg(m, 3), arg(m, 4));
    let buffer = BUFFER.as_ptr() as u64;
    let (mut written, mut invented) = (0, 0);
    for chunk in 0..chunks {
        for index in 0..nr {
            if stopped(m) {
                return;
            }
            let frame = base + index * PAGE;
            emulated_copy(buffer, frame, HALF);
            let number = BUFFER[0].swap(value, Relaxed);
            BUFFER[1].store(value, Relaxed);
            // Whichever domain's it was at first.
            invented += u64::from(number & !(0xff << 32) != mailbox::NUMBER | index);

            let words = word(frame, first + chunk * mailbox::CHUNK) as u64;
            emulated_store(words, HALF, value);
            emulated_copy(words + HALF * 8, buffer, HALF);
            written += 1;
            m.result[0].store(written, Relaxed);
            m.result[1].store(invented, Relaxed);
        }
    }
}
