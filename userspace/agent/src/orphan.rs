// SPDX-License-Identifier: GPL-2.0-only

//! What an agent before this one has left behind: a save that goes on when whoever started it has
//! been restarted. It can suspend its guest later than anybody expects, and lets it run again when
//! it notices that nobody reads any more; until then nobody else may work on guests.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const PROC: &str = "/proc";
/// Where agents have guests saved to: no person does.
const TO: &[u8] = b"/proc/self/fd/1";

/// Whether anybody has a guest saved or sent away, by `xl` or by another user of libxl, which has
/// a helper of its own for that.
pub(crate) fn is_somebody_saving() -> bool {
    is_saving_in(Path::new(PROC))
}

fn is_saving_in(proc: &Path) -> bool {
    let saves = |words: &[&[u8]]| {
        let Some((program, rest)) = words.split_first() else {
            return false;
        };
        // Its own options come before the command.
        let command = rest.iter().find(|word| !word.starts_with(b"-"));
        program.ends_with(b"libxl-save-helper")
            || (program.ends_with(b"xl")
                && command.is_some_and(|c| [&b"save"[..], b"migrate", b"remus"].contains(c)))
    };
    process_in(proc, saves).is_some()
}

/// The number of such a process. Once there is none there will be none.
pub fn orphan() -> Option<String> {
    static NONE: AtomicBool = AtomicBool::new(false);
    if NONE.load(Ordering::Relaxed) {
        return None;
    }
    let found = orphan_in(Path::new(PROC));
    NONE.store(found.is_none(), Ordering::Relaxed);
    found
}

fn orphan_in(proc: &Path) -> Option<String> {
    let saves = |words: &[&[u8]]| matches!(words, [xl, b"save", .., to] if xl.ends_with(b"xl") && *to == TO);
    process_in(proc, saves)
}

/// The number of a process whose words are these.
fn process_in(proc: &Path, are: impl Fn(&[&[u8]]) -> bool) -> Option<String> {
    fs::read_dir(proc).ok()?.flatten().find_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|b| *b == 0).filter(|w| !w.is_empty()).collect();
        are(&words).then(|| process.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(proc: &Path, number: &str, line: &str) {
        let dir = proc.join(number);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cmdline"), line.replace(' ', "\0") + "\0").unwrap();
    }

    #[test]
    fn whoever_saves_is_seen() {
        let proc = tempfile::tempdir().unwrap();
        for (line, saves) in [
            ("", false),
            ("xl restore /var/lib/xen/save/guest", false),
            ("xl -v list save", false),
            ("xl save 3 /var/lib/xen/save/guest", true),
            ("/usr/sbin/xl -vvv save 3 /file", true),
            ("xl remus 3 other", true),
            (
                "/usr/libexec/xen-4.20/bin/libxl-save-helper --save-domain 8",
                true,
            ),
        ] {
            add(proc.path(), "7", line);
            assert_eq!(is_saving_in(proc.path()), saves, "{line}");
        }
    }

    #[test]
    fn a_save_of_an_earlier_agent_is_found() {
        let proc = tempfile::tempdir().unwrap();
        let process = |number: &str, line: &str| add(proc.path(), number, line);
        process("1", "/sbin/init");
        process("7", "xl restore --external-memory -p /proc/self/fd/0");
        process("8", "xl save 3 /var/lib/xen/save/guest");
        fs::write(proc.path().join("uptime"), "1").unwrap();
        assert_eq!(orphan_in(proc.path()), None);
        process(
            "9",
            "/usr/sbin/xl save --external-memory --staged 3 -p 7 /proc/self/fd/1",
        );
        assert_eq!(orphan_in(proc.path()).as_deref(), Some("9"));
    }
}
