// SPDX-License-Identifier: GPL-2.0-only

//! Any build of the driver: in a plain VM with Debian's kernel it refuses to be loaded,
//! having nothing to do there; on the patched Xen it passes the selftests.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::channel::Channel;
use crate::driver::Amount;
use crate::images;
use crate::mock;
use crate::paths;
use crate::programs;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::SHORT;

/// Run it.
pub fn run(tally: &mut Tally, module: &Path, sizes: Sizes, progress: &Progress) {
    current(tally, module);
    match Topology::boot_host(sizes, &paths::xen(), progress) {
        Ok((topology, _)) => on_xen(tally, module, &topology.machine.host),
        Err(e) => tally.enter("load", "the patched hypervisor boots", Err(e)),
    }
}

/// In the host management VM.
pub fn on_xen(tally: &mut Tally, module: &Path, host: &Channel) {
    tally.case("load", "it is loaded in the host management VM", || {
        host.put(module, "/run/vmbeam.ko")?;
        host.sh("insmod /run/vmbeam.ko && test -c /dev/vmbeam", SHORT)?;
        Ok(())
    });
    programs::guest_tests(tally, "load", host, "vmbeam_test");
    programs::guest_tests(tally, "load", host, "vmbeam_half");
    tally.case("load", "its trace events are recorded", || {
        // What the selftest for them has left.
        let text = host.sh("grep ' vmbeam_' /sys/kernel/tracing/trace", SHORT)?;
        fs::write(paths::logs().join("trace.txt"), text)?;
        Ok(())
    });
    tally.case("load", "and unloaded", || {
        host.sh("rmmod vmbeam && ! test -e /dev/vmbeam", SHORT)?;
        Ok(())
    });
}

/// In a plain VM with the lab's kernel.
pub fn current(tally: &mut Tally, module: &Path) {
    let booted = images::load(module).and_then(|()| mock::boot("load", &Amount::COVERAGE, "", &[]));
    let text = match booted {
        Ok(text) => text,
        Err(e) => return tally.enter("load", "a plain VM boots", Err(e)),
    };
    tally.case("load", "without Xen it is not loaded", || {
        ensure!(text.contains("No such device"), "{}", text.trim());
        ensure!(text.lines().any(|l| l == "END insmod 1"), "{}", text.trim());
        Ok(())
    });
}
