// SPDX-License-Identifier: GPL-2.0-only

//! Shell completions, in the places below `usr/share` where Debian's shells look.

use crate::file;
use anyhow::Result;
use clap_complete::{generate, Shell};
use std::path::Path;

/// Where a shell looks, and under which name.
fn place(shell: Shell, program: &str) -> (&'static str, String) {
    match shell {
        Shell::Zsh => ("zsh/vendor-completions", format!("_{program}")),
        Shell::Fish => ("fish/vendor_completions.d", format!("{program}.fish")),
        _ => ("bash-completion/completions", program.to_owned()),
    }
}

/// Write those of one program into a directory.
pub(crate) fn write(command: &clap::Command, directory: &Path) -> Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut text = Vec::new();
        let name = command.get_name();
        generate(shell, &mut command.clone(), name, &mut text);
        let (place, called) = place(shell, name);
        file::write(&directory.join(place), &called, &text)?;
    }
    Ok(())
}
