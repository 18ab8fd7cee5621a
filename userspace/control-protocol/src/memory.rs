// SPDX-License-Identifier: GPL-2.0-only

//! What a host VM has of the host's memory, and what may be moved into one that has less than
//! its guest hypervisor believes.

use crate::message::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pages that a restore may touch in the host VM where it goes on, whatever the guest: the
/// toolstack itself, and what the guest hypervisor makes of a domain.
const RESTORE: u64 = 8192;
/// The same for each of so many pages of the guest: page tables, and pages that were granted.
const RESTORE_SHARE: u64 = 16;
/// Pages that stay for what the guest hypervisor and its management VM do meanwhile.
pub const MARGIN: u64 = 4096;
/// Pages without which a host VM that lacks memory may die of giving some away: the hypervisor
/// looks for zeroes only among the last 32 pages that were touched.
const GIVES: u64 = 33;
/// Pages of 1 MiB.
const MIB: u64 = 256;

/// What the host's hypervisor says of a host VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostMemory {
    /// Pages that it has, the reserve included.
    pub pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// Its reserve: pages that it has, and that are nowhere yet.
    pub cache: u64,
    /// Places without a page, each of which takes one of the reserve when it is touched.
    pub entries: u64,
}

/// A host VM, and what is known of its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVmMemory {
    /// Name of the host VM.
    pub host_vm: String,
    /// It, or why it is not known.
    pub memory: Result<HostMemory, String>,
}

/// Whole MiB that so many pages are, or more.
fn mib(pages: u64) -> u64 {
    pages.div_ceil(MIB)
}

/// Pages that a move into a host VM may touch there before the driver moves any.
fn touches(pages: u64, mode: Mode) -> u64 {
    let restore = RESTORE + pages / RESTORE_SHARE;
    match mode {
        Mode::Copy => restore + pages,
        _ => restore,
    }
}

impl HostMemory {
    /// Whether it has less memory than its guest hypervisor believes: it was started small, or
    /// has given some to another host VM.
    pub fn is_small(&self) -> bool {
        self.entries > 0
    }

    /// Whether it has a page for each place that has none yet.
    pub fn is_backed(&self) -> bool {
        self.cache >= self.entries
    }

    /// Pages by which it may grow.
    pub fn growth(&self) -> u64 {
        self.max_pages.saturating_sub(self.pages)
    }

    /// Pages by which its reserve is smaller than so many, or than it has a use for.
    pub fn lacks(&self, reserve: u64) -> u64 {
        reserve.min(self.entries).saturating_sub(self.cache)
    }

    /// Whether so many pages may be touched in it that are nowhere yet.
    fn bears(&self, pages: u64) -> bool {
        self.lacks(pages) == 0
    }

    /// What `xl mem-set` and then `xl mem-max` have to be given for these numbers to become larger,
    /// by so many pages.
    fn larger(&self, reserve: u64, growth: u64) -> (u64, u64) {
        let memory = self.pages + reserve;
        let set = mib(memory);
        // libxl adds 1 MiB.
        let max = mib((memory + growth).max(self.max_pages)) - 1;
        // It takes no maximum below what was set.
        (set, if reserve > 0 { max.max(set) } else { max })
    }

    /// How to have that.
    fn remedy(&self, name: &str, reserve: u64, growth: u64) -> String {
        let (set, max) = self.larger(reserve, growth);
        match reserve {
            0 => format!("`xl mem-max {name} {max}` lets it"),
            _ => format!(
                "give it more, by `xl mem-set {name} {set}` and then `xl mem-max {name} {max}`"
            ),
        }
    }

    /// MiB that it lacks in its reserve for a guest of so many pages to come, and what it has to be
    /// given then.
    pub fn lacks_for(&self, pages: u64, mode: Mode) -> Option<(u64, (u64, u64))> {
        let lacks = self.lacks(touches(pages, mode) + MARGIN);
        (lacks > 0).then(|| (mib(lacks), self.larger(lacks, pages.min(self.entries))))
    }

    /// Why `who` cannot come into host VM `name` with so many pages: for example `guest x`.
    pub fn in_the_way(&self, name: &str, who: &str, pages: u64, mode: Mode) -> Vec<String> {
        let mut all = Vec::new();
        if !self.is_small() {
            return all;
        }
        let comes = pages.min(self.entries);
        if mode == Mode::Relocate && self.growth() < comes {
            all.push(format!(
                "host VM {name} has {} MiB and may have {} MiB, and {who} may bring up to {} MiB; {}",
                self.pages / MIB,
                self.max_pages / MIB,
                mib(comes),
                self.remedy(name, 0, comes)
            ));
        }
        let needed = touches(pages, mode) + MARGIN;
        if !self.bears(needed) {
            all.push(format!(
                "host VM {name} has a reserve of {} MiB, and {who} may touch {} MiB before memory is moved, with a margin of {} MiB; it would die without a reserve: {}",
                self.cache / MIB,
                mib(needed),
                MARGIN / MIB,
                self.remedy(name, self.lacks(needed), comes)
            ));
        }
        all
    }

    /// Why it can give nothing away: its guest hypervisor writes to all that a guest leaves behind.
    pub fn cannot_give(&self, name: &str) -> Option<String> {
        (!self.bears(GIVES)).then(|| {
            format!(
                "host VM {name} has a reserve of {} pages, and could die of giving memory away; {}",
                self.cache,
                self.remedy(name, self.lacks(MARGIN), 0)
            )
        })
    }

    /// Why a guest whose copy is made must not be suspended: so many pages of it are to be
    /// written there by themselves.
    pub fn exhausted(&self, name: &str, copies: u64) -> Option<String> {
        let needed = copies + MARGIN;
        (self.is_small() && !self.bears(needed)).then(|| {
            format!(
                "the reserve of host VM {name} has shrunk to {} MiB, and {} MiB are needed, {} MiB of them a margin; see what runs in its management VM, and {}",
                self.cache / MIB,
                mib(needed),
                MARGIN / MIB,
                self.remedy(name, self.lacks(needed), 0)
            )
        })
    }

    /// What somebody should do about it, although it may be as it is meant.
    pub fn warnings(&self, name: &str) -> Vec<String> {
        let mut all = Vec::new();
        let missing = self.entries.saturating_sub(self.cache);
        if !self.bears(MARGIN) {
            let reserve = self.lacks(MARGIN);
            all.push(format!(
                "its reserve is {} MiB, and less than {} MiB: it dies with all its guests when it touches more, so start nothing in it; {}",
                self.cache / MIB,
                MARGIN / MIB,
                self.remedy(name, reserve, missing - reserve)
            ));
        }
        if self.growth() < missing {
            all.push(format!(
                "it may have {} MiB, so that at most {} MiB of guests can be relocated to it; {}",
                self.max_pages / MIB,
                self.growth() / MIB,
                self.remedy(name, 0, missing)
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `memory=640 maxmem=1216` was in the lab, before `xl mem-max`, and after it.
    fn small(max_mib: u64) -> HostMemory {
        HostMemory {
            pages: 163_836,
            max_pages: max_mib * MIB,
            cache: 45_796,
            entries: 193_252,
        }
    }

    #[test]
    fn what_a_guest_may_bring_is_refused_with_figures() {
        let guest = 48_766;
        let ways = |memory: HostMemory, mode| memory.in_the_way("B", "guest g", guest, mode);
        assert_eq!(ways(small(1217), Mode::Relocate), [""; 0]);
        assert_eq!(
            ways(small(641), Mode::Relocate),
            ["host VM B has 639 MiB and may have 641 MiB, and guest g may bring up to 191 MiB; `xl mem-max B 830` lets it"]
        );
        // Only what is not there can be brought: a host VM that has given a little.
        let gave = HostMemory {
            pages: 277_214,
            max_pages: 278_784,
            cache: 1_438,
            entries: 1_438,
        };
        assert_eq!(ways(gave, Mode::Relocate), [""; 0]);
        let dry = HostMemory {
            cache: 4_973,
            ..small(1217)
        };
        assert_eq!(
            ways(dry, Mode::Relocate),
            ["host VM B has a reserve of 19 MiB, and guest g may touch 60 MiB before memory is moved, with a margin of 16 MiB; it would die without a reserve: give it more, by `xl mem-set B 681` and then `xl mem-max B 1216`"]
        );
        // A copy is written as a whole.
        assert_eq!(ways(small(1217), Mode::Swap), [""; 0]);
        assert!(ways(small(1217), Mode::Copy)[0].contains("may touch 251 MiB"));
        // One that has all its memory is none of this.
        let full = HostMemory {
            entries: 0,
            cache: 0,
            ..small(641)
        };
        assert_eq!(ways(full, Mode::Copy), [""; 0]);
        assert_eq!(full.warnings("B"), [""; 0]);
    }

    #[test]
    fn what_the_prototype_measured_is_covered() {
        // 10,794 pages for a guest of 192 MiB.
        assert!(touches(48_766, Mode::Relocate) >= 10_794);
    }

    #[test]
    fn who_looks_is_told_what_to_do() {
        assert_eq!(small(1217).warnings("B"), [""; 0]);
        let fresh = small(641).warnings("B");
        assert_eq!(
            fresh,
            ["it may have 641 MiB, so that at most 1 MiB of guests can be relocated to it; `xl mem-max B 1215` lets it"]
        );
        let dry = HostMemory {
            cache: 108,
            ..small(1217)
        };
        let dry = dry.warnings("B");
        assert!(
            dry[0].starts_with("its reserve is 0 MiB, and less than 16 MiB: it dies with"),
            "{dry:?}"
        );
        let low = HostMemory {
            cache: 4_000,
            ..small(1217)
        };
        assert_eq!(small(1217).exhausted("B", 310), None);
        let why = low.exhausted("B", 310).unwrap();
        assert!(
            why.contains("shrunk to 15 MiB, and 18 MiB are needed"),
            "{why}"
        );
    }
}
