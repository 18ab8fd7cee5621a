// SPDX-License-Identifier: GPL-2.0-only

//! What a session does with its pairs, by number and in reverse.

use vmbeam_core::{
    mode::Mode,
    names,
    xen_abi::{
        SWAP_CHECK,
        SWAP_UNDO,
        SWAP_UNMAP, //
    },
};

const MODES: [Mode; 4] = [Mode::Swap, Mode::Keep, Mode::ToB, Mode::ToA];

/// No two of the flags go together.
#[test]
fn each_has_flags_of_its_own() {
    for flags in 0..16 {
        let mode = MODES.into_iter().find(|mode| mode.flags() == flags);
        assert_eq!(Mode::from_flags(flags), mode);
        assert_eq!(names::mode(flags) == "unknown", mode.is_none());
    }
    for (at, mode) in MODES.iter().enumerate() {
        assert_eq!(mode.swap_flags() & (SWAP_CHECK | SWAP_UNMAP), 0);
        for other in &MODES[..at] {
            assert_eq!(mode.swap_flags() & other.swap_flags(), 0);
        }
    }
}

#[test]
fn two_of_them_undo_each_other_and_the_others_themselves() {
    for mode in MODES {
        assert_eq!(mode.opposite().opposite(), mode);
        assert_eq!(mode.opposite() == mode, !mode.relocates());
        assert_eq!(mode.opposite().feature(), mode.feature());
        // The hypervisor refuses the flag in any other mode.
        let undo = if mode.relocates() { SWAP_UNDO } else { 0 };
        assert_eq!(mode.undo_flags(), undo);
    }
}
