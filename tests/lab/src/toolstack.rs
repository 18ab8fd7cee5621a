// SPDX-License-Identifier: GPL-2.0-only

//! Tests of the patched toolstack alone, with a PV guest on the host
//! hypervisor: what `xl save --external-memory` writes and who restores it.

mod changed;
mod refused;
mod staged;
mod stream;

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;

use crate::channel::Channel;
use crate::paths;
use crate::tally::Tally;
use crate::topology::Topology;
use crate::topology::SHORT;

const LIMIT: Duration = Duration::from_secs(300);
const GUEST_MIB: u64 = 128;
const SAVED: &str = "/run/lab/saved";

/// Where the patched toolstack is, beside Debian's.
pub const PATCHED: &str = "/usr/lib/vmbeam/toolstack";

const XL: &str = "LD_LIBRARY_PATH=/usr/lib/vmbeam/toolstack \
    LIBXL_SAVE_HELPER=/usr/lib/vmbeam/toolstack/libxl-save-helper \
    /usr/lib/vmbeam/toolstack/xl";

/// What `labtool provide-memory` prints.
#[derive(Deserialize)]
struct Contents {
    external_pages: u64,
    data_pages: u64,
    bytes: u64,
}

/// Run the tests, with those too that take minutes if `long`. They leave nothing behind.
pub fn run(tally: &mut Tally, topology: &Topology, long: bool) {
    let host = &topology.machine.host;
    let mut saved = false;
    refused::driver(tally, host);
    tally.case("toolstack", "Xen's tests of the stream's checker", || {
        python("-m unittest discover -s xen/migration -t .").map(|_| ())
    });
    tally.case("toolstack", "a guest is saved without its memory", || {
        create(host, "home", "", "", "")?;
        checked(host, "home")?;
        host.sh(
            &format!("{XL} save --external-memory -p home {SAVED}"),
            LIMIT,
        )?;
        let state = host.sh("xl list home | sed -n 2p", SHORT)?;
        ensure!(state.contains("p--"), "the guest is not paused: {state}");
        saved = true;
        Ok(())
    });
    if saved {
        let mut state = Vec::new();
        tally.case("toolstack", "verify-stream accepts the saved state", || {
            state = verify_stream(host)?;
            Ok(())
        });
        refused::states(tally, host, &state);
        refused::guests(tally, host);
        tally.case(
            "toolstack",
            "the guest runs on where its memory is put",
            || arrives(host),
        );
        tally.case("toolstack", "the saved guest can run on instead", || {
            host.sh("xl unpause home", SHORT)?;
            checked(host, "home")
        });
    }
    destroy(host);
    staged::run(tally, host, long);
    destroy(host);
    changed::run(tally, host);
}

fn destroy(host: &Channel) {
    let _ = host.run(
        "xl destroy home; xl destroy away; rm -f /run/lab/saved",
        LIMIT,
    );
}

/// Of two settings with the same name the last one counts.
fn config(name: &str, more: &str, cmdline: &str) -> String {
    format!(
        "name=\"{name}\"\ntype=\"pv\"\nmemory={GUEST_MIB}\nvcpus=1\ncpus=\"1\"\n\
         kernel=\"/boot/vmlinux\"\nramdisk=\"/boot/guest.cpio\"\n\
         cmdline=\"console=hvc0 quiet mitigations=off clocksource=xen tsc=nowatchdog \
         vmbeam.seed=7 {cmdline}\"\non_crash=\"preserve\"\n{more}"
    )
}

fn create(host: &Channel, name: &str, more: &str, cmdline: &str, options: &str) -> Result<()> {
    host.sh(
        &format!(
            "cat >/etc/xen/{name}.cfg <<'EOF'\n{}\nEOF\nxl create {options} /etc/xen/{name}.cfg",
            config(name, more, cmdline)
        ),
        LIMIT,
    )?;
    Ok(())
}

fn log(name: &str) -> String {
    format!("/var/log/xen/console/guest-{name}.log")
}

/// Wait until the guest has found its memory to be as it wrote it, once more.
fn checked(host: &Channel, name: &str) -> Result<()> {
    let log = log(name);
    let text = host.sh(
        &format!(
            "touch {log}; tail -n 0 -F {log} 2>/dev/null | \
             sed -n -e '/CHECK/{{p;q}}' -e '/panic/{{p;q}}'"
        ),
        LIMIT,
    )?;
    ensure!(text.contains(" ok "), "the guest says: {}", text.trim());
    Ok(())
}

/// Xen's own checker of streams, on this machine, and what it was given.
fn verify_stream(host: &Channel) -> Result<Vec<u8>> {
    let text = host.sh(&format!("base64 {SAVED}"), LIMIT)?;
    let file = paths::run().join("saved");
    let encoded = file.with_extension("b64");
    fs::write(&encoded, text)?;
    let (encoded, file) = (encoded.display(), file.display());
    shell(&format!("base64 -d {encoded} >{file}"))?;
    let text = python(&format!("verify-stream -f xl -i {file} -v"))?;
    ensure!(text.contains("External pages"), "verify-stream: {text}");
    Ok(fs::read(file.to_string())?)
}

/// Run Python in the directory of the patched toolstack.
fn python(arguments: &str) -> Result<String> {
    let directory = paths::toolstack("");
    shell(&format!(
        "cd {} && PYTHONPATH=. python3 {arguments} 2>&1",
        directory.display()
    ))
}

fn shell(command: &str) -> Result<String> {
    let output = Command::new("sh").arg("-c").arg(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command}: {text}");
    Ok(text)
}

fn arrives(host: &Channel) -> Result<()> {
    host.sh(
        &format!(
            "cat >/etc/xen/away.cfg <<'EOF'\n{}\nEOF\n\
             {XL} restore --external-memory -p /etc/xen/away.cfg {SAVED}",
            config("away", "", "")
        ),
        LIMIT,
    )?;
    arrived(host)
}

/// Give the guest that was restored the memory of the one that was saved, and see it run.
fn arrived(host: &Channel) -> Result<()> {
    let text = host.sh(
        &format!(
            "labtool provide-memory --saved {SAVED} --from $(xl domid home) --to $(xl domid away)"
        ),
        LIMIT,
    )?;
    let contents: Contents = text
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("labtool provide-memory printed: {text}"))?;
    println!(
        "    {} pages external, {} in the stream, {} bytes",
        contents.external_pages, contents.data_pages, contents.bytes
    );
    ensure!(
        contents.external_pages + contents.data_pages <= GUEST_MIB * 256
            && contents.external_pages > GUEST_MIB * 256 * 9 / 10,
        "{} pages are external",
        contents.external_pages
    );
    host.sh("xl unpause away", SHORT)?;
    checked(host, "away")
}
