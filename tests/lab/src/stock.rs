// SPDX-License-Identifier: GPL-2.0-only

//! The toolstack's own way to move a guest VM, which copies all memory, over the virtual
//! network: what VMBeam is compared with.
//!
//! `xl migrate` cannot be it: it needs log-dirty mode, which is part of shadow paging
//! for PV guests, and Debian builds its hypervisors without that. What is left is to save the
//! guest into the network and to restore it from there.

use std::fs;
use std::time::Duration;
use std::time::Instant;

use anyhow::anyhow;
use anyhow::Context;
use anyhow::Result;

use crate::channel::Channel;
use crate::paths;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const LIMIT: Duration = Duration::from_secs(1800);
const PORT: u16 = 7010;
/// With which a management VM logs in at the other.
const KEY: &str = "/run/ssh.key";
/// Bytes that SSH has on the way. By default dropbear has 24 KiB, and waits for the
/// virtual network after each of them.
const WINDOW: u32 = 4 << 20;

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Stock {
    /// From the start of `xl save` until `xl restore` let the guest run.
    pub total_seconds: f64,
    /// The same from the request to suspend on.
    pub downtime_seconds: f64,
    /// What `xl save` wrote, without what the transport adds.
    pub bytes_on_wire: u64,
}

/// How the saved guest VM gets to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A plain TCP connection.
    Tcp,
    /// SSH, as `xl migrate` does unless it is told otherwise.
    Ssh,
}

/// Move the guest VM.
pub fn migrate(topology: &Topology, from: &str, to: &str, transport: Transport) -> Result<Stock> {
    let (source, destination) = (topology.machine.vm(from), topology.machine.vm(to));
    let address = topology::address(to);
    let (listener, sender) = match transport {
        Transport::Tcp => (
            Some(format!(
                "socat -u -b 65536 TCP-LISTEN:{PORT} - | xl restore /proc/self/fd/0"
            )),
            format!("labtool carry {address}:{PORT}"),
        ),
        Transport::Ssh => {
            trust(source, destination)?;
            (
                None,
                format!(
                    "labtool carry | dbclient -y -y -W {WINDOW} -i {KEY} root@{address} \
                     \"PATH=$PATH xl restore /proc/self/fd/0 >/run/xl-restore.log 2>&1\""
                ),
            )
        }
    };
    let start = Instant::now();
    let seconds = || start.elapsed().as_secs_f64();
    let (saved, restored) = std::thread::scope(|scope| {
        let restored = listener.map(|command| {
            scope.spawn(move || {
                destination.sh(&command, LIMIT)?;
                anyhow::Ok(seconds())
            })
        });
        let saved = source.sh(
            &format!(
                "{{ xl -vvv save {GUEST} /proc/self/fd/3 3>&1 >&2 | {sender}; }} 2>&1 | labtool stamp"
            ),
            LIMIT,
        );
        // SSH comes back when it has restored the guest VM.
        let end = seconds();
        let restored = restored.map_or(Ok(Ok(end)), |thread| thread.join());
        (saved, restored)
    });
    let saved = saved?;
    fs::write(paths::logs().join("xl-save.log"), &saved)?;
    let total_seconds = restored.map_err(|_| anyhow!("a thread of the harness panicked"))??;
    let (suspended, bytes_on_wire) = read(&saved).context("xl save: see build/logs/xl-save.log")?;
    Ok(Stock {
        total_seconds,
        downtime_seconds: total_seconds - suspended,
        bytes_on_wire,
    })
}

/// Let the one log in at the other, over SSH.
fn trust(source: &Channel, destination: &Channel) -> Result<()> {
    let key = source.sh(
        &format!(
            "[ -e {KEY} ] || dropbearkey -t ed25519 -f {KEY} >/dev/null 2>&1; \
             dropbearkey -y -f {KEY} | grep ^ssh-"
        ),
        SHORT,
    )?;
    destination.sh(
        &format!(
            "mkdir -p -m 700 ~root/.ssh; echo '{}' >~root/.ssh/authorized_keys; \
             chmod 700 ~root; chmod 600 ~root/.ssh/authorized_keys; \
             pidof dropbear >/dev/null || {{ \
             dropbearkey -t ed25519 -f /run/ssh-host.key >/dev/null 2>&1; \
             dropbear -W {WINDOW} -r /run/ssh-host.key >/run/dropbear.log 2>&1; }}",
            key.trim()
        ),
        SHORT,
    )?;
    Ok(())
}

/// When `xl` asked the guest to suspend itself, and the bytes that were carried.
fn read(text: &str) -> Result<(f64, u64)> {
    let lines = || text.lines().filter_map(|line| line.split_once(' '));
    let suspended = lines()
        .find(|(_, line)| line.contains("suspend request via"))
        .context("it did not ask the guest to suspend itself")?
        .0
        .parse()?;
    let bytes = lines()
        .find_map(|(_, line)| line.strip_prefix("CARRIED "))
        .context("the transport did not come to its end")?
        .parse()?;
    Ok((suspended, bytes))
}
