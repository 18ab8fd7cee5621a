// SPDX-License-Identifier: GPL-2.0-only

//! A plain VM with Debian's kernel and no Xen: the driver's selftests, the fuzzer
//! and the other tests of `tests/driver` on the model of a hypervisor that a debug
//! build of the driver has.

use std::fs;
use std::process::Command;
use std::process::Output;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::driver::Amount;
use crate::driver::AIDS;
use crate::driver::LONG;
use crate::driver::QUICK;
use crate::paths;
use crate::tally::Tally;

/// What runs beside the selftests.
const MORE: usize = 6;

/// Run all of them and enter their results.
pub fn run(tally: &mut Tally, long: bool) {
    let amount = if long { LONG } else { QUICK };
    let text = match boot("mock", &amount, AIDS, &[]) {
        Ok(text) => text,
        Err(e) => return tally.enter("mock", "a plain VM boots", Err(e)),
    };
    let mut programs = 0;
    for part in text.split("BEGIN ").skip(1) {
        let Some((output, end)) = part.rsplit_once("END ") else {
            tally.enter("mock", "ends by itself", Err(anyhow::anyhow!("no end")));
            break;
        };
        let (name, output) = output.split_once('\n').unwrap_or((output, ""));
        for line in output.lines().filter(|l| !l.starts_with("ok ")) {
            println!("    {line}");
        }
        if name != "rmmod" {
            programs += 1;
            tally.lines("mock", output);
        }
        tally.case("mock", &format!("{name}: exit status"), || {
            let code = end.lines().next().unwrap_or_default();
            ensure!(code == "0", "it exited with {code}");
            Ok(())
        });
    }
    tally.case("mock", "all programs ran, no warning of the kernel", || {
        let all = paths::kselftests().len() + MORE;
        ensure!(programs == all, "{programs} of {all} ran");
        let trouble: Vec<_> = text.lines().filter(|l| l.starts_with("TROUBLE")).collect();
        ensure!(trouble.is_empty(), "{}", trouble.join("\n"));
        Ok(())
    });
}

/// Everything that the VM printed until it powered itself off. Its kernel and the
/// emulator get more options.
pub fn boot(image: &str, amount: &Amount, options: &str, emulator: &[&str]) -> Result<String> {
    let (text, output) = start(image, amount, options, emulator)?;
    if !output.status.success() || !text.contains("END ") {
        bail!(
            "{}, {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            crate::channel::last_lines(&text, 20)
        );
    }
    Ok(text)
}

/// The same however the VM ended, and what became of the emulator.
pub fn start(
    image: &str,
    amount: &Amount,
    options: &str,
    emulator: &[&str],
) -> Result<(String, Output)> {
    // Its timer seems to be broken to a kernel that has to wait long for a processor.
    let append = format!(
        "console=ttyS0 quiet no_timer_check mitigations=off panic=-1 {options} \
         vmbeam_sequences={} vmbeam_loads={}",
        amount.mock_sequences, amount.loads,
    );
    let mut command = Command::new("timeout");
    command
        .arg(amount.limit.as_secs().to_string())
        .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi"])
        .args(["-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(emulator)
        .arg("-kernel")
        .arg(paths::modules().join("vmlinuz"))
        .arg("-initrd")
        .arg(paths::image(image))
        .args(["-append", &append]);
    let mut run = || -> Result<_> {
        let output = command
            .output()
            .context("cannot start qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        Ok((text, output))
    };
    let (mut text, mut output) = run()?;
    // QEMU's processors do not always see in time what a kernel that patches itself has written,
    // which may be the end of it (`Oops: int3`) before its /init runs, and any driver of ours.
    if !text.contains("INIT") {
        println!("    its kernel did not come up, once more:");
        println!("{}", crate::channel::last_lines(&text, 5));
        (text, output) = run()?;
    }

    fs::create_dir_all(paths::logs())?;
    fs::write(paths::logs().join(format!("{image}.log")), &text)?;
    Ok((text, output))
}
