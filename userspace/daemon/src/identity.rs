// SPDX-License-Identifier: GPL-2.0-only

//! Whether an agent is in the domain that its frames are taken for.
//!
//! A socket in the configuration says which host VM an agent is in, and two lines may be
//! exchanged there; a domid may be that of another host VM after a restart. So the agent
//! tells the UUID that its host VM's firmware shows, and the host's toolstack is asked for
//! that of the domain. Nothing that an agent says is used before both are the same.

use crate::config::{Config, Domid, HostVmConfig};
use crate::driver::Driver;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use tracing::warn;
use vmbeam_agent_protocol::Uuid;
use vmbeam_control_protocol::Identity;
use vmbeam_uapi::Mode as BindMode;
use vmbeam_xen::command::run;

/// How long the command that prints a UUID may take.
const UUID_COMMAND: Duration = Duration::from_secs(30);

/// Where the UUID of a host VM's domain comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This command with the domid appended, each time.
    Command(Vec<String>),
    /// It was asked for at the start, when that was still possible.
    Start(Result<Uuid, String>),
}

impl Source {
    /// For each host VM. With `now` those whose domid is fixed are asked for at once, and the
    /// driver has seen which domains they are: a daemon that gives up its privileges can
    /// run no toolstack later.
    pub fn all(config: &Config, driver: &dyn Driver, now: bool) -> Vec<Self> {
        let fixed = |name: &str| {
            let vm = config.host_vms.iter().find(|vm| vm.name == name);
            vm.and_then(|vm| match vm.domid {
                Domid::Fixed(domid) if now => Some(domid),
                _ => None,
            })
        };
        // First of all: what has the domid later is another domain for the driver.
        for (a, b) in &config.pairs {
            if let (Some(domid_a), Some(domid_b)) = (fixed(a), fixed(b)) {
                if let Err(e) = driver.open(domid_a, domid_b, BindMode::Swap) {
                    warn!("host VMs {a} and {b}: {e}");
                }
            }
        }
        let source = |vm: &HostVmConfig| match fixed(&vm.name) {
            None => Self::Command(config.uuid_command.clone()),
            Some(domid) => {
                let uuid = uuid_of(&config.uuid_command, domid);
                if let Err(e) = &uuid {
                    warn!(host_vm = vm.name, "{e}");
                }
                Self::Start(uuid)
            }
        };
        config.host_vms.iter().map(source).collect()
    }

    /// The UUID of the domain that has this domid now.
    pub(crate) fn uuid(&self, domid: u32) -> Result<Uuid, String> {
        match self {
            Self::Command(command) => uuid_of(command, domid),
            Self::Start(Ok(uuid)) => Ok(*uuid),
            Self::Start(Err(e)) => Err(format!(
                "{e}; that was when vmbeamd started, which cannot ask again without privileges: restart it"
            )),
        }
    }

    /// Whether the agent that says this of itself is in this domain.
    pub(crate) fn prove(
        &self,
        vm: &HostVmConfig,
        domid: u32,
        claim: &Result<Uuid, String>,
    ) -> Result<Identity, String> {
        let (name, socket) = (&vm.name, vm.socket.display());
        let claimed = claim.as_ref().map_err(|e| {
            format!("the agent at {socket} cannot prove that it is in host VM {name}: {e}")
        })?;
        let uuid = self.uuid(domid)?;
        if !same(uuid, *claimed) {
            return Err(format!(
                "the agent at {socket} is in the host VM with UUID {claimed}, but host VM {name} is domain {domid} with UUID {uuid}; correct `socket` or `domid` in vmbeamd's configuration (`xl list -v` shows the UUIDs), and restart vmbeamd"
            ));
        }
        Ok(Identity { domid, uuid })
    }
}

/// The first three fields of a UUID are in little-endian order from version 2.6 of the
/// firmware's tables on. hvmloader writes them in big-endian order, as the toolstack prints them, into
/// tables of version 2.4; OVMF copies those into tables of a later version.
fn same(domain: Uuid, shown: Uuid) -> bool {
    domain == shown || domain == Uuid::from_bytes(shown.to_bytes_le())
}

/// What a command prints as the UUID of a domain.
fn uuid_of(command: &[String], domid: u32) -> Result<Uuid, String> {
    let shown = command.join(" ");
    let failed =
        |why: &str| format!("cannot learn the UUID of domain {domid}: `{shown} {domid}`: {why}");
    let (program, arguments) = command.split_first().ok_or("no command to learn UUIDs")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(domid.to_string());
    command.process_group(0);
    let out = run(&mut command, UUID_COMMAND).map_err(|e| failed(&e.to_string()))?;
    if !out.status.success() {
        let why = out.err.lines().next().unwrap_or("it says nothing").trim();
        return Err(failed(why));
    }
    // Names come before it in a line.
    let uuid = out.out.split_whitespace().rev().find_map(uuid_in);
    uuid.ok_or_else(|| failed("no UUID in what it prints"))
}

/// A word in the only form that `xl` has, maybe behind a path.
fn uuid_in(word: &str) -> Option<Uuid> {
    let word = word.rsplit('/').next().filter(|w| w.len() == 36)?;
    Uuid::try_parse(word).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0fa10d2e-5f4c-4fd0-a3a5-1d7e8c3f0b11";

    fn printed(text: &str) -> Result<Uuid, String> {
        let command = ["sh", "-c", "printf '%s\\n' \"$0\" \"domid $1\"", text];
        uuid_of(&command.map(String::from), 3)
    }

    #[test]
    fn what_toolstacks_print() {
        let expected = Ok(Uuid::try_parse(UUID).unwrap());
        // xl list -v: a name may look like anything.
        let head = "Name  ID   Mem VCPUs\tState\tTime(s)   UUID  Reason-Code\tSecurity Label";
        let other = "11111111-2222-3333-4444-555555555555";
        let line =
            format!("{other}  3  1088     1     r-----      41.7 {UUID}        -                -");
        assert_eq!(printed(&format!("{head}\n{line}")), expected);
        // xenstore-read /local/domain/3/vm
        assert_eq!(printed(&format!("/vm/{UUID}")), expected);
        for nothing in ["", "3", "0fa10d2e5f4c4fd0a3a51d7e8c3f0b11"] {
            let e = printed(nothing).unwrap_err();
            assert!(e.ends_with("no UUID in what it prints"), "{e}");
        }
        let failing = ["sh", "-c", "echo no such domain $0 >&2; exit 1"].map(String::from);
        let e = uuid_of(&failing, 3).unwrap_err();
        assert!(
            e.starts_with("cannot learn the UUID of domain 3: `sh -c"),
            "{e}"
        );
        assert!(e.ends_with("no such domain 3"), "{e}");
    }

    #[test]
    fn the_order_of_bytes_does_not_matter_but_all_else_does() {
        let domain = Uuid::try_parse(UUID).unwrap();
        let swapped = Uuid::try_parse("2e0da10f-4c5f-d04f-a3a5-1d7e8c3f0b11").unwrap();
        assert!(same(domain, domain) && same(domain, swapped) && same(swapped, domain));
        for byte in 0..16 {
            let mut other = domain.into_bytes();
            other[byte] ^= 1;
            assert!(!same(domain, Uuid::from_bytes(other)), "{byte}");
        }
    }
}
