// SPDX-License-Identifier: GPL-2.0-only

//! How a request fails.

use vmbeam_agent_protocol::AgentErrorCode;

/// Why the hypervisor did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HvError {
    /// What sort of failure.
    pub code: AgentErrorCode,
    /// The same for a person.
    pub message: String,
}

impl From<vmbeam_xen::Error> for HvError {
    fn from(e: vmbeam_xen::Error) -> Self {
        let code = match e {
            vmbeam_xen::Error::NoDomain(_) => AgentErrorCode::NoGuest,
            vmbeam_xen::Error::Unsupported(_) => AgentErrorCode::Unsupported,
            _ => AgentErrorCode::Hypervisor,
        };
        Self {
            code,
            message: e.to_string(),
        }
    }
}
