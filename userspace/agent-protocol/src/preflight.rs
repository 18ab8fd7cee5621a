// SPDX-License-Identifier: GPL-2.0-only

//! What an agent is asked about a guest before anything is done to it.

use serde::{Deserialize, Serialize};
use vmbeam_wire::is_plain;

/// Most problems, and most needs, of one guest.
pub const MAX_ITEMS: usize = 64;
/// Most bytes of one of them.
pub const MAX_ITEM: usize = 1024;

/// What sort of thing a guest needs in its host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NeedKind {
    /// A network bridge, by its name.
    Bridge,
    /// A disk, by the path of its device or file.
    Disk,
    /// The file of its kernel or of what that starts with, to boot again.
    Kernel,
    /// Room for the file that it is created from, by its path.
    Definition,
    /// A cpupool, by its name.
    Pool,
    /// A processor whose own clock guests can read at this frequency, in kHz. It moves without
    /// that as well.
    Tsc,
}

/// Something that a guest has where it is, and needs where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// What sort of thing.
    pub kind: NeedKind,
    /// Which.
    pub name: String,
}

/// What its host VM knows of a guest that is to move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Why it cannot move, each for a person, to be read behind the guest's name.
    pub problems: Vec<String>,
    /// What the other host VM must have.
    pub needs: Vec<Need>,
}

/// A list of texts within bounds.
pub(crate) fn bounded<'a>(
    what: &str,
    texts: impl ExactSizeIterator<Item = &'a str>,
) -> Result<(), String> {
    if texts.len() > MAX_ITEMS {
        return Err(format!("{} {what}; the most is {MAX_ITEMS}", texts.len()));
    }
    for text in texts {
        if text.len() > MAX_ITEM {
            return Err(format!(
                "{what} of {} bytes; the most is {MAX_ITEM}",
                text.len()
            ));
        }
        if !is_plain(text) {
            return Err(format!("{what} with control characters"));
        }
    }
    Ok(())
}

/// The same of needs.
pub(crate) fn bounded_needs(needs: &[Need]) -> Result<(), String> {
    bounded("needs", needs.iter().map(|n| &*n.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromAgent, ToAgent};
    use vmbeam_wire::Message;

    fn need(name: &str) -> Need {
        Need {
            kind: NeedKind::Bridge,
            name: name.into(),
        }
    }

    #[test]
    fn what_an_agent_says_of_a_guest_is_bounded() {
        let inspected = |problem: &str, problems, needs| {
            FromAgent::Inspected(Inspection {
                problems: vec![problem.into(); problems],
                needs: vec![need("br0"); needs],
            })
            .check()
        };
        assert_eq!(inspected("it is ill", MAX_ITEMS, MAX_ITEMS), Ok(()));
        assert!(inspected("it is ill", MAX_ITEMS + 1, 0).is_err());
        assert!(inspected("it is ill", 0, MAX_ITEMS + 1).is_err());
        assert!(inspected(&"x".repeat(MAX_ITEM + 1), 1, 0).is_err());
        assert!(inspected("it is\nill", 1, 0).is_err());
        let lacking = |needs| FromAgent::Lacking(needs).check();
        assert_eq!(lacking(vec![need("br0")]), Ok(()));
        assert!(lacking(vec![need("br\u{7}")]).is_err());
        let in_the_way = |what: &str, n| FromAgent::InTheWay(vec![what.into(); n]).check();
        assert_eq!(in_the_way("it is there", MAX_ITEMS), Ok(()));
        assert!(in_the_way("it is there", MAX_ITEMS + 1).is_err());
        assert!(in_the_way("it is\nthere", 1).is_err());
        let provide = |needs| ToAgent::Provide { needs }.check();
        assert_eq!(provide(vec![need("br0"); MAX_ITEMS]), Ok(()));
        assert!(provide(vec![need("br0"); MAX_ITEMS + 1]).is_err());
    }
}
