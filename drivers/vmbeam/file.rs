// SPDX-License-Identifier: GPL-2.0-only

//! An open file: the ioctls by number, and who works on the session when.

use kernel::{
    fs::File,
    ioctl::{
        _IOC_NR,
        _IOC_TYPE, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
    uaccess::UserPtr,
};

use crate::{
    args::Arg,
    session::{
        self,
        Session, //
    },
    uapi, //
};

/// An open `/dev/vmbeam`.
///
/// # Locking
///
/// At most one thread works on the session at a time. It takes the session out
/// of `slot` and works without holding the lock, because a commit can last long
/// and a thread that waits for its turn must be killable. `slot` is never held
/// while user memory is accessed or a hypercall is made.
///
/// # Lifetime
///
/// The session, and all that it holds, lives until the file is released. Nothing
/// of it is kept in the hypervisor.
#[pin_data]
pub(crate) struct Vmbeam {
    /// The session, or `None` while a thread works on it.
    #[pin]
    slot: Mutex<Option<KBox<Session>>>,
    /// Notified when the session is put back.
    #[pin]
    idle: CondVar,
}

#[vtable]
impl MiscDevice for Vmbeam {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let session = KBox::new(Session::default(), GFP_KERNEL_ACCOUNT)?;

        KBox::try_pin_init(
            try_pin_init!(Self {
                slot <- kernel::new_mutex!(Some(session)),
                idle <- kernel::new_condvar!(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    // The layouts are the same for 32-bit callers, so the default of `compat_ioctl`, which only
    // converts the pointer, is right.
    fn ioctl(me: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);

        // The size in `cmd` is left alone: structures can grow, and carry their size themselves.
        if _IOC_TYPE(cmd) != uapi::IOC_TYPE {
            return Err(ENOTTY);
        }
        match _IOC_NR(cmd) {
            uapi::NR_INFO => session::info(Arg::read(arg)?)?,
            uapi::NR_OPEN => me.run(arg, Session::open)?,
            uapi::NR_ADD => me.run(arg, Session::add)?,
            uapi::NR_PREPARE => me.run(arg, Session::prepare)?,
            uapi::NR_COMMIT => me.run(arg, Session::commit)?,
            uapi::NR_STATUS => me.run(arg, Session::status)?,
            uapi::NR_ROLLBACK => me.run(arg, Session::rollback)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl Vmbeam {
    /// Read the request at `arg` and do `what` with it when the session is free.
    ///
    /// # Errors
    ///
    /// Those of [`Arg::read`] and `what`, and [`EINTR`] for a signal while another
    /// thread had the session.
    fn run<T: uapi::Request>(
        &self,
        arg: UserPtr,
        what: fn(&mut Session, Arg<T>) -> Result,
    ) -> Result {
        let arg = Arg::read(arg)?;
        let mut session = self.take()?;
        let result = what(&mut session, arg);

        *self.slot.lock() = Some(session);
        self.idle.notify_one();
        result
    }

    fn take(&self) -> Result<KBox<Session>> {
        let mut slot = self.slot.lock();
        let mut interrupted = false;

        loop {
            // First, so that a thread which was notified and interrupted takes its turn: nobody
            // else was notified.
            if let Some(session) = slot.take() {
                return Ok(session);
            }
            if interrupted {
                return Err(EINTR);
            }
            interrupted = self.idle.wait_interruptible(&mut slot);
        }
    }
}
