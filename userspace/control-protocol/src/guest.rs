// SPDX-License-Identifier: GPL-2.0-only

//! How people name a guest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A guest, the way people name it: `A/guest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct GuestRef {
    /// Name of the host VM.
    pub host_vm: String,
    /// Name of the guest inside.
    pub guest: String,
}

impl GuestRef {
    /// The host VM as people are told: it may not be known.
    pub fn shown(&self) -> &str {
        match &*self.host_vm {
            "" => "?",
            name => name,
        }
    }
}

impl std::fmt::Display for GuestRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.guest {
            // All that the host VM has.
            "" => f.write_str(self.shown()),
            guest => write!(f, "{}/{guest}", self.host_vm),
        }
    }
}

impl std::str::FromStr for GuestRef {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((host_vm, guest)) if !host_vm.is_empty() && !guest.is_empty() => Ok(Self {
                host_vm: host_vm.into(),
                guest: guest.into(),
            }),
            _ => Err("expected HOST_VM/GUEST, for example A/guest".into()),
        }
    }
}
