// SPDX-License-Identifier: GPL-2.0-only

//! What goes by the name of a host VM: the port of its agent, and what starts it when the host
//! boots. Each of this can be done again when it is done already.

use crate::restart::value;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sockets of this network namespace.
const SOCKETS: &str = "/proc/self/net/unix";
/// How long a device model may take to end whose domain is gone.
const ENDING: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK: Duration = Duration::from_millis(100);

fn failed(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    |e| format!("cannot make {}: {e}", path.display())
}

/// Remove it if it is there.
pub(super) fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {e}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Have `path` be a link to this, whatever it was before; at no time is it not there.
pub(super) fn link(path: &Path, to: &Path) -> Result<(), String> {
    // In one directory it stays right if that is seen under another name.
    let to = match path.parent() == to.parent() {
        true => to.file_name().map_or(to, Path::new),
        false => to,
    };
    if fs::read_link(path).is_ok_and(|found| found == to) {
        return Ok(());
    }
    // Nothing is started from one that is left behind by whoever is killed here.
    let mut new = OsString::from(".");
    new.push(path.file_name().unwrap_or_default());
    new.push("~");
    let new = path.with_file_name(new);
    remove(&new)?;
    symlink(to, &new)
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed(path))
}

/// Whether somebody listens on the socket that was made there.
fn is_listened(table: &str, socket: &Path) -> bool {
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // 0x10000: it accepts connections.
        words.get(3) == Some(&"00010000") && words.get(7).map(Path::new) == Some(socket)
    })
}

/// Until the device model of the old host VM is gone, which removes its socket when it ends,
/// whatever is there by then.
pub(super) fn wait_until_free(socket: &Path) {
    let started = Instant::now();
    let listened = || is_listened(&fs::read_to_string(SOCKETS).unwrap_or_default(), socket);
    while listened() && started.elapsed() < ENDING {
        std::thread::sleep(LOOK);
    }
}

/// Not what is looked at when the host boots.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// The entry that starts this host VM when the host boots, if there is one.
pub(super) fn entry(directory: &Path, host_vm: &str) -> Result<Option<PathBuf>, String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", directory.display())),
    };
    let mut found = entries.flatten().map(|e| e.path()).filter(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        !is_hidden(path) && value(&text, "name") == Some(host_vm)
    });
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Err(format!(
            "{} and {} both start host VM {host_vm} when the host boots; remove one",
            first.display(),
            second.display()
        )),
        (first, _) => Ok(first),
    }
}

/// What starts this host VM at boot starts it from this configuration from now on. A file that
/// was the configuration itself is kept beside the new one.
pub(super) fn start_from(directory: &Path, host_vm: &str, config: &Path) -> Result<(), String> {
    let Some(entry) = entry(directory, host_vm)? else {
        return Ok(());
    };
    if entry.canonicalize().ok().as_deref() == Some(config) {
        return Ok(());
    }
    if entry.is_symlink() {
        return link(&entry, config);
    }
    let mut kept = config.as_os_str().to_owned();
    kept.push(".replaced");
    let kept = PathBuf::from(kept);
    fs::copy(&entry, &kept).map_err(failed(&kept))?;
    link(&entry, config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn whoever_listens_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("A.sock");
        let listened = || is_listened(&fs::read_to_string(SOCKETS).unwrap(), &path);
        assert!(!listened());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(listened());
        let client = UnixStream::connect(&path).unwrap();
        let accepted = listener.accept().unwrap();
        drop(listener);
        // A connection that is left is nobody who listens.
        assert!(!listened());
        drop((client, accepted));
    }

    #[test]
    fn what_starts_it_at_boot_starts_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (auto, config) = (dir.path().join("auto"), dir.path().join("A-new.cfg"));
        fs::write(&config, "name = 'A'\n").unwrap();
        let start = || start_from(&auto, "A", &config);
        // There is no such directory, and no entry.
        start().unwrap();
        fs::create_dir(&auto).unwrap();
        let old = dir.path().join("A.cfg");
        for (file, name) in [("A.cfg", "A"), ("B.cfg", "B"), ("auto/C", "C")] {
            fs::write(dir.path().join(file), format!("name = \"{name}\"\n")).unwrap();
        }
        symlink("../B.cfg", auto.join("B")).unwrap();
        start().unwrap();
        assert_eq!(fs::read_dir(&auto).unwrap().count(), 2);
        // A link, and again.
        symlink(&old, auto.join("A.cfg")).unwrap();
        for _ in 0..2 {
            start().unwrap();
            assert_eq!(fs::read_link(auto.join("A.cfg")).unwrap(), config);
        }
        assert_eq!(
            fs::read_link(auto.join("B")).unwrap(),
            Path::new("../B.cfg")
        );
        // A file.
        remove(&auto.join("A.cfg")).unwrap();
        fs::write(auto.join("A"), "# old\nname = \"A\"\n").unwrap();
        start().unwrap();
        assert_eq!(fs::read_link(auto.join("A")).unwrap(), config);
        let kept = fs::read_to_string(dir.path().join("A-new.cfg.replaced")).unwrap();
        assert!(kept.starts_with("# old"));
        // What somebody has left who was killed, from now on and before.
        symlink(&old, auto.join(".A~")).unwrap();
        start().unwrap();
        remove(&auto.join("A")).unwrap();
        symlink(&old, auto.join("A")).unwrap();
        start().unwrap();
        assert!(!auto.join(".A~").is_symlink());
        // Two of them.
        symlink(&old, auto.join("zz")).unwrap();
        assert!(start().unwrap_err().contains("both start host VM A"));
    }
}
