// SPDX-License-Identifier: GPL-2.0-only

//! An open file: its ioctls by number, and its end.

use kernel::{
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
    debug,
    helpers::{
        self,
        ModuleRef,
        WorkQueue, //
    },
    names,
    records,
    session::{
        self,
        Session,
        View, //
    },
    turns::{
        Turns,
        Watch, //
    },
    uapi, //
};

/// An open `/dev/vmbeam`.
///
/// # Lifetime
///
/// The session, and all that it holds, lives until the file is released, and
/// beyond that only as a record, see [`records`]. Nothing of it is kept in the
/// hypervisor.
#[pin_data]
pub(crate) struct Vmbeam {
    #[pin]
    turns: Turns,
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

        debug::allocation()?;
        KBox::pin_init(
            pin_init!(Self {
                turns <- Turns::new(session),
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
        if helpers::in_kthread() {
            *me.as_mut().project().module = Some(ModuleRef::get());
            // SAFETY: The module has made it before the device, and unmakes it after the last
            // reference to the module is gone.
            unsafe { WorkQueue::get() }.enqueue(me);
        } else {
            me.settle();
        }
    }

    // The layouts are the same for 32-bit callers, so the default of `compat_ioctl`, which only
    // converts the pointer, is right.
    fn ioctl(me: Pin<&Self>, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let ptr = UserPtr::from_addr(arg);
        let nr = _IOC_NR(cmd);

        if let Some(result) = debug::ioctl(cmd, arg) {
            return result;
        }
        // The whole number: an ioctl of another interface is none of ours.
        if cmd != uapi::ioctl(nr) {
            return Err(ENOTTY);
        }
        let only_looks = file.flags() & O_ACCMODE == O_RDONLY;
        match nr {
            // These look.
            uapi::NR_INFO => session::info(Arg::read(ptr)?)?,
            uapi::NR_STATUS => me.status(Arg::read(ptr)?)?,
            uapi::NR_RECORD => me.record(Arg::read(ptr)?)?,
            // The others.
            uapi::NR_BIND..=uapi::NR_ABANDON if only_looks => return Err(EBADF),
            // It does not wait for the session, either.
            uapi::NR_CANCEL => me.cancel(Arg::read(ptr)?)?,
            // These take turns.
            uapi::NR_BIND => me.run(nr, ptr, |s, arg, _| s.bind(arg))?,
            uapi::NR_ADD => me.run(nr, ptr, |s, arg, _| s.add(arg))?,
            uapi::NR_CHECK => me.run(nr, ptr, |s, arg, watch| s.check(arg, watch))?,
            uapi::NR_COMMIT => me.run(nr, ptr, |s, arg, watch| s.commit(arg, watch))?,
            uapi::NR_ROLLBACK => me.run(nr, ptr, |s, arg, watch| s.rollback(arg, watch))?,
            uapi::NR_ADOPT => me.run(nr, ptr, |s, arg, _| records::adopt(s, arg))?,
            uapi::NR_ABANDON => me.run(nr, ptr, |s, arg, _| s.abandon(arg))?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn show_fdinfo(me: Pin<&Self>, m: &SeqFile, _file: &File) {
        let View { status, spent } = me.turns.view();

        seq_print!(m, "vmbeam-state:\t{}\n", names::state(status.state));
        if ![uapi::STATE_UNBOUND, uapi::STATE_ABANDONED].contains(&status.state) {
            seq_print!(
                m,
                "vmbeam-domains:\t{} {}\n",
                status.domid_a,
                status.domid_b
            );
        }
        seq_print!(
            m,
            "vmbeam-activity:\t{}\n",
            names::activity(status.activity)
        );
        seq_print!(m, "vmbeam-mode:\t{}\n", names::mode(status.mode));
        seq_print!(m, "vmbeam-runs:\t{}\n", status.runs);
        seq_print!(m, "vmbeam-pairs:\t{}\n", status.pairs);
        seq_print!(m, "vmbeam-cursor:\t{}\n", status.cursor);
        seq_print!(m, "vmbeam-swapped:\t{}\n", status.swapped);
        seq_print!(m, "vmbeam-refused:\t{}\n", status.refused);
        seq_print!(m, "vmbeam-moved:\t{}\n", status.moved);
        seq_print!(m, "vmbeam-hypercalls:\t{}\n", spent.hypercalls);
        seq_print!(m, "vmbeam-tlb-flushes:\t{}\n", spent.tlb_flushes);
        seq_print!(m, "vmbeam-batches:\t{}\n", spent.batches);
        seq_print!(m, "vmbeam-p2m-writes:\t{}\n", spent.p2m_writes);
        seq_print!(m, "vmbeam-superpages:\t{}\n", spent.superpages);
        seq_print!(m, "vmbeam-splits:\t{}\n", spent.splits);
        seq_print!(m, "vmbeam-merges:\t{}\n", spent.merges);
    }
}

impl Vmbeam {
    /// The last reference is gone: leave nothing half way, or keep a record.
    fn settle(&self) {
        if let Some(session) = self.turns.end() {
            records::settle(session);
        }
    }

    /// Read the request at `ptr` and do `what` with it when the session is free.
    ///
    /// # Errors
    ///
    /// Those of [`Arg::read`] and [`Turns::work`].
    fn run<T: uapi::Request>(
        &self,
        nr: u32,
        ptr: UserPtr,
        what: impl FnOnce(&mut KBox<Session>, Arg<T>, Watch<'_>) -> Result,
    ) -> Result {
        let arg = Arg::read(ptr)?;

        self.turns.work(nr, |session, watch| {
            let result = what(session, arg, watch);
            session.note();
            result
        })
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
            ..self.turns.view().status
        };
        arg.write()
    }

    /// IOCTL: `RECORD`: what an earlier session left.
    ///
    /// # Errors
    ///
    /// [`EBADFD`], and those of [`records::next`].
    fn record(&self, arg: Arg<uapi::Record>) -> Result {
        // Who has a file that was bound to two domains has nothing to do with others.
        if self.turns.view().status.state != uapi::STATE_UNBOUND {
            return Err(EBADFD);
        }
        records::next(arg)
    }

    /// IOCTL: `CANCEL`: end what works on the session.
    ///
    /// # Errors
    ///
    /// Those of [`Turns::cancel`].
    fn cancel(&self, _arg: Arg<uapi::Cancel>) -> Result {
        self.turns.cancel()
    }
}
