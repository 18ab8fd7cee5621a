// SPDX-License-Identifier: GPL-2.0-only

//! What a test says of its result.

use anyhow::Result;

/// Print one result in TAP; gives back whether it is good.
pub fn report(number: u32, name: &str, result: &Result<()>) -> bool {
    match result {
        Ok(()) => println!("ok {number} - {name}"),
        Err(e) => {
            for line in format!("{e:#}").lines() {
                println!("# {line}");
            }
            println!("not ok {number} - {name}");
        }
    }
    result.is_ok()
}
