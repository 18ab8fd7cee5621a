// SPDX-License-Identifier: GPL-2.0-only

//! What guests are asked to be done to, and how that may fail.

use crate::guest::GuestRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a swap is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapRequest {
    /// Guest whose memory is to move.
    pub from: GuestRef,
    /// Guest that it changes places with.
    pub to: GuestRef,
    /// Compare every page before and after.
    pub verify: bool,
    /// Stop before anything changes.
    pub dry_run: bool,
    /// In a dry run, list the frames in [`SwapReport::run_list`](crate::SwapReport::run_list).
    pub list_runs: bool,
}

/// How the memory of a migrating guest gets there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By swapping it.
    #[default]
    Swap,
    /// By copying it, as an ordinary migration does. Only ever on request.
    Copy,
    /// By moving it to where the destination has none yet, and swapping the rest.
    Relocate,
    /// By relocation if the destination is small, and a swap otherwise. Only in requests.
    Auto,
}

impl Mode {
    /// Whether the memory moves beside the saved state, by the driver.
    pub fn is_external(self) -> bool {
        self != Self::Copy
    }

    /// The first one: for records of swaps, which are the same as they ever were.
    pub fn is_swap(&self) -> bool {
        *self == Self::Swap
    }
}

/// What a migration is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// The guest, and the host VM where it is.
    pub from: GuestRef,
    /// The host VM where it is to go.
    pub to: String,
    /// How its memory gets there.
    pub mode: Mode,
    /// Only find out whether it is possible.
    pub dry_run: bool,
    /// Compare every page that moved.
    pub verify: bool,
    /// Give up before the point of no return after so many seconds.
    pub timeout_seconds: Option<u32>,
    /// Give up before the point of no return when the guest has been suspended
    /// for so long.
    pub max_downtime_ms: Option<u32>,
}

/// How a request ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Refused; nothing was changed.
    Refused,
    /// Failed half way; everything was put back.
    RolledBack,
    /// Failed.
    Failed,
}
