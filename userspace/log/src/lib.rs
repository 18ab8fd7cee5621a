// SPDX-License-Identifier: GPL-2.0-only

//! Where VMBeam's programs log to.
//!
//! As a service of systemd they write to the journal, with each field (the job, the
//! host VM) as a field of its own besides, and the journal's time. Otherwise lines with a time
//! go to standard error. A log that cannot be written loses its lines, and no more.

mod journal;

use journal::Journal;
use nix::sys::stat::fstat;
use std::os::fd::AsFd;
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Identity;
pub use tracing_subscriber::layer::{Context as LayerContext, Layer};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, registry, Registry};

/// Whether systemd has connected this descriptor to the journal, which it says by
/// `JOURNAL_STREAM`. A program may have been given another one since.
fn is_journal(stream: Option<&str>, fd: impl AsFd) -> bool {
    let Ok(stat) = fstat(fd) else {
        return false;
    };
    stream == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Begin to log.
pub fn init(verbose: bool) {
    init_with(verbose, Identity::new());
}

/// The same, and somebody else sees it as well.
pub fn init_with(verbose: bool, other: impl Layer<Registry> + Send + Sync) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let stream = std::env::var("JOURNAL_STREAM").ok();
    if is_journal(stream.as_deref(), std::io::stderr()) {
        if let Ok(journal) = Journal::connect() {
            registry()
                .with(other)
                .with(journal)
                .with(LevelFilter::from_level(level))
                .init();
            return;
        }
    }
    let lines = fmt::layer()
        .with_target(false)
        .with_ansi(false)
        // It would tell so on standard error, and panic as that is what cannot be written.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    registry()
        .with(other)
        .with(lines)
        .with(LevelFilter::from_level(level))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_from_what_replaced_it() {
        let file = tempfile::tempfile().unwrap();
        let stat = fstat(&file).unwrap();
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_journal(Some(&stream), &file));
        assert!(!is_journal(None, &file));
        let other = tempfile::tempfile().unwrap();
        assert!(!is_journal(Some(&stream), &other));
        assert!(!is_journal(Some("rubbish"), &file));
    }
}
