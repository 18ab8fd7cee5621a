// SPDX-License-Identifier: GPL-2.0-only

//! A disk that both host VMs have, and that a guest takes with it: what is in a cache of one
//! of them, or still on its way from there, must not come after what the other one writes.

use crate::error::HvError;
use crate::surroundings::Surroundings;
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::info;
use vmbeam_agent_protocol::AgentErrorCode;

/// How long requests may take that the guest has made before it was suspended. Less than the
/// daemon waits for the next part of the guest.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How often to look.
const LOOK: Duration = Duration::from_millis(5);

/// The disks of a guest: the number of each, and where its backend is in xenstore.
fn disks(here: &impl Surroundings, domid: u32) -> Vec<(String, String)> {
    let all = format!("/libxl/{domid}/device/vbd");
    let backend = |n: String| Some((n.clone(), here.read(&format!("{all}/{n}/backend"))?));
    here.list(&all).into_iter().filter_map(backend).collect()
}

/// Why what a guest has written may not be on its disk when it goes on elsewhere.
pub(crate) fn cached(here: &impl Surroundings, domid: u32) -> Option<String> {
    let cached: Vec<_> = disks(here, domid)
        .into_iter()
        .filter_map(|(_, backend)| cache(here, &backend))
        .collect();
    (!cached.is_empty()).then(|| {
        format!(
            "its disk would be in the caches of both host VMs ({}); give it a device that both have, or an image of format raw with `direct-io-safe`",
            cached.join(", ")
        )
    })
}

/// Why it could not be waited for its disks.
pub(crate) fn unseen(
    here: &impl Surroundings,
    domid: u32,
    see: impl Fn() -> Result<(), vmbeam_xen::Error>,
) -> Option<String> {
    let e = see().err().filter(|_| !disks(here, domid).is_empty())?;
    Some(format!(
        "what it has written to its disks cannot be waited for ({e}); load xen-gntdev"
    ))
}

/// What of a disk is cached.
fn cache(here: &impl Surroundings, backend: &str) -> Option<String> {
    let read = |node: &str| here.read(&format!("{backend}/{node}"));
    // What nobody writes is everywhere the same.
    if read("mode").as_deref() == Some("r") {
        return None;
    }
    let params = read("params").unwrap_or_default();
    if backend.split('/').any(|part| part == "qdisk") {
        // QEMU keeps tables of any other format in its memory, and writes them in the end.
        let direct = params.starts_with("aio:") && read("direct-io-safe").as_deref() == Some("1");
        return (!direct).then_some(params);
    }
    // A loop device is the kernel's way to a file.
    let device = read("physical-device")?;
    let (major, minor) = device.split_once(':')?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    let direct = format!("/sys/block/loop{minor}/loop/dio");
    let is_cached = major == "7" && here.text(Path::new(&direct)).as_deref() != Some("1");
    is_cached.then_some(params)
}

/// The pages of the rings of a guest's disks, by what the frontends say. A disk that is not
/// connected has nothing under way.
fn rings(here: &impl Surroundings, domid: u32) -> Vec<(String, u32)> {
    /// `XenbusStateConnected`.
    const CONNECTED: &str = "4";
    let mut rings = Vec::new();
    for (number, backend) in disks(here, domid) {
        let state = here.read(&format!("{backend}/state"));
        if state.is_some_and(|state| state.trim() != CONNECTED) {
            continue;
        }
        let front = format!("/local/domain/{domid}/device/vbd/{number}");
        let mut queues = vec![front.clone()];
        let queue = |n: String| n.starts_with("queue-").then(|| format!("{front}/{n}"));
        queues.extend(here.list(&front).into_iter().filter_map(queue));
        for queue in queues {
            // Of several pages the first one has the counters.
            let nodes = ["ring-ref", "ring-ref0"];
            let reference = nodes
                .iter()
                .find_map(|n| here.read(&format!("{queue}/{n}")));
            let reference = reference.and_then(|r| r.trim().parse().ok());
            rings.extend(reference.map(|r| (number.clone(), r)));
        }
    }
    rings
}

/// Wait until every request of a suspended guest is answered: none of them can reach its disk
/// later than those that it makes elsewhere. `ring` tells how many were made and answered.
pub(crate) fn drain(
    here: &impl Surroundings,
    domid: u32,
    limit: Duration,
    ring: impl Fn(u32) -> Result<(u32, u32), HvError>,
) -> Result<(), HvError> {
    let started = Instant::now();
    // A xenstore that says nothing is no guest without disks.
    if here.list(&format!("/libxl/{domid}")).is_empty() {
        return Err(HvError {
            code: AgentErrorCode::Toolstack,
            message: format!(
                "xenstore does not tell which disks guest {domid} has; does xenstored run?"
            ),
        });
    }
    let rings = rings(here, domid);
    for (number, reference) in &rings {
        loop {
            let (made, answered) = ring(*reference)?;
            if made == answered {
                break;
            }
            if started.elapsed() >= limit {
                let left = made.wrapping_sub(answered);
                return Err(HvError {
                    code: AgentErrorCode::Toolstack,
                    message: format!(
                        "disk {number} of guest {domid} has not done {left} of its requests within {} s; is it slow, or paths to it lost?",
                        limit.as_secs()
                    ),
                });
            }
            std::thread::sleep(LOOK);
        }
    }
    info!(
        domid,
        rings = rings.len(),
        ms = started.elapsed().as_millis() as u64,
        "its disks are quiet"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Fake(BTreeMap<String, String>);

    impl Fake {
        fn with(nodes: &[(&str, &str)]) -> Self {
            let disk = ("/libxl/7/device/vbd/51712/backend", "/b/qdisk/7/51712");
            let nodes = [&disk].into_iter().chain(nodes);
            Self(nodes.map(|(k, v)| ((*k).into(), (*v).into())).collect())
        }
    }

    impl Surroundings for Fake {
        fn read(&self, path: &str) -> Option<String> {
            self.0.get(path).cloned()
        }

        fn list(&self, path: &str) -> Vec<String> {
            let below = format!("{path}/");
            let names = self.0.keys().filter_map(|k| k.strip_prefix(&below));
            let mut names: Vec<String> = names
                .filter_map(|k| Some(k.split('/').next()?.to_owned()))
                .collect();
            names.dedup();
            names
        }

        fn exists(&self, _: &Path) -> bool {
            true
        }

        fn can_write(&self, _: &Path) -> bool {
            true
        }

        fn text(&self, path: &Path) -> Option<String> {
            self.read(path.to_str()?)
        }

        fn tsc_khz(&self) -> Option<u32> {
            None
        }

        fn guest_tsc_khz(&self, _: u32) -> Option<u32> {
            None
        }
    }

    #[test]
    fn a_disk_that_is_cached_in_its_host_vm() {
        const B: &str = "/b/qdisk/7/51712";
        let image = |params, direct, mode| {
            let node = |n| format!("{B}/{n}");
            let (p, d, m) = (node("params"), node("direct-io-safe"), node("mode"));
            cached(&Fake::with(&[(&*p, params), (&*d, direct), (&*m, mode)]), 7)
        };
        for (params, direct) in [("qcow2:/i", "1"), ("qcow2:/i", ""), ("aio:/i", "")] {
            let problem = image(params, direct, "w").unwrap();
            assert!(problem.contains(&format!("({params})")), "{problem}");
            assert_eq!(image(params, direct, "r"), None);
        }
        assert_eq!(image("aio:/i", "1", "w"), None);
        // The kernel's backend: a device, and a file by a loop device.
        let kernel = |device, dio| {
            cached(
                &Fake::with(&[
                    ("/libxl/7/device/vbd/51712/backend", "/b/vbd/7/51712"),
                    ("/b/vbd/7/51712/params", "/srv/i"),
                    ("/b/vbd/7/51712/physical-device", device),
                    ("/sys/block/loop26/loop/dio", dio),
                ]),
                7,
            )
        };
        assert_eq!(kernel("fd:0", "0"), None);
        assert_eq!(kernel("7:1a", "1"), None);
        assert!(kernel("7:1a", "0").unwrap().contains("(/srv/i)"));
        assert!(kernel("7:2", "1").is_some());
    }

    #[test]
    fn rings_that_cannot_be_seen() {
        let fails = || Err(vmbeam_xen::Error::Unsupported("no".into()));
        assert!(unseen(&Fake::with(&[]), 7, fails).is_some());
        assert_eq!(unseen(&Fake::with(&[]), 7, || Ok(())), None);
        assert_eq!(unseen(&Fake::default(), 7, fails), None);
    }

    #[test]
    fn what_a_guest_has_written_is_waited_for() {
        const FRONT: &str = "/local/domain/7/device/vbd/51712";
        let node = |n: &str| format!("{FRONT}/{n}");
        let (one, two) = (node("queue-0/ring-ref"), node("queue-1/ring-ref0"));
        let fake = Fake::with(&[(&*one, "8"), (&*two, "9")]);
        let asked = Cell::new(0u32);
        let ring = |reference| {
            asked.set(asked.get() + 1);
            // Each is done when it was looked at twice.
            Ok((2 * (reference - 7), asked.get()))
        };
        drain(&fake, 7, DRAIN, ring).unwrap();
        assert_eq!(asked.get(), 4);
        // The counters go round.
        let never = |_| Ok((3, u32::MAX));
        let e = drain(&fake, 7, 3 * LOOK, never).unwrap_err();
        assert!(e.message.contains("not done 4 of its requests"), "{e}");
        // Without a disk, or with one that is not connected, there is nothing to wait for.
        let none = [("/libxl/7/device/vif/0/backend".into(), "/b".into())];
        drain(&Fake(none.into()), 7, DRAIN, never).unwrap();
        let closed = ("/b/qdisk/7/51712/state", "6");
        let fake = Fake::with(&[(&*one, "8"), closed]);
        drain(&fake, 7, DRAIN, never).unwrap();
        let e = drain(&Fake::default(), 7, DRAIN, never).unwrap_err();
        assert!(e.message.contains("does xenstored run"), "{e}");
    }
}
