// SPDX-License-Identifier: GPL-2.0-only

//! A guest whose kernel replaces a part of its P2M after the saver has looked for it, and before it
//! is suspended.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use super::checked;
use super::create;
use super::LIMIT;
use super::SAVED;
use super::XL;
use crate::channel::Channel;
use crate::tally::Tally;
use crate::topology::SHORT;

const DIRECTORY: &str = "/run/lab/changed";
const HELPER: &str = "/usr/lib/vmbeam/toolstack/libxl-save-helper";
/// Room for memory behind what the guest starts with, of whose P2M there is nothing yet.
const ROOM: &str = "maxmem=192";
const GROWN_MIB: u32 = 144;
const END: Duration = Duration::from_secs(120);

pub fn run(tally: &mut Tally, host: &Channel) {
    tally.case(
        "toolstack",
        "not staged: the guest's P2M grows before it is suspended",
        || grows(host),
    );
    let _ = host.run(&format!("rm -rf {DIRECTORY}; xl destroy home"), LIMIT);
}

/// `xl` is stopped when it starts the helper, which looks for the P2M then, and has to wait for `xl`
/// to suspend the guest.
fn grows(host: &Channel) -> Result<()> {
    create(host, "home", ROOM, "vmbeam.spare=24", "")?;
    checked(host, "home")?;
    let xl = XL.replace(HELPER, &format!("{DIRECTORY}/helper"));
    host.sh(
        &format!(
            "rm -rf {DIRECTORY} {SAVED} && mkdir {DIRECTORY} && cd {DIRECTORY} &&
            cat >helper <<'EOF'
#!/bin/sh
echo $PPID >{DIRECTORY}/xl.pid
kill -STOP $PPID
exec {HELPER} \"$@\"
EOF
            chmod +x helper
            exec </dev/null >/dev/null 2>&1
            ( {xl} save --external-memory -p home {SAVED} >log 2>&1; echo $? >exit; mv exit code ) &"
        ),
        SHORT,
    )?;
    // The header of libxenguest's stream is written behind that look.
    let size = "xl list home | awk 'NR == 2 { print $3 }'";
    let grown = host.sh(
        &format!(
            "cd {DIRECTORY}; until grep -qs XENF {SAVED}; do sleep 0.2; done
             xl mem-set home {GROWN_MIB} && until [ $({size}) -ge {GROWN_MIB} ]; do sleep 0.2; done"
        ),
        END,
    );
    let ended = host.sh(
        &format!(
            "cd {DIRECTORY}; kill -CONT $(cat xl.pid); until [ -s code ]; do sleep 0.2; done; cat code log"
        ),
        LIMIT,
    )?;
    grown?;
    ensure!(
        !ended.starts_with("0\n") && ended.contains("p2m generation count changed"),
        "xl save: exit status and words: {ended}"
    );
    checked(host, "home")
}
