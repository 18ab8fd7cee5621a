// SPDX-License-Identifier: GPL-2.0-only

//! Whether JSON is what Documentation/schemas/ says. Stricter than a validator: what is not
//! described there must not be.

#![allow(dead_code, reason = "every test file uses a part of it")]

use serde_json::Value;
use std::path::{Path, PathBuf};

pub fn file(command: &str) -> PathBuf {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Documentation/schemas");
    schemas.join(format!("{command}.json"))
}

/// Keywords that say nothing about what is allowed.
const ABOUT: &[&str] = &[
    "$schema",
    "$defs",
    "title",
    "description",
    "format",
    "default",
    "properties",
    "required",
    "additionalProperties",
];

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("type {other}"),
    }
}

fn all(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// Why it does not fit, if so.
fn misfit(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let mut why = None;
    let mut fail = |is: bool, what: String| {
        if !is && why.is_none() {
            why = Some(what);
        }
    };
    for (key, wanted) in schema.as_object().unwrap() {
        let fits = |s: &Value| misfit(root, s, value).is_none();
        match key.as_str() {
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                let inner = misfit(root, &root["$defs"][name], value);
                fail(inner.is_none(), inner.unwrap_or_default());
            }
            "anyOf" => fail(
                all(wanted).iter().any(fits),
                format!("{value}: none of {wanted}"),
            ),
            "oneOf" => fail(
                all(wanted).iter().filter(|s| fits(s)).count() == 1,
                format!("{value}: not one of {wanted}"),
            ),
            "enum" => fail(
                all(wanted).contains(value),
                format!("{value}: not in {wanted}"),
            ),
            "const" => fail(wanted == value, format!("{value}: not {wanted}")),
            "type" => {
                let kinds = match wanted {
                    Value::String(_) => std::slice::from_ref(wanted),
                    several => all(several),
                };
                let fits = kinds.iter().any(|k| is_of(k.as_str().unwrap(), value));
                fail(fits, format!("{value}: not of type {wanted}"));
            }
            "minimum" => fail(
                value.as_f64().is_none_or(|v| v >= wanted.as_f64().unwrap()),
                format!("{value}: less than {wanted}"),
            ),
            "maximum" => fail(
                value.as_f64().is_none_or(|v| v <= wanted.as_f64().unwrap()),
                format!("{value}: more than {wanted}"),
            ),
            "minItems" | "maxItems" => {
                let length = value.as_array().map(|a| a.len() as u64);
                let wanted = wanted.as_u64().unwrap();
                let fits = length.is_none_or(|l| match key.as_str() {
                    "minItems" => l >= wanted,
                    _ => l <= wanted,
                });
                fail(fits, format!("{value}: {key} is {wanted}"));
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    let inner = misfit(root, wanted, item);
                    fail(inner.is_none(), inner.unwrap_or_default());
                }
            }
            key => assert!(ABOUT.contains(&key), "keyword {key}"),
        }
    }
    let described = schema
        .get("properties")
        .or(schema.get("additionalProperties"));
    if let (Some(object), Some(_)) = (value.as_object(), described) {
        for name in schema.get("required").map(all).into_iter().flatten() {
            let name = name.as_str().unwrap();
            fail(object.contains_key(name), format!("no {name} in {value}"));
        }
        for (name, inner) in object {
            let of = schema["properties"].get(name);
            match of.or(schema.get("additionalProperties")) {
                Some(of) if of.is_object() => {
                    let inner = misfit(root, of, inner);
                    fail(
                        inner.is_none(),
                        format!("{name}: {}", inner.unwrap_or_default()),
                    );
                }
                _ => fail(false, format!("{name} is not described")),
            }
        }
    }
    why
}

/// It is what this command may print.
#[track_caller]
pub fn assert_fits(command: &str, value: &Value) {
    let text = std::fs::read_to_string(file(command)).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    if let Some(why) = misfit(&schema, &schema, value) {
        panic!("{command}: {why}");
    }
}
