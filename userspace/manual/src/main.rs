// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam-manual DIRECTORY`: write the manual pages and the shell completions of
//! the programs, from the definitions of their command lines. Run when packages are
//! built; not part of any.

mod completions;
mod config;
mod file;
mod pages;

use anyhow::{Context, Result};
use std::path::PathBuf;

/// The programs with the sections of the manual that they belong to.
fn programs() -> [(clap::Command, &'static str); 3] {
    use clap::CommandFactory;
    [
        (vmbeam::command(), "1"),
        (vmbeamd::Args::command(), "8"),
        (vmbeam_agent::Args::command(), "8"),
    ]
}

fn main() -> Result<()> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .context("usage: vmbeam-manual DIRECTORY")?
        .into();
    for (command, section) in programs() {
        for page in pages::of_program(&command, section)? {
            file::write(&directory.join("man"), &page.name, &page.text)?;
        }
        completions::write(&command, &directory)?;
    }
    let page = config::page()?;
    file::write(&directory.join("man"), &page.name, &page.text)
}

#[cfg(test)]
mod tests {
    use super::programs;

    /// All commands of a program with its subcommands.
    fn family(command: &clap::Command) -> Vec<clap::Command> {
        let children = command.get_subcommands().flat_map(family);
        std::iter::once(command.clone()).chain(children).collect()
    }

    #[test]
    fn help_fits_into_80_columns() {
        let mut texts = 0;
        for (mut program, _) in programs() {
            program.build();
            for mut command in family(&program) {
                for help in [command.render_help(), command.render_long_help()] {
                    texts += 1;
                    for line in help.to_string().lines() {
                        assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                    }
                }
            }
        }
        assert!(texts > 20, "only {texts} texts: subcommands were not found");
    }

    #[test]
    fn every_argument_is_explained() {
        for (mut program, _) in programs() {
            program.build();
            for command in family(&program) {
                assert!(command.get_about().is_some(), "{}", command.get_name());
                for argument in command.get_arguments() {
                    let name = argument.get_id();
                    assert!(
                        argument.get_help().is_some(),
                        "{}: {name}",
                        command.get_name()
                    );
                }
            }
        }
    }
}
