// SPDX-License-Identifier: GPL-2.0-only

//! The device of the driver.

/// Where it is.
pub const DEVICE: &str = "/dev/vmbeam";
