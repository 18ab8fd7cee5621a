// SPDX-License-Identifier: GPL-2.0-only

//! CPU features of a guest, and of the guests that a host VM can have.
//!
//! A guest has looked at CPUID, and at what tells it which defects its processor does not have, when
//! it booted, and goes on to use what it has found.
//! Xen looks at the highest leaves only when it restores a guest (`x86_cpu_policies_are_compatible()`
//! in Xen 4.17 to 4.20), so features have to be compared before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A register that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Where a word is whose bits are features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Leaf, subleaf and register of CPUID. Leaves without subleaves have 0.
    Cpuid(u32, u32, Register),
    /// Number of a model-specific register, and the first of the 32 bits of it.
    Msr(u32, u32),
}

use Place::{Cpuid, Msr};

/// `MSR_ARCH_CAPABILITIES`: mostly which defects an Intel processor does not have.
const ARCH_CAPS: u32 = 0x10a;

/// How many words an agent of the version before tells: the first ones.
pub(crate) const WORDS_BEFORE: usize = 16;

/// All words, from the manuals of both vendors, in the order of Xen's feature set.
const WORDS: [Place; 19] = [
    Cpuid(0x1, 0, Edx),
    Cpuid(0x1, 0, Ecx),
    Cpuid(0x8000_0001, 0, Edx),
    Cpuid(0x8000_0001, 0, Ecx),
    Cpuid(0xd, 1, Eax),
    Cpuid(0x7, 0, Ebx),
    Cpuid(0x7, 0, Ecx),
    Cpuid(0x8000_0007, 0, Edx),
    Cpuid(0x8000_0008, 0, Ebx),
    Cpuid(0x7, 0, Edx),
    Cpuid(0x7, 1, Eax),
    Cpuid(0x8000_0021, 0, Eax),
    Cpuid(0x7, 1, Ebx),
    Cpuid(0x7, 2, Edx),
    Cpuid(0x7, 1, Ecx),
    Cpuid(0x7, 1, Edx),
    Msr(ARCH_CAPS, 0),
    Msr(ARCH_CAPS, 32),
    Cpuid(0x8000_0021, 0, Ecx),
];

/// Bits of leaf 0x80000001, edx, that are copies of those of leaf 1 on AMD's processors: FPU to
/// APIC, MTRR to PSE36, MMX and FXSR. Xen gives them to guests and leaves them out of what
/// guests can have.
const COPIES: u32 = 0x0183_f3ff;

/// Which features there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CpuFeatures([u32; WORDS.len()]);

/// One feature, named by where CPUID has it, as in the manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeature {
    word: usize,
    bit: u32,
}

impl fmt::Display for CpuFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = self.bit;
        let (leaf, subleaf, register) = match WORDS[self.word] {
            Msr(number, first) => return write!(f, "MSR {number:#x} bit {}", first + bit),
            Cpuid(leaf, subleaf, register) => (leaf, subleaf, register),
        };
        let register = match register {
            Eax => "eax",
            Ebx => "ebx",
            Ecx => "ecx",
            Edx => "edx",
        };
        write!(f, "CPUID {leaf:#x}:{subleaf} {register} bit {bit}")
    }
}

impl CpuFeatures {
    /// Take the words out of what a processor says: `cpuid` gives eax, ebx, ecx and edx of a
    /// leaf and subleaf, `msr` a model-specific register, or nothing if there is no such one.
    pub fn new(
        cpuid: impl Fn(u32, u32) -> Option<[u32; 4]>,
        msr: impl Fn(u32) -> Option<u64>,
    ) -> Self {
        Self(WORDS.map(|place| match place {
            // A half of it.
            Msr(number, first) => (msr(number).unwrap_or_default() >> first) as u32,
            Cpuid(leaf, subleaf, register) => {
                let registers = cpuid(leaf, subleaf).unwrap_or_default();
                let word = registers[register as usize];
                match (leaf, register) {
                    (0x8000_0001, Edx) => word & !COPIES,
                    _ => word,
                }
            }
        }))
    }

    /// What an agent of the version before says. Nothing is known of the other words.
    pub(crate) fn of_version_before(words: [u32; WORDS_BEFORE]) -> Self {
        let mut all = [0; WORDS.len()];
        all[..WORDS_BEFORE].copy_from_slice(&words);
        Self(all)
    }

    /// Features that are here and not in `other`.
    pub fn missing_in(&self, other: &Self) -> Vec<CpuFeature> {
        let pairs = self.0.iter().zip(other.0).enumerate();
        pairs
            .flat_map(|(word, (mine, its))| {
                let missing = mine & !its;
                (0..u32::BITS)
                    .filter(move |bit| (missing >> bit) & 1 != 0)
                    .map(move |bit| CpuFeature { word, bit })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let leaves = |leaf, subleaf| match (leaf, subleaf) {
            (0x1, 0) => Some([1, 2, 3, 4]),
            (0x7, 0) => Some([0, 0x1_0020, 0, 0]),
            (0x8000_0001, 0) => Some([0, 0, 0, 0x2000_0000 | COPIES]),
            (0x8000_0021, 0) => Some([0, 0, 4, 0]),
            _ => None,
        };
        let full = CpuFeatures::new(leaves, |msr| (msr == 0x10a).then_some((1 << 40) | 3));
        let leaves = |leaf, subleaf| match (leaf, subleaf) {
            (0x1, 0) => Some([9, 9, 2, 5]),
            (0x7, 0) => Some([0, 0x1_0000, 0, 0]),
            _ => None,
        };
        let less = CpuFeatures::new(leaves, |msr| (msr == 0x10a).then_some(1));
        let names: Vec<String> = full
            .missing_in(&less)
            .iter()
            .map(CpuFeature::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "CPUID 0x1:0 ecx bit 0",
                "CPUID 0x80000001:0 edx bit 29",
                "CPUID 0x7:0 ebx bit 5",
                "MSR 0x10a bit 1",
                "MSR 0x10a bit 40",
                "CPUID 0x80000021:0 ecx bit 2"
            ]
        );
        assert!(full.missing_in(&full).is_empty());
        assert_eq!(
            less.missing_in(&full)[0].to_string(),
            "CPUID 0x1:0 edx bit 0"
        );
    }
}
