// SPDX-License-Identifier: GPL-2.0-only

//! What there is around guests in their management VM.

use nix::unistd::{access, AccessFlags};
use std::path::Path;
use tracing::debug;
use vmbeam_xen::Xen;

/// A guest management VM's xenstore and file system.
pub trait Surroundings {
    /// The value of a node of xenstore.
    fn read(&self, path: &str) -> Option<String>;
    /// The names below a node of xenstore.
    fn list(&self, path: &str) -> Vec<String>;
    /// Whether there is such a file, device or directory.
    fn exists(&self, path: &Path) -> bool;
    /// Whether files can be made in a directory.
    fn can_write(&self, dir: &Path) -> bool;
    /// What a small file has, without the end of its line.
    fn text(&self, path: &Path) -> Option<String>;
    /// The frequency, in kHz, of the clock of the processor (TSC), if guests can read that.
    fn tsc_khz(&self) -> Option<u32>;
    /// The frequency that it has for a guest which is to read it wherever that can be.
    fn guest_tsc_khz(&self, domid: u32) -> Option<u32>;
}

/// What is only of use if it is known.
fn known<T>(what: Result<Option<T>, vmbeam_xen::Error>) -> Option<T> {
    what.unwrap_or_else(|e| {
        debug!("no clock of the processor: {e}");
        None
    })
}

impl Surroundings for Xen {
    fn read(&self, path: &str) -> Option<String> {
        self.store_read(path)
    }

    fn list(&self, path: &str) -> Vec<String> {
        self.store_list(path)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn can_write(&self, dir: &Path) -> bool {
        // Root or not.
        access(dir, AccessFlags::W_OK).is_ok()
    }

    fn text(&self, path: &Path) -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim_end().to_owned())
    }

    fn tsc_khz(&self) -> Option<u32> {
        known(Xen::tsc_khz(self))
    }

    fn guest_tsc_khz(&self, domid: u32) -> Option<u32> {
        known(Xen::guest_tsc_khz(self, domid))
    }
}
