// SPDX-License-Identifier: GPL-2.0-only

//! What must be refused: states that would be restored wrongly, guests that would
//! lose memory if they were saved without it, and the driver in a guest. The guests run on.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::checked;
use super::create;
use super::log;
use super::stream::Layout;
use super::LIMIT;
use super::SAVED;
use super::XL;
use crate::channel::Channel;
use crate::tally::Tally;
use crate::topology::SHORT;

const SPOILT: &str = "/run/lab/spoilt";
const GATE: &str = "/run/lab/gate";
const WITH_DRIVER: &str = "/run/lab/with-driver.cpio";

/// A state without memory must not be started by somebody who does not expect it, nor
/// one that says two things about a page.
pub fn states(tally: &mut Tally, host: &Channel, state: &[u8]) {
    let patched = |options: &str| format!("{XL} restore {options} {SAVED}");
    let cases = [
        (
            "Debian's toolstack",
            format!("xl restore -p {SAVED}"),
            "not handled",
        ),
        ("nobody expects it", patched("-p"), "nobody provides them"),
        (
            "the guest would run at once",
            patched("--external-memory"),
            "needs -p",
        ),
        (
            "the saved guest would go away",
            format!("{XL} save --external-memory home /dev/null"),
            "needs -p",
        ),
    ];
    for (name, command, words) in cases {
        tally.case("toolstack", &format!("refused: {name}"), || {
            fails(host, &command, words)
        });
    }
    tally.case(
        "toolstack",
        "refused: a page is external and is not",
        || {
            let (offset, value) = Layout::of(state)?.in_both()?;
            spoilt(host, offset, value, "is an external page")
        },
    );
    tally.case("toolstack", "refused: external pages overlap", || {
        let (offset, value) = Layout::of(state)?.overlap()?;
        spoilt(host, offset, value, "out of order")
    });
}

/// The guest that was saved has its name while `command` must fail, saying `words`.
fn fails(host: &Channel, command: &str, words: &str) -> Result<()> {
    let output = host.run(
        &format!(
            "xl rename home home-saved; {command}; code=$?; xl rename home-saved home; exit $code"
        ),
        LIMIT,
    )?;
    ensure!(
        output.code != 0 && output.text.contains(words),
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    Ok(())
}

/// The state with another word in it must be refused.
fn spoilt(host: &Channel, offset: usize, value: u64, words: &str) -> Result<()> {
    let bytes = value
        .to_le_bytes()
        .map(|byte| format!("\\{byte:03o}"))
        .concat();
    host.sh(
        &format!(
            "cp {SAVED} {SPOILT} && printf '{bytes}' | \
             dd of={SPOILT} bs=1 seek={offset} conv=notrunc 2>/dev/null"
        ),
        SHORT,
    )?;
    let result = fails(
        host,
        &format!("{XL} restore --external-memory -p {SPOILT}"),
        words,
    );
    host.sh(&format!("rm -f {SPOILT}"), SHORT)?;
    result
}

/// Guests that cannot be saved without their memory.
pub fn guests(tally: &mut Tally, host: &Channel) {
    let mut last = None;
    tally.case("toolstack", "refused: a guest that is not PV", || {
        create(host, "other", "type=\"pvh\"", "", "-p")?;
        last = Some(domid(host, "other")?);
        let result = fails(
            host,
            &format!("{XL} save --external-memory -p other {SPOILT}"),
            "External memory is for PV domains",
        );
        host.sh("xl destroy other", SHORT)?;
        result
    });
    tally.case(
        "toolstack",
        "refused: a page table has another domain's page",
        || maps(host, last.context("no domid is known")? + 1),
    );
    let _ = host.run(&format!("xl destroy mapping; rm -f {SPOILT}"), LIMIT);
}

/// The driver, in a guest with the kernel that it is made for: loading it fails with ENODEV.
pub fn driver(tally: &mut Tally, host: &Channel) {
    tally.case("toolstack", "refused: the driver in another domain", || {
        host.sh(
            &format!(
                "cd /lib/modules && echo vmbeam.ko | cpio -o -H newc 2>/dev/null | \
                 cat /boot/guest.cpio - >{WITH_DRIVER}"
            ),
            SHORT,
        )?;
        create(
            host,
            "other",
            &format!("type=\"pvh\"\nramdisk=\"{WITH_DRIVER}\""),
            "vmbeam.insmod",
            "",
        )?;
        let log = log("other");
        let said = host.sh(
            &format!("touch {log}; tail -n +1 -F {log} 2>/dev/null | sed -n -e '/INSMOD/{{p;q}}' -e '/panic/{{p;q}}'"),
            LIMIT,
        )?;
        host.sh(&format!("xl destroy other; rm {WITH_DRIVER}"), SHORT)?;
        ensure!(
            said.contains("No such device"),
            "the guest says: {}",
            said.trim()
        );
        Ok(())
    });
}

fn domid(host: &Channel, name: &str) -> Result<u32> {
    Ok(host
        .sh(&format!("xl domid {name}"), SHORT)?
        .trim()
        .parse()?)
}

/// A guest maps a page of the host management VM, which names it before it exists.
fn maps(host: &Channel, expected: u32) -> Result<()> {
    host.sh(
        &format!(
            "labtool share --with {expected} >/run/lab/shared 2>&1 & echo $! >/run/lab/share.pid; \
             until [ -s /run/lab/shared ]; do sleep 1; done"
        ),
        SHORT,
    )?;
    let reference = host.sh("cat /run/lab/shared", SHORT)?;
    create(
        host,
        "mapping",
        "",
        &format!("vmbeam.map={}", reference.trim()),
        "",
    )?;
    ensure!(
        domid(host, "mapping")? == expected,
        "the guest has another domid than the next one"
    );
    let log = log("mapping");
    let said = host.sh(
        &format!("until grep -e MAPPED -e 'Error:' -e panic {log}; do sleep 1; done"),
        LIMIT,
    )?;
    ensure!(said.contains("MAPPED"), "the guest says: {}", said.trim());
    // Through a gate that is open as well.
    let result = ["", "--staged 9"].iter().try_for_each(|option| {
        fails(
            host,
            &format!(
                "printf g >{GATE}; {XL} save --external-memory {option} -p mapping {SPOILT} 9<{GATE}"
            ),
            "map frames of other domains",
        )?;
        checked(host, "mapping")
    });
    host.sh("xl destroy mapping; kill $(cat /run/lab/share.pid)", LIMIT)?;
    result
}
