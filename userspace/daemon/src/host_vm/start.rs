// SPDX-License-Identifier: GPL-2.0-only

//! What has to be known of a host VM before another one may start its guests.

use super::HostVm;
use crate::port;
use std::sync::atomic::Ordering;

impl HostVm {
    /// The number of the conversation with its agent, if there is one.
    pub(crate) fn conversation(&self) -> Option<u64> {
        let number = self.conversations.load(Ordering::Relaxed);
        self.is_connected().then_some(number)
    }

    /// What its agent was told about its guests at boot holds no more: it is to be told again.
    pub(crate) fn forget_told(&self) {
        self.conversations.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether no guest can run in it. A domain that has another name by now still has the port.
    /// That of one that replaces another is looked after by the name that it has got.
    pub(crate) fn is_off(&self) -> bool {
        let has_port = || self.is_connected() || port::is_open(&self.config.socket);
        self.is_down() && (self.config.replaces.is_some() || !has_port())
    }
}
