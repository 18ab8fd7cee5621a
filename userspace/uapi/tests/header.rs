// SPDX-License-Identifier: GPL-2.0-only

//! The mirror in `sys` against the header itself, through a C compiler.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;
use vmbeam_uapi::sys;

/// What the Rust side believes, keyed by the C expression for it.
fn expected() -> BTreeMap<String, u64> {
    let mut m = BTreeMap::new();
    macro_rules! layout {
        ($c:literal, $ty:ty: $($field:ident)*) => {
            m.insert(format!("sizeof(struct {})", $c), size_of::<$ty>() as u64);
            $(m.insert(
                format!("offsetof(struct {}, {})", $c, stringify!($field)),
                offset_of!($ty, $field) as u64,
            );)*
        };
    }
    layout!("vmbeam_info", sys::Info: size flags features max_add_runs batch_pairs max_runs max_pairs);
    layout!("vmbeam_bind", sys::Bind: size flags domid_a domid_b id_a id_b);
    layout!("vmbeam_run", sys::Run: gfn_a gfn_b nr reserved);
    layout!("vmbeam_add", sys::Add: size flags runs nr_runs bad_run total_runs total_pairs);
    layout!("vmbeam_check", sys::Check: size flags first nr status moves_before
        done refused moves);
    layout!("vmbeam_commit", sys::Commit: size flags expected nr status cursor swapped refused
        moved);
    layout!("vmbeam_status", sys::Status: size flags state domid_a domid_b activity runs pairs
        cursor swapped refused mode reserved moved);
    layout!("vmbeam_rollback", sys::Rollback: size flags expected cursor restored);
    layout!("vmbeam_cancel", sys::Cancel: size flags);
    layout!("vmbeam_record", sys::Record: size flags id domid_a domid_b id_a id_b state error time
        pid reserved runs pairs cursor swapped refused mode reserved2 moved);
    layout!("vmbeam_adopt", sys::Adopt: size flags id);
    layout!("vmbeam_abandon", sys::Abandon: size flags expected cursor);
    for (name, value) in [
        ("VMBEAM_IOCTL_INFO", sys::IOCTL_INFO),
        ("VMBEAM_IOCTL_BIND", sys::IOCTL_BIND),
        ("VMBEAM_IOCTL_ADD", sys::IOCTL_ADD),
        ("VMBEAM_IOCTL_CHECK", sys::IOCTL_CHECK),
        ("VMBEAM_IOCTL_COMMIT", sys::IOCTL_COMMIT),
        ("VMBEAM_IOCTL_STATUS", sys::IOCTL_STATUS),
        ("VMBEAM_IOCTL_ROLLBACK", sys::IOCTL_ROLLBACK),
        ("VMBEAM_IOCTL_CANCEL", sys::IOCTL_CANCEL),
        ("VMBEAM_IOCTL_RECORD", sys::IOCTL_RECORD),
        ("VMBEAM_IOCTL_ADOPT", sys::IOCTL_ADOPT),
        ("VMBEAM_IOCTL_ABANDON", sys::IOCTL_ABANDON),
        ("VMBEAM_IOC_TYPE", sys::IOC_TYPE),
        ("VMBEAM_FEATURE_SWAP", sys::FEATURE_SWAP as u32),
        ("VMBEAM_FEATURE_KEEP", sys::FEATURE_KEEP as u32),
        ("VMBEAM_FEATURE_RELOCATE", sys::FEATURE_RELOCATE as u32),
        ("VMBEAM_BIND_KEEP", sys::Mode::Keep.flags()),
        ("VMBEAM_BIND_TO_B", sys::Mode::ToB.flags()),
        ("VMBEAM_BIND_TO_A", sys::Mode::ToA.flags()),
    ] {
        m.insert(name.into(), value.into());
    }
    for (name, value) in [
        ("UNBOUND", sys::State::Unbound),
        ("EMPTY", sys::State::Empty),
        ("LOADED", sys::State::Loaded),
        ("COMMITTING", sys::State::Committing),
        ("COMMITTED", sys::State::Committed),
        ("ROLLING_BACK", sys::State::RollingBack),
        ("ROLLED_BACK", sys::State::RolledBack),
        ("ABANDONED", sys::State::Abandoned),
    ] {
        m.insert(format!("VMBEAM_STATE_{name}"), value as u64);
        assert_eq!(sys::State::from_raw(value as u32), Some(value));
    }
    m
}

#[test]
fn mirrors_the_header() {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../drivers/vmbeam/include/uapi");
    let dir = tempfile::tempdir().unwrap();
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vmbeam.h>\nint main(void) {\n",
    );
    let expected = expected();
    for expr in expected.keys() {
        writeln!(
            source,
            "printf(\"%llu %s\\n\", (unsigned long long)({expr}), \"{expr}\");"
        )
        .unwrap();
    }
    source.push_str("return 0; }\n");
    let (c, exe) = (dir.path().join("uapi.c"), dir.path().join("uapi"));
    std::fs::write(&c, source).unwrap();
    let status = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-Wall", "-Werror", "-I"])
        .arg(&include)
        .arg("-o")
        .arg(&exe)
        .arg(&c)
        .status()
        .unwrap();
    assert!(status.success(), "the header does not compile");
    let out = Command::new(&exe).output().unwrap();
    let actual: BTreeMap<String, u64> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|l| l.split_once(' ').unwrap())
        .map(|(v, k)| (k.to_owned(), v.parse().unwrap()))
        .collect();
    assert_eq!(actual, expected);
}

#[test]
fn missing_device_is_explained() {
    let e = vmbeam_uapi::Device::open(Path::new("/nonexistent/vmbeam")).unwrap_err();
    assert_eq!(e.errno, vmbeam_uapi::Errno::ENOENT);
    assert!(e.to_string().contains("insmod"), "{e}");
}

#[test]
fn another_device_is_explained() {
    let d = vmbeam_uapi::Device::open(Path::new("/dev/null")).unwrap();
    let e = d.info().unwrap_err();
    assert_eq!(e.errno, vmbeam_uapi::Errno::ENOTTY, "{e}");
}
