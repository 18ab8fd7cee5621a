// SPDX-License-Identifier: GPL-2.0-only

//! Version of the daemon.

/// Version of the daemon.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
