// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator has written down of guests: the files that they are created from,
//! and which of them are created when the host VM boots. They go where a guest goes, so that
//! no host VM starts a second one of a guest that lives elsewhere.
//!
//! Nothing is deleted that is not somewhere else: what is put aside has another name.

mod system;

use crate::error::HvError;
use crate::gate::Gate;
use crate::names::told;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{symlink, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::{info, warn};
use vmbeam_agent_protocol::definition::MAX_FILE;
use vmbeam_agent_protocol::{AgentErrorCode, Definition, Entry, File, FromAgent, ToAgent};
use vmbeam_wire::is_plain;

/// A file of a guest that has left, or that was there before one came.
const ASIDE: [&str; 2] = [".moved", ".replaced"];

/// Where they are, and how to tell whose a file is.
#[derive(Clone, Debug)]
pub struct Files {
    /// The directory of what is created by hand.
    pub config: PathBuf,
    /// That of what is created at boot, if there is one.
    pub auto: Option<PathBuf>,
    /// That of guests that are restored at boot, if any are.
    pub saved: Option<PathBuf>,
    /// The name of the guest that a file makes, if it makes one.
    pub name_of: fn(&Path) -> io::Result<Option<String>>,
}

fn failed(path: &Path, e: impl std::fmt::Display) -> HvError {
    HvError {
        code: AgentErrorCode::Toolstack,
        message: format!("{}: {e}", path.display()),
    }
}

/// The names of what a shell finds in a directory that may not be there.
fn names(dir: &Path) -> Result<Vec<OsString>, HvError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed(dir, e))?,
    };
    let names: io::Result<Vec<_>> = entries.map(|e| Ok(e?.file_name())).collect();
    let mut names = names.map_err(|e| failed(dir, e))?;
    names.retain(|n| !n.as_encoded_bytes().starts_with(b"."));
    names.sort();
    Ok(names)
}

fn sync(dir: &Path) -> Result<(), HvError> {
    let synced = fs::File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|e| failed(dir, e))
}

/// A file as it travels.
fn file_at(path: &Path) -> Result<File, HvError> {
    let text = fs::read(path).map_err(|e| failed(path, e))?;
    if text.len() > MAX_FILE {
        return Err(failed(path, "it is too large to move with its guest"));
    }
    let name = name_at(path)?;
    Ok(File { name, text })
}

/// The name of a file that travels. One that is hidden, or is not what it looks like, is not taken
/// there.
fn name_at(path: &Path) -> Result<String, HvError> {
    let name = path.file_name().and_then(OsStr::to_str);
    let name = name.filter(|n| !n.starts_with('.') && is_plain(n));
    let cannot = "a file of such a name cannot move with its guest; rename it";
    name.map(str::to_owned).ok_or_else(|| failed(path, cannot))
}

/// The name of a guest that a file gives it, as the guest is called.
fn told_by(path: &Path, name: String) -> Result<String, HvError> {
    let cannot = "the guest's name cannot be shown, or is too long; give it another one";
    told(name).ok_or_else(|| failed(path, cannot))
}

/// Whether a guest of this name may be made by this: what is not what it looks like may be so in
/// its name.
fn may_make(text: &[u8], guest: &str) -> bool {
    let text = String::from_utf8_lossy(text);
    let odd = |line: &str| line.contains('\\') || !is_plain(line.trim());
    text.contains(guest) || text.lines().any(odd)
}

/// A file that is a link or not there is none.
fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_file())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// A name beside it that is nobody's yet.
fn free(path: &Path, ending: &str) -> PathBuf {
    let mut names = (0..).map(|nr| match nr {
        0 => beside(path, ending),
        nr => beside(path, &format!("{ending}.{nr}")),
    });
    let nobodys = |p: &PathBuf| p.symlink_metadata().is_err();
    names.find(nobodys).unwrap_or_else(|| beside(path, ending))
}

impl Files {
    fn name_of(&self, path: &Path) -> Result<Option<String>, HvError> {
        let name = (self.name_of)(path).map_err(|e| failed(path, e))?;
        name.map(|name| told_by(path, name)).transpose()
    }

    fn makes(&self, path: &Path, guest: &str) -> Result<bool, HvError> {
        Ok(self.name_of(path)?.as_deref() == Some(guest))
    }

    /// What is created at boot, with the names of the guests.
    fn started(&self) -> Result<Vec<(PathBuf, String)>, HvError> {
        let Some(auto) = &self.auto else {
            return Ok(Vec::new());
        };
        let mut started = Vec::new();
        for name in names(auto)? {
            let path = auto.join(name);
            match self.name_of(&path)? {
                Some(guest) => started.push((path, guest)),
                None => warn!("{} makes no guest", path.display()),
            }
        }
        Ok(started)
    }

    /// The guests that are created or restored at boot.
    pub fn autostart(&self) -> Result<Vec<String>, HvError> {
        let mut guests: Vec<_> = self.started()?.into_iter().map(|s| s.1).collect();
        guests.extend(self.saved()?.into_iter().map(|s| s.1));
        guests.sort();
        guests.dedup();
        Ok(guests)
    }

    /// What is restored at boot, with the names of the guests.
    fn saved(&self) -> Result<Vec<(PathBuf, String)>, HvError> {
        let Some(dir) = &self.saved else {
            return Ok(Vec::new());
        };
        let named = |name: OsString| {
            let path = dir.join(&name);
            let guest = told_by(&path, name.to_string_lossy().into_owned());
            guest.map(|guest| (path, guest))
        };
        let files = names(dir)?.into_iter();
        files.filter(|n| is_file(&dir.join(n))).map(named).collect()
    }

    fn started_as(&self, guest: &str) -> Result<Vec<PathBuf>, HvError> {
        let started = self.started()?.into_iter();
        Ok(started.filter(|s| s.1 == guest).map(|s| s.0).collect())
    }

    /// The file that a guest is created from: what is started at boot, if that is a link to
    /// it, or what is called like the guest, or the only one.
    fn config_of(&self, guest: &str, started: &[PathBuf]) -> Result<Option<PathBuf>, HvError> {
        let dir = self.config.canonicalize().unwrap_or_default();
        let linked = started.iter().filter_map(|s| s.canonicalize().ok());
        if let Some(path) = linked.into_iter().find(|p| p.parent() == Some(&dir)) {
            return Ok(path.file_name().map(|n| self.config.join(n)));
        }
        for called in [format!("{guest}.cfg"), guest.to_owned()] {
            let path = self.config.join(&called);
            // A guest may be called like a path.
            if !called.contains('/') && is_file(&path) && self.makes(&path, guest)? {
                return Ok(Some(path));
            }
        }
        let mut found = Vec::new();
        for name in names(&self.config)? {
            let path = self.config.join(&name);
            // `xl` takes its time, and there may be many.
            let likely = path.extension() == Some(OsStr::new("cfg"))
                && is_file(&path)
                && fs::read(&path).is_ok_and(|text| may_make(&text, guest));
            if likely && self.makes(&path, guest)? {
                found.push(path);
            }
        }
        if found.len() > 1 {
            warn!(guest, "more than one file makes this guest; they stay");
            return Ok(None);
        }
        Ok(found.pop())
    }

    /// What is written down of a guest.
    pub fn definition(&self, guest: &str) -> Result<Definition, HvError> {
        let started = self.started_as(guest)?;
        let config = self.config_of(guest, &started)?;
        let autostart = match started.first() {
            None => None,
            Some(path) => {
                let to = config.as_ref().and_then(|c| c.canonicalize().ok());
                Some(match to.is_some() && path.canonicalize().ok() == to {
                    true => Entry::Link(name_at(path)?),
                    false => Entry::File(file_at(path)?),
                })
            }
        };
        Ok(Definition {
            config: config.as_deref().map(file_at).transpose()?,
            autostart,
        })
    }

    /// The files that a guest's definition would be, and that must find room elsewhere.
    pub fn path_of(&self, guest: &str) -> Result<Option<PathBuf>, HvError> {
        let Definition { config, autostart } = self.definition(guest)?;
        let config = config.map(|f| self.config.join(f.name));
        let auto = autostart.map(|e| match e {
            Entry::Link(name) | Entry::File(File { name, .. }) => {
                self.auto.clone().unwrap_or_default().join(name)
            }
        });
        Ok(config.or(auto))
    }

    /// What has a name that [`Files::define`] would need, and is not the guest's. Nothing is
    /// changed.
    pub fn in_the_way(&self, guest: &str, definition: &Definition) -> Result<Vec<String>, HvError> {
        let Definition { config, autostart } = definition;
        let file = config.as_ref().map(|f| self.config.join(&f.name));
        let entry = match (autostart, &self.auto, &file) {
            (Some(Entry::Link(name)), Some(auto), _) => {
                Some(auto.join(name)).filter(|path| path.exists())
            }
            (Some(Entry::File(file)), Some(auto), _) => Some(auto.join(&file.name)),
            (Some(Entry::File(file)), None, None) => Some(self.config.join(&file.name)),
            _ => None,
        };
        let mut taken = Vec::new();
        for path in file.into_iter().chain(entry) {
            if path.symlink_metadata().is_err() {
                continue;
            }
            let makes = match self.name_of(&path)? {
                Some(name) if name == guest => continue,
                Some(name) => format!("guest {name}"),
                None => "no guest".into(),
            };
            taken.push(format!(
                "{} is there already, and makes {makes}",
                path.display()
            ));
        }
        Ok(taken)
    }

    /// Put a file where it is to be, whatever of the same guest was there.
    fn put(&self, guest: &str, dir: &Path, file: &File) -> Result<PathBuf, HvError> {
        let path = dir.join(&file.name);
        let there = path.symlink_metadata().is_ok();
        if is_file(&path) && fs::read(&path).is_ok_and(|text| text == file.text) {
            return Ok(path);
        }
        if there && !self.makes(&path, guest)? {
            return Err(failed(
                &path,
                format!("it is there already, and does not make guest {guest}; rename it"),
            ));
        }
        // Not seen by what looks for guests.
        let new = dir.join(format!(".{}.new", file.name));
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut out| out.write_all(&file.text).and_then(|()| out.sync_all()));
        written.map_err(|e| failed(&new, e))?;
        if !self.makes(&new, guest)? {
            let _ = fs::remove_file(&new);
            return Err(failed(
                &path,
                format!("what came does not make guest {guest}"),
            ));
        }
        if there {
            self.aside(&path, ASIDE[1])?;
        }
        fs::rename(&new, &path).map_err(|e| failed(&path, e))?;
        Ok(path)
    }

    /// A link has nothing that would be lost.
    fn aside(&self, path: &Path, ending: &str) -> Result<(), HvError> {
        let done = match is_file(path) {
            false => fs::remove_file(path),
            true => {
                let name = path.file_name().unwrap_or_default();
                // What is in the other directory is taken for guests whatever its name.
                fs::rename(path, free(&self.config.join(name), ending))
            }
        };
        done.map_err(|e| failed(path, e))
    }

    /// What was saved of a guest that lives elsewhere is not restored. It is large, and stays in its
    /// directory, with a name that the script does not see.
    fn saved_aside(&self, guest: &str) -> Result<(), HvError> {
        for (path, _) in self.saved()?.into_iter().filter(|s| s.1 == guest) {
            let mut hidden = OsString::from(".");
            hidden.push(path.file_name().unwrap_or_default());
            let to = free(&path.with_file_name(hidden), ASIDE[0]);
            fs::rename(&path, &to).map_err(|e| failed(&path, e))?;
            warn!(
                guest,
                "what was saved of it is not restored any more, and is now {}",
                to.display()
            );
            sync(path.parent().unwrap_or(Path::new("/")))?;
        }
        Ok(())
    }

    /// Write down a guest that has come.
    pub fn define(&self, guest: &str, definition: &Definition) -> Result<(), HvError> {
        let mut config = None;
        if let Some(file) = &definition.config {
            let path = self.put(guest, &self.config, file)?;
            let moved = beside(&path, ASIDE[0]);
            if fs::read(&moved).is_ok_and(|text| text == file.text) {
                fs::remove_file(&moved).map_err(|e| failed(&moved, e))?;
            }
            sync(&self.config)?;
            config = Some(path);
        }
        let Some(entry) = &definition.autostart else {
            return Ok(());
        };
        let Some(auto) = &self.auto else {
            if let (Entry::File(file), None) = (entry, &config) {
                self.put(guest, &self.config, file)?;
                sync(&self.config)?;
            }
            warn!(
                guest,
                "nothing is started at boot here, nor will this guest be"
            );
            return Ok(());
        };
        fs::create_dir_all(auto).map_err(|e| failed(auto, e))?;
        let path = match (entry, config) {
            (Entry::File(file), _) => self.put(guest, auto, file)?,
            (Entry::Link(name), Some(config)) => self.link(guest, &auto.join(name), &config)?,
            (Entry::Link(_), None) => return Ok(()),
        };
        for other in self.started_as(guest)? {
            if other != path {
                self.aside(&other, ASIDE[1])?;
            }
        }
        sync(auto)?;
        info!(guest, "wrote down the guest");
        Ok(())
    }

    fn link(&self, guest: &str, path: &Path, config: &Path) -> Result<PathBuf, HvError> {
        let leads = |p: &Path| p.canonicalize().ok();
        if path.symlink_metadata().is_ok() {
            if leads(path) == leads(config) {
                return Ok(path.into());
            }
            // One that leads nowhere makes nothing, and is of no use to anybody.
            if path.exists() && !self.makes(path, guest)? {
                return Err(failed(
                    path,
                    format!("it is there already, and does not make guest {guest}; rename it"),
                ));
            }
            self.aside(path, ASIDE[1])?;
        }
        let within = path.parent().and_then(Path::parent) == config.parent();
        let target = match (within, config.file_name()) {
            (true, Some(name)) => Path::new("..").join(name),
            _ => config.into(),
        };
        symlink(target, path).map_err(|e| failed(path, e))?;
        Ok(path.into())
    }

    /// A guest has left, and is written down elsewhere.
    pub fn undefine(&self, guest: &str) -> Result<(), HvError> {
        let started = self.started_as(guest)?;
        let config = self.config_of(guest, &started)?;
        for path in &started {
            self.aside(path, ASIDE[0])?;
        }
        // Without a file there is no directory, perhaps.
        if let Some(auto) = self.auto.as_ref().filter(|_| !started.is_empty()) {
            sync(auto)?;
        }
        if let Some(path) = &config {
            self.aside(path, ASIDE[0])?;
        }
        self.saved_aside(guest)?;
        if config.is_some() || !started.is_empty() {
            sync(&self.config)?;
            info!(guest, "put aside what was written down of the guest");
        }
        Ok(())
    }
}

/// Carry out a request and give its answer.
pub(crate) fn request(files: &Files, gate: &Gate, request: &ToAgent) -> Result<FromAgent, HvError> {
    match request {
        ToAgent::Definition { name } => return Ok(FromAgent::Definition(files.definition(name)?)),
        ToAgent::Autostart => return Ok(FromAgent::Autostart(files.autostart()?)),
        ToAgent::Define { name, definition } => files.define(name, definition)?,
        ToAgent::Undefine { name } => files.undefine(name)?,
        ToAgent::MayDefine { name, definition } => {
            return Ok(FromAgent::InTheWay(files.in_the_way(name, definition)?));
        }
        ToAgent::MayStart { allowed } => {
            gate.answer(*allowed).map_err(|e| failed(&gate.0, e))?;
            info!(allowed, "told whether guests may be started");
        }
        ToAgent::HoldStart => gate.take_back().map_err(|e| failed(&gate.0, e))?,
        _ => {}
    }
    Ok(FromAgent::Done)
}

#[cfg(test)]
mod tests;
