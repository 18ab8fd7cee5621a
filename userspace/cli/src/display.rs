// SPDX-License-Identifier: GPL-2.0-only

//! How far a job is, for a person.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use vmbeam_control_protocol::Phase;

/// Shows how far a job is: a bar on a terminal, a line for each phase
/// otherwise. Always on standard error: standard output is for the result.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
}

impl Display {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("{msg:16} [{bar:40}] {pos}/{len} {prefix} {elapsed}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self { bar, phase: None }
    }

    pub(crate) fn show(&mut self, phase: Phase, done: u64, total: u64) {
        if phase == Phase::Expected {
            let seconds = done as f64 / 1e3;
            let text = format!("expected to stand still for {seconds:.1} s, as the one before");
            match &self.bar {
                Some(bar) => bar.println(text),
                None => eprintln!("{text}"),
            }
            return;
        }
        let new = self.phase.replace(phase) != Some(phase);
        match &self.bar {
            Some(bar) => {
                bar.set_message(phase.text());
                bar.set_prefix(phase.unit());
                bar.set_length(total.max(done));
                bar.set_position(done);
            }
            None if new && total > 0 => eprintln!("{}: {total} {}", phase.text(), phase.unit()),
            None if new => eprintln!("{}", phase.text()),
            None => {}
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
