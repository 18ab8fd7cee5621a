// SPDX-License-Identifier: GPL-2.0-only

//! Whether Debian has a newer hypervisor than the patched one that is installed: what is
//! built from an older source lacks the security updates of the newer.

use std::process::{Command, Stdio};

/// What our packages' versions end in, behind that of Debian's source; a digit follows.
const MARK: &str = "+vmbeam";

/// Runs a program; what it printed if it succeeded.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// What is known about the package of the hypervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Apt knows no newer one.
    Newest { installed: String },
    /// Apt knows a newer one.
    Old {
        installed: String,
        newest: String,
        held: bool,
    },
}

/// Ask dpkg and apt; none if no package of ours is installed, or there is no dpkg.
pub(crate) fn look(run: impl Fn(&str, &[&str]) -> Option<String>) -> Option<Base> {
    let format = "${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\n";
    let listed = run(
        "dpkg-query",
        &["-W", "-f", format, "xen-hypervisor-*-amd64"],
    )?;
    let (want, package, installed) = listed.lines().find_map(ours)?;
    let installed = installed.to_owned();
    let newer = |version: &&str| {
        let comparison = ["--compare-versions", version, "gt", &installed];
        run("dpkg", &comparison).is_some()
    };
    let known = run("apt-cache", &["madison", package]).unwrap_or_default();
    // Apt lists the newest first.
    let newest = known
        .lines()
        .filter_map(|line| version(line, package))
        .find(newer);
    Some(match newest {
        None => Base::Newest { installed },
        Some(newest) => Base::Old {
            newest: newest.to_owned(),
            installed,
            held: want == "hold",
        },
    })
}

/// Of a line of dpkg-query what apt is to do with it, its name and its version.
fn ours(line: &str) -> Option<(&str, &str, &str)> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [want, "installed", package, version] if version.contains(MARK) => {
            Some((want, package, version))
        }
        _ => None,
    }
}

/// Of a line `package | version | where from` the version, if it is one of Debian's.
fn version<'a>(line: &'a str, package: &str) -> Option<&'a str> {
    let mut fields = line.split('|').map(str::trim);
    let (name, version, from) = (fields.next()?, fields.next()?, fields.next()?);
    let packages = name == package && from.ends_with(" Packages");
    (packages && !version.is_empty() && !version.contains(MARK)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "4.20.3+127-gc42374a105-0+deb13u1+vmbeam1";
    const NEWER: &str = "4.20.4+63-g7abfd2bce2-0+deb13u1";
    const MADISON: &str = "\
xen-hypervisor-4.20-amd64 | 4.20.4+63-g7abfd2bce2-0+deb13u1 | http://mirror/debian trixie/main amd64 Packages
xen-hypervisor-4.20-amd64 | 4.20.2+37-g61ff35323e-0+deb13u1 | http://mirror/debian trixie/main amd64 Packages
       xen | 4.20.9-1 | http://mirror/debian trixie/main Sources
";

    /// Programs that say this; dpkg compares what the tests need.
    fn look_at(dpkg: &str, madison: Option<&str>) -> Option<Base> {
        look(|program, arguments| match (program, arguments) {
            ("dpkg-query", _) => Some(dpkg.to_owned()),
            ("apt-cache", ["madison", "xen-hypervisor-4.20-amd64"]) => madison.map(str::to_owned),
            ("dpkg", ["--compare-versions", version, "gt", OURS]) => {
                (*version > "4.20.3").then(String::new)
            }
            other => panic!("{other:?}"),
        })
    }

    fn installed(want: &str, version: &str) -> String {
        format!("{want} installed xen-hypervisor-4.20-amd64 {version}\n")
    }

    #[test]
    fn a_newer_one() {
        for (want, held) in [("install", false), ("hold", true)] {
            let base = look_at(&installed(want, OURS), Some(MADISON));
            let expected = Base::Old {
                installed: OURS.into(),
                newest: NEWER.into(),
                held,
            };
            assert_eq!(base, Some(expected));
        }
    }

    #[test]
    fn none_that_is_newer() {
        let newest = Some(Base::Newest {
            installed: OURS.into(),
        });
        let ours = installed("install", OURS);
        let (_, older) = MADISON.split_once('\n').unwrap_or_default();
        assert_eq!(look_at(&ours, Some(older)), newest);
        // A repository with our own next one is nothing that we lack.
        let own = MADISON.replace("deb13u1 |", "deb13u1+vmbeam2 |");
        assert_eq!(look_at(&ours, Some(&own)), newest);
        // No index, no apt, and what is no such list.
        for madison in [
            Some(""),
            None,
            Some("N: Unable to locate package\n|\n| |\n||||"),
        ] {
            assert_eq!(look_at(&ours, madison), newest);
        }
    }

    #[test]
    fn not_ours() {
        for dpkg in [
            "",
            "install\n",
            &installed("install", NEWER),
            "deinstall config-files xen-hypervisor-4.20-amd64 1+vmbeam1\n",
            "unknown not-installed xen-hypervisor-4.20-amd64 \n",
        ] {
            assert_eq!(look_at(dpkg, Some(MADISON)), None, "{dpkg}");
        }
        assert_eq!(look(|_, _| None), None);
    }

    #[test]
    fn of_several_the_one_that_is_ours() {
        let other = "install installed xen-hypervisor-4.17-amd64 4.17.5-1\n";
        let base = look_at(&(other.to_owned() + &installed("install", OURS)), None);
        assert_eq!(
            base,
            Some(Base::Newest {
                installed: OURS.into()
            })
        );
    }

    #[test]
    fn a_program_that_is_not_there_or_fails() {
        assert_eq!(run("/nonexistent/program", &[]), None);
        assert_eq!(run("false", &[]), None);
        assert_eq!(run("echo", &["text"]).as_deref(), Some("text\n"));
    }
}
