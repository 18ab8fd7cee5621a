// SPDX-License-Identifier: GPL-2.0-only

//! Documentation/schemas/ is what `vmbeam schema` prints, and describes everything.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod schema;

use serde_json::Value;
use std::process::Command;

const COMMANDS: [&str; 13] = [
    "check",
    "evacuate",
    "events",
    "list",
    "maintenance",
    "memory",
    "migrate",
    "records",
    "rejuvenate",
    "replace",
    "status",
    "swap",
    "watch",
];

fn printed(command: &str) -> String {
    let vmbeam = env!("CARGO_BIN_EXE_vmbeam");
    let out = Command::new(vmbeam).args(["schema", command]).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_documentation_has_what_the_program_prints() {
    for command in COMMANDS {
        let file = schema::file(command);
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            written == printed(command),
            "`vmbeam schema {command}` prints something else than {}; write it there",
            file.display()
        );
    }
    let files = std::fs::read_dir(schema::file("check").parent().unwrap()).unwrap();
    assert_eq!(files.count(), COMMANDS.len());
    let vmbeam = env!("CARGO_BIN_EXE_vmbeam");
    let none = Command::new(vmbeam).args(["schema", "abort"]).output();
    assert_eq!(none.unwrap().status.code(), Some(2));
}

/// All fields, with the names of those around them.
fn fields(at: &str, schema: &Value, bare: &mut Vec<String>) {
    let Value::Object(keys) = schema else { return };
    for (key, inner) in keys {
        match (key.as_str(), inner) {
            ("properties", Value::Object(fields_of)) => {
                for (name, field) in fields_of {
                    let at = format!("{at}.{name}");
                    // A result is one or the other.
                    let is_result = ["Ok", "Err"].contains(&name.as_str());
                    if field.get("description").is_none() && !is_result {
                        bare.push(at.clone());
                    }
                    fields(&at, field, bare);
                }
            }
            (_, Value::Array(several)) => {
                several.iter().for_each(|s| fields(at, s, bare));
            }
            (key, inner) => fields(&format!("{at}.{key}"), inner, bare),
        }
    }
}

#[test]
fn every_field_is_described() {
    let mut bare = Vec::new();
    for command in COMMANDS {
        let schema = serde_json::from_str(&printed(command)).unwrap();
        fields(command, &schema, &mut bare);
    }
    assert!(bare.is_empty(), "{bare:#?}");
}
