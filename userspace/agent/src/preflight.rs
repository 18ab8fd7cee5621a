// SPDX-License-Identifier: GPL-2.0-only

//! What would be found out only once a guest is suspended, from what the toolstack keeps of
//! it in xenstore: asked before anything is done to it.

use crate::disks;
use crate::names::visible;
use crate::surroundings::Surroundings;
use std::path::Path;
use vmbeam_agent_protocol::preflight::{MAX_ITEM, MAX_ITEMS};
use vmbeam_agent_protocol::{Inspection, Need, NeedKind, MAX_PAGES, MAX_RUNS};
use vmbeam_wire::is_plain;

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
        served_elsewhere(here, domid),
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
    let is_odd = |need: &Need| need.name.len() > MAX_ITEM || !is_plain(&need.name);
    let odd = needs.iter().find(|need| is_odd(need)).map(|need| {
        format!(
            "it needs something with a name that is not what it looks like, or is too long: {:?}; rename that",
            need.name
        )
    });
    needs.retain(|need| !is_odd(need));
    needs.sort_by(|a, b| (a.kind as u8, &a.name).cmp(&(b.kind as u8, &b.name)));
    needs.dedup();
    let many = (needs.len() > NEEDS).then(|| {
        format!("it needs more than {NEEDS} files, devices and bridges; shut it down, and start it there")
    });
    needs.truncate(NEEDS);
    Inspection {
        problems: problems
            .into_iter()
            .chain([many, odd])
            .flatten()
            .map(|problem| short(visible(problem)))
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

/// Neither are the rings of such a device looked at, nor its events raised, and the other guest
/// stays where it is.
fn served_elsewhere(here: &impl Surroundings, domid: u32) -> Option<String> {
    let all = format!("/libxl/{domid}/device");
    let mut served = Vec::new();
    for kind in here.list(&all) {
        for device in here.list(&format!("{all}/{kind}")) {
            let backend = here.read(&format!("{all}/{kind}/{device}/backend"));
            let by = backend
                .as_deref()
                .and_then(|b| b.strip_prefix("/local/domain/"));
            let by = by.and_then(|b| b.split('/').next()).filter(|by| *by != "0");
            served.extend(by.map(|by| format!("{kind} {device} by domain {by}")));
        }
    }
    (!served.is_empty()).then(|| {
        format!(
            "it has devices that another guest serves ({}), which does not come along; detach them, or shut it down and start it there",
            served.join(", ")
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
mod tests;
