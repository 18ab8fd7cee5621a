// SPDX-License-Identifier: GPL-2.0-only

//! Who pays for the lists: the memory cgroup of the caller.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::mount::mount;
use nix::mount::umount;
use nix::mount::MsFlags;
use vmbeam_uapi::sys;

use crate::device::DEVICE;
use crate::domains::Host;
use crate::race;
use crate::report::report;

/// Runs of the session. They do not merge, so each takes its own room.
const RUNS: u32 = 200_000;
/// Runs in a call.
const PART: u32 = 4096;
/// What a run takes, as Documentation/userspace-api/vmbeam.rst has it.
const RUN: u64 = 24;
/// What the kernel counts ahead for each CPU, and what the calls allocate besides.
const NOISE: u64 = 1 << 20;

/// Open files, and what the driver has for each at least: two structures of which either is
/// charged as 512 bytes at most.
const FILES: u64 = 8000;
const FILE: u64 = 600;

const MOUNT: &str = "/run/vmbeam-cgroup";

/// A memory cgroup with this process in it.
struct Group {
    path: PathBuf,
}

impl Group {
    fn enter() -> Result<Self> {
        fs::create_dir_all(MOUNT)?;
        mount(
            None::<&str>,
            MOUNT,
            Some("cgroup2"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cgroup2")?;
        let group = Self {
            path: Path::new(MOUNT).join("vmbeam"),
        };
        fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), "+memory")
            .context("no memory controller")?;
        fs::create_dir(&group.path)?;
        fs::write(group.path.join("cgroup.procs"), "0")?;
        Ok(group)
    }

    /// Bytes that are charged to the group.
    fn charged(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.path.join("memory.current"))?
            .trim()
            .parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An error would only leave the group where it is, until the machine stops.
        let _ = fs::write(Path::new(MOUNT).join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
        let _ = umount(MOUNT);
    }
}

/// Open files and fill a session, and see who pays.
pub fn run() -> Result<()> {
    println!("1..2");
    let good = [
        report(
            1,
            "the lists of a session are charged to its caller's memory cgroup",
            &charge(),
        ),
        report(2, "open files are charged as well", &files()),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

/// As many files of any other device are charged less, by what the driver has of its own for
/// each: the session and what its threads share.
fn files() -> Result<()> {
    let limit = nix::libc::rlimit {
        rlim_cur: FILES + 100,
        rlim_max: FILES + 100,
    };
    // SAFETY: It reads a structure that is there.
    let rc = unsafe { nix::libc::setrlimit(nix::libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(rc == 0, "the limit of open files cannot be raised");
    let group = Group::enter()?;
    let charged = |device: &str| -> Result<u64> {
        let before = group.charged()?;
        let files = (0..FILES)
            .map(|_| File::open(device))
            .collect::<Result<Vec<_>, _>>()
            .context("too many files")?;
        let charged = group.charged()?.saturating_sub(before);
        drop(files);
        Ok(charged)
    };
    // The first ones are charged for caches, too.
    charged("/dev/null")?;
    let own = charged(DEVICE)?.saturating_sub(charged("/dev/null")?) / FILES;
    println!("# {own} bytes of the driver's own are charged for an open file");
    ensure!(own >= FILE, "expected {FILE} bytes or more");
    Ok(())
}

fn charge() -> Result<()> {
    // Ours is charged to where we come from.
    let runs: Vec<sys::Run> = (0..RUNS)
        .map(|i| sys::Run {
            gfn_a: u64::from(i) * 2,
            gfn_b: u64::from(i) * 2,
            nr: 1,
            reserved: 0,
        })
        .collect();
    let host = Host::open()?;
    let [a, b] = [host.domain(1)?, host.domain(1)?];
    let group = Group::enter()?;
    let file = File::options().read(true).write(true).open(DEVICE)?;
    let before = group.charged()?;
    let mut open = sys::Bind {
        size: 32,
        domid_a: a.domid(),
        domid_b: b.domid(),
        ..Default::default()
    };
    race::ioctl(&file, sys::IOCTL_BIND, &mut open).context("BIND")?;
    for part in runs.chunks(PART as usize) {
        let mut add = sys::Add {
            size: 40,
            runs: part.as_ptr() as u64,
            nr_runs: part.len() as u32,
            ..Default::default()
        };
        race::ioctl(&file, sys::IOCTL_ADD, &mut add).context("ADD")?;
    }
    let full = group.charged()?.saturating_sub(before);
    let least = u64::from(RUNS) * RUN;
    // Lists double when they grow.
    let most = 2 * least + NOISE;
    ensure!(
        (least..=most).contains(&full),
        "{RUNS} runs: {full} bytes are charged, expected {least} to {most}"
    );
    drop(file);
    let left = group.charged()?.saturating_sub(before);
    ensure!(
        left <= NOISE,
        "{left} of {full} bytes are still charged after the file is closed"
    );
    println!("# {RUNS} runs: {full} bytes charged, {left} after the file is closed");
    Ok(())
}
