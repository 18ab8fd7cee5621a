// SPDX-License-Identifier: GPL-2.0-only

//! Domains with memory and nothing else: those of the Xen that we run on, or of
//! the model in a debug driver.

use std::rc::Rc;

use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;

use crate::bare;
use crate::device::DEVICE;
use crate::mock;

/// Where domains come from.
#[derive(Debug)]
pub enum Host {
    /// A hypervisor.
    Xen(Rc<bare::Toolstack>),
    /// The model.
    Mock(Rc<mock::Mock>),
}

impl Host {
    /// The one that the driver uses.
    pub fn open() -> Result<Self> {
        Ok(match mock::Mock::open().context(DEVICE)? {
            Some(model) => Self::Mock(Rc::new(model)),
            None => Self::Xen(Rc::new(bare::Toolstack::open()?)),
        })
    }

    /// What swaps of a frame that is held can be refused with.
    pub fn refusals(&self) -> &'static [Errno] {
        match self {
            Self::Xen(_) => &[Errno::EBUSY],
            Self::Mock(_) => &[
                Errno::EBUSY,
                Errno::EBUSY,
                Errno::EOPNOTSUPP,
                Errno::EXDEV,
                Errno::ENOMEM,
                Errno::EPERM,
            ],
        }
    }

    /// A domain with frames `0..frames`.
    pub fn domain(&self, frames: u64) -> Result<Domain> {
        self.domain_as(0, frames)
    }

    /// The same with a number that no domain has any more; 0 for any.
    pub fn domain_as(&self, domid: u32, frames: u64) -> Result<Domain> {
        let which = match self {
            Self::Xen(toolstack) => Which::Xen(toolstack.domain(domid, frames)?),
            Self::Mock(mock) => Which::Mock(mock.domain(domid, frames)?),
        };
        Ok(Domain { which, frames })
    }
}

#[derive(Debug)]
enum Which {
    Xen(bare::Domain),
    Mock(mock::Domain),
}

/// A domain; it is destroyed when this is dropped.
#[derive(Debug)]
pub struct Domain {
    which: Which,
    frames: u64,
}

/// Keeps a frame from being swapped.
#[derive(Debug)]
pub enum Hold {
    /// A mapping of it.
    Xen(#[expect(dead_code, reason = "dropping it unmaps the frame")] bare::Mapping),
    /// A word to the model.
    Mock(#[expect(dead_code, reason = "dropping it takes the word back")] mock::Hold),
}

impl Domain {
    /// Its number.
    pub fn domid(&self) -> u32 {
        match &self.which {
            Which::Xen(domain) => domain.domid,
            Which::Mock(domain) => domain.domid,
        }
    }

    /// The first word of each frame.
    pub fn tags(&self) -> Result<Vec<u64>> {
        match &self.which {
            Which::Xen(domain) => Ok(domain.map(0, self.frames as usize)?.tags()),
            Which::Mock(domain) => domain.tags(self.frames),
        }
    }

    /// Write the first word of each frame.
    pub fn write_tags(&self, tags: &[u64]) -> Result<()> {
        match &self.which {
            Which::Xen(domain) => {
                domain.map(0, tags.len())?.write_tags(|i| tags[i]);
                Ok(())
            }
            Which::Mock(domain) => domain.write_tags(0, tags),
        }
    }

    /// The domain of the model, which can do more.
    pub fn of_model(&self) -> Option<&mock::Domain> {
        match &self.which {
            Which::Xen(_) => None,
            Which::Mock(domain) => Some(domain),
        }
    }

    /// Have the hypervisor answer `returns` to all swaps with it, or let it be. Only
    /// possible in the model: tells whether it has happened.
    pub fn refuse(&self, returns: Option<Errno>) -> Result<bool> {
        match &self.which {
            Which::Xen(_) => Ok(false),
            Which::Mock(domain) => {
                domain.refuse(returns.map_or(0, |e| -(e as i32)))?;
                Ok(true)
            }
        }
    }

    /// Keep a frame from being swapped, with an error of [`Host::refusals`].
    pub fn hold(&self, gfn: u64, error: Errno) -> Result<Hold> {
        Ok(match &self.which {
            Which::Xen(domain) => Hold::Xen(domain.map(gfn, 1)?),
            Which::Mock(domain) => Hold::Mock(domain.hold(gfn, -(error as i32))?),
        })
    }
}
