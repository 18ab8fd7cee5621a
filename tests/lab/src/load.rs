// SPDX-License-Identifier: GPL-2.0-only

//! Any build of the driver: in a plain VM with Debian's kernel it loads, answers as it
//! must where there is no hypervisor, and can be unloaded; on the patched Xen it
//! passes the selftests.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::channel::Channel;
use crate::check;
use crate::driver::Amount;
use crate::images;
use crate::mock;
use crate::paths;
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
    check::guest_tests(tally, "load", host, "vmbeam_test");
    check::guest_tests(tally, "load", host, "vmbeam_half");
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
    plain(tally, module, &paths::modules().join("vmlinuz"), "0");
}

/// In a plain VM with a kernel older than 7.3, where the module keeps itself loaded.
pub fn pinned(tally: &mut Tally, module: &Path, kernel: &Path) {
    plain(tally, module, kernel, "1");
}

fn plain(tally: &mut Tally, module: &Path, kernel: &Path, rmmod: &str) {
    let booted = images::load(module)
        .and_then(|()| mock::boot_kernel(kernel, "load", &Amount::COVERAGE, "", &[]));
    let text = match booted {
        Ok(text) => text,
        Err(e) => return tally.enter("load", "a plain VM boots", Err(e)),
    };
    for line in text.lines().filter(|l| l.starts_with("not ok ")) {
        println!("    {line}");
    }
    tally.lines("load", &text);
    for (step, code) in [("insmod", "0"), ("vmbeam_test", "0"), ("rmmod", rmmod)] {
        tally.case("load", &format!("{step}: exit status {code}"), || {
            let end = format!("END {step} {code}");
            ensure!(text.lines().any(|l| l == end), "{}", text.trim());
            Ok(())
        });
    }
}
