// SPDX-License-Identifier: GPL-2.0-only

//! The manual page of the daemon's configuration.

use crate::pages::{see_also, Page};
use anyhow::Result;
use roff::{bold, italic, roman, Roff};

/// A table of the file: its header, what it is, its keys.
type Table = (&'static str, &'static str, &'static [Key]);
/// A key with the form of its value, its default if it has one, and an explanation.
type Key = (&'static str, &'static str, &'static str, &'static str);

const TABLES: &[Table] = &[
    (
        "[daemon]",
        "The daemon itself. All of it is optional.",
        &[
            (
                "control_socket",
                "PATH",
                vmbeamd::config::CONTROL_SOCKET,
                "Where vmbeam(1) connects. The directory is made if it is missing, for \
                 root only.",
            ),
            ("device", "PATH", "/dev/vmbeam", "The driver's device."),
            (
                "state_dir",
                "PATH",
                vmbeamd::config::STATE_DIR,
                "Where migrations are noted, so that they survive the daemon. It must not \
                 be emptied while a migration has not ended.",
            ),
            (
                "agent_timeout_seconds",
                "1..3600",
                "300",
                "How long an agent may take over one request, to the last answer, and a restore \
                 take nothing, as it does while it makes room for a large guest.",
            ),
            (
                "autostart",
                "BOOLEAN",
                "true",
                "Whether an agent that begins is told that its host VM may start guests, once \
                 it is known that none of them lives in another host VM. What starts guests \
                 there at boot waits for that.",
            ),
            (
                "domid_command",
                "ARRAY OF STRINGS",
                "[\"xl\", \"domid\"]",
                "Prints the domid of a host VM, whose name is appended. Not possible \
                 together with --seccomp: give each host VM a domid then.",
            ),
            (
                "uuid_command",
                "ARRAY OF STRINGS",
                "[\"xl\", \"list\", \"-v\"]",
                "Prints the UUID of a host VM, whose domid is appended; the last UUID in what \
                 it prints counts. The agent must name the same one, or nothing that it \
                 says is used. With --user or --seccomp it is run when the daemon starts, \
                 for each host VM that has a domid, and not again.",
            ),
            (
                "list_command",
                "ARRAY OF STRINGS",
                "[\"xl\", \"list\"]",
                "Prints all domains, as `xl list` does: a host VM that a migration began \
                 with is gone if its domid is not among them. If the command fails, nobody \
                 knows, and nothing is done. Not run for host VMs with a fixed domid.",
            ),
            (
                "memory_command",
                "ARRAY OF STRINGS",
                "[\"vmbeam\", \"memory\"]",
                "Prints what a host VM, whose domid is appended, has of the host's memory, as \
                 `vmbeam memory` does. Not run with --user or --seccomp: then nothing can be \
                 relocated.",
            ),
        ],
    ),
    (
        "[metrics]",
        "Metrics for Prometheus. None if this table is not there.",
        &[(
            "listen",
            "ADDRESS",
            "",
            "The path of a UNIX socket, or an address of this machine with a port, such \
             as 127.0.0.1:9187. Required.",
        )],
    ),
    (
        "[[hook]]",
        "Programs that are run before and after moves, for one guest or for all that have none of \
         their own; one table for each. They have the rights of the daemon, and find in their \
         environment what is about to move: see Documentation/automation.rst. Not with --seccomp.",
        &[
            (
                "guest",
                "STRING",
                "",
                "Name of the guest. Otherwise it is for all guests that have no table.",
            ),
            (
                "before_move",
                "PATH",
                "",
                "Run before anything is done to a guest that is to move. If it fails the move is \
                 refused.",
            ),
            (
                "after_move",
                "PATH",
                "",
                "Run when the guest has moved, or has not. If it fails there is a warning.",
            ),
            (
                "timeout_seconds",
                "1..120",
                "30",
                "How long each may take. It is killed then, with its process group, and has failed.",
            ),
        ],
    ),
    (
        "[[host_vm]]",
        "One for each host VM.",
        &[
            (
                "name",
                "STRING",
                "",
                "Its name, as xl(1) knows it. Not digits only: xl takes those for a domid. \
                 Required.",
            ),
            (
                "socket",
                "PATH",
                "/run/vmbeam/agents/NAME.sock",
                "The socket of its virtio-serial port org.vmbeam.agent.0, which QEMU \
                 listens on. Whoever can make it speaks for the host VM, so only root may.",
            ),
            (
                "domid",
                "NUMBER",
                "",
                "Its domid, for daemons that may not run a command. Otherwise \
                 domid_command finds it out.",
            ),
            (
                "replaceable",
                "BOOLEAN",
                "false",
                "Whether `vmbeam replace` may create a host VM beside it that takes its place. \
                 That one is called NAME.new until it does, the socket of its port NAME.new.sock, \
                 beside the other, and guests may move between the two. Not together with domid.",
            ),
        ],
    ),
    (
        "[[pair]]",
        "Two host VMs whose guests may change places. Nothing else may.",
        &[("between", "[NAME, NAME]", "", "The two host VMs. Required.")],
    ),
];

/// The page vmbeamd.toml(5).
pub(crate) fn page() -> Result<Page> {
    let mut roff = Roff::new();
    let source = concat!("vmbeam ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["VMBEAMD.TOML", "5", "", source, "VMBeam"])
        .control("SH", ["NAME"])
        .text([roman("vmbeamd.toml - configuration of vmbeamd")])
        .control("SH", ["SYNOPSIS"])
        .text([roman(vmbeamd::CONFIG_PATH)])
        .control("SH", ["DESCRIPTION"])
        .text([roman(
            "The file is in TOML. A key that is not known is an error, which names the \
             line. vmbeamd --check-config reads the file and exits. The daemon reads it \
             once, when it starts.",
        )]);
    for (header, about, keys) in TABLES {
        roff.control("SS", [*header]).text([roman(*about)]);
        for (key, form, default, explanation) in *keys {
            roff.control("TP", [])
                .text([bold(*key), roman(" = "), italic(*form)]);
            let mut line = vec![roman(*explanation)];
            if !default.is_empty() {
                line.extend([roman(" Default: "), bold(*default), roman(".")]);
            }
            roff.text(line);
        }
    }
    roff.control("SH", ["EXAMPLE"]).control("nf", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    see_also(&mut roff, "vmbeamd.toml");
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(Page {
        name: "vmbeamd.toml.5".to_owned(),
        text,
    })
}

const EXAMPLE: &str = "\
[[host_vm]]
name = \"A\"

[[host_vm]]
name = \"B\"

[[pair]]
between = [\"A\", \"B\"]
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;
    use vmbeamd::Config;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("vmbeamd.toml"), text).map_err(|e| e.to_string())
    }

    /// What the parser names as possible where it finds something else.
    fn accepted(header: &str) -> BTreeSet<String> {
        let error = parse(&format!("{header}\nnot_a_key = 1\n")).unwrap_err();
        let (_, expected) = error.split_once("expected ").unwrap();
        let names = expected.split('`').skip(1).step_by(2);
        names.map(str::to_owned).collect()
    }

    #[test]
    fn the_page_has_every_key_and_no_other() {
        for (header, _, keys) in TABLES {
            let documented: BTreeSet<_> = keys.iter().map(|k| k.0.to_owned()).collect();
            assert_eq!(documented, accepted(header), "{header}");
        }
        let error = parse("not_a_table = 1\n").unwrap_err();
        for (header, _, _) in TABLES {
            let name = header.trim_matches(['[', ']']);
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        assert_eq!(
            error.matches('`').count(),
            2 * (TABLES.len() + 1),
            "{error}"
        );
    }

    #[test]
    fn the_defaults_are_right() {
        let mut text = "[daemon]\n".to_owned();
        let (_, _, keys) = TABLES[0];
        for (key, form, default, _) in keys {
            match *form {
                "PATH" => text += &format!("{key} = \"{default}\"\n"),
                _ => text += &format!("{key} = {default}\n"),
            }
        }
        let hosts = "[[host_vm]]\nname = \"A\"\n";
        assert_eq!(parse(&(text + hosts)), parse(hosts));
    }

    #[test]
    fn the_example_is_right() {
        assert!(parse(EXAMPLE).unwrap().allows("A", "B"));
    }
}
