// SPDX-License-Identifier: GPL-2.0-only

//! The hypercall and the driver on Intel's EPT, by software emulation: the programs of the
//! group `host` and the races, on machines that Bochs emulates.

use std::time::Duration;

use crate::bochs;
use crate::bochs::Config;
use crate::bochs::Machine;
use crate::paths;
use crate::tally::Tally;
use crate::topology::wait_ready;

const BOOT: Duration = Duration::from_secs(1800);

pub fn check(tally: &mut Tally, _long: bool) {
    let config = Config {
        name: "ept-release-1",
        xen: paths::xen(),
        cpus: 1,
    };
    tally.case("ept", "boots", || {
        let machine = Machine::start(&config)?;
        wait_ready(
            &machine.host,
            BOOT,
            "host management VM",
            &[&bochs::console(config.name)],
        )?;
        let out = machine.host.run(
            "cat /proc/cpuinfo | head -5; /usr/lib/vmbeam/tests/test-mem-swap",
            BOOT,
        )?;
        println!("{}", out.text);
        Ok(())
    });
}
