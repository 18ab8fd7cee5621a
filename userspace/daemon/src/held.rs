// SPDX-License-Identifier: GPL-2.0-only

//! Host VMs whose guests are not started yet, and why.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Why guests are not started yet, by the names of host VMs.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashMap<String, String>>);

impl Held {
    /// Notes it; says whether it is news.
    pub(crate) fn set(&self, host_vm: &str, why: Option<&str>) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = match why {
            Some(why) => held.insert(host_vm.into(), why.into()),
            None => held.remove(host_vm),
        };
        last.as_deref() != why
    }

    pub(crate) fn get(&self, host_vm: &str) -> Option<String> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(host_vm).cloned()
    }
}
