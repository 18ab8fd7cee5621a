// SPDX-License-Identifier: GPL-2.0-only

//! UUIDs of guests. An agent of an earlier version does not know the questions: then guests are
//! known by their numbers and names, as they were.

use super::{unexpected, Link, LinkError};
use std::collections::HashMap;
use vmbeam_agent_protocol::{AgentErrorCode, FromAgent, ToAgent, Uuid};

pub(super) fn is_not_known<T>(result: &Result<T, LinkError>) -> bool {
    let code = match result {
        Err(LinkError::Agent { code, .. }) => *code,
        _ => return false,
    };
    code == AgentErrorCode::BadRequest
}

impl Link {
    /// The UUID of each guest by its domid; none if the agent cannot tell.
    pub fn uuids(&mut self) -> Result<HashMap<u32, Uuid>, LinkError> {
        let answer = self.ask(&ToAgent::Uuids, |a| Err(unexpected(&a)));
        if is_not_known(&answer) {
            return Ok(HashMap::new());
        }
        match answer? {
            // What has none is not known by it.
            FromAgent::Uuids(uuids) => Ok(uuids.into_iter().filter(|u| !u.1.is_nil()).collect()),
            other => Err(unexpected(&other)),
        }
    }

    /// The guest that is restored next has this UUID.
    pub fn expect(&mut self, uuid: Uuid) -> Result<(), LinkError> {
        let answer = self.ask(&ToAgent::Expect { uuid }, |a| Err(unexpected(&a)));
        if is_not_known(&answer) {
            return Ok(());
        }
        match answer? {
            FromAgent::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}
