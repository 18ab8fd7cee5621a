// SPDX-License-Identifier: GPL-2.0-only

//! On what and with what it was measured.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// First line of what a program prints, or why there is none.
fn says(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned(),
        _ => "unknown".into(),
    }
}

/// The value of a line `key : value`.
fn field(path: &str, key: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .find_map(|l| {
            let (name, value) = l.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".into())
}

fn file(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |t| t.trim().to_owned())
}

/// This machine and the tree.
pub fn here() -> BTreeMap<String, String> {
    let git = |arguments: &[&str]| says("git", &[&["-c", "safe.directory=*"], arguments].concat());
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mut commit = git(&["rev-parse", "HEAD"]);
    if !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        commit += ", with changes";
    }
    [
        ("CPU", field("/proc/cpuinfo", "model name")),
        ("CPUs", cpus.to_string()),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel of this machine", file("/proc/sys/kernel/osrelease")),
        ("load when the report was made", file("/proc/loadavg")),
        ("commit", commit),
        ("date", says("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("rustc", says("rustc", &["--version"])),
        ("QEMU", says("qemu-system-x86_64", &["--version"])),
        ("Xen, host (patched)", file("build/xen/dl/version")),
        (
            "Xen, guests",
            says(
                "dpkg-query",
                &["-W", "-f", "${Version}", "xen-hypervisor-4.20-amd64"],
            ),
        ),
        ("kernel in the lab", file("build/kernel/release")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}
