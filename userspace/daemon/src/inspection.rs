// SPDX-License-Identifier: GPL-2.0-only

//! What the agents of both host VMs find out about one guest that is to move.

use crate::definitions::{definition, in_the_way};
use crate::link::{or_nothing, unexpected, Link, LinkError};
use crate::side::Side;
use vmbeam_agent_protocol::{
    Definition, FromAgent, Guest, GuestKind, GuestState, Inspection, Need, NeedKind, ToAgent,
};
use vmbeam_control_protocol::Mode;

fn inspect(link: &mut Link, guest: u32, external: bool) -> Result<Inspection, LinkError> {
    let question = ToAgent::Inspect { guest, external };
    or_nothing(match link.ask(&question, |a| Err(unexpected(&a))) {
        Ok(FromAgent::Inspected(inspection)) => Ok(inspection),
        Ok(other) => Err(unexpected(&other)),
        Err(e) => Err(e),
    })
}

fn lacking(link: &mut Link, needs: Vec<Need>) -> Result<Vec<Need>, LinkError> {
    let question = ToAgent::Provide { needs };
    or_nothing(match link.ask(&question, |a| Err(unexpected(&a))) {
        Ok(FromAgent::Lacking(needs)) => Ok(needs),
        Ok(other) => Err(unexpected(&other)),
        Err(e) => Err(e),
    })
}

/// What is missing there, for a person.
fn missing(to: &str, guest: &str, need: &Need) -> String {
    let what = match need.kind {
        NeedKind::Bridge => "network bridge",
        NeedKind::Disk => "disk",
        NeedKind::Kernel => "kernel file",
        NeedKind::Pool => "cpupool",
        NeedKind::Tsc => {
            return format!(
                "guest {guest} reads the clock of the processor (TSC, {} kHz) itself, and in host VM {to}, where that has another frequency or one that may change, reads one that is emulated, until it is started anew: that is slower",
                need.name
            );
        }
        NeedKind::Definition => {
            return format!(
                "host VM {to} cannot keep {}, which guest {guest} is created from: its directory cannot be written to",
                need.name
            );
        }
    };
    format!(
        "host VM {to} has no {what} {}, which guest {guest} needs; provide it there, or change the guest's configuration",
        need.name
    )
}

/// What both host VMs know of a guest that could suspend itself otherwise.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// What is in its way.
    pub(crate) blockers: Vec<String>,
    /// What is not.
    pub(crate) warnings: Vec<String>,
    /// Its host VM starts it at boot.
    pub(crate) starts: bool,
}

/// Find that out.
pub(crate) fn looked_at(
    from: &mut Side<'_>,
    to: &mut Side<'_>,
    guest: &Guest,
    mode: Mode,
) -> Looked {
    if guest.kind != GuestKind::Pv || guest.state != GuestState::Running {
        return Looked::default();
    }
    let external = mode.is_external();
    let mut ask = || {
        let Inspection { problems, needs } = from.talk(|l| inspect(l, guest.domid, external))?;
        let lacking = match needs.is_empty() {
            true => Vec::new(),
            false => to.talk(|l| lacking(l, needs.clone()))?,
        };
        let name = &guest.name;
        let definition = from.talk(|l| definition(l, name))?;
        let starts = definition.autostart.is_some();
        let taken = to_be_kept(to, name, &definition)?;
        let problems = problems
            .iter()
            .map(|problem| format!("guest {name}: {problem}"));
        // Of what was asked, not of what was answered.
        let mut blockers: Vec<_> = problems.collect();
        let mut warnings = Vec::new();
        for need in needs.iter().filter(|need| lacking.contains(need)) {
            let told = match need.kind {
                NeedKind::Tsc => &mut warnings,
                _ => &mut blockers,
            };
            told.push(missing(to.name(), name, need));
        }
        blockers.extend(taken);
        Ok(Looked {
            blockers,
            warnings,
            starts,
        })
    };
    ask().unwrap_or_else(|e: String| Looked {
        blockers: vec![e],
        ..Looked::default()
    })
}

/// What has a name in the destination that what is written down of a guest would need there.
/// It would be found once the guest has moved, and the guest be written down where it is not.
fn to_be_kept(
    to: &mut Side<'_>,
    guest: &str,
    definition: &Definition,
) -> Result<Vec<String>, String> {
    if definition.is_empty() {
        return Ok(Vec::new());
    }
    let taken = to.talk(|l| in_the_way(l, guest, definition.clone()))?;
    let host_vm = to.name();
    let refused = |what| {
        format!(
            "host VM {host_vm} cannot keep what is written down of guest {guest}: {what}; rename one of the two"
        )
    };
    Ok(taken.into_iter().map(refused).collect())
}
