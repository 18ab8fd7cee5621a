// SPDX-License-Identifier: GPL-2.0-only

//! What is written down of a guest goes with it: the file that it is created from, and what
//! has it started at boot.
//!
//! No journal is needed for that: first the one host VM has it, then the other one has not,
//! and both may be asked for again and again.

use crate::link::{or_nothing, unexpected, Link, LinkError};
use crate::side::Side;
use std::time::Instant;
use tracing::warn;
use vmbeam_agent_protocol::{AgentErrorCode, Definition, Entry, FromAgent, ToAgent, Uuid};

/// What a host VM has written down of a guest.
pub(crate) fn definition(link: &mut Link, guest: &str) -> Result<Definition, LinkError> {
    let name = guest.to_owned();
    let question = ToAgent::Definition { name };
    or_nothing(match link.ask(&question, |a| Err(unexpected(&a))) {
        Ok(FromAgent::Definition(definition)) => Ok(definition),
        Ok(other) => Err(unexpected(&other)),
        Err(e) => Err(e),
    })
}

/// What has a name there that this would need, for a person.
pub(crate) fn in_the_way(
    link: &mut Link,
    guest: &str,
    definition: Definition,
) -> Result<Vec<String>, LinkError> {
    let name = guest.to_owned();
    let question = ToAgent::MayDefine { name, definition };
    match link.ask(&question, |a| Err(unexpected(&a)))? {
        FromAgent::InTheWay(what) => Ok(what),
        other => Err(unexpected(&other)),
    }
}

/// Whether it was done; an agent of an earlier version cannot do it.
fn done(link: &mut Link, demand: &ToAgent) -> Result<bool, LinkError> {
    match link.ask(demand, |a| Err(unexpected(&a))) {
        Ok(FromAgent::Done) => Ok(true),
        Ok(other) => Err(unexpected(&other)),
        Err(LinkError::Agent {
            code: AgentErrorCode::BadRequest,
            message,
        }) => {
            warn!("an agent does not write down guests: {message}");
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Have what is written down of a guest where the guest is. Nothing is if nothing was.
pub(crate) fn follow(
    guest: &str,
    from: &mut Side<'_>,
    to: &mut Side<'_>,
    deadline: Instant,
) -> Result<(), String> {
    let definition = from.insist(deadline, |l| definition(l, guest))?;
    if definition.is_empty() {
        return Ok(());
    }
    let name = guest.to_owned();
    let define = ToAgent::Define { name, definition };
    if to.insist(deadline, |l| done(l, &define))? {
        put_aside(guest, from, deadline)?;
    }
    Ok(())
}

/// It is written down elsewhere.
pub(crate) fn put_aside(guest: &str, at: &mut Side<'_>, deadline: Instant) -> Result<(), String> {
    let name = guest.to_owned();
    let undefine = ToAgent::Undefine { name };
    at.insist(deadline, |l| done(l, &undefine)).map(drop)
}

/// What makes the guest.
pub(crate) fn text_of(definition: &Definition) -> Option<&[u8]> {
    match (&definition.config, &definition.autostart) {
        (Some(file), _) | (None, Some(Entry::File(file))) => Some(&file.text),
        (None, _) => None,
    }
}

/// The UUID that it has by that, if one is given there; otherwise it gets one that is made up.
pub(crate) fn uuid_of(definition: &Definition) -> Option<Uuid> {
    let text = String::from_utf8_lossy(text_of(definition)?);
    let uuid = |line: &str| {
        let value = line.trim().strip_prefix("uuid")?.trim_start();
        let value = value.strip_prefix('=')?.split(['"', '\'']).nth(1)?;
        Uuid::try_parse(value).ok()
    };
    text.lines().filter_map(uuid).next_back()
}

/// The guests that a host VM starts when it boots; nothing if its agent does not know.
pub(crate) fn autostart(at: &mut Side<'_>) -> Result<Vec<String>, String> {
    at.talk(|link| {
        or_nothing(
            match link.ask(&ToAgent::Autostart, |a| Err(unexpected(&a))) {
                Ok(FromAgent::Autostart(names)) => Ok(names),
                Ok(other) => Err(unexpected(&other)),
                Err(e) => Err(e),
            },
        )
    })
}

/// A guest that it would start is to leave it: nothing is started there until it is told again,
/// which it is once that has come to an end.
pub(crate) fn hold_start(at: &mut Side<'_>) -> Result<(), String> {
    at.vm.forget_told();
    at.talk(|l| done(l, &ToAgent::HoldStart)).map(drop)
}

/// Tell a host VM whether it may start them.
pub(crate) fn may_start(at: &mut Side<'_>, allowed: bool) -> Result<(), String> {
    at.talk(|l| done(l, &ToAgent::MayStart { allowed }))
        .map(drop)
}
