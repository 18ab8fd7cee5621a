// SPDX-License-Identifier: GPL-2.0-only

//! Names of guests as they are told: whatever does not look like what it is is left out. A name is
//! for people, and a line of its own for nobody. Who compares two compares them as they are told.

use vmbeam_wire::is_plain;
use vmbeam_wire::message::MAX_NAME;

/// A text without what cannot be seen in it.
pub(crate) fn visible(mut text: String) -> String {
    if !is_plain(&text) {
        text.retain(|c| matches!(c, '\\' | '"' | '\'') || c.escape_debug().len() == 1);
    }
    text
}

/// A name as it is told, unless nothing of it is left or it is too long.
pub(crate) fn told(name: String) -> Option<String> {
    let name = visible(name);
    (!name.is_empty() && name.len() <= MAX_NAME).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_look_like() {
        let told = |name: &str| told(name.into());
        for name in ["guest", "a b \"c\" 'd' \\e", "gäst", "(null)"] {
            assert_eq!(told(name).as_deref(), Some(name));
        }
        assert_eq!(told("a\nB   2").as_deref(), Some("aB   2"));
        assert_eq!(told("\u{1b}[31m\u{202e}x").as_deref(), Some("[31mx"));
        assert_eq!(told("\n"), None);
        assert_eq!(told(&"x".repeat(MAX_NAME + 1)), None);
        // Whatever is told passes the daemon's check.
        assert!(is_plain(&told("a\u{301}\u{200b}\u{301}").unwrap()));
    }
}
