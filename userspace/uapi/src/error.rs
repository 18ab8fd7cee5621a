// SPDX-License-Identifier: GPL-2.0-only

//! Errors of the driver, in words.

pub use nix::errno::Errno;
use std::fmt;

/// What was asked of the driver when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opening the device file.
    OpenFile,
    /// `VMBEAM_IOCTL_INFO`
    Info,
    /// `VMBEAM_IOCTL_BIND`
    Bind,
    /// `VMBEAM_IOCTL_ADD`
    Add,
    /// `VMBEAM_IOCTL_CHECK`
    Check,
    /// `VMBEAM_IOCTL_COMMIT`
    Commit,
    /// `VMBEAM_IOCTL_STATUS`
    Status,
    /// `VMBEAM_IOCTL_ROLLBACK`
    Rollback,
    /// `VMBEAM_IOCTL_CANCEL`
    Cancel,
    /// `VMBEAM_IOCTL_RECORD`
    Record,
    /// `VMBEAM_IOCTL_ADOPT`
    Adopt,
    /// `VMBEAM_IOCTL_ABANDON`
    Abandon,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenFile => "cannot open the device",
            Self::Info => "cannot ask the driver for its limits",
            Self::Bind => "cannot bind a session to the two host VMs",
            Self::Add => "the driver does not take the frame list",
            Self::Check => "the dry run failed",
            Self::Commit => "the swap failed",
            Self::Status => "cannot read the session's status",
            Self::Rollback => "cannot swap back",
            Self::Cancel => "cannot cancel",
            Self::Record => "cannot list the records of half moves",
            Self::Adopt => "cannot take the record over",
            Self::Abandon => "cannot drop the record",
        })
    }
}

/// A failed call of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {} ({errno:?})", explain(*.op, *.errno))]
pub struct Error {
    /// What was asked for.
    pub op: Op,
    /// What the kernel answered.
    pub errno: Errno,
}

/// What an errno of one operation means, and what to do about it.
fn explain(op: Op, errno: Errno) -> &'static str {
    match (op, errno) {
        (Op::OpenFile, Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => {
            "there is no such device; load the driver with `insmod vmbeam.ko` (or `modprobe vmbeam`)"
        }
        (Op::OpenFile, Errno::EACCES | Errno::EPERM) => "permission denied; run as root",
        (Op::OpenFile, Errno::EMFILE | Errno::ENFILE) => "too many open files; close some sessions",
        (_, Errno::ENOTTY) => {
            "this device does not know the request; is it /dev/vmbeam, and is the driver as new as this program?"
        }
        (
            Op::Rollback,
            Errno::EOPNOTSUPP
            | Errno::ENODATA
            | Errno::EAGAIN
            | Errno::EMLINK
            | Errno::EACCES
            | Errno::EROFS,
        ) => {
            "the next frame to put back is no longer plain memory; shut down what uses it and try again"
        }
        (Op::Adopt, Errno::EOPNOTSUPP) => {
            "the record is of a mode that this program does not know; use the one that came with the driver"
        }
        (_, Errno::EOPNOTSUPP) => {
            "the host hypervisor lacks the swap of frames; boot a Xen with the VMBeam patches"
        }
        (_, Errno::ENOSYS) => {
            "the host hypervisor lacks the swap of frames; boot a Xen with the VMBeam patches"
        }
        (Op::Add, Errno::E2BIG) => "more runs in one call than the driver takes; add them in parts",
        (_, Errno::E2BIG) => "this program is newer than the driver; load the driver that came with it",
        (Op::Add, Errno::EINVAL) => "a run is empty or has a reserved field set; the frame list is damaged",
        (Op::Bind, Errno::EINVAL) => "the two host VMs are the same domain, or a domid is impossible",
        (_, Errno::EINVAL) => "an argument is impossible; the program and the driver do not agree",
        (Op::Add, Errno::EOVERFLOW) => "a run ends beyond the last possible frame; the frame list is damaged",
        (Op::Rollback, Errno::EEXIST) => "a frame to put back appears twice",
        (_, Errno::EEXIST) => "a frame is in the session already; the frame list overlaps itself",
        (Op::Bind, Errno::ENOSPC) => {
            "the driver has as many sessions and records of half moves as it keeps; see `vmbeam status`"
        }
        (Op::Rollback, Errno::ENOSPC) => {
            "the host VM that the next frame goes back to has its maximum of memory; raise its limit (`xl mem-max`) and try again"
        }
        (_, Errno::ENOSPC) => "the session is full; swap the guest in several sessions",
        (_, Errno::ENOMEM) => "out of memory; free memory in the host management VM or the host hypervisor",
        (Op::Rollback, Errno::EXDEV) => "the next frame to put back belongs to another domain now",
        (Op::Rollback, Errno::ENOENT) => "the next frame to put back is gone",
        (_, Errno::ESRCH) => {
            "one of the host VMs does not exist, is shutting down, or was destroyed and another has its domid; see `xl list`"
        }
        (_, Errno::EPERM) => {
            "the hypervisor does not permit it: a management domain cannot take part, or a security policy forbids it"
        }
        (_, Errno::ENXIO) => {
            "a host VM has no hardware-assisted paging (PV or shadow); create it as HVM or PVH with hap=1"
        }
        (Op::Rollback, Errno::EBUSY) => {
            "something holds the next frame to put back, or a host VM is in a mode that a swap does not handle; try again"
        }
        (_, Errno::EBUSY) => {
            "a host VM is in a mode that a swap does not handle (passed-through device, altp2m, memory sharing or paging), or another session has some of its frames swapped: see `vmbeam records`"
        }
        (_, Errno::EBADF) => "the device was opened for reading only",
        (_, Errno::EBADFD) => "the session is in a state that does not allow this",
        (_, Errno::ESTALE) => "this program and the driver disagree on how far the session is; ask for its status",
        (Op::Cancel, Errno::ENOENT) => "nothing that could be cancelled is going on",
        (Op::Adopt, Errno::ENOENT) => "there is no such record; see `vmbeam status`",
        (_, Errno::ECANCELED) => "cancelled",
        (_, Errno::EINTR) => "interrupted by a signal before anything was done",
        (_, Errno::EFAULT) => "bad address; this is a bug of this program",
        _ => "unexpected error; see the kernel log",
    }
}

/// A short, stable key for the status of a pair that was refused.
///
/// Such keys appear in reports and JSON output.
pub fn refusal_reason(status: i32) -> &'static str {
    match Errno::from_raw(status.wrapping_neg()) {
        Errno::ENOENT => "hole",
        Errno::EBUSY => "referenced",
        Errno::EOPNOTSUPP => "not_plain_ram",
        Errno::EXDEV => "wrong_owner",
        Errno::ENODATA => "populate_on_demand",
        Errno::EAGAIN => "paged",
        Errno::EMLINK => "shared",
        Errno::EACCES => "access_restricted",
        Errno::EROFS => "read_only",
        Errno::EPERM => "of_the_hypervisor",
        Errno::EEXIST => "duplicate",
        Errno::ENOMEM => "no_memory",
        Errno::ENOSPC => "maximum_reached",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_do() {
        let e = Error {
            op: Op::OpenFile,
            errno: Errno::ENOENT,
        };
        assert!(e.to_string().contains("insmod vmbeam.ko"), "{e}");
        let e = Error {
            op: Op::Bind,
            errno: Errno::EOPNOTSUPP,
        };
        assert!(e.to_string().contains("VMBeam patches"), "{e}");
        assert_eq!(refusal_reason(-16), "referenced");
        assert_eq!(refusal_reason(i32::MIN), "other");
    }
}
