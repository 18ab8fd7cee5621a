// SPDX-License-Identifier: GPL-2.0-only

//! What the packages hold, on a host: the hypervisor is booted, the driver that DKMS built
//! is loaded on it, and the toolstack saves and restores a guest.

use anyhow::Result;

use crate::channel::Channel;
use crate::load;
use crate::paths;
use crate::programs;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::toolstack;
use crate::toolstack::PATCHED;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::SHORT;

/// What the image of the host management VM has of the toolstack that is built without
/// packages, and what the hypervisor's own test needs.
const FILES: [&str; 7] = [
    "usr/lib/xen-4.20/bin/xl",
    "usr/lib/xen-4.20/bin/libxl-save-helper",
    "usr/lib/xen-4.20/bin/test-mem-swap",
    "usr/lib/x86_64-linux-gnu/libxenctrl.so.4.20",
    "usr/lib/x86_64-linux-gnu/libxenguest.so.4.20",
    "usr/lib/x86_64-linux-gnu/libxenlight.so.4.20",
    "usr/lib/x86_64-linux-gnu/libxlutil.so.4.20",
];

/// Run it.
pub fn run(tally: &mut Tally, sizes: Sizes, progress: &Progress) {
    let module = paths::dkms_driver();
    load::current(tally, &module);
    match Topology::boot_host(sizes, &paths::packaged_xen(), progress) {
        Ok((topology, _)) => {
            let host = &topology.machine.host;
            tally.enter("package", "the packaged hypervisor boots", Ok(()));
            load::on_xen(tally, &module, host);
            tally.case("package", "put the packaged toolstack in place", || {
                put(host)
            });
            programs::guest_command(
                tally,
                "package",
                host,
                "test-mem-swap",
                &format!("LD_LIBRARY_PATH={PATCHED} {PATCHED}/test-mem-swap"),
                programs::TESTS,
            );
            toolstack::run(tally, &topology, false);
        }
        Err(e) => tally.enter("package", "the packaged hypervisor boots", Err(e)),
    }
}

fn put(host: &Channel) -> Result<()> {
    for file in FILES {
        let name = file.rsplit('/').next().unwrap_or(file);
        host.put(
            &paths::packaged_toolstack(file),
            &format!("{PATCHED}/{name}"),
        )?;
    }
    host.sh(
        &format!("cd {PATCHED} && chmod +x xl libxl-save-helper test-mem-swap"),
        SHORT,
    )?;
    Ok(())
}
