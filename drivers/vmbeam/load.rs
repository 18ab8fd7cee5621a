// SPDX-License-Identifier: GPL-2.0-only

//! `ADD`: take runs into a session, all of a call's or none.

use kernel::prelude::*;

use crate::{
    alloc,
    args::{
        self,
        Arg, //
    },
    frames, marks,
    pairs::{
        self,
        BadRun,
        MAX_PAIRS, //
    },
    session::{
        Session,
        MAX_ADD_RUNS,
        MAX_RUNS, //
    },
    uapi,
};

/// An error, and the run that caused it if one did.
struct Refusal {
    error: Error,
    run: Option<u32>,
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            run: None,
        }
    }
}

impl Refusal {
    fn of_run(error: Error, run: u32) -> Self {
        Self {
            error,
            run: Some(run),
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
        let result = self.take_runs(arg.value.runs, arg.value.nr_runs);
        let bad_run = result.as_ref().err().and_then(|refusal| refusal.run);

        arg.value.bad_run = bad_run.unwrap_or(arg.value.nr_runs);
        arg.value.total_runs = u64::try_from(self.runs.len())?;
        arg.value.total_pairs = self.progress.pairs().into();
        let written = arg.write();
        result.map_err(|refusal| refusal.error)?;
        written
    }

    fn take_runs(&mut self, addr: u64, nr_runs: u32) -> Result<(), Refusal> {
        if nr_runs == 0 {
            return Err(EINVAL.into());
        }
        if nr_runs > MAX_ADD_RUNS {
            return Err(E2BIG.into());
        }
        if !self.is_bound() || !self.progress.may_add() {
            return Err(EBADFD.into());
        }

        let nr_runs = usize::try_from(nr_runs).map_err(Error::from)?;
        let mut new = alloc::list(uapi::Run::default(), nr_runs)?;
        args::read_array(addr, &mut new)?;

        let mut index = 0u32;
        for run in new.iter() {
            pairs::validate(run).map_err(|bad| {
                let error = match bad {
                    BadRun::Invalid => EINVAL,
                    BadRun::Overflow => EOVERFLOW,
                };
                Refusal::of_run(error, index)
            })?;
            index = index.saturating_add(1);
        }

        let (nr_merged, nr_pairs) = pairs::size_with(&self.runs, &new);
        let nr_pairs = u32::try_from(nr_pairs).unwrap_or(u32::MAX);
        if nr_merged > MAX_RUNS || nr_pairs > MAX_PAIRS {
            return Err(ENOSPC.into());
        }

        // All that can fail comes first, the frames last: nobody has to give them back.
        let nr_words = marks::words(nr_pairs);
        alloc::reserve(&mut self.runs, nr_runs)?;
        alloc::resize(&mut self.refused, nr_words, 0)?;
        alloc::resize(&mut self.back, nr_words, 0)?;
        frames::take(&mut self.used, &new).map_err(|(run, refusal)| match refusal {
            frames::Refusal::InUse => Refusal::of_run(EEXIST, run),
            frames::Refusal::NoChunk(error) => error.into(),
        })?;

        alloc::extend(&mut self.runs, nr_runs, |runs, len| {
            pairs::append(runs, len, &new)
        })?;
        self.progress.loaded(nr_pairs);
        Ok(())
    }
}
