// SPDX-License-Identifier: GPL-2.0-only

//! Any build of the driver, in a plain VM with Debian's kernel: it loads, answers
//! as it must where there is no hypervisor, and can be unloaded.

use std::path::Path;

use anyhow::ensure;

use crate::driver::Amount;
use crate::images;
use crate::mock;
use crate::tally::Tally;

/// Run it.
pub fn run(tally: &mut Tally, module: &Path) {
    let booted = images::load(module).and_then(|()| mock::boot("load", &Amount::COVERAGE, "", &[]));
    let text = match booted {
        Ok(text) => text,
        Err(e) => return tally.enter("load", "a plain VM boots", Err(e)),
    };
    for line in text.lines().filter(|l| l.starts_with("not ok ")) {
        println!("    {line}");
    }
    tally.lines("load", &text);
    for step in ["insmod", "vmbeam_test", "rmmod"] {
        tally.case("load", step, || {
            let end = format!("END {step} 0");
            ensure!(text.lines().any(|l| l == end), "{}", text.trim());
            Ok(())
        });
    }
}
