// SPDX-License-Identifier: GPL-2.0-only

//! Every errno that the header documents has a test, and the table in
//! `Documentation/driver-tests.rst` names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const HEADER: &str = "drivers/vmbeam/include/uapi/linux/vmbeam.h";
const TABLE: &str = "Documentation/driver-tests.rst";
const TESTS: &str = "tests/kselftest";

fn read(name: &str) -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(top.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn is_errno(word: &str) -> bool {
    word.len() > 3
        && word.starts_with('E')
        && word
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

/// `(ioctl, errno)` of the header's comments: those of its first comment are of all
/// ioctls, and the statuses of pairs are those of a rollback.
fn documented() -> BTreeSet<(String, String)> {
    let header = read(HEADER);
    let mut out = BTreeSet::new();
    for comment in header.split("/*").skip(2) {
        let (comment, _) = comment.split_once("*/").unwrap_or((comment, ""));
        let ioctl = comment
            .split_once("ioctl(VMBEAM_IOCTL_")
            .and_then(|(_, rest)| rest.split_once(')'))
            .map_or("all", |(name, _)| name);
        let (body, errors) = comment.split_once("Errors:").unwrap_or((comment, ""));
        let mut add = |ioctl: &str, errno: &str| out.insert((ioctl.into(), errno.into()));
        for errno in errors.split(|c: char| !c.is_ascii_alphanumeric()) {
            if is_errno(errno) {
                add(ioctl, errno);
            }
        }
        for line in body.lines() {
            let word = line.trim_start_matches([' ', '*']).split(' ').next();
            let word = word.unwrap_or_default();
            match word.strip_prefix('-') {
                Some(status) if is_errno(status) => add("pair", status),
                None if ioctl == "all" && is_errno(word) => add("all", word),
                _ => false,
            };
        }
    }
    out
}

/// `(ioctl, errno, test)` of the table.
fn table() -> Vec<(String, String, String)> {
    let text = read(TABLE);
    let (_, rest) = text
        .split_once("Which test tries which error")
        .unwrap_or_default();
    let rows = rest.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (ioctl, errno) = (words.next()?, words.next()?);
        let tests: Vec<_> = words.map(|w| w.trim_end_matches(',')).collect();
        (is_errno(errno) && !tests.is_empty()).then_some((ioctl, errno, tests))
    });
    rows.flat_map(|(ioctl, errno, tests)| {
        tests
            .into_iter()
            .map(|test| (ioctl.to_owned(), errno.to_owned(), test.to_owned()))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_documented_errno_is_in_the_table() {
    let documented = documented();
    assert!(documented.len() > 50, "{documented:?}");
    let listed: BTreeSet<_> = table().into_iter().map(|(i, e, _)| (i, e)).collect();
    let missing: Vec<_> = documented.difference(&listed).collect();
    assert!(missing.is_empty(), "not in {TABLE}: {missing:?}");
    let unknown: Vec<_> = listed.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in {HEADER}: {unknown:?}");
}

fn selftests() -> String {
    [
        "vmbeam_test.c",
        "vmbeam_half.c",
        "vmbeam_fault.c",
        "vmbeam_turns.c",
        "vmbeam_modes.c",
    ]
    .map(|name| read(&format!("{TESTS}/{name}")))
    .concat()
}

/// The text of a test that is called `fixture.name`.
fn body<'a>(sources: &'a str, test: &str) -> &'a str {
    let (fixture, name) = test.split_once('.').unwrap_or_else(|| panic!("{test}"));
    let begins = [
        format!("TEST_F({fixture}, {name})"),
        format!("TEST_F_TIMEOUT({fixture}, {name},"),
    ];
    let found = begins.iter().find_map(|begin| {
        let (_, body) = sources.split_once(begin)?;
        body.split("\nTEST_").next()
    });
    found.unwrap_or_else(|| panic!("no test {test}"))
}

#[test]
fn every_test_of_a_claim_exists() {
    let (text, sources) = (read(TABLE), selftests());
    let (_, rest) = text.split_once("Which test would fail").unwrap();
    let (claims, _) = rest.split_once("Which test tries which error").unwrap();
    let words = claims.split(|c: char| c.is_whitespace() || c == ',');
    let tests = words.filter(|word| {
        [
            "fault.",
            "half.",
            "many.",
            "pair.",
            "device.",
            "turns.",
            "keep.",
            "relocation.",
        ]
        .iter()
        .any(|fixture| word.starts_with(fixture))
    });
    let found: Vec<_> = tests.map(|test| body(&sources, test)).collect();
    assert!(found.len() > 15);
}

#[test]
fn every_test_in_the_table_exists() {
    let sources = selftests();
    for (_, errno, test) in table() {
        let body = body(&sources, &test);
        // Some take the errno from a table before them.
        let named = body.contains(&errno)
            || sources.contains(&format!("{{ -{errno}, ")) && body.contains("errors[i]")
            || body.contains("bad[i].error");
        assert!(named, "{test} does not try {errno}");
    }
}
