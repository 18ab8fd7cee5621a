// SPDX-License-Identifier: GPL-2.0-only

//! Builds the guest: a flat image that the stress program carries and loads into
//! its domains. It has no operating system below it, so Cargo's own targets do
//! not fit.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let (elf, image) = (out.join("guest.elf"), out.join("guest.bin"));
    for file in ["guest/main.rs", "guest/guest.ld", "src/mailbox.rs"] {
        println!("cargo:rerun-if-changed={file}");
    }
    run(
        Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2021", "--crate-name=guest", "-Copt-level=2"])
            .args(["-Cpanic=abort", "-Crelocation-model=static"])
            .args(["-Clinker-flavor=ld", "-Clink-arg=-Tguest/guest.ld"])
            .args(["-Clink-arg=--gc-sections", "guest/main.rs", "-o"])
            .arg(&elf),
    );
    run(Command::new("objcopy")
        .args(["-O", "binary"])
        .arg(&elf)
        .arg(&image));
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{command:?}: {status:?}"
    );
}
