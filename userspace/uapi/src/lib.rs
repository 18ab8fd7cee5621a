// SPDX-License-Identifier: GPL-2.0-only

//! The kernel interface of `/dev/vmbeam`, as `include/uapi/linux/vmbeam.h`
//! defines it, and a safe wrapper around it.
//!
//! [`sys`] mirrors the header field by field; a test compiles the header and
//! compares. [`Device`] and [`Session`] are what programs use.

mod device;
mod error;
mod raw;
pub mod sys;

pub use device::{AddFailed, Canceller, Checked, Device, Info, Session, Spent, Step};
pub use error::{refusal_reason, Errno, Error, Op};
pub use sys::{Mode, Record, Run, State, Status};

/// What programs put into an array of statuses before a commit, which leaves the elements of
/// pairs that it does not reach alone. No pair ever gets it from the driver.
pub const NOT_ATTEMPTED: i32 = 1;

/// Where the driver's device normally is.
pub const DEVICE_PATH: &str = "/dev/vmbeam";
