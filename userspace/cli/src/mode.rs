// SPDX-License-Identifier: GPL-2.0-only

//! How memory moves, on the command line.

use vmbeam_control_protocol::Mode;

/// How the memory of a migrating guest gets there.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum MemoryMode {
    /// `relocate` if the destination is small, and otherwise `swap`.
    Auto,
    /// It is swapped, and not copied.
    Swap,
    /// It goes to where the destination has none yet, and gets smaller memory at the source;
    /// what the destination has is swapped.
    Relocate,
    /// It is copied, as by an ordinary migration.
    Copy,
}

impl From<MemoryMode> for Mode {
    fn from(mode: MemoryMode) -> Self {
        match mode {
            MemoryMode::Auto => Self::Auto,
            MemoryMode::Swap => Self::Swap,
            MemoryMode::Relocate => Self::Relocate,
            MemoryMode::Copy => Self::Copy,
        }
    }
}
