// SPDX-License-Identifier: GPL-2.0-only

//! Which domains there are, as `xl list` prints it.
//!
//! `xl domid NAME` fails for many reasons, and does not say for which: not there, a name that
//! cannot be read, no memory, no toolstack. So nothing is concluded from a failure here: a
//! domain is gone if a list that is complete does not have it.

use crate::command::run;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Domains that can run. One that is dying cannot, however long that lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains(Vec<(String, u32)>);

/// Name, number and state of a domain. A name may have spaces; what follows it has none: number,
/// memory, vCPUs, state and time.
fn parse(line: &str) -> Option<(String, u32, bool)> {
    let mut words = line.split_whitespace().rev();
    let state = words.nth(1)?;
    let domid = words.nth(2)?.parse().ok()?;
    let mut name: Vec<_> = words.collect();
    name.reverse();
    Some((name.join(" "), domid, state.ends_with('d')))
}

impl Domains {
    /// Run a command that prints them. A list without the management VM is none.
    pub fn list(command: &mut Command, limit: Duration) -> Result<Self, String> {
        let out = run(command.process_group(0), limit).map_err(|e| e.to_string())?;
        if !out.status.success() {
            return Err(out
                .err
                .lines()
                .next()
                .unwrap_or("it says nothing")
                .trim()
                .into());
        }
        if !out.whole {
            return Err("its list is cut off".into());
        }
        Self::parse(&out.out).ok_or_else(|| "it printed no list of domains".into())
    }

    fn parse(text: &str) -> Option<Self> {
        let all: Option<Vec<_>> = text.lines().skip(1).map(parse).collect();
        let domains = all?.into_iter().filter(|d| !d.2).map(|d| (d.0, d.1));
        let domains = Self(domains.collect());
        domains.has(0).then_some(domains)
    }

    /// Whether there is this domain.
    pub fn has(&self, domid: u32) -> bool {
        self.0.iter().any(|d| d.1 == domid)
    }

    /// The number of the domain of this name, if there is one.
    pub fn named(&self, name: &str) -> Result<Option<u32>, String> {
        let found = self.0.iter().find(|d| d.0 == name);
        match self.0.iter().find(|d| d.0 == "(null)") {
            Some(nameless) if found.is_none() => {
                Err(format!("the name of domain {} cannot be read", nameless.1))
            }
            _ => Ok(found.map(|d| d.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  4096     2     r-----    1234.5
A                                           12  2048     2     -b----      99.0
two words                                    7  2048     2     --p---       1.0
(null)                                       9     0     1     --psrd       3.0
";

    #[test]
    fn a_list_is_read() {
        let domains = Domains::parse(LIST).unwrap();
        assert_eq!(domains.named("A"), Ok(Some(12)));
        assert_eq!(domains.named("two words"), Ok(Some(7)));
        assert_eq!(domains.named("B"), Ok(None));
        assert!(domains.has(7) && !domains.has(8));
        // It is dying.
        assert!(!domains.has(9));
        let nameless = LIST.replace("--psrd", "-b----");
        let domains = Domains::parse(&nameless).unwrap();
        assert!(domains.has(9));
        assert_eq!(domains.named("A"), Ok(Some(12)));
        assert!(domains.named("B").unwrap_err().contains("domain 9"));
    }

    #[test]
    fn what_is_no_list_says_nothing() {
        let cut = LIST.len() - 30;
        for text in ["", "Name ID\n", "xl: no such program\n", &LIST[..cut]] {
            assert_eq!(Domains::parse(text), None, "{text:?}");
        }
        let list = |script: &str| {
            let limit = Duration::from_secs(20);
            Domains::list(Command::new("sh").args(["-c", script]), limit)
        };
        assert_eq!(list("echo no >&2; exit 1").unwrap_err(), "no");
        let long = "echo Name; yes 'A 0 1 1 r----- 1.0' | head -c 4000000";
        assert_eq!(list(long).unwrap_err(), "its list is cut off");
        // Whoever holds the pipe may still have something to say.
        let open = "echo Name; echo 'Domain-0 0 1 1 r----- 1.0'; sleep 9 2>&1 & exit 0";
        assert_eq!(list(open).unwrap_err(), "its list is cut off");
    }
}
