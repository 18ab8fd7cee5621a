// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator has written down of a guest VM goes with it: Xen's own script that
//! starts guest VMs at boot starts no second one, and a reboot works wherever it is.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use crate::channel::Channel;
use crate::migrate;
use crate::migrate::Places;
use crate::product;
use crate::tally::Tally;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const GROUP: &str = "migrate";
const LIMIT: Duration = Duration::from_secs(1200);

/// One that the host VM may start.
const OTHER: &str = "other";
const OTHER_MIB: u32 = 96;

/// What is to happen at boot, as the unit and its condition would have it: Xen's script, not
/// Debian's.
const BOOT: &str = "{ vmbeam-agent --may-start && xendomains start; } >/run/lab/boot.log 2>&1; \
     echo \"ended with $?\" >>/run/lab/boot.log";

/// With the guest VM in the first of these places, where it is again afterwards.
pub fn run(tally: &mut Tally, topology: &Topology, [from, to]: Places) {
    let (source, destination) = (topology.machine.vm(from), topology.machine.vm(to));
    tally.case(
        GROUP,
        "another guest VM's file of its name is in its way",
        || taken(topology, [from, to]),
    );
    tally.case(GROUP, "what starts the guest VM at boot goes with it", || {
        source.sh(
            &format!(
                "mkdir -p /etc/xen/auto && ln -sf ../{GUEST}.cfg /etc/xen/auto/{GUEST} && \
                 cp /etc/xen/{GUEST}.cfg /run/lab/stale.cfg"
            ),
            SHORT,
        )?;
        migrate::migrate(topology, from, to, "")?;
        destination.sh(
            &format!("cmp /etc/xen/auto/{GUEST} /etc/xen/{GUEST}.cfg"),
            SHORT,
        )?;
        source.sh(
            &format!("cd /etc/xen && test ! -L auto/{GUEST} && test ! -e {GUEST}.cfg && test -e {GUEST}.cfg.moved"),
            SHORT,
        )?;
        Ok(())
    });
    tally.case(
        GROUP,
        "xendomains starts no guest VM that runs elsewhere, and the others",
        || boots(topology, source, to),
    );
    tally.case(GROUP, "a reboot after the move", || reboots(destination));
    tally.case(GROUP, "a host VM in maintenance takes no guest VM", || {
        maintenance(topology, [to, from])
    });
    tally.case(GROUP, "and after the move back", || {
        migrate::migrate(topology, to, from, "")?;
        migrate::runs_only_in(topology, from)?;
        reboots(source)
    });
}

/// The host VM that the guest VM has left begins again, as it was before that.
fn boots(topology: &Topology, vm: &Channel, to: &str) -> Result<()> {
    let other = topology::guest_config(OTHER, OTHER_MIB, "vmbeam.spare=4");
    vm.sh(
        &format!(
            "pid=$(pidof vmbeam-agent) && {} && rm -f /run/vmbeam-agent/may-start && \
             cp /run/lab/stale.cfg /etc/xen/{GUEST}.cfg && ln -s ../{GUEST}.cfg /etc/xen/auto/{GUEST} && \
             cat >/etc/xen/auto/{OTHER} <<'EOF'\n{other}\nEOF",
            product::END
        ),
        LIMIT,
    )?;
    vm.sh(
        &format!("setsid sh -c '{BOOT}' </dev/null >/dev/null 2>&1 & sleep 10"),
        SHORT,
    )?;
    let log = vm.sh("cat /run/lab/boot.log", SHORT)?;
    ensure!(!log.contains("ended with"), "not held: {log}");
    ensure!(migrate::guests(vm)?.is_empty(), "started: {log}");
    product::start_agent(topology, vm.name())?;
    let log = vm.sh(
        "until grep -s 'ended with' /run/lab/boot.log; do sleep 1; done; cat /run/lab/boot.log",
        LIMIT,
    )?;
    let guests = migrate::guests(vm)?;
    let is_there = guests.iter().any(|(name, _)| name == OTHER);
    let runs = is_there.then(|| topology::wait_for_check_of(vm, OTHER, LIMIT));
    vm.sh(
        &format!("xl destroy {OTHER}; rm -f /etc/xen/auto/{OTHER}"),
        SHORT,
    )?;
    ensure!(
        guests.len() == 1 && guests[0].0 == OTHER && log.contains("ended with 0"),
        "{guests:?}, and the script: {log}"
    );
    runs.transpose()?;
    vm.sh(&format!("test ! -L /etc/xen/auto/{GUEST}"), SHORT)?;
    migrate::runs_only_in(topology, to)?;
    Ok(())
}

/// What the guest VM is created from would have no place at the destination.
fn taken(topology: &Topology, [from, to]: Places) -> Result<()> {
    let (host, destination) = (&topology.machine.host, topology.machine.vm(to));
    let other = topology::guest_config(OTHER, OTHER_MIB, "vmbeam.spare=4");
    destination.sh(
        &format!(
            "cd /etc/xen && {{ [ ! -e {GUEST}.cfg ] || mv {GUEST}.cfg /run/lab/own.cfg; }} && \
             cat >{GUEST}.cfg <<'EOF'\n{other}\nEOF"
        ),
        SHORT,
    )?;
    let dry = host.run(&migrate::command(from, to, "--dry-run"), LIMIT);
    let moved = host.run(&migrate::command(from, to, ""), LIMIT);
    destination.sh(
        &format!(
            "cd /etc/xen && rm {GUEST}.cfg && {{ [ ! -e /run/lab/own.cfg ] || mv /run/lab/own.cfg {GUEST}.cfg; }}"
        ),
        SHORT,
    )?;
    let (dry, moved) = (dry?, moved?);
    let words = format!("/etc/xen/{GUEST}.cfg is there already, and makes guest {OTHER}");
    ensure!(
        moved.code == migrate::REFUSED && moved.text.contains(&words) && dry.text.contains(&words),
        "exit status {}, printed: {}; a dry run: {}",
        moved.code,
        moved.text.trim(),
        dry.text.trim()
    );
    migrate::runs_only_in(topology, from)?;
    Ok(())
}

/// The guest VM restarts by itself, as its configuration says.
fn reboots(vm: &Channel) -> Result<()> {
    let text = vm.sh(&format!("xl list -l {GUEST}"), SHORT)?;
    let config: serde_json::Value = serde_json::from_str(&text)?;
    let config = &config[0]["config"];
    ensure!(
        config["c_info"]["name"] == GUEST
            && config["b_info"]["kernel"] == "/boot/vmlinux"
            && config["on_crash"] == "preserve",
        "xl list -l: {text}"
    );
    vm.sh(
        &format!(
            "old=$(xl domid {GUEST}) && xl reboot {GUEST} && \
             until new=$(xl domid {GUEST} 2>/dev/null) && [ \"$new\" != \"$old\" ]; do sleep 1; done"
        ),
        LIMIT,
    )?;
    topology::wait_for_check(vm, LIMIT)?;
    Ok(())
}

fn maintenance(topology: &Topology, [from, to]: [&str; 2]) -> Result<()> {
    let host = &topology.machine.host;
    host.sh(&format!("vmbeam maintenance {to} on"), SHORT)?;
    let output = host.run(&migrate::command(from, to, ""), LIMIT)?;
    let shown = host.sh("vmbeam status", SHORT)?;
    topology.machine.vm(to).sh(
        "until grep -qx no /run/vmbeam-agent/may-start; do sleep 1; done",
        SHORT,
    )?;
    host.sh(&format!("vmbeam maintenance {to} off"), SHORT)?;
    ensure!(
        output.code == migrate::REFUSED && output.text.contains("is in maintenance"),
        "exit status {}, printed: {}",
        output.code,
        output.text.trim()
    );
    ensure!(shown.contains(&format!("In maintenance: {to}")), "{shown}");
    Ok(())
}
