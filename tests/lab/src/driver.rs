// SPDX-License-Identifier: GPL-2.0-only

//! The driver on its own, in a host management VM whose kernel looks for
//! mistakes: fuzzer, loading and unloading, callers of other sorts.

use std::time::Duration;

use crate::channel::Channel;
use crate::paths;
use crate::programs::guest_command;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::Sizes;
use crate::topology::Topology;
use crate::topology::SHORT;

/// What Debian's kernel offers. Checks of slab objects make the counts of active
/// objects exact, too: no object waits in the cache of a processor.
pub const AIDS: &str = "panic_on_warn=1 oops=panic slub_debug=FZPU page_poison=1 init_on_free=1 \
                    kfence.sample_interval=10";

/// What the search for defects does without: it makes a boot twice as long.
pub const FEW_AIDS: &str = "panic_on_warn=1 oops=panic slub_debug=F";

/// Two processors, so that threads of the fuzzer really meet.
const CPUS: u32 = 2;

const MODULE: &str = "/lib/modules/vmbeam.ko";
const PROGRAMS: &str = "/usr/lib/vmbeam/tests";

/// How much is done.
#[derive(Debug)]
pub struct Amount {
    /// Sequences of the fuzzer on real domains.
    sequences: u32,
    /// And on the model.
    pub mock_sequences: u32,
    /// How often the module is loaded.
    pub loads: u32,
    /// How long it may take.
    pub limit: Duration,
}

impl Amount {
    /// Enough to reach every line that the fuzzer reaches, and no loading: the module
    /// must stay where it is.
    pub const COVERAGE: Self = Self {
        sequences: 0,
        mock_sequences: 5_000,
        loads: 0,
        limit: Duration::from_secs(600),
    };

    /// For each build with a defect. One that is not ended by then hangs.
    pub const MUTANTS: Self = Self {
        sequences: 0,
        mock_sequences: 3_000,
        loads: 2,
        limit: Duration::from_secs(900),
    };
}

/// What `make check` does.
pub const QUICK: Amount = Amount {
    sequences: 3_000,
    mock_sequences: 20_000,
    loads: 10,
    limit: Duration::from_secs(1200),
};

/// What `make check-long` does.
pub const LONG: Amount = Amount {
    sequences: 50_000,
    mock_sequences: 500_000,
    loads: 200,
    limit: Duration::from_secs(7200),
};

/// Run the group.
pub fn run(tally: &mut Tally, long: bool, sizes: Sizes, progress: &Progress) {
    let amount = if long { LONG } else { QUICK };
    let booted = Topology::boot_host_with(sizes, &paths::xen(), "host", (CPUS, AIDS), progress);
    let topology = match booted {
        Ok((topology, _)) => topology,
        Err(e) => return tally.enter("driver", "the host boots with debugging aids", Err(e)),
    };
    let host = &topology.machine.host;
    tally.case("driver", "the kernel took the debugging aids", || {
        host.sh(
            &format!(
                "test $(cat /proc/sys/kernel/panic_on_warn) = 1 && \
                 test $(cat /sys/kernel/slab/kmalloc-64/sanity_checks) = 1 && \
                 test $(cat /sys/module/kfence/parameters/sample_interval) = 10 && \
                 insmod {MODULE}"
            ),
            SHORT,
        )
        .map(drop)
    });
    programs(tally, "driver", host, &amount);
}

/// The programs that run beside the driver, which must be loaded.
fn programs(tally: &mut Tally, group: &str, host: &Channel, amount: &Amount) {
    for (name, arguments) in [
        (
            "compat",
            format!("compat {PROGRAMS}/compat64 {PROGRAMS}/compat32"),
        ),
        ("memory", "memory".to_owned()),
        ("records", "records /usr/bin/vmbeam".to_owned()),
        ("reload", format!("reload {MODULE} {}", amount.loads)),
        ("fuzz", format!("fuzz --sequences {}", amount.sequences)),
    ] {
        let command = format!("{PROGRAMS}/driver-tests {arguments}");
        guest_command(tally, group, host, name, &command, amount.limit);
    }
}
