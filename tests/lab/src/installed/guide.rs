// SPDX-License-Identifier: GPL-2.0-only

//! The commands of the operator guide, as they stand there: what is typed is what is written.

use std::cell::Cell;
use std::fs;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

const FILE: &str = "/src/Documentation/operator-guide.rst";

/// The numbered commands, in their order, and how many of them were asked for.
#[derive(Debug)]
pub struct Guide {
    commands: Vec<String>,
    taken: Cell<usize>,
}

impl Guide {
    /// Read it.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(FILE).with_context(|| FILE.to_owned())?;
        let mut commands = Vec::new();
        for (number, command) in text.lines().filter_map(numbered) {
            ensure!(
                number == commands.len() + 1,
                "{FILE}: command {number} comes after {} others",
                commands.len()
            );
            commands.push(command.to_owned());
        }
        ensure!(!commands.is_empty(), "{FILE}: no numbered command");
        Ok(Guide {
            commands,
            taken: Cell::new(0),
        })
    }

    /// The next one, which begins with these words: if the guide has another one there, whoever
    /// changes it has to say here where that is typed.
    pub fn next(&self, begins: &str) -> Result<&str> {
        let index = self.taken.replace(self.taken.get() + 1);
        let command = self.commands.get(index).map_or("", String::as_str);
        ensure!(
            command.starts_with(begins),
            "{FILE}: command {} is {command:?}, not {begins:?}",
            index + 1
        );
        Ok(command)
    }

    /// All of them were asked for.
    pub fn done(&self) -> Result<()> {
        ensure!(
            self.taken.get() == self.commands.len(),
            "{FILE}: nobody typed {:?}",
            &self.commands[self.taken.get().min(self.commands.len())..]
        );
        Ok(())
    }
}

/// `   N  command`, in a literal block.
fn numbered(line: &str) -> Option<(usize, &str)> {
    let (number, command) = line.strip_prefix("   ")?.split_once("  ")?;
    Some((number.parse().ok()?, command))
}
