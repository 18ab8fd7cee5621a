// SPDX-License-Identifier: GPL-2.0-only

//! Test programs that are run inside a machine.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use crate::channel::Channel;
use crate::channel::Output;
use crate::paths;
use crate::tally::Tally;

/// Time for a test program.
pub const TESTS: Duration = Duration::from_secs(600);

/// The selftest for faults. A debug driver has a model of a hypervisor besides, which it must
/// not use where there is one.
pub const FAULT_TEST: &str = "vmbeam_fault";

/// Run a test program inside a machine; its output also goes to `build/logs/`.
pub fn guest_tests(tally: &mut Tally, group: &str, machine: &Channel, program: &str) {
    let command = format!("/usr/lib/vmbeam/tests/{program}");
    guest_command(tally, group, machine, program, &command, TESTS);
}

/// The same with a command and a limit of the caller's.
pub fn guest_command(
    tally: &mut Tally,
    group: &str,
    machine: &Channel,
    program: &str,
    command: &str,
    limit: Duration,
) {
    guest_output(tally, group, program, machine.run(command, limit));
}

/// Enter the results in what a test program printed; it also goes to `build/logs/`.
pub fn guest_output(tally: &mut Tally, group: &str, program: &str, output: Result<Output>) {
    match output {
        Ok(output) => {
            let _ = fs::write(paths::logs().join(format!("{program}.tap")), &output.text);
            for line in output.text.lines().filter(|l| !l.starts_with("ok ")) {
                println!("    {line}");
            }
            tally.lines(group, &output.text);
            tally.case(group, "exit status", || {
                ensure!(output.code == 0, "{program} exited with {}", output.code);
                Ok(())
            });
            // Others put the name of a machine before it.
            if program.ends_with(FAULT_TEST) {
                tally.case(
                    group,
                    "it ran on the hypervisor, not on a model of one",
                    || {
                        // What only the model can do is skipped elsewhere.
                        let skipped = "fault.statuses # SKIP a real hypervisor";
                        ensure!(output.text.contains(skipped), "no {skipped:?}");
                        Ok(())
                    },
                );
            }
        }
        Err(e) => tally.enter(group, program, Err(e)),
    }
}
