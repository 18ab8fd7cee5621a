// SPDX-License-Identifier: GPL-2.0-only

//! Threads that share a session: one works on it, others wait for their turn, watch, or have
//! it end.

use kernel::{
    current,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
};

use crate::{
    session::{
        Session,
        View, //
    },
    uapi,
};

/// A session, and who works on it.
///
/// # Locking
///
/// At most one thread works on the session at a time. It takes the session out
/// of `shared` and works without holding the lock, because a commit can last long
/// and a thread that waits for its turn must be killable. After each hypercall it
/// leaves a copy of the counts in `shared`, so that others can watch. `shared` is
/// never held while user memory is accessed or a hypercall is made.
#[pin_data]
pub(crate) struct Turns {
    #[pin]
    shared: Mutex<Shared>,
    /// Notified when the session is put back.
    #[pin]
    idle: CondVar,
}

struct Shared {
    /// The session, or `None` while a thread works on it.
    session: Option<KBox<Session>>,
    /// What the session looked like when it was put back, or when the thread that
    /// works on it last looked up.
    view: View,
    /// Somebody wants the thread that works on the session to stop.
    cancel: bool,
}

impl Turns {
    /// Share a session.
    pub(crate) fn new(session: KBox<Session>) -> impl PinInit<Self> {
        let shared = Shared {
            view: session.view(),
            session: Some(session),
            cancel: false,
        };

        pin_init!(Self {
            shared <- kernel::new_mutex!(shared),
            idle <- kernel::new_condvar!(),
        })
    }

    /// Do `what`, which is the ioctl `nr`, when the session is free.
    ///
    /// # Errors
    ///
    /// Those of `what`, and [`EINTR`] for a signal while another thread had the session.
    pub(crate) fn work(
        &self,
        nr: u32,
        what: impl FnOnce(&mut KBox<Session>, Watch<'_>) -> Result,
    ) -> Result {
        let mut session = self.take(nr)?;
        let result = what(&mut session, Watch(Some(self)));

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
                shared.view.status.activity = nr;
                shared.cancel = false;
                return Ok(session);
            }
            if interrupted {
                return Err(EINTR);
            }
            interrupted = self.idle.wait_interruptible(&mut shared);
        }
    }

    /// The session, when nobody is left to share it.
    pub(crate) fn end(&self) -> Option<KBox<Session>> {
        self.shared.lock().session.take()
    }

    /// How far the session is.
    pub(crate) fn view(&self) -> View {
        self.shared.lock().view
    }

    /// End what works on the session.
    ///
    /// # Errors
    ///
    /// [`ENOENT`]: there is nothing that can be ended.
    pub(crate) fn cancel(&self) -> Result {
        let mut shared = self.shared.lock();

        match shared.view.status.activity {
            uapi::NR_CHECK | uapi::NR_COMMIT | uapi::NR_ROLLBACK => shared.cancel = true,
            _ => return Err(ENOENT),
        }
        Ok(())
    }
}

/// Who watches a thread that works on a session.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a>(Option<&'a Turns>);

impl Watch<'_> {
    /// Nobody: the file is gone, and no signal is a reason to stop.
    pub(crate) const NOBODY: Self = Self(None);

    /// Let others see `view`, which is how far the session is, and find out whether somebody
    /// wants it to stop.
    ///
    /// # Errors
    ///
    /// [`ECANCELED`], and [`EINTR`] for a signal.
    pub(crate) fn pause(self, view: View, signals: bool) -> Result {
        let Some(turns) = self.0 else {
            return Ok(());
        };
        let mut shared = turns.shared.lock();
        let activity = shared.view.status.activity;
        shared.view = view;
        shared.view.status.activity = activity;
        if shared.cancel {
            return Err(ECANCELED);
        }
        drop(shared);

        if signals && current!().signal_pending() {
            return Err(EINTR);
        }
        Ok(())
    }
}
