// SPDX-License-Identifier: GPL-2.0-only

//! Counts for Prometheus: what the daemon did since it was started.

use crate::exchange::SwapError;
use crate::version::VERSION;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use tracing::warn;
use vmbeam_control_protocol::{Failure, HostVmMemory, MigrateReport};

/// One label and its value.
type Label = [(&'static str, String); 1];

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    moves: Family<Label, Counter>,
    pages: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    seconds: Family<Label, Counter<f64, AtomicU64>>,
    agents: Family<Label, Gauge>,
    memory: Family<[(&'static str, String); 2], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Self {
            registry: Registry::with_prefix("vmbeam"),
            moves: Family::default(),
            pages: Family::default(),
            refused: Family::default(),
            seconds: Family::default(),
            agents: Family::default(),
            memory: Family::default(),
        };
        let r = &mut all.registry;
        let build = Info::new([("version", VERSION)]);
        r.register("build", "The daemon", build);
        r.register("moves", "Migrations by result", all.moves.clone());
        let help = "Pages of migrated guests by how they got there";
        r.register("pages", help, all.pages.clone());
        let help = "Pages that the host hypervisor would not swap by reason";
        r.register("pages_refused", help, all.refused.clone());
        let help = "Seconds that completed migrations took by phase; downtime overlaps others";
        r.register("move_seconds", help, all.seconds.clone());
        let help = "Whether the agent of a host VM is connected";
        r.register("agent_connected", help, all.agents.clone());
        let help =
            "Pages of a host VM: had, max (may be had), reserve, missing (places without one)";
        r.register("host_vm_pages", help, all.memory.clone());
        for result in ["completed", "refused", "rolled_back", "failed"] {
            // To be there, as 0, before the first of its sort.
            drop(all.moves.get_or_create(&[("result", result.into())]));
        }
        all
    }
}

impl Metrics {
    /// A migration has ended.
    pub(crate) fn migration(&self, result: &Result<MigrateReport, SwapError>) {
        let name = match result {
            Ok(_) => "completed",
            Err(e) => match e.failure {
                Failure::Refused => "refused",
                Failure::RolledBack => "rolled_back",
                Failure::Failed => "failed",
            },
        };
        self.moves.get_or_create(&[("result", name.into())]).inc();
        let Ok(r) = result else {
            return;
        };
        for (how, pages) in [
            (
                "swapped",
                r.pages_swapped - r.relocated.min(r.pages_swapped),
            ),
            ("relocated", r.relocated),
            ("copied", r.pages_copied),
            ("sent", r.pages_sent),
        ] {
            let counter = self.pages.get_or_create(&[("how", how.into())]);
            counter.inc_by(pages);
        }
        for (reason, pages) in &r.pages_refused {
            let counter = self.refused.get_or_create(&[("reason", reason.clone())]);
            counter.inc_by(*pages);
        }
        let s = &r.seconds;
        for (phase, seconds) in [
            ("preflight", s.preflight),
            ("stream", s.stream),
            ("lists", s.lists),
            ("probes", s.probes),
            ("prepare", s.prepare),
            ("swap", s.swap),
            ("copy", s.copy),
            ("digests", s.digests),
            ("resume", s.resume),
            ("destroy", s.destroy),
            ("downtime", s.downtime),
            ("total", s.total),
        ] {
            let counter = self.seconds.get_or_create(&[("phase", phase.into())]);
            counter.inc_by(seconds);
        }
    }

    /// All of it as text; `agents` says which are connected.
    pub(crate) fn scrape(
        &self,
        agents: impl Iterator<Item = (String, bool)>,
        memories: Vec<HostVmMemory>,
    ) -> String {
        // One that is not known has no number, not an old one.
        self.memory.clear();
        for HostVmMemory { host_vm, memory } in memories {
            let Ok(m) = memory else { continue };
            for (kind, pages) in [
                ("had", m.pages),
                ("max", m.max_pages),
                ("reserve", m.cache),
                ("missing", m.entries),
            ] {
                let labels = [("host_vm", host_vm.clone()), ("kind", kind.into())];
                let gauge = self.memory.get_or_create(&labels);
                gauge.set(i64::try_from(pages).unwrap_or(i64::MAX));
            }
        }
        // Without those that are not there any more.
        self.agents.clear();
        for (host_vm, connected) in agents {
            let gauge = self.agents.get_or_create(&[("host_vm", host_vm)]);
            gauge.set(connected.into());
        }
        let mut text = String::new();
        if let Err(e) = encode(&mut text, &self.registry) {
            warn!("cannot write the metrics: {e}");
        }
        text
    }
}
