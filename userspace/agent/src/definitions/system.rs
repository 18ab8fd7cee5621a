// SPDX-License-Identifier: GPL-2.0-only

//! The files of this management VM, by what Debian's script `xendomains` is told, and whose they
//! are, by what `xl` says. What cannot be found out is an error: a guest could run twice.

use super::{failed, Files};
use crate::error::HvError;
use crate::toolstack::XL;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vmbeam_xen::command::run;

/// Where `xl` and its files are expected.
const CONFIG: &str = "/etc/xen";
/// What says where the script looks for what it starts at boot, and where that is otherwise.
const DEFAULTS: &str = "/etc/default/xendomains";
const AUTO: &str = "/etc/xen/auto";
/// Where it saves guests when the host VM shuts down, each to a file of its name, to restore all
/// that is there at boot.
const SAVE: &str = "/var/lib/xen/save";
/// How long `xl` may take to read a file.
const READ: Duration = Duration::from_secs(30);

/// The name that `xl` would give a guest that is created from this.
fn name_by_xl(path: &Path) -> io::Result<Option<String>> {
    name_by(Path::new(XL), path)
}

fn name_by(xl: &Path, path: &Path) -> io::Result<Option<String>> {
    let mut create = Command::new(xl);
    create.args(["create", "--quiet", "--dryrun", "--defconfig"]);
    let out = run(create.arg(path), READ)?;
    if !out.status.success() {
        // What it cannot read it does not start either; but perhaps it can do nothing at all.
        let can = run(Command::new(xl).args(["list", "0"]), READ)?;
        return match out.status.code().is_some() && can.status.success() {
            true => Ok(None),
            false => Err(io::Error::other(format!(
                "`xl create --dryrun`: {}",
                out.status
            ))),
        };
    }
    let told: serde_json::Value = serde_json::from_str(&out.out)?;
    let name = told
        .pointer("/c_info/name")
        .or(told.pointer("/config/c_info/name"));
    let Some(name) = name.and_then(|n| n.as_str()) else {
        return Err(io::Error::other("xl does not tell the guest's name"));
    };
    Ok(Some(name.into()))
}

/// The value that a file of shell variables gives last.
fn variable(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let value = line.trim().strip_prefix(name)?.strip_prefix('=')?;
        let quote = value.chars().next().filter(|c| ['"', '\''].contains(c));
        let value = match quote {
            Some(quote) => value[1..].split(quote).next(),
            None => value.split_whitespace().next(),
        };
        Some(value.unwrap_or_default().to_owned())
    };
    text.lines().filter_map(value).next_back()
}

/// What the script is told; all of it has a default.
fn defaults(path: &Path) -> Result<String, HvError> {
    match fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(failed(path, e)),
    }
}

impl Files {
    /// Those of this management VM.
    pub fn system() -> Result<Self, HvError> {
        let text = defaults(Path::new(DEFAULTS))?;
        let directory = |name, default: &str| {
            let told = variable(&text, name).unwrap_or_else(|| default.into());
            Some(told).filter(|a| !a.is_empty()).map(PathBuf::from)
        };
        let restores = variable(&text, "XENDOMAINS_RESTORE").is_none_or(|r| r == "true");
        Ok(Self {
            config: CONFIG.into(),
            auto: directory("XENDOMAINS_AUTO", AUTO),
            saved: directory("XENDOMAINS_SAVE", SAVE).filter(|_| restores),
            name_of: name_by_xl,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn what_xl_cannot_tell_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let named = |script: &str| {
            let xl = dir.path().join("xl");
            let script = format!("#!/bin/sh\n{script}\n");
            let mut file = fs::OpenOptions::new();
            let file = file.write(true).create(true).truncate(true).mode(0o755);
            file.open(&xl)
                .unwrap()
                .write_all(script.as_bytes())
                .unwrap();
            name_by(&xl, Path::new("/any"))
        };
        let told = named(r#"echo '{"c_info": {"name": "g"}}'"#).unwrap();
        assert_eq!(told.as_deref(), Some("g"));
        assert_eq!(named("[ $1 = list ]").unwrap(), None);
        for broken in ["exit 1", "[ $1 = list ] || kill -9 $$"] {
            let e = named(broken).unwrap_err();
            assert!(e.to_string().contains("`xl create --dryrun`: "), "{e}");
        }
    }

    #[test]
    fn what_the_script_is_told_has_to_be_readable() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(defaults(&dir.path().join("none")).unwrap(), "");
        defaults(dir.path()).unwrap_err();
        let odd = dir.path().join("odd");
        fs::write(&odd, b"# \xff\nXENDOMAINS_AUTO=/odd # here\n").unwrap();
        let text = defaults(&odd).unwrap();
        assert_eq!(variable(&text, "XENDOMAINS_AUTO").as_deref(), Some("/odd"));
    }

    #[test]
    fn where_the_script_looks() {
        let text =
            "# XENDOMAINS_AUTO=/no\nXENDOMAINS_AUTO=\"/first\"\n XENDOMAINS_AUTO='/srv/auto' # there\n";
        let auto = |text| variable(text, "XENDOMAINS_AUTO");
        assert_eq!(auto(text).as_deref(), Some("/srv/auto"));
        assert_eq!(auto("XENDOMAINS_AUTO=\n").as_deref(), Some(""));
        assert_eq!(auto("XENDOMAINS_AUTO_ONLY=false\n"), None);
    }
}
