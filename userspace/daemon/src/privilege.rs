// SPDX-License-Identifier: GPL-2.0-only

//! Giving up what the daemon does not need: root, capabilities, system calls.
//!
//! An open `/dev/vmbeam` is all the power that the daemon must have. After this it
//! is an ordinary user in the device's group, can gain no privileges by running
//! something, and may issue only the system calls listed here; of the ioctls only
//! those of the driver.

use anyhow::{ensure, Context};
use nix::errno::Errno;
use nix::fcntl::{open, openat, AtFlags, OFlag};
use nix::libc;
use nix::sys::stat::{fstat, Mode};
use nix::unistd::{chown, fchownat, initgroups, setresgid, setresuid, Gid, Uid, User};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What to do about system calls that are not on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Filter {
    /// Allow them.
    Off,
    /// Allow them and write them to the kernel's log: to learn what is missing.
    Log,
    /// End the daemon; the kernel's log says which call it was.
    Kill,
}

/// System calls that a running daemon uses, besides `ioctl`.
const CALLS: &[libc::c_long] = &[
    // Files and sockets.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlink,
    libc::SYS_lseek,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_chmod,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // A long message to the journal.
    libc::SYS_memfd_create,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Threads, signals and time.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The type byte of the driver's ioctls, where an ioctl's number has it.
const DRIVER_IOCTLS: u64 = (vmbeam_uapi::sys::IOC_TYPE as u64) << 8;
const IOCTL_TYPE: u64 = 0xff00;

/// Give a directory, and the files in it, to a user. Not what only looks like a file in it,
/// a symbolic link or a second name of a file elsewhere: whoever had the directory may have
/// made that.
fn give(dir: &Path, uid: Uid, gid: Gid) -> nix::Result<()> {
    let directory = open(
        dir,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let own =
        |fd: &OwnedFd, uid, gid| fchownat(fd, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH);
    // First to this process, which may not have the right to look into everybody's.
    own(&directory, Uid::effective(), Gid::effective())?;
    let entries =
        std::fs::read_dir(dir).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    for entry in entries.flatten() {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&directory, &*entry.file_name(), flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_nlink == 1 {
            own(&file, uid, gid)?;
        }
    }
    own(&directory, uid, gid)
}

/// Make the directory of the state usable again for root without capabilities, after it was
/// another user's (`--user`).
pub fn take_back(state: &Path) -> anyhow::Result<()> {
    let uid = Uid::effective();
    let owner = std::fs::symlink_metadata(state).map_or(uid.as_raw(), |m| m.uid());
    if uid.is_root() && owner != uid.as_raw() {
        give(state, uid, Gid::effective())
            .with_context(|| format!("cannot take {} back", state.display()))?;
    }
    Ok(())
}

/// Become `name`, with the groups that the system lists for it and no capabilities. The
/// directories of the control socket and of the state are made, and given to it, with what
/// an earlier daemon left in the latter.
pub fn become_user(name: &str, socket: Option<&Path>, state: &Path) -> anyhow::Result<()> {
    let user = User::from_name(name)?.with_context(|| format!("there is no user {name}"))?;
    ensure!(!user.uid.is_root(), "user {name} is root");
    for dir in socket.into_iter().chain([state]) {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if let Some(dir) = socket {
        chown(dir, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to {name}", dir.display()))?;
    }
    give(state, user.uid, user.gid)
        .with_context(|| format!("cannot give {} to {name}", state.display()))?;
    initgroups(&CString::new(name)?, user.gid).context("cannot set the groups")?;
    setresgid(user.gid, user.gid, user.gid).context("cannot set the group")?;
    // With the user ids, all capabilities go as well.
    setresuid(user.uid, user.uid, user.uid).context("cannot become the user")?;
    ensure!(
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err(),
        "could become root again"
    );
    nix::sys::prctl::set_no_new_privs().context("cannot forbid new privileges")
}

/// Let this process, with all threads that it has and will have, issue only the
/// system calls that the daemon needs.
pub fn restrict(filter: Filter) -> anyhow::Result<()> {
    let action = match filter {
        Filter::Off => return Ok(()),
        Filter::Log => SeccompAction::Log,
        Filter::Kill => SeccompAction::KillProcess,
    };
    seccompiler::apply_filter_all_threads(&program(action)?).context("cannot restrict system calls")
}

fn program(action: SeccompAction) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let number = |op, value| -> anyhow::Result<SeccompRule> {
        let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, op, value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    rules.insert(
        libc::SYS_ioctl,
        vec![
            number(SeccompCmpOp::MaskedEq(IOCTL_TYPE), DRIVER_IOCTLS)?,
            // How the standard library makes a socket non-blocking.
            number(SeccompCmpOp::Eq, libc::FIONBIO)?,
        ],
    );
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, action, SeccompAction::Allow, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{waitpid, WaitStatus};
    use nix::unistd::{fork, ForkResult};

    /// Run `what` in a child under the filter; true if it lived.
    fn survives(what: fn()) -> bool {
        let program = program(SeccompAction::KillProcess).unwrap();
        // SAFETY: the child makes system calls and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                if seccompiler::apply_filter(&program).is_ok() {
                    what();
                }
                // SAFETY: ends the child without running anything else.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0))
            }
        }
    }

    fn ioctl(request: u64) {
        // SAFETY: no such descriptor, so the kernel looks at nothing else.
        unsafe { libc::ioctl(-1, request, 0) };
    }

    #[test]
    fn what_the_daemon_needs_is_allowed() {
        assert!(survives(|| ioctl(0xc028_bb00)));
        assert!(survives(|| {
            nix::unistd::gettid();
        }));
    }

    #[test]
    fn everything_else_ends_the_process() {
        // A hypercall through privcmd, a setuid, a new program.
        assert!(!survives(|| ioctl(0x0030_5000)));
        assert!(!survives(|| {
            // SAFETY: fails, or is stopped before it does anything.
            unsafe { libc::setuid(0) };
        }));
        assert!(!survives(|| {
            // SAFETY: null pointers; it would fail.
            unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) };
        }));
    }
}
