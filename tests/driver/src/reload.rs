// SPDX-License-Identifier: GPL-2.0-only

//! Loading and unloading the module.

use std::fs::File;
use std::path::Path;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use nix::kmod::delete_module;
use nix::kmod::finit_module;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::ModuleInitFlags;

use crate::device::DEVICE;
use crate::report::report;
use crate::watch::Watch;

/// Loads before memory is counted: the first ones fill caches that stay.
const WARM: u32 = 3;

/// Unload and load the module, which must be loaded, this many times.
pub fn run(module: &Path, times: u32) -> Result<()> {
    println!("1..4");
    for _ in 0..WARM {
        again(module)?;
    }
    let mut watch = Watch::start()?;
    let all = (0..times)
        .try_for_each(|number| again(module).with_context(|| format!("time {number} of {times}")));
    let good = [
        report(
            1,
            &format!("the module is unloaded and loaded {times} times"),
            &all,
        ),
        report(
            2,
            "no warning of the kernel, no further taint",
            &watch.quiet(),
        ),
        report(3, "memory returns", &watch.memory()),
        report(4, "references to the module return", &watch.references()),
    ];
    ensure!(good.iter().all(|g| *g), "see above");
    Ok(())
}

fn again(module: &Path) -> Result<()> {
    let open = File::open(DEVICE).context(DEVICE)?;
    match delete_module(c"vmbeam", DeleteModuleFlags::O_NONBLOCK) {
        Err(Errno::EWOULDBLOCK | Errno::EBUSY) => {}
        other => bail!("with an open file: {other:?}, expected EWOULDBLOCK"),
    }
    drop(open);
    delete_module(c"vmbeam", DeleteModuleFlags::O_NONBLOCK).context("unload")?;
    ensure!(!Path::new(DEVICE).exists(), "{DEVICE} is still there");
    finit_module(File::open(module)?, c"", ModuleInitFlags::empty()).context("load")?;
    ensure!(Path::new(DEVICE).exists(), "no {DEVICE}");
    Ok(())
}
