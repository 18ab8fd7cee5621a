// SPDX-License-Identifier: GPL-2.0-only

//! Guests as xenstore has them, and what is told of them.

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
        (
            "/libxl/7/device/console/0/backend",
            "/local/domain/0/backend/console",
        ),
        (
            "/libxl/7/device/vif/0/backend",
            "/local/domain/0/backend/vif",
        ),
        ("/local/domain/0/backend/vif/bridge", "br0"),
        (
            "/libxl/7/device/vbd/51712/backend",
            "/local/domain/0/backend/vbd",
        ),
        ("/local/domain/0/backend/vbd/params", "/dev/vg/disk"),
        (
            "/libxl/7/device/vbd/51728/backend",
            "/local/domain/0/backend/qdisk",
        ),
        ("/local/domain/0/backend/qdisk/params", "aio:/srv/a:b.img"),
        ("/local/domain/0/backend/qdisk/direct-io-safe", "1"),
        (
            "/libxl/7/device/vbd/51744/backend",
            "/local/domain/0/backend/nbd",
        ),
        ("/local/domain/0/backend/nbd/params", "nbd:elsewhere"),
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
        let node = |name: &str| format!("/local/domain/0/backend/qdisk/{nr}/{name}");
        let backend = format!("/libxl/7/device/vbd/{nr}/backend");
        many.store
            .insert(backend, format!("/local/domain/0/backend/qdisk/{nr}"));
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
        cards
            .store
            .insert(backend, "/local/domain/0/backend/vif".into());
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
        fake.store.insert(node, "/local/domain/0/backend".into());
    }
    assert_problem(&fake, SIZE, "(9pfs, pci)");
}

#[test]
fn a_guest_whose_devices_another_guest_serves() {
    for (device, kind) in [("vbd/51712", "vbd 51712"), ("vif/0", "vif 0")] {
        let mut fake = guest();
        let node = format!("/libxl/7/device/{device}/backend");
        let backend = format!("/local/domain/3/backend/{device}");
        fake.store.insert(node, backend);
        assert_problem(&fake, SIZE, &format!("serves ({kind} by domain 3)"));
    }
}

/// The daemon takes no names that are not what they look like.
#[test]
fn a_guest_that_needs_what_cannot_be_told() {
    let mut fake = guest();
    let long = "x".repeat(MAX_ITEM);
    for odd in ["/dev/vg/a\tb", "/srv/\u{202e}gmi", &long] {
        let params = "/local/domain/0/backend/vbd/params".to_owned();
        let odd = format!("/{odd}");
        fake.store.insert(params, odd.clone());
        fake.files.insert(odd);
        let inspection = inspect(&fake, 7, 2, SIZE);
        let told = inspection.problems.concat();
        assert!(told.contains("not what it looks like"), "{told}");
        assert_eq!(FromAgent::Inspected(inspection).check(), Ok(()));
    }
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
