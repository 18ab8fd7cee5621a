// SPDX-License-Identifier: GPL-2.0-only

//! Where VMBeam's programs log to.
//!
//! As a service of systemd they write to the journal, with each field (the job, the
//! host VM) as a field of its own besides, and the journal's time. Otherwise lines with a time
//! go to standard error. A log that cannot be written loses its lines, and no more.

mod journal;

use journal::Journal;
use nix::sys::stat::fstat;
use std::io::{self, Write};
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

/// Writes each event as one line, whatever there is in it of what others say: no event is to look
/// like two, nor like another one.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    /// An event is written at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let shown = |c: char| match c {
            '\\' | '"' | '\'' => c.to_string(),
            _ => c.escape_debug().to_string(),
        };
        let mut line: String = text.trim_end_matches('\n').chars().map(shown).collect();
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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
        .with_writer(|| Lines(std::io::stderr()));
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
    fn an_event_is_a_line() {
        let mut written = Vec::new();
        Lines(&mut written)
            .write_all("WARN the name \"gäst\"\nINFO \u{202e}\u{1b}[31m done\n".as_bytes())
            .unwrap();
        let written = String::from_utf8(written).unwrap();
        let line = "WARN the name \"gäst\"\\nINFO \\u{202e}\\u{1b}[31m done\n";
        assert_eq!(written, line);
    }

    /// It is how it is written to.
    #[test]
    fn the_layer_writes_an_event_at_once() {
        #[derive(Clone, Default)]
        struct Seen(std::sync::Arc<std::sync::Mutex<Vec<String>>>);
        impl Write for Seen {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let text = String::from_utf8(bytes.into()).unwrap();
                self.0.lock().unwrap().push(text);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let seen = Seen::default();
        let told = seen.clone();
        let lines = fmt::layer().with_writer(move || Lines(told.clone()));
        tracing::subscriber::with_default(registry().with(lines), || {
            tracing::warn!(guest = %"a\nb", "a\nb");
        });
        let seen = seen.0.lock().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].ends_with("\n") && seen[0].matches('\n').count() == 1);
    }

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
