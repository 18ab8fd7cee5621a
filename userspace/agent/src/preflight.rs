// SPDX-License-Identifier: GPL-2.0-only

//! What would be found out only once a guest is suspended, from what the toolstack keeps of
//! it in xenstore: asked before anything is done to it.

use crate::disks;
use crate::surroundings::Surroundings;
use std::path::Path;
use vmbeam_agent_protocol::preflight::{MAX_ITEM, MAX_ITEMS};
use vmbeam_agent_protocol::{Inspection, Need, NeedKind, MAX_PAGES, MAX_RUNS};

/// Frontends that connect again by themselves after a move.
const DEVICES: [&str; 5] = ["console", "vbd", "vif", "vkbd", "vfb"];
/// What the toolstack lets a guest have beyond its target, in KiB
/// (`LIBXL_MAXMEM_CONSTANT`).
const SLACK: u64 = 1024;

/// Files, devices and bridges of a guest that are looked for; its definition is one need more.
const NEEDS: usize = MAX_ITEMS - 1;

/// How much memory a guest has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pages.
    pub pages: u64,
    /// Runs of pages that follow each other, if that is known.
    pub runs: Option<usize>,
}

fn bridge(name: &str) -> String {
    format!("/sys/class/net/{name}")
}

/// Whether something that a guest needs is here.
pub fn is_there(here: &impl Surroundings, need: &Need) -> bool {
    match need.kind {
        // No name of an interface has a slash.
        NeedKind::Bridge => !need.name.contains('/') && here.exists(Path::new(&bridge(&need.name))),
        NeedKind::Disk | NeedKind::Kernel => here.exists(Path::new(&need.name)),
        NeedKind::Pool => pools(here).any(|(_, name)| name == need.name),
        NeedKind::Tsc => here
            .tsc_khz()
            .is_some_and(|khz| khz.to_string() == need.name),
        NeedKind::Definition => {
            let dir = Path::new(&need.name).parent();
            dir.is_some_and(|dir| here.can_write(dir) || !here.exists(dir))
        }
    }
}

/// All cpupools, with their names.
fn pools(here: &impl Surroundings) -> impl Iterator<Item = (String, String)> + '_ {
    let name = |id: String| {
        let name = here.read(&format!("/local/pool/{id}/name"))?;
        Some((id, name))
    };
    here.list("/local/pool").into_iter().filter_map(name)
}

/// What is in the way of moving a guest, and what it needs.
pub fn inspect(here: &impl Surroundings, domid: u32, pool: u32, size: Size) -> Inspection {
    let problems = [
        limits(size),
        serves_others(here, domid),
        stub_domain(here, domid),
        cannot_come_along(here, domid),
        disks::cached(here, domid),
        cannot_suspend(here, domid),
        above_target(here, domid, size.pages),
    ];
    let mut needs = devices(here, domid);
    needs.extend(kernel(here, domid));
    let own = pools(here).find(|(id, _)| *id == pool.to_string());
    needs.extend(own.map(|(_, name)| Need {
        kind: NeedKind::Pool,
        name,
    }));
    needs.extend(here.guest_tsc_khz(domid).map(|khz| Need {
        kind: NeedKind::Tsc,
        name: khz.to_string(),
    }));
    // What is not here either is not missed there.
    needs.retain(|need| is_there(here, need));
    needs.sort_by(|a, b| (a.kind as u8, &a.name).cmp(&(b.kind as u8, &b.name)));
    needs.dedup();
    let many = (needs.len() > NEEDS).then(|| {
        format!("it needs more than {NEEDS} files, devices and bridges; shut it down, and start it there")
    });
    needs.truncate(NEEDS);
    Inspection {
        problems: problems
            .into_iter()
            .chain([many])
            .flatten()
            .map(short)
            .collect(),
        needs,
    }
}

/// What fits into an answer.
fn short(problem: String) -> String {
    const MORE: &str = " ...";
    match problem
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| at + MORE.len() <= MAX_ITEM)
        .last()
    {
        Some(end) if problem.len() > MAX_ITEM => problem[..end].to_owned() + MORE,
        _ => problem,
    }
}

fn limits(size: Size) -> Option<String> {
    match size {
        Size { pages, .. } if pages > MAX_PAGES => Some(format!(
            "it has {pages} pages of memory, and at most {MAX_PAGES} can move; shut it down, and start it there"
        )),
        Size { runs: Some(runs), .. } if runs > MAX_RUNS => Some(format!(
            "its memory is in {runs} pieces, and at most {MAX_RUNS} can move; shut it down, and start it there"
        )),
        _ => None,
    }
}

/// The kinds of devices below a node, without those of which there is none any more.
fn kinds(here: &impl Surroundings, path: &str) -> Vec<String> {
    let mut kinds = here.list(path);
    kinds.retain(|kind| !here.list(&format!("{path}/{kind}")).is_empty());
    kinds
}

/// Page tables with frames of other guests are not saved, and what is connected to this
/// guest would lose it.
fn serves_others(here: &impl Surroundings, domid: u32) -> Option<String> {
    let kinds = kinds(here, &format!("/local/domain/{domid}/backend"));
    (!kinds.is_empty()).then(|| {
        format!(
            "it is the backend of other guests ({}), which would lose it; shut those down first",
            kinds.join(", ")
        )
    })
}

/// A device model in a domain of its own knows its guest by its number, and the other way round.
fn stub_domain(here: &impl Surroundings, domid: u32) -> Option<String> {
    let target = |of: &str| here.read(&format!("/local/domain/{of}/target"));
    if let Some(guest) = target(&domid.to_string()) {
        return Some(format!(
            "it is the stub domain of guest {guest}, and stays with it; shut that guest down"
        ));
    }
    let domid = domid.to_string();
    let mut others = here.list("/local/domain").into_iter();
    let stub = others.find(|other| target(other).as_deref() == Some(&*domid))?;
    Some(format!(
        "it has a stub domain ({stub}), which cannot come along; shut it down, and start it there"
    ))
}

/// The domain that xenstored runs in, if it has one of its own: it is no guest.
pub fn xenstore_domain(here: &impl Surroundings) -> Option<u32> {
    here.read("/tool/xenstored/domid")?.parse().ok()
}

fn cannot_come_along(here: &impl Surroundings, domid: u32) -> Option<String> {
    let mut kinds = kinds(here, &format!("/libxl/{domid}/device"));
    kinds.retain(|kind| !DEVICES.contains(&&**kind));
    (!kinds.is_empty()).then(|| {
        format!(
            "it has devices that do not come along ({}); detach them, or shut it down and start it there",
            kinds.join(", ")
        )
    })
}

/// A kernel that boots says what it can do. One that was restored, or has not come that far,
/// has said nothing.
fn cannot_suspend(here: &impl Surroundings, domid: u32) -> Option<String> {
    let says = |feature: &str| {
        let node = format!("/local/domain/{domid}/control/feature-{feature}");
        here.read(&node).as_deref() == Some("1")
    };
    (says("poweroff") && !says("suspend")).then(|| {
        "its kernel does not say that it can suspend itself (control/feature-suspend in xenstore); shut it down and start it there".into()
    })
}

fn above_target(here: &impl Surroundings, domid: u32, pages: u64) -> Option<String> {
    let target = here.read(&format!("/local/domain/{domid}/memory/target"))?;
    let target: u64 = target.trim().parse().ok()?;
    let has = pages.saturating_mul(4);
    (has > target.saturating_add(SLACK)).then(|| {
        format!(
            "it has {} MiB of memory, more than its target of {} MiB; wait until it has given that back, or raise the target (`xl mem-set`)",
            has.div_ceil(1024),
            target / 1024
        )
    })
}

/// Bridges and disks, by what the toolstack notes where no guest can write.
fn devices(here: &impl Surroundings, domid: u32) -> Vec<Need> {
    let mut needs = Vec::new();
    for (kind, need, node) in [
        ("vif", NeedKind::Bridge, "bridge"),
        ("vbd", NeedKind::Disk, "params"),
    ] {
        let all = format!("/libxl/{domid}/device/{kind}");
        for device in here.list(&all) {
            let value = here
                .read(&format!("{all}/{device}/backend"))
                .and_then(|backend| here.read(&format!("{backend}/{node}")));
            let Some(value) = value else { continue };
            // QEMU's begin with the format.
            let name = match value.find(":/") {
                Some(at) if need == NeedKind::Disk => value[at + 1..].to_owned(),
                _ => value,
            };
            if need == NeedKind::Bridge || name.starts_with('/') {
                needs.push(Need { kind: need, name });
            }
        }
    }
    needs
}

/// What it boots from when it restarts; a boot loader's copy is gone by now.
fn kernel(here: &impl Surroundings, domid: u32) -> Vec<Need> {
    let Some(vm) = here.read(&format!("/local/domain/{domid}/vm")) else {
        return Vec::new();
    };
    ["kernel", "ramdisk"]
        .into_iter()
        .filter_map(|file| here.read(&format!("{vm}/image/{file}")))
        .filter(|path| path.starts_with('/'))
        .map(|name| Need {
            kind: NeedKind::Kernel,
            name,
        })
        .collect()
}

/// The file that a guest is created from goes with it.
pub fn definition(here: &impl Surroundings, path: Option<&Path>, inspection: &mut Inspection) {
    let Some((path, dir)) = path.and_then(|p| Some((p, p.parent()?))) else {
        return;
    };
    if !here.can_write(dir) {
        inspection.problems.push(format!(
            "its file {} cannot be moved with it, since its directory cannot be written to",
            path.display()
        ));
    }
    inspection.needs.push(Need {
        kind: NeedKind::Definition,
        name: path.to_string_lossy().into_owned(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use vmbeam_agent_protocol::FromAgent;
    use vmbeam_wire::Message;

    #[derive(Default)]
    struct Fake {
        store: BTreeMap<String, String>,
        files: BTreeSet<String>,
        tsc_khz: Option<u32>,
        guest_tsc_khz: Option<u32>,
    }

    impl Surroundings for Fake {
        fn read(&self, path: &str) -> Option<String> {
            self.store.get(path).cloned()
        }

        fn list(&self, path: &str) -> Vec<String> {
            let below = format!("{path}/");
            let names: BTreeSet<String> = self
                .store
                .keys()
                .filter_map(|k| Some(k.strip_prefix(&below)?.split('/').next()?.to_owned()))
                .collect();
            names.into_iter().collect()
        }

        fn exists(&self, path: &Path) -> bool {
            self.files.contains(path.to_str().unwrap())
        }

        fn can_write(&self, dir: &Path) -> bool {
            self.exists(dir)
        }

        fn text(&self, _: &Path) -> Option<String> {
            None
        }

        fn tsc_khz(&self) -> Option<u32> {
            self.tsc_khz
        }

        fn guest_tsc_khz(&self, _: u32) -> Option<u32> {
            self.guest_tsc_khz
        }
    }

    const SIZE: Size = Size {
        pages: 65536,
        runs: Some(100),
    };

    /// Domain 7, an ordinary guest of 256 MiB.
    fn guest() -> Fake {
        let mut fake = Fake::default();
        for (path, value) in [
            ("/local/domain/7/control/feature-poweroff", "1"),
            ("/local/domain/7/control/feature-suspend", "1"),
            ("/local/domain/7/memory/target", "262144"),
            ("/local/domain/7/vm", "/vm/u"),
            ("/local/domain/7/backend/vbd", ""),
            ("/libxl/7/device/pci", ""),
            ("/vm/u/image/kernel", "/boot/vmlinux"),
            ("/vm/u/image/ramdisk", "/var/run/xen/gone"),
            ("/libxl/7/device/console/0/backend", "/c"),
            ("/libxl/7/device/vif/0/backend", "/b/vif"),
            ("/b/vif/bridge", "br0"),
            ("/libxl/7/device/vbd/51712/backend", "/b/vbd"),
            ("/b/vbd/params", "/dev/vg/disk"),
            ("/libxl/7/device/vbd/51728/backend", "/b/qdisk"),
            ("/b/qdisk/params", "aio:/srv/a:b.img"),
            ("/b/qdisk/direct-io-safe", "1"),
            ("/libxl/7/device/vbd/51744/backend", "/b/nbd"),
            ("/b/nbd/params", "nbd:elsewhere"),
            ("/local/pool/0/name", "Pool-0"),
            ("/local/pool/2/name", "fast"),
        ] {
            fake.store.insert(path.into(), value.into());
        }
        for file in [
            "/sys/class/net/br0",
            "/dev/vg/disk",
            "/srv/a:b.img",
            "/boot/vmlinux",
        ] {
            fake.files.insert(file.into());
        }
        fake
    }

    #[test]
    fn what_belongs_to_another_domain_stays() {
        let mut fake = guest();
        assert_eq!(xenstore_domain(&fake), None);
        let problems = |fake: &Fake| inspect(fake, 7, 0, SIZE).problems;
        assert!(problems(&fake).is_empty());
        fake.store
            .insert("/local/domain/8/target".into(), "7".into());
        assert!(problems(&fake)[0].contains("it has a stub domain (8)"));
        fake.store
            .insert("/local/domain/7/target".into(), "6".into());
        assert!(problems(&fake)[0].contains("it is the stub domain of guest 6"));
        fake.store
            .insert("/tool/xenstored/domid".into(), "2".into());
        assert_eq!(xenstore_domain(&fake), Some(2));
    }

    #[test]
    fn an_ordinary_guest_can_move_and_says_what_it_needs() {
        let inspection = inspect(&guest(), 7, 2, SIZE);
        assert!(inspection.problems.is_empty(), "{inspection:?}");
        let needs: Vec<_> = inspection
            .needs
            .iter()
            .map(|n| (n.kind, &*n.name))
            .collect();
        assert_eq!(
            needs,
            [
                (NeedKind::Bridge, "br0"),
                (NeedKind::Disk, "/dev/vg/disk"),
                (NeedKind::Disk, "/srv/a:b.img"),
                (NeedKind::Kernel, "/boot/vmlinux"),
                (NeedKind::Pool, "fast"),
            ]
        );
    }

    /// What the daemon takes is bounded, and an answer that it does not take tells nobody anything.
    #[test]
    fn whatever_a_guest_has_the_answer_is_one() {
        let mut many = guest();
        for nr in 0..2 * MAX_ITEMS {
            let disk = format!("/srv/images/a-directory-of-its-own/{nr}.qcow2");
            let node = |name: &str| format!("/b/qdisk/{nr}/{name}");
            let backend = format!("/libxl/7/device/vbd/{nr}/backend");
            many.store.insert(backend, format!("/b/qdisk/{nr}"));
            many.store.insert(node("params"), format!("qcow2:{disk}"));
            many.files.insert(disk);
        }
        let inspection = inspect(&many, 7, 2, SIZE);
        assert_eq!(FromAgent::Inspected(inspection.clone()).check(), Ok(()));
        let told = |words: &str| inspection.problems.iter().any(|p| p.contains(words));
        assert!(told("it needs more than 63 files"), "{inspection:?}");
        assert!(told("a-directory-of-its-own/1.qcow2"), "{inspection:?}");
        // A bridge for each of several cards is one bridge.
        let mut cards = guest();
        for nr in 1..2 * MAX_ITEMS {
            let backend = format!("/libxl/7/device/vif/{nr}/backend");
            cards.store.insert(backend, "/b/vif".into());
        }
        let inspection = inspect(&cards, 7, 2, SIZE);
        assert_eq!(inspection.needs.len(), 5, "{inspection:?}");
        assert_eq!(inspection.problems, [""; 0]);
    }

    #[test]
    fn what_it_needs_is_here_or_not() {
        let mut there = guest();
        let needs = inspect(&there, 7, 2, SIZE).needs;
        assert!(needs.iter().all(|n| is_there(&there, n)));
        there.files.clear();
        // The pool of that number is another one.
        let pool = "/local/pool/2/name".to_owned();
        there.store.insert(pool, "slow".into());
        assert!(!needs.iter().any(|n| is_there(&there, n)));
        // Nothing but an interface counts as one.
        there.files.insert("/sys/class/net/../../../etc".into());
        let odd = Need {
            kind: NeedKind::Bridge,
            name: "../../../etc".into(),
        };
        assert!(!is_there(&there, &odd));
    }

    #[test]
    fn a_guest_that_reads_the_clock_of_the_processor() {
        let mut here = guest();
        here.guest_tsc_khz = Some(2_994_374);
        let needs = |fake: &Fake| {
            let mut needs = inspect(fake, 7, 2, SIZE).needs;
            needs.retain(|n| n.kind == NeedKind::Tsc);
            needs
        };
        // Emulated already: since it came from elsewhere, or as all are.
        for emulated in [None, Some(2_994_373)] {
            here.tsc_khz = emulated;
            assert_eq!(needs(&here), []);
        }
        here.tsc_khz = here.guest_tsc_khz;
        let needs = needs(&here);
        assert_eq!(needs[0].name, "2994374");
        for (there, native) in [
            (Some(2_994_374), true),
            (Some(2_994_375), false),
            (None, false),
        ] {
            here.tsc_khz = there;
            assert_eq!(is_there(&here, &needs[0]), native);
        }
    }

    #[test]
    fn a_file_that_must_go_with_its_guest() {
        let path = Path::new("/etc/xen/g.cfg");
        let look = |fake: &Fake| {
            let mut inspection = Inspection::default();
            definition(fake, Some(path), &mut inspection);
            inspection
        };
        let mut fake = guest();
        let problems = look(&fake).problems;
        assert!(problems.len() == 1 && problems[0].contains("/etc/xen/g.cfg cannot be moved"));
        fake.files.insert("/etc/xen".into());
        let Inspection { problems, needs } = look(&fake);
        assert!(problems.is_empty() && needs.len() == 1);
        assert!(is_there(&fake, &needs[0]));
    }

    #[track_caller]
    fn assert_problem(fake: &Fake, size: Size, words: &str) {
        let problems = inspect(fake, 7, 2, size).problems;
        assert!(
            problems.len() == 1 && problems[0].contains(words),
            "{problems:?}"
        );
    }

    #[test]
    fn a_guest_that_cannot_suspend_itself() {
        for feature in [None, Some("0")] {
            let mut fake = guest();
            let node = "/local/domain/7/control/feature-suspend";
            fake.store.remove(node);
            if let Some(value) = feature {
                fake.store.insert(node.into(), value.into());
            }
            assert_problem(&fake, SIZE, "can suspend itself");
            // As it is after a restore: nodes that are empty, since it has not booted here.
            for feature in ["poweroff", "suspend"] {
                let node = format!("/local/domain/7/control/feature-{feature}");
                fake.store.insert(node, String::new());
            }
            assert_eq!(inspect(&fake, 7, 2, SIZE).problems, Vec::<String>::new());
        }
    }

    #[test]
    fn a_guest_above_its_target() {
        let mut fake = guest();
        let target = "/local/domain/7/memory/target".to_owned();
        fake.store.insert(target.clone(), "65536".into());
        assert_problem(
            &fake,
            SIZE,
            "256 MiB of memory, more than its target of 64 MiB",
        );
        // As much as the toolstack grants beyond it is no problem.
        fake.store.insert(target.clone(), "261120".into());
        assert!(inspect(&fake, 7, 2, SIZE).problems.is_empty());
        fake.store.insert(target, "261119".into());
        assert_problem(&fake, SIZE, "more than its target");
    }

    #[test]
    fn a_guest_that_is_a_backend() {
        let mut fake = guest();
        fake.store
            .insert("/local/domain/7/backend/vif/8/0/state".into(), "4".into());
        assert_problem(&fake, SIZE, "the backend of other guests (vif)");
    }

    #[test]
    fn a_guest_with_devices_that_do_not_come_along() {
        let mut fake = guest();
        for kind in ["9pfs", "pci"] {
            let node = format!("/libxl/7/device/{kind}/0/backend");
            fake.store.insert(node, "/b".into());
        }
        assert_problem(&fake, SIZE, "(9pfs, pci)");
    }

    #[test]
    fn a_guest_beyond_the_limits() {
        let mut fake = guest();
        fake.store.remove("/local/domain/7/memory/target");
        let pages = MAX_PAGES + 1;
        assert_problem(&fake, Size { pages, runs: None }, "67108865 pages");
        let runs = Some(MAX_RUNS + 1);
        assert_problem(&fake, Size { runs, ..SIZE }, "1048577 pieces");
    }
}
