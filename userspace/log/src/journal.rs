// SPDX-License-Identifier: GPL-2.0-only

//! systemd's journal. What an event knows is in fields of its own, for who asks for them, and in
//! the message as well, for who reads: `journalctl` shows nothing else.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

const SOCKET: &str = "/run/systemd/journal/socket";

#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    program: String,
}

impl Journal {
    pub(crate) fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        let program = std::env::current_exe()?;
        let program = program.file_name().unwrap_or_default();
        Ok(Self {
            socket,
            program: program.to_string_lossy().into_owned(),
        })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        // What cannot be written is lost.
        let _ = self
            .socket
            .send(&entry.finish(*event.metadata().level(), &self.program));
    }
}

/// An entry in the making.
#[derive(Debug, Default)]
struct Entry {
    message: String,
    /// What comes behind the message.
    more: String,
    /// In the form that the journal takes.
    fields: Vec<u8>,
}

impl Entry {
    fn finish(mut self, level: Level, program: &str) -> Vec<u8> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            _ => "6",
        };
        self.message.push_str(&self.more);
        put(&mut self.fields, "MESSAGE", &self.message);
        put(&mut self.fields, "PRIORITY", priority);
        put(&mut self.fields, "SYSLOG_IDENTIFIER", program);
        self.fields
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
            return;
        }
        // As the log on standard error has it, but that a name is without quotes.
        let _ = write!(self.more, " {}={value}", field.name());
        let name = format!("VMBEAM_{}", field.name().to_uppercase());
        put(&mut self.fields, &name, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// A value may have several lines, so its length comes before it.
fn put(to: &mut Vec<u8>, name: &str, value: &str) {
    to.extend_from_slice(name.as_bytes());
    to.push(b'\n');
    to.extend_from_slice(&(value.len() as u64).to_le_bytes());
    to.extend_from_slice(value.as_bytes());
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    #[test]
    fn the_message_says_what_the_fields_say() {
        let (socket, other) = UnixDatagram::pair().unwrap();
        let program = "program".to_owned();
        let journal = Journal { socket, program };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            tracing::warn!(host_vm = "A", job = 3, "two\nlines");
        });
        let mut buffer = [0; 1024];
        let length = other.recv(&mut buffer).unwrap();
        let mut expected = Vec::new();
        put(&mut expected, "VMBEAM_HOST_VM", "A");
        put(&mut expected, "VMBEAM_JOB", "3");
        put(&mut expected, "MESSAGE", "two\nlines host_vm=A job=3");
        put(&mut expected, "PRIORITY", "4");
        put(&mut expected, "SYSLOG_IDENTIFIER", "program");
        assert_eq!(&buffer[..length], expected);
    }

    #[test]
    fn a_value_is_taken_by_its_length() {
        let mut bytes = Vec::new();
        put(&mut bytes, "MESSAGE", "a\nb");
        assert_eq!(bytes, b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n");
    }
}
