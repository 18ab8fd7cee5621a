// SPDX-License-Identifier: GPL-2.0-only

//! A guest VM with a network card and a disk that it uses all the time.

use std::fs;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;

use crate::channel::Channel;
use crate::paths;
use crate::topology;
use crate::topology::Topology;
use crate::topology::GUEST;
use crate::topology::SHORT;

const LIMIT: Duration = Duration::from_secs(300);

/// Where the host management VM writes down what the guest says to it.
const LOG: &str = "/run/lab/talk.log";

/// What a management VM knows about its guest VM's disk and network: whether its own disk
/// answers, and what the backends wait for.
const STATE: &str = "exec 2>&1; \
    cat /sys/block/vda/stat /sys/block/vda/inflight; \
    timeout 20 dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=$((RANDOM % 8)); echo \"dd: $?\"; \
    cat /sys/block/vda/stat; cat /proc/interrupts; \
    for p in /proc/[0-9]*; do \
      grep -q 'xvd\\|vif\\|xenwatch\\|xenbus' $p/comm && { cat $p/comm $p/wchan $p/stack; echo; }; \
    done; \
    for f in /sys/devices/vbd-*/statistics/* /sys/devices/vbd-*/state; do echo $f $(cat $f); done; \
    xenstore-ls -f /local/domain/0/backend; xenstore-ls -f /local/domain | grep device/; \
    dmesg | tail -n 40; xl debug-keys e; xl debug-keys q; xl dmesg | tail -n 120";

/// A guest VM that does it, and the other end of its connection.
#[derive(Debug)]
pub struct Workload<'a> {
    topology: &'a Topology,
    /// Reports of it that were looked at.
    reports: usize,
}

/// What the guest did so far, by its own counting.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Blocks sent over its connection that came back.
    pub sent: u64,
    /// Blocks of its disk.
    pub written: u64,
}

/// What `labtool listen` prints each second.
#[derive(Debug, Deserialize)]
struct Report {
    connection: u64,
    blocks: u64,
    /// The longest silence since the last report.
    gap_ms: u64,
    fault: Option<String>,
}

impl Report {
    fn is_good(&self) -> bool {
        self.connection == 1 && self.fault.is_none()
    }
}

/// Plug a network card and a disk into the guest VM in A, which begins to use them.
/// `vmbeam swap` wants a guest whose backends are silent, so they are not in its
/// configuration.
pub fn attach(topology: &Topology) -> Result<Workload<'_>> {
    let host = &topology.machine.host;
    host.sh(
        &format!(
            "setsid labtool listen 10.77.0.254:7000 </dev/null >{LOG} 2>&1 & \
             until grep -q LISTENING {LOG}; do usleep 20000; done"
        ),
        SHORT,
    )?;
    host.follow(
        &format!("tail -n +1 -F {LOG}"),
        &paths::logs().join("talk.log"),
    )?;
    let a = &topology.machine.a;
    a.sh(
        &format!(
            "xl network-attach {GUEST} mac=00:16:3e:77:00:01 bridge=xenbr0 script=vif-lab && \
             xl block-attach {GUEST} format=raw,vdev=xvda,access=rw,script=block-lab,target=/dev/vda"
        ),
        LIMIT,
    )?;
    let start = Instant::now();
    loop {
        let line = topology::wait_for_check(a, LIMIT)?;
        if done(&line).is_ok() {
            return Ok(Workload {
                topology,
                reports: 0,
            });
        }
        if start.elapsed() > LIMIT {
            bail!("the guest VM does not use both: {line}");
        }
    }
}

/// By a line of the guest's console.
fn done(line: &str) -> Result<Done> {
    let count = |name: &str| -> Result<u64> {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .with_context(|| format!("no {name} in {line}"))?
            .parse()
            .with_context(|| format!("{name} in {line}"))
    };
    Ok(Done {
        sent: count("talk=")?,
        written: count("disk=")?,
    })
}

/// The guest VM, whose memory is looked at with it, finds each block of its disk as it wrote it,
/// and has written it anew.
pub fn disk_is_whole(vm: &Channel) -> Result<()> {
    let blocks = || -> Result<u64> { Ok(done(&topology::wait_for_check(vm, LIMIT)?)?.written) };
    let (first, start) = (blocks()?, Instant::now());
    while blocks()? < first + 4 * topology::DISK_BLOCKS {
        ensure!(start.elapsed() < LIMIT, "the guest VM's disk stands still");
    }
    Ok(())
}

impl Workload<'_> {
    /// After it has said this, the guest VM goes on with both here, and finds everything
    /// as it left it.
    pub fn goes_on(&self, vm: &Channel, line: &str) -> Result<Done> {
        let first = done(line)?;
        let start = Instant::now();
        loop {
            let now = done(&topology::wait_for_check(vm, LIMIT)?)?;
            if now.sent > first.sent && now.written > first.written {
                return Ok(now);
            }
            if start.elapsed() >= LIMIT {
                let path = paths::logs().join("stuck.log");
                fs::write(&path, vm.run(STATE, LIMIT)?.text)?;
                bail!(
                    "the guest VM did {first:?} and after a while {now:?}; what its backends did: {}",
                    path.display()
                );
            }
        }
    }

    /// The connection is still the first one, nothing was lost or came twice, and it is
    /// used. Gives the longest silence since this was last asked, in milliseconds.
    pub fn silence(&mut self) -> Result<u64> {
        let reports = self.new_reports()?;
        let (first, last) = reports
            .first()
            .zip(reports.last())
            .context("no report came")?;
        for report in &reports {
            ensure!(report.is_good(), "the guest's connection: {report:?}");
        }
        ensure!(last.blocks > first.blocks, "the guest is silent: {last:?}");
        Ok(reports.iter().map(|r| r.gap_ms).max().unwrap_or_default())
    }

    /// How often the guest or its peer found something wrong since the start.
    pub fn errors(&mut self) -> Result<u64> {
        self.reports = 0;
        let reports = self.new_reports()?;
        let mut errors = reports.iter().filter(|r| !r.is_good()).count() as u64;
        for name in topology::HOST_VMS {
            let text = self.topology.machine.vm(name).sh(
                &format!("grep -c 'BAD\\|panic' /var/log/xen/console/guest-{GUEST}.log || true"),
                SHORT,
            )?;
            errors += text
                .trim()
                .parse::<u64>()
                .with_context(|| format!("grep printed {text}"))?;
        }
        Ok(errors)
    }

    fn new_reports(&mut self) -> Result<Vec<Report>> {
        let text = self.topology.machine.host.sh(
            &format!("grep '^{{' {LOG} | tail -n +{}", self.reports + 1),
            SHORT,
        )?;
        let reports: Vec<Report> = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect::<Result<_>>()?;
        self.reports += reports.len();
        Ok(reports)
    }
}
