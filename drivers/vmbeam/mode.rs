// SPDX-License-Identifier: GPL-2.0-only

//! What a session does with its pairs.

use super::{
    uapi,
    xen_abi, //
};

/// `vmbeam_bind.flags`, see the uAPI header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Frames change places with what is in them.
    #[default]
    Swap,
    /// Frames change places, and what is in them stays where it is.
    Keep,
    /// Relocation from A to B: where B has no memory yet, A's frames go over with none in
    /// return.
    ToB,
    /// Relocation from B to A.
    ToA,
}

impl Mode {
    /// The mode with these flags of `vmbeam_bind`, if there is one.
    pub const fn from_flags(flags: u32) -> Option<Self> {
        Some(match flags {
            0 => Self::Swap,
            uapi::BIND_KEEP => Self::Keep,
            uapi::BIND_TO_B => Self::ToB,
            uapi::BIND_TO_A => Self::ToA,
            _ => return None,
        })
    }

    /// `vmbeam_bind.flags`
    pub const fn flags(self) -> u32 {
        match self {
            Self::Swap => 0,
            Self::Keep => uapi::BIND_KEEP,
            Self::ToB => uapi::BIND_TO_B,
            Self::ToA => uapi::BIND_TO_A,
        }
    }

    /// What must be in `vmbeam_info.features` for it.
    pub const fn feature(self) -> u64 {
        match self {
            Self::Swap => uapi::FEATURE_SWAP,
            Self::Keep => uapi::FEATURE_KEEP,
            Self::ToB | Self::ToA => uapi::FEATURE_RELOCATE,
        }
    }

    /// The flags of the hypercall.
    pub const fn swap_flags(self) -> u32 {
        match self {
            Self::Swap => 0,
            Self::Keep => xen_abi::SWAP_KEEP,
            Self::ToB => xen_abi::SWAP_TO_B,
            Self::ToA => xen_abi::SWAP_TO_A,
        }
    }

    /// The flags that go with them when the hypercall undoes what one of the opposite mode did.
    pub const fn undo_flags(self) -> u32 {
        match self {
            Self::Swap | Self::Keep => 0,
            Self::ToB | Self::ToA => xen_abi::SWAP_UNDO,
        }
    }

    /// The mode that undoes it.
    pub const fn opposite(self) -> Self {
        match self {
            Self::ToB => Self::ToA,
            Self::ToA => Self::ToB,
            same => same,
        }
    }

    /// Whether frames may go over with none in return.
    pub const fn relocates(self) -> bool {
        matches!(self, Self::ToB | Self::ToA)
    }
}
