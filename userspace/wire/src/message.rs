// SPDX-License-Identifier: GPL-2.0-only

//! What is said in frames, and the bounds of texts that all of it shares.
//!
//! Each direction of a protocol has a message set of its own, in that protocol's crate. An answer
//! carries the request and session numbers of its question.

use serde::de::DeserializeOwned;
use serde::Serialize;

/// Most bytes of a name or a version.
pub const MAX_NAME: usize = 256;
/// Most bytes of an error's text.
pub const MAX_TEXT: usize = 4096;

/// One of the message sets.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of the set in the frame's header.
    const KIND: u16;

    /// Check the limits that decoding alone does not.
    fn check(&self) -> Result<(), String>;
}

/// A text of at most so many bytes, and with no control characters but line feeds.
pub fn short(what: &str, s: &str, most: usize) -> Result<(), String> {
    if s.len() > most {
        return Err(format!("{what} of {} bytes; the most is {most}", s.len()));
    }
    if s.chars().any(|c| c.is_control() && c != '\n') {
        return Err(format!("{what} with control characters"));
    }
    Ok(())
}

/// The name of a guest or of a host VM: one line that is what it looks like.
pub fn name(what: &str, s: &str) -> Result<(), String> {
    short(what, s, MAX_NAME)?;
    if !is_plain(s) {
        return Err(format!("{what} with control characters"));
    }
    Ok(())
}

/// Whether a name is what it looks like: no control characters, none that change the
/// direction of writing or have no width.
pub fn is_plain(name: &str) -> bool {
    let quotes = |c: &char| !matches!(c, '\\' | '"' | '\'');
    let shown = name.chars().filter(quotes).collect::<String>();
    shown.escape_debug().to_string() == shown
}

/// A message set like those of the protocols, for tests of what carries them.
#[cfg(test)]
pub(crate) mod sample {
    use super::{short, Message, MAX_NAME};
    use serde::{Deserialize, Serialize};

    /// One direction.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(crate) enum Question {
        Hello { version: String },
        Pages(Vec<(u64, u32)>),
    }

    impl Question {
        pub(crate) fn hello() -> Self {
            Self::Hello {
                version: "1".into(),
            }
        }
    }

    impl Message for Question {
        const KIND: u16 = 1;

        fn check(&self) -> Result<(), String> {
            match self {
                Self::Hello { version } => short("a version", version, MAX_NAME),
                Self::Pages(_) => Ok(()),
            }
        }
    }

    /// The other one.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(crate) enum Answer {
        Contents(Vec<u8>),
    }

    impl Message for Answer {
        const KIND: u16 = 2;

        fn check(&self) -> Result<(), String> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in ["a", "a b", "a\"b'c\\d", "gäst", "ゲスト", "a=b;c", " a"] {
            assert!(is_plain(name), "{name:?}");
        }
        for name in [
            "a\nb",
            "\t",
            "\u{202e}a",
            "a\u{200b}",
            "\u{1b}[m",
            "\0",
            "\u{2028}",
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
