// SPDX-License-Identifier: GPL-2.0-only

//! The charts of the report, each with a sentence of what it shows. The sentences are made
//! of the values; none says more than these do.

use crate::native;
use crate::nested;
use crate::results::Results;
use crate::section::Answer;
use crate::section::Section;

/// What no run of this measures so far.
pub const NEVER: [&str; 2] = [
    "hardware: nested virtualization on a real processor; Intel's EPT is in the figures of the \
     hypercall, but no migration on it",
    "stock xl migrate, by plain TCP or ssh: Debian's guest hypervisors have no log-dirty mode for PV",
];

/// What can be concluded from it, and what cannot.
pub const HONEST: [&str; 4] = [
    "In the lab everything runs under QEMU's software emulation on two cores: the hypervisors, their \
     management VMs, the guest VMs. Its times are many times what hardware takes, and not by one \
     factor: a device model or a nested trap costs more than plain code does. Counts are exact and \
     carry over; times are for comparing two ways in the same lab.",
    "Figures of lists and of the hypercall are CPU time of one thread on the real processor, with the \
     product's own code: agent, protocol and daemon as they are, the driver's list logic and the \
     hypervisor's C files as programs. What else runs on the machine shows in caches and memory only. \
     Flushes of TLBs cost nothing there, which flatters the hypercall.",
    "Whether a swap beats copying is a question to the harness, which runs both on the same processor \
     and in turns; compare its ratios, not its times, with those of another machine.",
    "A line a + b * pages is the one with the least squares of relative deviations. Its a is what is \
     left of small sizes, which fit caches better than large ones: it may be below 0.",
];

/// Those whose values are there.
pub fn all(results: &Results) -> Vec<Section> {
    let makers = nested::ALL.into_iter().chain(native::ALL);
    makers.filter_map(|make| make(results)).collect()
}

/// The first screen, as far as its values are there.
pub fn answers(results: &Results) -> Vec<Answer> {
    let all = [
        nested::stands_still(results),
        native::grows(results),
        nested::costs_others(results),
        native::against_copying(results),
    ];
    all.into_iter().flatten().collect()
}
