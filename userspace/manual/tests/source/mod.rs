// SPDX-License-Identifier: GPL-2.0-only

//! As much of a reader of Rust's and C's tokens as it takes to find texts, and the calls
//! that they are given to.

/// The texts in a source, each with the name of the call or macro whose parentheses are
/// the innermost around it, if there are any. Comments, and attributes other than
/// `#[error]`, are passed over.
pub(crate) fn texts(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut around: Vec<String> = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let before = &code[..code.len() - rest.len()];
        let mut length = c.len_utf8();
        match c {
            '/' if rest.starts_with("//") => length = until(rest, "\n"),
            '/' if rest.starts_with("/*") => length = until(rest, "*/"),
            '\'' => length = character(rest),
            '(' | '[' | '{' => around.push(name(c, before)),
            ')' | ']' | '}' => drop(around.pop()),
            '"' => {
                let (text, end) = literal(rest);
                length = end;
                let attribute = around.iter().any(|a| a == "#");
                if !attribute || around.iter().any(|a| a == "error") {
                    found.push((around.last().cloned().unwrap_or_default(), text));
                }
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    found
}

/// Bytes until something has ended.
fn until(text: &str, end: &str) -> usize {
    text.find(end).map_or(text.len(), |at| at + end.len())
}

/// Length of a character such as `'"'`, or of the quote that begins a lifetime.
fn character(text: &str) -> usize {
    let escaped = usize::from(text[1..].starts_with('\\'));
    let mut chars = text.char_indices().skip(2 + escaped);
    match chars.next() {
        Some((at, '\'')) => at + 1,
        _ => 1,
    }
}

/// What an opening parenthesis or bracket belongs to: `format!`, `Err`, `#`.
fn name(opening: char, before: &str) -> String {
    let before = before.trim_end();
    if opening == '{' {
        return String::new();
    }
    if opening == '[' && (before.ends_with('#') || before.ends_with("#!")) {
        return "#".to_owned();
    }
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '!';
    let start = before.trim_end_matches(part).len();
    before[start..].to_owned()
}

/// The string literal that a text begins with, with its `\` and line breaks resolved, and
/// how long it is.
fn literal(text: &str) -> (String, usize) {
    let mut found = String::new();
    let mut chars = text[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (found, at + 2),
            '\\' => match chars.next() {
                Some((_, '\n')) => {
                    let line = chars.as_str();
                    let blank = line.len() - line.trim_start().len();
                    chars.by_ref().take(blank).for_each(drop);
                }
                Some((_, 'n')) | None => {}
                Some((_, c)) => found.push(c),
            },
            c => found.push(c),
        }
    }
    (found, text.len())
}

#[test]
fn texts_are_found_with_their_calls() {
    let code = r#"
        // "a comment"
        #[doc = "an attribute"]
        #[error("an \"error\": {0}")]
        fn f<'a>(c: char) { if c == '"' || c == '\'' { warn!(c = x(), "one \
            more") } }
        /* "a comment" */ let name = "a text"; pr_warn("in C");
    "#;
    let found = texts(code);
    let found: Vec<_> = found
        .iter()
        .map(|(call, text)| (call.as_str(), text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("error", "an \"error\": {0}"),
            ("warn!", "one more"),
            ("", "a text"),
            ("pr_warn", "in C"),
        ]
    );
}
