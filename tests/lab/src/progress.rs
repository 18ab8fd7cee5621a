// SPDX-License-Identifier: GPL-2.0-only

//! What the harness shows: a spinner with the time on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// Shows stages.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
}

/// One stage that is under way.
#[derive(Debug)]
pub struct Stage {
    text: String,
    start: Instant,
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// For the standard output of this process.
    pub fn new() -> Self {
        Progress {
            terminal: std::io::stdout().is_terminal(),
        }
    }

    /// Begin a stage.
    pub fn stage(&self, text: &str) -> Stage {
        let spinner = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner().with_message(text.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if spinner.is_none() {
            println!("==> {text}");
        }
        Stage {
            text: text.to_owned(),
            start: Instant::now(),
            spinner,
        }
    }
}

impl Stage {
    /// The stage ended well.
    pub fn done(self) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
            println!("==> {}: done in {seconds:.1} s", self.text);
        } else {
            println!("    {}: done in {seconds:.1} s", self.text);
        }
        seconds
    }
}
