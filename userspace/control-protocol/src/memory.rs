// SPDX-License-Identifier: GPL-2.0-only

//! What a host VM has of the host's memory, and what may be moved into one that has less than
//! its guest hypervisor believes.

use crate::request::Mode;
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
    /// Pages that the host has for reserves: they are nobody's.
    #[serde(default)]
    pub host_free: u64,
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

/// The reserve that a host VM needs for a guest of so many pages to come.
pub fn reserve_for(pages: u64, mode: Mode) -> u64 {
    touches(pages, mode) + MARGIN
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

    /// How to have a reserve and a maximum that are larger by so many pages.
    fn remedy(&self, name: &str, reserve: u64, growth: u64) -> String {
        let memory = self.pages + reserve;
        let set = mib(memory);
        // libxl adds 1 MiB.
        let max = mib((memory + growth).max(self.max_pages)) - 1;
        match reserve {
            0 => format!("`xl mem-max {name} {max}` lets it"),
            // It takes no maximum below what was set.
            _ => format!(
                "give it more, by `xl mem-set {name} {set}` and then `xl mem-max {name} {}`",
                max.max(set)
            ),
        }
    }

    /// Why `who` cannot come into host VM `name` with so many pages: for example `guest x`. A
    /// reserve that is too small is filled before, if the host has the pages.
    pub fn in_the_way(&self, name: &str, who: &str, pages: u64, mode: Mode) -> Vec<String> {
        let mut all = Vec::new();
        if !self.is_small() {
            return all;
        }
        let needed = reserve_for(pages, mode);
        let lacks = self.lacks(needed);
        let comes = match mode {
            Mode::Relocate => pages.min(self.entries),
            _ => 0,
        };
        // The hypervisor takes out of the reserve what there is no place for any more.
        let cut = (self.cache + lacks + comes).saturating_sub(self.entries);
        let grows = lacks.max((lacks + comes).saturating_sub(cut));
        if self.growth() < grows {
            all.push(format!(
                "host VM {name} has {} MiB and may have {} MiB, and with {who} it may need {} MiB; {}",
                self.pages / MIB,
                self.max_pages / MIB,
                mib(self.pages + grows),
                self.remedy(name, 0, grows)
            ));
        }
        if self.host_free < lacks {
            all.push(format!(
                "host VM {name} has a reserve of {} MiB, and {who} may touch {} MiB before memory is moved, with a margin of {} MiB; it would die without a reserve, and the host has no more than {} MiB for it: shut something else down",
                self.cache / MIB,
                mib(needed),
                MARGIN / MIB,
                self.host_free / MIB
            ));
        }
        all
    }

    /// Whether it could die of giving pages away: its guest hypervisor writes to all that a guest
    /// leaves behind.
    pub fn dies_of_giving(&self) -> bool {
        !self.bears(GIVES)
    }

    /// Why it can give nothing away. A reserve that is too small is filled before.
    pub fn cannot_give(&self, name: &str) -> Option<String> {
        (self.dies_of_giving() && self.host_free < self.lacks(MARGIN)).then(|| {
            format!(
                "host VM {name} has a reserve of {} pages, and could die of giving memory away, and the host has no more than {} MiB for it: shut something else down",
                self.cache,
                self.host_free / MIB
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
            host_free: 0,
        }
    }

    #[test]
    fn what_a_guest_may_bring_is_refused_with_figures() {
        let guest = 48_766;
        let ways = |memory: HostMemory, mode| memory.in_the_way("B", "guest g", guest, mode);
        assert_eq!(ways(small(1217), Mode::Relocate), [""; 0]);
        assert_eq!(
            ways(small(641), Mode::Relocate),
            ["host VM B has 639 MiB and may have 641 MiB, and with guest g it may need 831 MiB; `xl mem-max B 830` lets it"]
        );
        // Only what is not there can be brought: a host VM that has given a little.
        let gave = HostMemory {
            pages: 277_214,
            max_pages: 278_784,
            cache: 1_438,
            entries: 1_438,
            host_free: 0,
        };
        assert_eq!(ways(gave, Mode::Relocate), [""; 0]);
        // One that had all that it may have, and has given all of a guest, but for what its
        // reserve got, takes it again: the reserve makes room for it.
        let gave = HostMemory {
            pages: 278_784 - guest + 128,
            max_pages: 278_784,
            cache: 128,
            entries: guest,
            host_free: 1 << 20,
        };
        assert_eq!(ways(gave, Mode::Relocate), [""; 0]);
        let less = HostMemory {
            max_pages: 278_783,
            ..gave
        };
        assert_eq!(
            ways(less, Mode::Relocate),
            ["host VM B has 899 MiB and may have 1088 MiB, and with guest g it may need 1089 MiB; `xl mem-max B 1088` lets it"]
        );
        // What the reserve gets has to be allowed as well, if nothing comes instead.
        let low = HostMemory {
            cache: 0,
            host_free: 1 << 20,
            ..small(641)
        };
        assert_eq!(
            ways(low, Mode::Swap),
            ["host VM B has 639 MiB and may have 641 MiB, and with guest g it may need 700 MiB; `xl mem-max B 699` lets it"]
        );
        let dry = HostMemory {
            cache: 4_973,
            host_free: 10_361,
            ..small(1217)
        };
        assert_eq!(
            ways(dry, Mode::Relocate),
            ["host VM B has a reserve of 19 MiB, and guest g may touch 60 MiB before memory is moved, with a margin of 16 MiB; it would die without a reserve, and the host has no more than 40 MiB for it: shut something else down"]
        );
        let filled = HostMemory {
            host_free: 10_362,
            ..dry
        };
        assert_eq!(ways(filled, Mode::Relocate), [""; 0]);
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
