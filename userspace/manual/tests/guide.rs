// SPDX-License-Identifier: GPL-2.0-only

//! Each test that the table of Documentation/operator-guide.rst names is one, or a case of the lab.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// The sources of userspace, with those of tests.
fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_line_of_what_moves_has_its_test() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guide = fs::read_to_string(top.join("Documentation/operator-guide.rst")).unwrap();
    let rows: Vec<Vec<&str>> = guide
        .split("\n   * - ")
        .skip(2)
        .map(|row| row.split("\n     - ").collect())
        .collect();
    assert!(rows.len() >= 20, "only {} lines", rows.len());
    let code = |directory| {
        let mut files = Vec::new();
        sources(&top.join(directory), &mut files);
        let texts = files.iter().map(|f| fs::read_to_string(f).unwrap());
        texts.collect::<String>()
    };
    let (tests, lab) = (code("userspace"), code("tests/lab/src"));
    for row in rows {
        let [what, _, test] = row[..] else {
            panic!("{row:?}")
        };
        let test = test.lines().next().unwrap();
        if let Some(case) = test.strip_prefix("lab: ") {
            assert!(
                lab.contains(&format!("\"{case}\"")),
                "{what}: the lab has no case {case}"
            );
            continue;
        }
        let test = test.trim_matches('`');
        let function = format!("#[test]\nfn {test}() {{");
        let inner = format!("#[test]\n    fn {test}() {{");
        assert!(
            tests.contains(&function) || tests.contains(&inner),
            "{what}: there is no test {test}"
        );
    }
}
