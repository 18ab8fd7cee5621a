// SPDX-License-Identifier: GPL-2.0-only

//! CPU features of a guest, and of the guests that a host VM can have.
//!
//! A guest has looked at CPUID when it booted, and goes on to use what it has found.
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

/// Leaf, subleaf and register of each word whose bits are features, from the manuals of both
/// vendors. Leaves without subleaves have 0.
const WORDS: [(u32, u32, Register); 16] = [
    (0x1, 0, Edx),
    (0x1, 0, Ecx),
    (0x8000_0001, 0, Edx),
    (0x8000_0001, 0, Ecx),
    (0xd, 1, Eax),
    (0x7, 0, Ebx),
    (0x7, 0, Ecx),
    (0x8000_0007, 0, Edx),
    (0x8000_0008, 0, Ebx),
    (0x7, 0, Edx),
    (0x7, 1, Eax),
    (0x8000_0021, 0, Eax),
    (0x7, 1, Ebx),
    (0x7, 2, Edx),
    (0x7, 1, Ecx),
    (0x7, 1, Edx),
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
        let (leaf, subleaf, register) = WORDS[self.word];
        let register = match register {
            Eax => "eax",
            Ebx => "ebx",
            Ecx => "ecx",
            Edx => "edx",
        };
        write!(f, "CPUID {leaf:#x}:{subleaf} {register} bit {}", self.bit)
    }
}

impl CpuFeatures {
    /// Take the words out of what CPUID returns: `cpuid` gives eax, ebx, ecx and edx of a
    /// leaf and subleaf, or nothing if there is no such leaf.
    pub fn new(cpuid: impl Fn(u32, u32) -> Option<[u32; 4]>) -> Self {
        Self(WORDS.map(|(leaf, subleaf, register)| {
            let registers = cpuid(leaf, subleaf).unwrap_or_default();
            let word = registers[register as usize];
            match (leaf, register) {
                (0x8000_0001, Edx) => word & !COPIES,
                _ => word,
            }
        }))
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
        let full = CpuFeatures::new(|leaf, subleaf| match (leaf, subleaf) {
            (0x1, 0) => Some([1, 2, 3, 4]),
            (0x7, 0) => Some([0, 0x1_0020, 0, 0]),
            (0x8000_0001, 0) => Some([0, 0, 0, 0x2000_0000 | COPIES]),
            _ => None,
        });
        let less = CpuFeatures::new(|leaf, subleaf| match (leaf, subleaf) {
            (0x1, 0) => Some([9, 9, 2, 5]),
            (0x7, 0) => Some([0, 0x1_0000, 0, 0]),
            _ => None,
        });
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
                "CPUID 0x7:0 ebx bit 5"
            ]
        );
        assert!(full.missing_in(&full).is_empty());
        assert_eq!(
            less.missing_in(&full)[0].to_string(),
            "CPUID 0x1:0 edx bit 0"
        );
    }
}
