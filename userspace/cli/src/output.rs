// SPDX-License-Identifier: GPL-2.0-only

//! What this program prints. Inside of this crate `println!` and `eprintln!` are these:
//! a reader that has gone, or a device that is full, never ends the program, which may be
//! between two guests; and what a host VM says never looks like a line of its own.

use crate::client::ClientError;
use crate::exit;
use std::fmt::Arguments;
use std::io::{self, Error, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Why standard output could not be written, the first time.
static LOST: OnceLock<Error> = OnceLock::new();

/// What this process would have printed.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    /// For a person.
    pub(crate) lines: String,
    /// For programs.
    pub(crate) json: String,
}

/// Who gets what is told, and what is printed, if somebody else shows it.
static ELSEWHERE: Mutex<Option<(Sender<String>, Printed)>> = Mutex::new(None);

fn there() -> MutexGuard<'static, Option<(Sender<String>, Printed)>> {
    ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this process has no terminal: what it tells goes there, line by line, and what it
/// prints is kept.
pub(crate) fn elsewhere(says: Sender<String>) {
    *there() = Some((says, Printed::default()));
}

/// Whether that is so.
pub(crate) fn is_elsewhere() -> bool {
    there().is_some()
}

/// Nothing more is told; gives what was printed.
pub(crate) fn back() -> Printed {
    there()
        .take()
        .map(|(_, printed)| printed)
        .unwrap_or_default()
}

/// Print a line; where no argument is wanted to break it, whatever it has.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}

/// The same on standard error.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::tell(format_args!($($text)*)) };
}

/// A text without anything that a terminal takes for more than characters. A line break
/// in it is followed by blanks.
pub(crate) fn tame(text: &str) -> String {
    let mut tamed = String::new();
    for c in text.chars() {
        match c {
            '\n' => tamed.push_str("\n    "),
            '\\' | '"' | '\'' => tamed.push(c),
            c => tamed.extend(c.escape_debug()),
        }
    }
    tamed
}

/// A name within a line: with the line breaks that it may have in the form `\n`.
pub(crate) fn name(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Print this as it is.
pub(crate) fn print(text: &str) {
    match &mut *there() {
        Some((_, printed)) => printed.lines.push_str(text),
        None => show(text),
    }
}

fn show(text: &str) {
    if LOST.get().is_none() {
        if let Err(e) = io::stdout().write_all(text.as_bytes()) {
            let _ = LOST.set(e);
        }
    }
}

pub(crate) fn line(text: Arguments<'_>) {
    print(&(tame(&text.to_string()) + "\n"));
}

/// Begin anew at the top of an empty screen.
pub(crate) fn clear() {
    print("\x1b[H\x1b[2J");
}

/// Whether nothing can be printed any more.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

pub(crate) fn tell(text: Arguments<'_>) {
    let line = tame(&text.to_string());
    // Nobody is left to be told.
    let _ = match &*there() {
        Some((says, _)) => says.send(line).ok(),
        None => io::stderr().write_all((line + "\n").as_bytes()).ok(),
    };
}

/// Print a report for programs.
pub(crate) fn json(report: &impl serde::Serialize) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    match &mut *there() {
        Some((_, printed)) => printed.json = text,
        None => show(&text),
    }
    Ok(())
}

/// Print a line for programs.
pub(crate) fn json_line(line: &impl serde::Serialize) -> Result<(), ClientError> {
    print(&(serde_json::to_string(line)? + "\n"));
    Ok(())
}

/// The exit status, when all is printed. A reader that has gone has read what it wanted;
/// anything else that went wrong is told, unless the status says something worse.
pub(crate) fn end(code: ExitCode) -> ExitCode {
    if let Err(e) = io::stdout().flush() {
        let _ = LOST.set(e);
    }
    match LOST.get() {
        Some(e) if e.kind() != ErrorKind::BrokenPipe => {
            eprintln!("vmbeam: cannot print the result: {e}");
            if code == ExitCode::SUCCESS {
                return ExitCode::from(exit::UNPRINTED);
            }
            code
        }
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_what_they_are() {
        assert_eq!(
            tame("\u{e9}t\u{e9}: \"a\" 'b' \\"),
            "\u{e9}t\u{e9}: \"a\" 'b' \\"
        );
        assert_eq!(
            tame("a\nb\tc\u{1b}[m\u{202e}"),
            "a\n    b\\tc\\u{1b}[m\\u{202e}"
        );
        assert_eq!(name("a\\nb\nc"), "a\\\\nb\\nc");
    }
}
