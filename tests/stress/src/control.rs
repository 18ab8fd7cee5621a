// SPDX-License-Identifier: GPL-2.0-only

//! The hypervisor's operations that the tests use: of Xen 4.20, as the lab has it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;
use nix::errno::Errno;

use crate::xen;
use crate::xen::Buffer;
use crate::xen::PAGE;

/// `__HYPERVISOR_memory_op`
pub const MEMORY_OP: u64 = 12;
const HVM_OP: u64 = 34;
const SYSCTL: u64 = 35;
const DOMCTL: u64 = 36;
const DM_OP: u64 = 41;
const DOMCTL_VERSION: u32 = 0x17;
const SYSCTL_VERSION: u32 = 0x15;

/// Space for the union of a domctl.
pub type Payload = [u8; 128];

/// Build a payload from 64-bit words at offsets.
pub fn payload(words: &[(usize, u64)]) -> Payload {
    let mut p = [0; 128];
    for (offset, value) in words {
        p[*offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    p
}

fn get32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[offset + i]))
}

fn get64(bytes: &[u8], offset: usize) -> u64 {
    u64::from(get32(bytes, offset)) | (u64::from(get32(bytes, offset + 4)) << 32)
}

/// A domctl; gives the result, negative for an error, and the domid that came back.
pub fn raw_domctl(cmd: u32, domid: u16, union: &mut Payload) -> Result<(i64, u16)> {
    let mut op = [0u8; 144];
    op[..4].copy_from_slice(&cmd.to_le_bytes());
    op[4..8].copy_from_slice(&DOMCTL_VERSION.to_le_bytes());
    op[8..10].copy_from_slice(&domid.to_le_bytes());
    op[16..].copy_from_slice(union);
    let rc = xen::call(DOMCTL, 0, &mut op, false)?;
    union.copy_from_slice(&op[16..]);
    Ok((rc, u16::from_le_bytes([op[8], op[9]])))
}

fn domctl(cmd: u32, domid: u16, union: &mut Payload) -> Result<u16> {
    let (rc, out) = raw_domctl(cmd, domid, union)?;
    ensure!(rc == 0, "domctl {cmd} of d{domid}: {}", error(rc));
    Ok(out)
}

/// Name of a result.
pub fn error(rc: i64) -> String {
    if rc >= 0 {
        rc.to_string()
    } else {
        format!("{:?}", Errno::from_raw(-rc as i32))
    }
}

/// Create an HVM domain with hardware-assisted paging, paused, without memory.
pub fn create(vcpus: u32) -> Result<u16> {
    create_as(0, vcpus)
}

/// The same with a label of FLASK's, by its number.
pub fn create_as(sid: u32, vcpus: u32) -> Result<u16> {
    const HVM_HAP: u32 = 3;
    let mut p = [0; 128];
    for (offset, value) in [
        (0, sid),
        (20, HVM_HAP),
        (28, vcpus),
        (36, 4),
        (40, 16),
        (44, 1),
        (60, 1),
    ] {
        p[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    let domid = domctl(1, 0, &mut p)?;
    domctl(15, domid, &mut payload(&[(0, vcpus.into())]))?;
    domctl(86, domid, &mut payload(&[(0, 16 << 20)]))?;
    domctl(11, domid, &mut payload(&[(0, u64::MAX >> 12)]))?;
    // Never emulate the time stamp counter.
    domctl(60, domid, &mut payload(&[(0, 2)]))?;
    Ok(domid)
}

/// Destroy a domain.
pub fn destroy(domid: u16) -> Result<()> {
    loop {
        let (rc, _) = raw_domctl(2, domid, &mut payload(&[]))?;
        if rc != -(Errno::EAGAIN as i64) {
            ensure!(rc == 0, "destroying d{domid}: {}", error(rc));
            return Ok(());
        }
    }
}

/// Pause a domain.
pub fn pause(domid: u16) -> Result<()> {
    domctl(3, domid, &mut payload(&[])).map(drop)
}

/// Undo one pause.
pub fn unpause(domid: u16) -> Result<()> {
    domctl(4, domid, &mut payload(&[])).map(drop)
}

/// Pages of a domain and whether it lives; none if there is no such domain.
pub fn info(domid: u16) -> Result<Option<(u64, bool)>> {
    let mut p = payload(&[]);
    let (rc, out) = raw_domctl(5, domid, &mut p)?;
    let flags = get32(&p, 4);
    Ok((rc == 0 && out == domid).then(|| (get64(&p, 8), flags & 5 == 0)))
}

/// Let a domain be the device model of another, and so map frames of that one.
pub fn set_target(domid: u16, target: u16) -> Result<()> {
    domctl(46, domid, &mut payload(&[(0, target.into())])).map(drop)
}

/// Bind a vCPU to a CPU.
pub fn bind(domid: u16, vcpu: u32, cpu: u32) -> Result<()> {
    let map = Buffer::new(1)?;
    map.put(0, &(1u64 << cpu).to_le_bytes());
    let words = [
        (0, u64::from(vcpu) | (1 << 32)),
        (8, map.address()),
        (16, 64),
        (24, map.address()),
        (32, 64),
    ];
    domctl(9, domid, &mut payload(&words)).map(drop)
}

/// Log-dirty and its like: the result as it comes.
pub fn shadow_op(domid: u16, op: u32, bitmap: &Buffer, pages: u64) -> Result<i64> {
    let words = [(0, u64::from(op)), (16, bitmap.address()), (24, pages)];
    Ok(raw_domctl(10, domid, &mut payload(&words))?.0)
}

/// The saved state of a domain's virtual hardware.
pub fn hvm_context(domid: u16) -> Result<Vec<u8>> {
    let mut p = payload(&[]);
    domctl(33, domid, &mut p)?;
    let size = get32(&p, 0) as usize;
    let buffer = Buffer::new(size.div_ceil(PAGE))?;
    let mut p = payload(&[(0, size as u64), (8, buffer.address())]);
    domctl(33, domid, &mut p)?;
    let mut bytes = vec![0; get32(&p, 0) as usize];
    buffer.get(0, &mut bytes);
    Ok(bytes)
}

/// Load state of a domain's virtual hardware.
pub fn set_hvm_context(domid: u16, bytes: &[u8]) -> Result<()> {
    let buffer = Buffer::new(bytes.len().div_ceil(PAGE))?;
    buffer.put(0, bytes);
    let words = [(0, bytes.len() as u64), (8, buffer.address())];
    domctl(34, domid, &mut payload(&words)).map(drop)
}

/// Xen's own audit: orphans, wrong M2P entries, wrong P2M entries. None if it is
/// not compiled in, which it is with assertions only.
pub fn audit(domid: u16) -> Result<Option<[u64; 3]>> {
    let mut p = payload(&[]);
    let (rc, _) = raw_domctl(65, domid, &mut p)?;
    if rc == -(Errno::ENOSYS as i64) || rc == -(Errno::EOPNOTSUPP as i64) {
        return Ok(None);
    }
    ensure!(rc == 0, "audit of d{domid}: {}", error(rc));
    Ok(Some([0, 8, 16].map(|o| get64(&p, o))))
}

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs.
    pub cpus: u32,
    /// Free pages, those that are still to be scrubbed included.
    pub free: u64,
    /// Pages that were claimed and not taken.
    pub claimed: u64,
}

/// Ask what the host has.
pub fn host() -> Result<Host> {
    let mut op = [0u8; 136];
    op[..4].copy_from_slice(&3u32.to_le_bytes());
    op[4..8].copy_from_slice(&SYSCTL_VERSION.to_le_bytes());
    let rc = xen::call(SYSCTL, 0, &mut op, false)?;
    ensure!(rc == 0, "physinfo: {}", error(rc));
    Ok(Host {
        cpus: get32(&op, 16),
        free: get64(&op, 56),
        claimed: get64(&op, 72),
    })
}

/// What [`page_offline`] can do.
pub const OFFLINE: u32 = 1;
/// Take a frame back into use.
pub const ONLINE: u32 = 2;
/// Ask what state it is in.
pub const QUERY: u32 = 3;

/// Take a frame offline, back online, or ask; the status that the hypervisor gives.
pub fn page_offline(cmd: u32, frame: u64) -> Result<u32> {
    const PAGE_OFFLINE_OP: u32 = 14;
    let status = Buffer::new(1)?;
    let mut op = [0u8; 136];
    op[..4].copy_from_slice(&PAGE_OFFLINE_OP.to_le_bytes());
    op[4..8].copy_from_slice(&SYSCTL_VERSION.to_le_bytes());
    op[8..12].copy_from_slice(&cmd.to_le_bytes());
    let number = u32::try_from(frame)?.to_le_bytes();
    op[12..16].copy_from_slice(&number);
    op[16..20].copy_from_slice(&number);
    op[24..32].copy_from_slice(&status.address().to_le_bytes());
    let rc = xen::call(SYSCTL, 0, &mut op, false)?;
    ensure!(
        rc == 0,
        "page_offline_op {cmd} of {frame:#x}: {}",
        error(rc)
    );
    let mut bytes = [0; 4];
    status.get(0, &mut bytes);
    Ok(u32::from_le_bytes(bytes))
}

/// Frames of the parts of the M2P table that it is mapped in; for a part that is not
/// there the hypervisor names the one before it again.
pub fn machphys_parts() -> Result<Vec<u64>> {
    const MACHPHYS_MFN_LIST: u64 = 5;
    let buffer = Buffer::new(1)?;
    let mut op = [0u8; 24];
    op[..4].copy_from_slice(&((PAGE / 8) as u32).to_le_bytes());
    op[8..16].copy_from_slice(&buffer.address().to_le_bytes());
    let rc = xen::call(MEMORY_OP, MACHPHYS_MFN_LIST, &mut op, true)?;
    ensure!(rc == 0, "machphys_mfn_list: {}", error(rc));
    let words = &buffer.words()[..get32(&op, 16) as usize];
    Ok(words.iter().map(|w| w.load(Relaxed)).collect())
}

/// Populate or decrease a reservation; gives how many extents were done.
pub fn reserve(op: u64, domid: u16, order: u32, gfns: &[u64]) -> Result<i64> {
    reserve_with(op, domid, order, gfns, 0)
}

fn reserve_with(op: u64, domid: u16, order: u32, gfns: &[u64], flags: u32) -> Result<i64> {
    let buffer = Buffer::new((gfns.len() * 8).div_ceil(PAGE))?;
    for (i, gfn) in gfns.iter().enumerate() {
        buffer.put(i * 8, &gfn.to_le_bytes());
    }
    let mut r = [0u8; 32];
    r[..8].copy_from_slice(&buffer.address().to_le_bytes());
    r[8..16].copy_from_slice(&(gfns.len() as u64).to_le_bytes());
    r[16..20].copy_from_slice(&order.to_le_bytes());
    r[20..24].copy_from_slice(&flags.to_le_bytes());
    r[24..26].copy_from_slice(&domid.to_le_bytes());
    xen::call(MEMORY_OP, op, &mut r, true)
}

/// `XENMEM_decrease_reservation`
pub const DECREASE: u64 = 1;
/// `XENMEM_populate_physmap`
pub const POPULATE: u64 = 6;

/// Populate frames, all or an error.
pub fn populate(domid: u16, order: u32, gfns: &[u64]) -> Result<()> {
    let done = reserve(POPULATE, domid, order, gfns)?;
    ensure!(
        done == gfns.len() as i64,
        "populating d{domid}: {} of {} extents",
        error(done),
        gfns.len()
    );
    Ok(())
}

/// Let frames be populated on demand, all or an error.
pub fn populate_on_demand(domid: u16, gfns: &[u64]) -> Result<()> {
    const ON_DEMAND: u32 = 1 << 16;
    let done = reserve_with(POPULATE, domid, 0, gfns, ON_DEMAND)?;
    let all = done == gfns.len() as i64;
    ensure!(all, "on demand, for d{domid}: {}", error(done));
    Ok(())
}

/// What a domain has for populating on demand, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// All that it has, these included.
    pub pages: u64,
    /// Those that are nowhere yet.
    pub cache: u64,
    /// Places without one.
    pub entries: u64,
}

/// Ask; with `fill` it gets as many as it has places for.
pub fn demand(domid: u16, fill: bool) -> Result<Demand> {
    const SET: u64 = 16;
    const GET: u64 = 17;
    let mut op = [0u8; 40];
    op[..8].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
    op[32..34].copy_from_slice(&domid.to_le_bytes());
    let rc = xen::call(MEMORY_OP, if fill { SET } else { GET }, &mut op, true)?;
    ensure!(rc == 0, "populate-on-demand of d{domid}: {}", error(rc));
    let [pages, cache, entries] = [8, 16, 24].map(|o| get64(&op, o));
    Ok(Demand {
        pages,
        cache,
        entries,
    })
}

/// Let a domain have its grant table at a gfn.
pub fn map_grant_table(domid: u16, gfn: u64) -> Result<()> {
    let mut op = [0u8; 24];
    op[..2].copy_from_slice(&domid.to_le_bytes());
    op[4..8].copy_from_slice(&1u32.to_le_bytes());
    op[16..].copy_from_slice(&gfn.to_le_bytes());
    let rc = xen::call(MEMORY_OP, 7, &mut op, true)?;
    ensure!(rc == 0, "grant table of d{domid}: {}", error(rc));
    Ok(())
}

/// Map a frame of one domain into another, or take it away again; result as it comes.
pub fn foreign(domid: u16, gfn: u64, of: Option<(u16, u64)>) -> Result<i64> {
    let Some((other, frame)) = of else {
        let mut op = [0u8; 16];
        op[..2].copy_from_slice(&domid.to_le_bytes());
        op[8..].copy_from_slice(&gfn.to_le_bytes());
        return xen::call(MEMORY_OP, 15, &mut op, true);
    };
    let arrays = Buffer::new(1)?;
    arrays.put(0, &frame.to_le_bytes());
    arrays.put(8, &gfn.to_le_bytes());
    let mut op = [0u8; 32];
    for (i, half) in [domid, 4, 1, other].into_iter().enumerate() {
        op[2 * i..2 * i + 2].copy_from_slice(&half.to_le_bytes());
    }
    for i in 0..3usize {
        let at = arrays.address() + 8 * i as u64;
        op[8 + 8 * i..16 + 8 * i].copy_from_slice(&at.to_le_bytes());
    }
    let rc = xen::call(MEMORY_OP, 23, &mut op, true)?;
    let mut status = [0; 4];
    arrays.get(16, &mut status);
    Ok(if rc < 0 {
        rc
    } else {
        i32::from_le_bytes(status).into()
    })
}

/// Types of memory for [`set_type`] and [`get_type`].
pub const RAM_RW: u16 = 0;
/// Read-only memory.
pub const RAM_RO: u16 = 1;

/// Change the type of frames; the result as it comes.
pub fn set_type(domid: u16, first: u64, nr: u32, kind: u16) -> Result<i64> {
    let page = Buffer::new(1)?;
    page.put(0, &12u64.to_le_bytes());
    page.put(8, &nr.to_le_bytes());
    page.put(12, &kind.to_le_bytes());
    page.put(16, &first.to_le_bytes());
    page.put(512, &page.address().to_le_bytes());
    page.put(520, &64u64.to_le_bytes());
    // SAFETY: the one buffer is on the page.
    unsafe { xen::hypercall(DM_OP, [domid.into(), 1, page.address() + 512, 0, 0]) }
}

/// Type of a frame.
pub fn get_type(domid: u16, gfn: u64) -> Result<u16> {
    const GET_MEM_TYPE: u64 = 15;
    let mut op = [0u8; 16];
    op[..2].copy_from_slice(&domid.to_le_bytes());
    op[8..].copy_from_slice(&gfn.to_le_bytes());
    let rc = xen::call(HVM_OP, GET_MEM_TYPE, &mut op, true)?;
    ensure!(rc == 0, "get_mem_type: {}", error(rc));
    Ok(u16::from_le_bytes([op[2], op[3]]))
}

/// Wait until the free memory of the host is this, or say what it is.
pub fn wait_free(expected: u64) -> Result<()> {
    for _ in 0..100 {
        let host = host()?;
        if host.free == expected && host.claimed == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let host = host()?;
    bail!(
        "{expected} pages were free before, {} are now, {} are claimed",
        host.free,
        host.claimed
    )
}

/// Free memory once it has not changed for a second: a domain that was destroyed
/// gives back the last of its memory later.
pub fn settled_free() -> Result<u64> {
    let mut free = host()?.free;
    let mut unchanged = 0;
    while unchanged < 10 {
        std::thread::sleep(Duration::from_millis(100));
        let now = host()?.free;
        unchanged = if now == free { unchanged + 1 } else { 0 };
        free = now;
    }
    Ok(free)
}
