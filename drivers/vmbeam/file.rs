// SPDX-License-Identifier: GPL-2.0-only

//! An open file: the ioctls by number, and who works on the session when.

use kernel::{
    current,
    fs::{
        file::flags::{
            O_ACCMODE,
            O_RDONLY, //
        },
        File, //
    },
    ioctl::_IOC_NR,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        CondVar,
        Mutex, //
    },
    uaccess::UserPtr,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

use crate::{
    alloc,
    args::Arg,
    glue::{
        self,
        ModuleRef,
        WorkQueue, //
    },
    names,
    records,
    session::{
        self,
        Session, //
    },
    uapi, //
};

/// What threads that share a file share.
struct Shared {
    /// The session, or `None` while a thread works on it.
    session: Option<KBox<Session>>,
    /// What the session looked like when it was put back, or when the thread that
    /// works on it last looked up.
    view: uapi::Status,
    /// Somebody wants the thread that works on the session to stop.
    cancel: bool,
}

/// An open `/dev/vmbeam`.
///
/// # Locking
///
/// At most one thread works on the session at a time. It takes the session out
/// of `shared` and works without holding the lock, because a commit can last long
/// and a thread that waits for its turn must be killable. After each hypercall it
/// leaves a copy of the counts in `shared`, so that others can watch. `shared` is
/// never held while user memory is accessed or a hypercall is made.
///
/// # Lifetime
///
/// The session, and all that it holds, lives until the file is released, and
/// beyond that only as a record, see [`records`]. Nothing of it is kept in the
/// hypervisor.
#[pin_data]
pub(crate) struct Vmbeam {
    #[pin]
    shared: Mutex<Shared>,
    /// Notified when the session is put back.
    #[pin]
    idle: CondVar,
    /// For the end of a file of which a thread of the kernel has the last reference.
    #[pin]
    work: Work<Self>,
    /// Taken for `work`.
    module: Option<ModuleRef>,
}

impl_has_work! {
    impl HasWork<Self> for Vmbeam { self.work }
}

impl WorkItem for Vmbeam {
    type Pointer = Pin<KBox<Self>>;

    fn run(me: Pin<KBox<Self>>) {
        me.settle();
        // The reference to the module goes with `me`. Then the module may be unloaded, which
        // waits for the queue, and so for this function.
    }
}

#[vtable]
impl MiscDevice for Vmbeam {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let session = alloc::boxed(Session::default())?;
        let shared = Shared {
            view: session.view(),
            session: Some(session),
            cancel: false,
        };

        alloc::may_fail()?;
        KBox::try_pin_init(
            try_pin_init!(Self {
                shared <- kernel::new_mutex!(shared),
                idle <- kernel::new_condvar!(),
                work <- new_work!("vmbeam"),
                module: None,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    // To settle a session can take as long as its commit did. A thread that closes a file waits
    // for that. One of the kernel's, which closes files for all of the machine, one after the
    // other, must not.
    fn release(mut me: Self::Ptr, _file: &File) {
        if glue::in_kthread() {
            *me.as_mut().project().module = Some(ModuleRef::get());
            WorkQueue::get().enqueue(me);
        } else {
            me.settle();
        }
    }

    // The layouts are the same for 32-bit callers, so the default of `compat_ioctl`, which only
    // converts the pointer, is right.
    fn ioctl(me: Pin<&Self>, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let ptr = UserPtr::from_addr(arg);
        let nr = _IOC_NR(cmd);

        #[cfg(vmbeam_debug)]
        if cmd == crate::debug::IOCTL {
            return crate::debug::ioctl(arg);
        }
        // The whole number: an ioctl of another interface is none of ours.
        if cmd != uapi::ioctl(nr) || !(uapi::NR_INFO..=uapi::NR_ABANDON).contains(&nr) {
            return Err(ENOTTY);
        }
        let looks = matches!(nr, uapi::NR_INFO | uapi::NR_STATUS | uapi::NR_RECORD);
        if !looks && file.flags() & O_ACCMODE == O_RDONLY {
            return Err(EBADF);
        }
        match nr {
            // These do not wait for the session.
            uapi::NR_INFO => session::info(Arg::read(ptr)?)?,
            uapi::NR_STATUS => me.status(Arg::read(ptr)?)?,
            uapi::NR_CANCEL => me.cancel(Arg::read(ptr)?)?,
            uapi::NR_RECORD => me.record(Arg::read(ptr)?)?,
            // These take turns.
            uapi::NR_OPEN => me.run(nr, ptr, |s, arg, _| s.open(arg))?,
            uapi::NR_ADD => me.run(nr, ptr, |s, arg, _| s.add(arg))?,
            uapi::NR_PREPARE => me.run(nr, ptr, |s, arg, watch| s.prepare(arg, watch))?,
            uapi::NR_COMMIT => me.run(nr, ptr, |s, arg, watch| {
                s.claim()?;
                s.commit(arg, watch)
            })?,
            uapi::NR_ROLLBACK => me.run(nr, ptr, |s, arg, watch| s.rollback(arg, watch))?,
            uapi::NR_ADOPT => me.run(nr, ptr, |s, arg, _| records::adopt(s, arg))?,
            uapi::NR_ABANDON => me.run(nr, ptr, |s, arg, _| s.abandon(arg))?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn show_fdinfo(me: Pin<&Self>, m: &SeqFile, _file: &File) {
        let view = me.shared.lock().view;

        seq_print!(m, "vmbeam-state:\t{}\n", names::state(view.state));
        if view.state != uapi::STATE_UNBOUND {
            seq_print!(m, "vmbeam-domains:\t{} {}\n", view.domid_a, view.domid_b);
        }
        seq_print!(m, "vmbeam-activity:\t{}\n", names::activity(view.activity));
        seq_print!(m, "vmbeam-runs:\t{}\n", view.runs);
        seq_print!(m, "vmbeam-pairs:\t{}\n", view.pairs);
        seq_print!(m, "vmbeam-cursor:\t{}\n", view.cursor);
        seq_print!(m, "vmbeam-swapped:\t{}\n", view.swapped);
        seq_print!(m, "vmbeam-refused:\t{}\n", view.refused);
        seq_print!(m, "vmbeam-hypercalls:\t{}\n", view.hypercalls);
        seq_print!(m, "vmbeam-tlb-flushes:\t{}\n", view.tlb_flushes);
        seq_print!(m, "vmbeam-batches:\t{}\n", view.batches);
        seq_print!(m, "vmbeam-p2m-writes:\t{}\n", view.p2m_writes);
        seq_print!(m, "vmbeam-superpages:\t{}\n", view.superpages);
        seq_print!(m, "vmbeam-splits:\t{}\n", view.splits);
        seq_print!(m, "vmbeam-merges:\t{}\n", view.merges);
    }
}

impl Vmbeam {
    /// The last reference is gone: leave nothing half way, or keep a record.
    fn settle(&self) {
        let session = self.shared.lock().session.take();

        if let Some(session) = session {
            records::settle(session);
        }
    }

    /// Read the request at `ptr` and do `what` with it when the session is free.
    ///
    /// # Errors
    ///
    /// Those of [`Arg::read`] and `what`, and [`EINTR`] for a signal while another
    /// thread had the session.
    fn run<T: uapi::Request>(
        &self,
        nr: u32,
        ptr: UserPtr,
        what: impl FnOnce(&mut KBox<Session>, Arg<T>, Watch<'_>) -> Result,
    ) -> Result {
        let arg = Arg::read(ptr)?;
        let mut session = self.take(nr)?;
        let result = what(&mut session, arg, Watch(Some(self)));
        records::note(&session);

        let mut shared = self.shared.lock();
        shared.view = session.view();
        shared.session = Some(session);
        drop(shared);
        self.idle.notify_one();
        result
    }

    fn take(&self, nr: u32) -> Result<KBox<Session>> {
        let mut shared = self.shared.lock();
        let mut interrupted = false;

        loop {
            // First, so that a thread which was notified and interrupted takes its turn: nobody
            // else was notified.
            if let Some(session) = shared.session.take() {
                shared.view.activity = nr;
                shared.cancel = false;
                return Ok(session);
            }
            if interrupted {
                return Err(EINTR);
            }
            interrupted = self.idle.wait_interruptible(&mut shared);
        }
    }

    /// IOCTL: `STATUS`: where the session stands.
    ///
    /// # Errors
    ///
    /// [`EFAULT`].
    fn status(&self, mut arg: Arg<uapi::Status>) -> Result {
        arg.value = uapi::Status {
            size: arg.value.size,
            flags: arg.value.flags,
            ..self.shared.lock().view
        };
        arg.write()
    }

    /// IOCTL: `RECORD`: what an earlier session left.
    ///
    /// # Errors
    ///
    /// [`EBADFD`], and those of [`records::next`].
    fn record(&self, arg: Arg<uapi::Record>) -> Result {
        // Who has a file that is bound to two domains has nothing to do with others.
        if self.shared.lock().view.state != uapi::STATE_UNBOUND {
            return Err(EBADFD);
        }
        records::next(arg)
    }

    /// IOCTL: `CANCEL`: end what works on the session.
    ///
    /// # Errors
    ///
    /// [`ENOENT`]: there is nothing that can be ended.
    fn cancel(&self, _arg: Arg<uapi::Cancel>) -> Result {
        let mut shared = self.shared.lock();

        match shared.view.activity {
            uapi::NR_PREPARE | uapi::NR_COMMIT | uapi::NR_ROLLBACK => shared.cancel = true,
            _ => return Err(ENOENT),
        }
        Ok(())
    }
}

/// Who watches a thread that works on a session.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a>(Option<&'a Vmbeam>);

impl Watch<'_> {
    /// Nobody: the file is gone, and no signal is a reason to stop.
    pub(crate) const NOBODY: Self = Self(None);

    /// To be called before each hypercall: let others see `view`, which is how far the session
    /// is, and find out whether to stop.
    ///
    /// # Errors
    ///
    /// [`ECANCELED`], and [`EINTR`] for a signal.
    pub(crate) fn pause(self, view: uapi::Status) -> Result {
        let Some(file) = self.0 else {
            return Ok(());
        };
        let mut shared = file.shared.lock();
        shared.view = uapi::Status {
            activity: shared.view.activity,
            ..view
        };
        if shared.cancel {
            return Err(ECANCELED);
        }
        drop(shared);

        if current!().signal_pending() {
            return Err(EINTR);
        }
        Ok(())
    }
}
