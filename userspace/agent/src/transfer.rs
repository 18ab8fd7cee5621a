// SPDX-License-Identifier: GPL-2.0-only

//! A guest on its way out of this system or into it.

use crate::error::HvError;
use crate::hypervisor::Hypervisor;
use crate::restored::restored;
use crate::toolstack::{Incoming, Outgoing};
use tracing::{info, warn};
use vmbeam_agent_protocol::{AgentErrorCode, FromAgent, ToAgent, Uuid};

/// What is on its way. One guest at a time: the port has room for no more.
#[derive(Debug, Default)]
pub enum Transfer {
    /// Nothing.
    #[default]
    None,
    /// A guest with this number is being saved.
    Out(u32, Box<dyn Outgoing>),
    /// A guest of this name is being restored, with this number if that is known.
    In(String, Option<u32>, Box<dyn Incoming>),
}

fn out_of_turn(what: &str) -> HvError {
    HvError {
        code: AgentErrorCode::BadRequest,
        message: what.into(),
    }
}

impl Transfer {
    /// Give up what is on its way. The toolstack lets the guest run again, or
    /// destroys it.
    pub fn abort(&mut self) {
        let result = match self {
            Self::None => return,
            Self::Out(_, save) => save.abort(),
            Self::In(_, _, restore) => restore.abort(),
        };
        match result {
            Ok(()) => info!("gave up a guest's move"),
            Err(e) => warn!("cannot give up a guest's move: {e}"),
        }
        *self = Self::None;
    }

    /// Carry out a request and give its answer. A guest that is restored is the one that has
    /// the UUID that is expected, if it is known.
    pub fn request<H: Hypervisor>(
        &mut self,
        hypervisor: &H,
        request: &ToAgent,
        expected: Option<Uuid>,
    ) -> Result<FromAgent, HvError> {
        match request {
            ToAgent::Facts => {
                return Ok(FromAgent::Facts(hypervisor.facts()?));
            }
            ToAgent::Send {
                guest,
                external,
                staged,
            } => {
                self.must_be_idle(hypervisor)?;
                info!(guest, external, staged, "saving a guest");
                *self = Self::Out(*guest, hypervisor.save(*guest, *external, *staged)?);
            }
            ToAgent::Go => {
                let Self::Out(guest, save) = self else {
                    return Err(out_of_turn("no guest is being saved"));
                };
                info!(guest, "suspending a guest");
                save.go()?;
                return self.pull(hypervisor);
            }
            ToAgent::Pull => return self.pull(hypervisor),
            ToAgent::Receive {
                name,
                external,
                staged,
            } => {
                self.must_be_idle(hypervisor)?;
                info!(name, external, staged, "restoring a guest");
                let restore = hypervisor.restore(name, *external, *staged)?;
                *self = Self::In(name.clone(), None, restore);
            }
            ToAgent::Staged => {
                let Self::In(_, made, restore) = self else {
                    return Err(out_of_turn("no guest is being restored"));
                };
                let guest = restore.staged()?;
                *made = guest;
                return Ok(FromAgent::Staged { guest });
            }
            ToAgent::Push { data } => {
                let Self::In(_, _, restore) = self else {
                    return Err(out_of_turn("no guest is being restored"));
                };
                let taken = restore.push(data)?;
                // At most MAX_PART.
                let bytes = taken as u32;
                return Ok(FromAgent::Taken { bytes });
            }
            ToAgent::Finish => return self.finish(hypervisor, expected),
            ToAgent::Abort => self.abort(),
            ToAgent::Resume { guest } => {
                self.must_be_idle(hypervisor)?;
                hypervisor.resume(*guest)?;
            }
            ToAgent::Destroy { guest } => {
                self.must_be_idle(hypervisor)?;
                hypervisor.destroy(*guest)?;
            }
            _ => return Err(out_of_turn("not a request about a guest's move")),
        }
        Ok(FromAgent::Done)
    }

    /// While a program works on a guest, nobody else does.
    fn must_be_idle<H: Hypervisor>(&self, hypervisor: &H) -> Result<(), HvError> {
        match (self, hypervisor.orphan()) {
            (Self::None, None) => Ok(()),
            (Self::None, Some(process)) => Err(HvError {
                code: AgentErrorCode::Toolstack,
                message: format!(
                    "`xl save` of an earlier agent still runs (process {process}); it ends by itself within two minutes"
                ),
            }),
            _ => Err(out_of_turn("another guest is on its way")),
        }
    }

    fn pull<H: Hypervisor>(&mut self, hypervisor: &H) -> Result<FromAgent, HvError> {
        let Self::Out(guest, save) = self else {
            return Err(out_of_turn("no guest is being saved"));
        };
        let (data, end) = save.pull()?;
        if end {
            // The toolstack says nothing if it could not pause it.
            if !hypervisor.stands_still(*guest)? {
                return Err(HvError {
                    code: AgentErrorCode::Toolstack,
                    message: format!(
                        "guest {guest} runs although it has been saved; was it unpaused by somebody?"
                    ),
                });
            }
            hypervisor.drain(*guest)?;
            // It has come this far without: nothing to give up for.
            if let Err(e) = hypervisor.raise_events(*guest) {
                warn!("cannot make the events of guest {guest} pending: {e}");
            }
            *self = Self::None;
        }
        Ok(FromAgent::Part { data, end })
    }

    fn finish<H: Hypervisor>(
        &mut self,
        hypervisor: &H,
        expected: Option<Uuid>,
    ) -> Result<FromAgent, HvError> {
        let Self::In(name, made, restore) = self else {
            return Err(out_of_turn("no guest is being restored"));
        };
        if !restore.finish()? {
            return Ok(FromAgent::Restored { guest: None });
        }
        if let guest @ Some(_) = *made {
            *self = Self::None;
            return Ok(FromAgent::Restored { guest });
        }
        let guest = Some(restored(hypervisor, name, expected)?);
        *self = Self::None;
        Ok(FromAgent::Restored { guest })
    }
}
