// SPDX-License-Identifier: GPL-2.0-only

//! The quick form: every configuration, and proof that defects are found.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Output;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// Operations of each configuration: a million together.
const OPS: u64 = 260_000;
/// Operations in which a defect must be found.
const MUTANT_OPS: u64 = 5_000;

fn property(arguments: &[&str], library: &str, seed: u64, ops: u64) -> Result<Output> {
    Command::new(std::env::current_exe()?)
        .arg("property")
        .args(arguments)
        .args(["--library", library])
        .args(["--seed", &seed.to_string(), "--ops", &ops.to_string()])
        .output()
        .context("cannot run myself")
}

fn cases(command: &str, arguments: &[&str], library: &str) -> Result<Output> {
    Command::new(std::env::current_exe()?)
        .arg(command)
        .args(arguments)
        .args(["--library", library])
        .output()
        .context("cannot run myself")
}

/// Look for a defect: the output of the first test that fails, or of the last one.
fn find(arguments: &[&str], mutant: &str) -> Result<Output> {
    let mut output = property(arguments, mutant, 1, MUTANT_OPS)?;
    for command in ["cases", "moves"] {
        if output.status.success() {
            output = cases(command, arguments, mutant)?;
        }
    }
    Ok(output)
}

/// Report an access to what the harness leaves out, rather than die silently.
pub fn catch_faults() -> Result<()> {
    extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes a valid structure.
        let address = unsafe { (*info).si_addr() } as u64;
        println!("# signal {signal} at address {address:#x}");
        std::process::exit(2);
    }
    let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
    // SAFETY: plain structures, filled in below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let alternative = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP] {
        // SAFETY: the stack lives for ever; the handler has the type that SA_SIGINFO asks for.
        let rc = unsafe {
            libc::sigaltstack(&alternative, std::ptr::null_mut())
                | libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        ensure!(rc == 0, "cannot set the handler of signal {signal}");
    }
    Ok(())
}

/// All configurations and all mutants, as TAP.
pub fn run() -> Result<()> {
    let library = "build/harness/tested.so";
    let configurations: [(&str, &[&str]); 4] = [
        ("NPT", &[]),
        ("EPT", &["--ept"]),
        ("NPT, another seed", &[]),
        ("EPT, another seed", &["--ept"]),
    ];
    let mut number = 0;
    let mut failed = false;
    let mut report = |ok: bool, name: &str| {
        number += 1;
        failed |= !ok;
        println!("{}ok {number} - {name}", if ok { "" } else { "not " });
    };
    for (i, (name, arguments)) in configurations.iter().enumerate() {
        let output = property(arguments, library, i as u64 + 1, OPS)?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        report(
            output.status.success(),
            &format!("property test, {name}: {OPS} operations"),
        );
    }
    let release = "build/harness/timed.so";
    let all: [(&str, &str, &[&str], &str); 8] = [
        ("cases", "cases", &[], library),
        ("cases --ept", "cases", &["--ept"], library),
        ("moves", "moves", &[], library),
        ("moves --ept", "moves", &["--ept"], library),
        ("moves, release", "moves", &[], release),
        ("moves --ept, release", "moves", &["--ept"], release),
        ("broken, release", "broken", &[], release),
        ("broken --ept, release", "broken", &["--ept"], release),
    ];
    for (name, command, arguments, library) in all {
        let output = cases(command, arguments, library)?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("# {line}");
        }
        report(output.status.success(), name);
    }
    for line in fs::read_to_string("tests/hypervisor/mutants.txt")?.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(file)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mutant = format!("build/harness/mutants/{name}.so");
        if !Path::new(&mutant).exists() {
            report(false, &format!("defect {name}: {file}.c has no such line"));
            continue;
        }
        let arguments: &[&str] = if name.starts_with("ept-") {
            &["--ept"]
        } else {
            &[]
        };
        let output = if name.starts_with("broken-") {
            cases("broken", arguments, &mutant)?
        } else {
            find(arguments, &mutant)?
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let text = text.lines().next().unwrap_or("no text");
        println!("# {}", text.trim_start_matches("# "));
        report(!output.status.success(), &format!("defect found: {name}"));
    }
    let output = Command::new(std::env::current_exe()?)
        .arg("counts")
        .output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    report(output.status.success(), "instructions per pair");
    println!("1..{number}");
    ensure!(!failed, "there were failures");
    Ok(())
}
