// SPDX-License-Identifier: GPL-2.0-only

//! `ADD`: take runs into a session, all of a call's or none.

use kernel::prelude::*;

use crate::{
    alloc,
    args::{
        self,
        Arg, //
    },
    exchange,
    ledger::NotAdded,
    pairs::BadRun,
    session::{
        Session,
        MAX_ADD_RUNS, //
    },
    uapi,
};

/// The error for the caller, and the run that caused it if one did.
fn explain(why: NotAdded<Error>) -> (Error, Option<u32>) {
    match why {
        NotAdded::Refused(why) => (exchange::refused(why), None),
        NotAdded::Bad(run, BadRun::Invalid) => (EINVAL, Some(run)),
        NotAdded::Bad(run, BadRun::Overflow) => (EOVERFLOW, Some(run)),
        NotAdded::InUse(run) => (EEXIST, Some(run)),
        NotAdded::Full => (ENOSPC, None),
        NotAdded::Memory(error) => (error, None),
        NotAdded::Broken => {
            kernel::warn_on!(true);
            (EIO, None)
        }
    }
}

impl Session {
    /// IOCTL: `ADD`: append runs. The out fields are written whatever the result,
    /// so that a caller can tell an error of its own from one that a run caused.
    ///
    /// # Errors
    ///
    /// Those of the uAPI header.
    pub(crate) fn add(&mut self, mut arg: Arg<uapi::Add>) -> Result {
        let result = self
            .take_runs(arg.value.runs, arg.value.nr_runs)
            .map_err(explain);
        let bad_run = result.err().and_then(|(_, run)| run);
        let counts = self.ledger.counts();

        arg.value.bad_run = bad_run.unwrap_or(arg.value.nr_runs);
        arg.value.total_runs = counts.runs.into();
        arg.value.total_pairs = counts.pairs.into();
        let written = arg.write();
        result.map_err(|(error, _)| error)?;
        written
    }

    fn take_runs(&mut self, addr: u64, nr_runs: u32) -> Result<(), NotAdded<Error>> {
        if nr_runs == 0 {
            return Err(EINVAL.into());
        }
        if nr_runs > MAX_ADD_RUNS {
            return Err(E2BIG.into());
        }
        if !self.is_bound() {
            return Err(EBADFD.into());
        }
        self.ledger.may_add().map_err(NotAdded::Refused)?;

        let nr_runs = usize::try_from(nr_runs).map_err(Error::from)?;
        let mut new = alloc::list(uapi::Run::default(), nr_runs).map_err(Error::from)?;
        args::read_array(addr, &mut new)?;
        self.ledger.add(&new)
    }
}
