// SPDX-License-Identifier: GPL-2.0-only

//! Exit codes besides 0. Usage errors exit with 2, which is clap's own.

pub(crate) const FAILED: u8 = 1;
pub(crate) const REFUSED: u8 = 3;
pub(crate) const ROLLED_BACK: u8 = 4;
pub(crate) const INCOMPLETE: u8 = 5;
pub(crate) const UNPRINTED: u8 = 6;
