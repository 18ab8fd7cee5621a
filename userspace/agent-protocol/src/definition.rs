// SPDX-License-Identifier: GPL-2.0-only

//! What a management VM has of a guest besides the guest: the file that it is created from,
//! and whether it is created when the host VM boots.

use serde::{Deserialize, Serialize};
use vmbeam_wire::is_plain;

/// Most bytes of a file.
pub const MAX_FILE: usize = 64 << 10;
/// Most bytes of a file's name.
const MAX_FILE_NAME: usize = 255;

/// A file, by its name in a directory that both sides know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name there.
    pub name: String,
    /// All of it.
    pub text: Vec<u8>,
}

/// What starts a guest when its host VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A link of this name to the guest's file.
    Link(String),
    /// A file of its own.
    File(File),
}

/// What there is of a guest. There may be nothing: nobody has to write down what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The file that it is created from by hand.
    pub config: Option<File>,
    /// What has it created at boot.
    pub autostart: Option<Entry>,
}

impl Definition {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is sent must be within bounds, and its names those of files.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.config.as_ref().map_or(Ok(()), File::check)?;
        match &self.autostart {
            None => Ok(()),
            Some(Entry::File(file)) => file.check(),
            Some(Entry::Link(name)) if self.config.is_some() => file_name(name),
            Some(Entry::Link(_)) => Err("a link to a file that is not there".into()),
        }
    }
}

impl File {
    fn check(&self) -> Result<(), String> {
        file_name(&self.name)?;
        match self.text.len() {
            0 => Err("a file without contents".into()),
            n if n > MAX_FILE => Err(format!("a file of {n} bytes; the most is {MAX_FILE}")),
            _ => Ok(()),
        }
    }
}

/// A file in a directory, and not one that is hidden.
fn file_name(name: &str) -> Result<(), String> {
    let bad = name.is_empty()
        || name.len() > MAX_FILE_NAME
        || name.starts_with('.')
        || name.contains('/')
        || !is_plain(name);
    match bad {
        true => Err("the name of a file that is none".into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromAgent, ToAgent, MAX_GUESTS};
    use vmbeam_wire::Message;

    fn file(name: &str, bytes: usize) -> File {
        File {
            name: name.into(),
            text: vec![b'x'; bytes],
        }
    }

    #[test]
    fn what_is_said_of_a_guests_files_is_bounded() {
        let both = |config: Option<File>, autostart| {
            let definition = Definition { config, autostart };
            let name = "guest".to_owned();
            let asked = ToAgent::MayDefine {
                name: name.clone(),
                definition: definition.clone(),
            };
            let there = ToAgent::Define {
                name,
                definition: definition.clone(),
            };
            let here = FromAgent::Definition(definition).check();
            assert_eq!(there.check().is_ok(), here.is_ok());
            assert_eq!(asked.check(), there.check());
            here.is_ok()
        };
        let link = || Some(Entry::Link("guest".into()));
        assert!(both(None, None));
        assert!(both(Some(file("guest.cfg", MAX_FILE)), link()));
        assert!(both(None, Some(Entry::File(file("10 guest", 1)))));
        // A link leads to what comes along.
        assert!(!both(None, link()));
        assert!(!both(Some(file("guest.cfg", MAX_FILE + 1)), None));
        assert!(!both(Some(file("guest.cfg", 0)), None));
        let long = "x".repeat(MAX_FILE_NAME + 1);
        for name in ["", ".", "..", ".x", "a/b", "../xl.conf", "a\nb", &long] {
            assert!(!both(Some(file(name, 1)), None), "{name}");
            assert!(!both(None, Some(Entry::File(file(name, 1)))), "{name}");
            let to = Some(file("guest.cfg", 1));
            assert!(!both(to, Some(Entry::Link(name.into()))), "{name}");
        }
        let starts = |n| FromAgent::Autostart(vec!["guest".into(); n]).check();
        assert!(starts(MAX_GUESTS).is_ok());
        assert!(starts(MAX_GUESTS + 1).is_err());
        assert!(FromAgent::Autostart(vec!["a\nb".into()]).check().is_err());
        let name = || "a\nb".to_owned();
        assert!(ToAgent::Definition { name: name() }.check().is_err());
        assert!(ToAgent::Undefine { name: name() }.check().is_err());
    }
}
