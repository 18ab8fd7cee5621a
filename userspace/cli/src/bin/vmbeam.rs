// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmbeam::main()
}
