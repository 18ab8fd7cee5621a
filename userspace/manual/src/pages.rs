// SPDX-License-Identifier: GPL-2.0-only

//! Manual pages of programs. What the definition of a command line cannot say is in
//! tables here.

use anyhow::Result;
use clap_mangen::Man;
use roff::{bold, roman, Roff};

/// A page of the manual.
pub(crate) struct Page {
    /// Its file.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: Vec<u8>,
}

/// What a section adds: terms with their explanations.
type Section = (&'static str, &'static [(&'static str, &'static str)]);

const VMBEAM: &[Section] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "It is done."),
            ("1", "It failed."),
            ("2", "Wrong usage."),
            ("3", "The request was refused, and nothing changed."),
            ("4", "It failed half way, and everything was put back."),
            ("5", "It is done in part; the same command goes on."),
            (
                "6",
                "It is done, but the result could not be printed: the device is full, for \
                 example. A reader that goes away (| head) changes nothing.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/run/vmbeam/control.sock", "Where vmbeamd listens."),
            ("/dev/vmbeam", "The driver's device."),
            (
                "/var/lib/vmbeam/rejuvenate-HOST_VM.json, replace-HOST_VM.json",
                "How far vmbeam rejuvenate and vmbeam replace are, until they have come to an end.",
            ),
        ],
    ),
    (
        "EXAMPLES",
        &[
            (
                "vmbeam check",
                "Say what is missing on this host, and what to do about it.",
            ),
            (
                "vmbeam migrate web --from A --to B --dry-run",
                "Say what would move, and what is in the way.",
            ),
            (
                "vmbeam migrate web --from A --to B",
                "Move the running guest web from host VM A to host VM B.",
            ),
            (
                "vmbeam evacuate A --to B",
                "Move all guests of host VM A, and report once.",
            ),
            (
                "vmbeam replace A --config /etc/xen/A-new.cfg",
                "Have another guest hypervisor in place of that of A, under its running guests.",
            ),
        ],
    ),
];

const VMBEAMD: &[Section] = &[(
    "FILES",
    &[
        (
            "/etc/vmbeam/vmbeamd.toml",
            "Configuration, see vmbeamd.toml(5).",
        ),
        ("/run/vmbeam/control.sock", "Where vmbeam(1) connects."),
        (
            "/run/vmbeam/agents/",
            "Sockets of the host VMs' serial ports, which QEMU makes.",
        ),
        (
            "/var/lib/vmbeam/",
            "Journals of migrations that have not ended.",
        ),
    ],
)];

const AGENT: &[Section] = &[(
    "FILES",
    &[(
        "/dev/virtio-ports/org.vmbeam.agent.0",
        "The serial port to the host. It is found by its name, with or without udev.",
    )],
)];

const PAGES: &[(&str, &str)] = &[
    ("vmbeam", "1"),
    ("vmbeamd.toml", "5"),
    ("vmbeam-agent", "8"),
    ("vmbeamd", "8"),
];

/// The last section of each page: all others, except for the page itself.
pub(crate) fn see_also(roff: &mut Roff, page: &str) {
    let others: Vec<_> = PAGES.iter().filter(|(name, _)| *name != page).collect();
    let mut line = Vec::new();
    for (at, (name, section)) in others.iter().enumerate() {
        let comma = if at + 1 < others.len() { ", " } else { "" };
        line.extend([bold(*name), roman(format!("({section}){comma}"))]);
    }
    roff.control("SH", ["SEE ALSO"]).text(line);
}

fn sections(name: &str) -> &'static [Section] {
    match name {
        "vmbeam" => VMBEAM,
        "vmbeamd" => VMBEAMD,
        "vmbeam-agent" => AGENT,
        _ => &[],
    }
}

fn page(command: clap::Command, section: &str) -> Result<Page> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let mut text = Vec::new();
    let man = Man::new(command)
        .title(name.to_uppercase())
        .section(section)
        .date("")
        .source(concat!("vmbeam ", env!("CARGO_PKG_VERSION")))
        .manual("VMBeam");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if name == "vmbeam" {
        man.render_subcommands_section(&mut text)?;
    }
    let mut more = Roff::new();
    for (title, items) in sections(&name) {
        more.control("SH", [*title]);
        for (term, explanation) in *items {
            more.control("TP", [])
                .text([bold(*term)])
                .text([roman(*explanation)]);
        }
    }
    see_also(&mut more, &name);
    more.to_writer(&mut text)?;
    Ok(Page {
        name: format!("{name}.{section}"),
        text,
    })
}

/// The page of a program, and those of its subcommands.
pub(crate) fn of_program(program: &clap::Command, section: &str) -> Result<Vec<Page>> {
    let mut program = program.clone().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    for command in program.get_subcommands() {
        pages.push(page(command.clone(), section)?);
    }
    pages.push(page(program, section)?);
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page() {
        let names: Vec<_> = of_program(&vmbeam::command(), "1")
            .unwrap()
            .into_iter()
            .map(|page| page.name)
            .collect();
        assert_eq!(names.len(), vmbeam::command().get_subcommands().count() + 1);
        assert!(names.contains(&"vmbeam.1".to_owned()));
        assert!(names.contains(&"vmbeam-migrate.1".to_owned()), "{names:?}");
    }

    #[test]
    fn the_page_says_what_each_exit_status_is() {
        let help = vmbeam::command().render_long_help().to_string();
        let (_, codes) = help.split_once("Exit codes:").unwrap();
        let codes: Vec<_> = codes
            .split("Usage:")
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let said: Vec<_> = codes.iter().filter(|w| w.parse::<u8>().is_ok()).collect();
        let (_, statuses) = VMBEAM[0];
        let listed: Vec<_> = statuses.iter().map(|(number, _)| number).collect();
        assert_eq!(said, listed);
    }
}
