// SPDX-License-Identifier: GPL-2.0-only

//! Migrations under several loads, by `vmbeam migrate` and by the toolstack's own way.

use std::fmt;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use vmbeam_bench::Part;

use super::named;
use super::Bench;
use super::Times;
use super::LIMIT;
use crate::channel::Channel;
use crate::migrate;
use crate::migrate::Migration;
use crate::stock;
use crate::stock::Transport;
use crate::superpages::Superpages;
use crate::topology;
use crate::topology::GUEST;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;
use crate::workload;
use crate::workload::Workload;

/// Size of the guest VM that migrates, in MiB. Its kernel has 78 of that. Larger ones take
/// longer by the toolstack's own way than anybody would wait.
const MIGRATED: u32 = 128;

/// Sizes of the guest VMs whose pause is compared, in MiB.
const COMPARED: [u32; 3] = [256, 512, 1024];

/// The one that stays in B and computes all the time.
const NEIGHBOUR: &str = "neighbour";
/// How long it is watched when nothing moves.
const UNDISTURBED: Duration = Duration::from_secs(10);

/// What the guest VM that migrates does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Read its memory.
    Reading,
    /// Use its network and its disk as well.
    NetworkAndDisk,
    /// Write all its memory anew, again and again.
    Rewriting,
}

/// Each of them.
pub const LOADS: [Load; 3] = [Load::Reading, Load::NetworkAndDisk, Load::Rewriting];

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Load::Reading => "reading memory",
            Load::NetworkAndDisk => "network and disk",
            Load::Rewriting => "rewriting memory",
        })
    }
}

/// What is entered of a migration, and by which name.
struct Subject {
    /// First part of what is measured.
    what: &'static str,
    /// The series.
    series: String,
    /// Memory of the guest VM, in MiB.
    mib: u32,
}

impl Subject {
    fn add(&self, part: &mut Part, what: &str, value: f64, unit: &str) {
        let what = format!("{}.{what}", self.what);
        part.add(&what, &self.series, f64::from(self.mib), value, unit);
    }
}

/// What a guest VM is told that is to move so often with its network and its disk in use.
fn spare(moves: u32) -> String {
    let mib = topology::SPARE_MIB + topology::lost_mib(moves);
    format!("vmbeam.spare={mib}")
}

/// Seconds of CPU time that the management VMs have used: the host's, A's and B's.
type Cpu = [f64; 3];

impl Bench<'_> {
    /// Without what was idle, waited or stolen.
    fn cpu(&self) -> Result<Cpu> {
        let machine = &self.topology.machine;
        let used = |vm: &Channel| -> Result<f64> {
            let text = vm.sh("awk '/^cpu /{print $2+$3+$4+$7+$8}' /proc/stat", SHORT)?;
            Ok(text.trim().parse::<f64>()? / 100.0)
        };
        Ok([used(&machine.host)?, used(&machine.a)?, used(&machine.b)?])
    }

    /// All migrations under one load, of a guest VM of its own.
    pub fn migrations(&self, part: &mut Part, load: Load, times: Times) -> Result<()> {
        let words = match load {
            Load::Reading => String::new(),
            Load::NetworkAndDisk => spare(times.migrations + times.stock),
            Load::Rewriting => "vmbeam.rewrite".into(),
        };
        self.guest_in_a(MIGRATED, &words)?;
        let mut workload = match load {
            Load::NetworkAndDisk => Some(workload::attach(self.topology)?),
            Load::Reading | Load::Rewriting => None,
        };
        let mut at = 0;
        for i in 1..=times.migrations {
            let text = format!("{load}: vmbeam migrate, {i} of {}", times.migrations);
            let stage = self.progress.stage(&text);
            let subject = Subject {
                what: "migrate",
                series: format!("vmbeam migrate, {load}"),
                mib: MIGRATED,
            };
            let m = self.ours(part, &subject, &mut at, workload.as_mut())?;
            // What the guest VM stood still for.
            for (part_of, seconds) in &m.pause {
                let series = format!("{part_of}, {load}");
                part.add("migrate.part", &series, f64::from(MIGRATED), *seconds, "s");
            }
            counts(part, &load.to_string(), &m);
            stage.done();
        }
        for i in 1..=times.stock {
            let text = format!("{load}: xl save and xl restore, {i} of {}", times.stock);
            let stage = self.progress.stage(&text);
            self.stock(part, load, Transport::Tcp, &mut at, workload.as_mut())?;
            stage.done();
        }
        Ok(())
    }

    /// Guest VMs of several sizes, with their network and disk in use.
    pub fn sizes(&self, part: &mut Part, times: Times) -> Result<()> {
        for mib in COMPARED {
            self.guest_in_a(mib, &spare(times.migrations))?;
            let mut workload = workload::attach(self.topology)?;
            let subject = Subject {
                what: "size",
                series: Load::NetworkAndDisk.to_string(),
                mib,
            };
            let mut at = 0;
            for i in 1..=times.migrations {
                let text = format!("{mib} MiB: vmbeam migrate, {i} of {}", times.migrations);
                let stage = self.progress.stage(&text);
                self.ours(part, &subject, &mut at, Some(&mut workload))?;
                stage.done();
            }
        }
        Ok(())
    }

    /// The toolstack's own way over SSH, under the first load.
    pub fn over_ssh(&self, part: &mut Part, times: u32) -> Result<()> {
        let load = Load::Reading;
        self.guest_in_a(MIGRATED, "")?;
        let mut at = 0;
        for i in 1..=times {
            let text = format!("{load}: xl save and xl restore over SSH, {i} of {times}");
            let stage = self.progress.stage(&text);
            self.stock(part, load, Transport::Ssh, &mut at, None)?;
            stage.done();
        }
        Ok(())
    }

    /// A guest VM in A, and no other, wherever what was before has left one.
    fn guest_in_a(&self, mib: u32, words: &str) -> Result<()> {
        self.no_guests()?;
        self.create("A", GUEST, mib, words, "")?;
        topology::wait_for_check(&self.topology.machine.a, LIMIT)?;
        Ok(())
    }

    fn no_guests(&self) -> Result<()> {
        for vm in HOST_VMS {
            for (name, _) in migrate::guests(self.topology.machine.vm(vm))? {
                self.destroy(vm, &name)?;
            }
        }
        Ok(())
    }

    fn ours(
        &self,
        part: &mut Part,
        subject: &Subject,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
    ) -> Result<Migration> {
        let m = self.one(part, subject, at, workload, |from, to| {
            migrate::migrate(self.topology, from, to, "")
        })?;
        subject.add(part, "total", m.seconds("total")?, "s");
        subject.add(part, "down", m.seconds("downtime")?, "s");
        subject.add(part, "bytes", m.wire_bytes as f64, "bytes");
        let suspended = m.wire_bytes_suspended as f64;
        subject.add(part, "bytes suspended", suspended, "bytes");
        Ok(m)
    }

    fn stock(
        &self,
        part: &mut Part,
        load: Load,
        transport: Transport,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
    ) -> Result<()> {
        let over = match transport {
            Transport::Tcp => "",
            Transport::Ssh => " over SSH",
        };
        let subject = Subject {
            what: "migrate",
            series: format!("xl save and restore{over}, {load}"),
            mib: MIGRATED,
        };
        let s = self.one(part, &subject, at, workload, |from, to| {
            stock::migrate(self.topology, from, to, transport)
        })?;
        subject.add(part, "total", s.total_seconds, "s");
        subject.add(part, "down", s.downtime_seconds, "s");
        subject.add(part, "bytes", s.bytes_on_wire as f64, "bytes");
        Ok(())
    }

    /// Move the guest VM to where it is not, and enter what can be seen from outside of it.
    fn one<T>(
        &self,
        part: &mut Part,
        subject: &Subject,
        at: &mut usize,
        workload: Option<&mut Workload<'_>>,
        moves: impl FnOnce(&str, &str) -> Result<T>,
    ) -> Result<T> {
        let (from, to) = (HOST_VMS[*at], HOST_VMS[1 - *at]);
        let vm = self.topology.machine.vm(to);
        let console = migrate::console_lines(vm)?;
        let before = self.cpu()?;
        let result = moves(from, to)?;
        let after = self.cpu()?;
        *at = 1 - *at;
        let line = migrate::runs_only_in(self.topology, to)?;
        if let Some(workload) = workload {
            workload.goes_on(vm, &line)?;
            let silence = workload.silence()? as f64 / 1000.0;
            subject.add(part, "silence", silence, "s");
        }
        let gap = migrate::longest_gap(vm, console)? as f64 / 1000.0;
        subject.add(part, "gap", gap, "s");
        // Whichever of the two is the source.
        let (source, destination) = if from == HOST_VMS[0] { (1, 2) } else { (2, 1) };
        for (name, i) in [
            ("host", 0),
            ("source", source),
            ("destination", destination),
        ] {
            subject.add(part, &format!("cpu.{name}"), after[i] - before[i], "s");
        }
        Ok(result)
    }

    /// What a guest VM in B that computes all the time gets of its processor while another
    /// one arrives and leaves.
    pub fn neighbour(&self, part: &mut Part, times: u32) -> Result<()> {
        let stage = self.progress.stage(&format!(
            "{times} migrations beside a guest VM in B that computes"
        ));
        let b = &self.topology.machine.b;
        self.no_guests()?;
        self.create("B", NEIGHBOUR, MIGRATED, "vmbeam.rewrite", "")?;
        self.create("A", GUEST, MIGRATED, "", "")?;
        topology::wait_for_check_of(b, NEIGHBOUR, LIMIT)?;
        topology::wait_for_check(&self.topology.machine.a, LIMIT)?;
        let mib = f64::from(MIGRATED);
        let enter = |part: &mut Part, series: &str, share: f64| {
            part.add("neighbour.share", series, mib, share, "");
        };
        for at in (0..times).map(|i| i as usize % 2) {
            let (from, to) = (HOST_VMS[at], HOST_VMS[1 - at]);
            let (share, ()) = self.share(|| {
                // What is measured is a time, and nothing tells when it is over.
                std::thread::sleep(UNDISTURBED);
                Ok(())
            })?;
            enter(part, "nothing moves", share);
            let (share, m) = self.share(|| migrate::migrate(self.topology, from, to, ""))?;
            let series = ["a guest VM arrives", "a guest VM leaves"][at];
            enter(part, series, share);
            counts(part, "beside another guest VM", &m);
            topology::wait_for_check(self.topology.machine.vm(to), LIMIT)?;
        }
        topology::wait_for_check_of(b, NEIGHBOUR, LIMIT)?;
        stage.done();
        Ok(())
    }

    /// The superpages that the host VMs have now.
    pub fn superpages(&self, part: &mut Part, when: &str) -> Result<()> {
        for (vm, s) in HOST_VMS.iter().zip(Superpages::count(self.topology)?) {
            let size = f64::from(self.topology.sizes.host_vm_mib);
            for (what, count) in [("of_2m", s.of_2m), ("of_1g", s.of_1g)] {
                let what = format!("superpages.{what}");
                part.add(&what, &format!("{vm}, {when}"), size, count as f64, "");
            }
        }
        Ok(())
    }

    /// CPU seconds that the neighbour used meanwhile, of each second, and the result.
    fn share<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        let used = || -> Result<f64> {
            let text = self.topology.machine.b.sh(
                &format!("xl list {NEIGHBOUR} | awk 'END {{ print $NF }}'"),
                SHORT,
            )?;
            text.trim()
                .parse()
                .with_context(|| format!("xl list printed {text}"))
        };
        let (start, before) = (Instant::now(), used()?);
        let result = what()?;
        let share = (used()? - before) / start.elapsed().as_secs_f64();
        Ok((share, result))
    }
}

/// Enter what one migration took, where times do not matter.
fn counts(part: &mut Part, load: &str, m: &Migration) {
    for (series, value) in [
        ("pages swapped", m.pages_swapped),
        ("pages sent", m.pages_sent),
        ("messages", m.wire_messages),
    ]
    .into_iter()
    .chain(named(&m.counts))
    {
        let series = format!("{series}, {load}");
        part.add(
            "migrate.count",
            &series,
            f64::from(MIGRATED),
            value as f64,
            "",
        );
    }
}
