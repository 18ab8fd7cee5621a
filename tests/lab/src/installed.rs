// SPDX-License-Identifier: GPL-2.0-only

//! Whole systems: Debian 13 with systemd on the host and in the management VMs, from disks. The
//! operator guide's commands are typed, which are read from it.

mod guide;

use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Result;

use crate::channel::Channel;
use crate::installed::guide::Guide;
use crate::machine::Disk;
use crate::machine::Machine;
use crate::paths;
use crate::progress::Progress;
use crate::tally::Tally;
use crate::topology::guest_config;
use crate::topology::wait_for_check;
use crate::topology::wait_ready;
use crate::topology::GUEST;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

const GROUP: &str = "installed";

/// Of the machine, in MiB: 1024 for the host management VM and for each host VM.
const MEMORY_MIB: u32 = 3584;
/// One for each of them.
const CPUS: u32 = 3;
const GUEST_MIB: u32 = 192;

/// Time for a system to come up, and for apt under emulation: only there so that one that
/// hangs ends.
const BOOT: Duration = Duration::from_secs(3600);
const APT: Duration = Duration::from_secs(3600);

/// Run the group.
pub fn run(tally: &mut Tally, progress: &Progress) {
    let started = Guide::read().and_then(|guide| Ok((guide, boot(progress)?)));
    let (guide, machine) = match started {
        Ok(both) => both,
        Err(e) => return tally.enter(GROUP, "a Debian host comes up", Err(e)),
    };
    let systems = Systems { machine, guide };
    for (name, step) in STEPS {
        let mut failed = false;
        let stage = progress.stage(name);
        tally.case(GROUP, name, || {
            let result = step(&systems);
            failed = result.is_err();
            result
        });
        stage.done();
        if failed {
            systems.keep_journals();
            break;
        }
    }
}

/// What is done, one after the other: nothing makes sense after one that failed.
type Step = fn(&Systems) -> Result<()>;
const STEPS: [(&str, Step); 12] = [
    (
        "Debian's Xen and systemd come up, no unit failed",
        Systems::debian,
    ),
    (
        "vmbeam is installed, and waits for its configuration",
        Systems::install,
    ),
    ("the patched hypervisor is installed", Systems::hypervisor),
    ("it comes up by GRUB, with the driver", Systems::restart),
    ("xendomains starts the host VMs", Systems::host_vms),
    ("vmbeam init, and the unit of vmbeamd", Systems::daemon),
    ("the agents are installed", Systems::agents),
    ("vmbeam check is content", Systems::check),
    ("a guest migrates", Systems::migrate),
    (
        "the journal is found by its fields, and says them",
        Systems::journal,
    ),
    ("metrics are offered from within the unit", Systems::metrics),
    (
        "the host restarts, and all come back by themselves",
        Systems::again,
    ),
];

fn boot(progress: &Progress) -> Result<Machine> {
    let stage = progress.stage("boot a Debian host from its disk");
    let image = |name: &str| paths::build("deb/installed").join(name);
    let disks = [
        ("host", "host.img"),
        ("A", "mgmt.img"),
        ("B", "mgmt.img"),
        ("packages", "packages.tar"),
    ]
    .map(|(name, file)| Disk {
        name,
        image: image(file),
    });
    let machine = Machine::start_disks(CPUS, MEMORY_MIB, &disks)?;
    wait_ready(&machine.host, BOOT, "host management VM", &["host.log"])?;
    stage.done();
    Ok(machine)
}

/// All that systemd starts is started, and nothing of it failed.
fn settled(system: &Channel) -> Result<()> {
    let state = system.run("systemctl is-system-running --wait", BOOT)?;
    let failed = system.sh("systemctl list-units --failed --plain --no-legend", SHORT)?;
    if !failed.trim().is_empty() || state.text.trim() != "running" {
        let why = system.run(
            "systemctl list-jobs; journalctl -b -p warning --no-pager | tail -n 40",
            SHORT,
        )?;
        bail!(
            "{}: {}: {failed}\n{}",
            system.name(),
            state.text.trim(),
            why.text
        );
    }
    Ok(())
}

/// As a person types it, who says yes when asked; it must succeed.
fn types(system: &Channel, command: &str, limit: Duration) -> Result<String> {
    println!("    {}# {command}", system.name());
    let output = system.run(
        &format!("cd ~/packages 2>/dev/null || cd; yes | {command}"),
        limit,
    )?;
    ensure!(
        output.code == 0,
        "{command}: exit status {}: {}",
        output.code,
        output.text
    );
    Ok(output.text)
}

/// What was copied there, by whatever way.
fn copy_packages(system: &Channel, of: &str) -> Result<()> {
    system.sh(
        &format!(
            "mkdir -p ~/packages && tar -x -C ~/packages --strip-components=2 \
             -f /dev/disk/by-id/virtio-packages ./{of}"
        ),
        SHORT,
    )?;
    Ok(())
}

/// That unit's property.
fn property(system: &Channel, unit: &str, name: &str) -> Result<String> {
    let text = system.sh(&format!("systemctl show --value -p {name} {unit}"), SHORT)?;
    Ok(text.trim().to_owned())
}

/// The host, its host VMs, and where the guide is read.
struct Systems {
    machine: Machine,
    guide: Guide,
}

impl Systems {
    fn host(&self) -> &Channel {
        &self.machine.host
    }

    fn debian(&self) -> Result<()> {
        // On the machine where one builds: scripts/installed.sh has the packages.
        self.guide.next("make deb")?;
        settled(self.host())?;
        copy_packages(self.host(), "host")
    }

    fn install(&self) -> Result<()> {
        let host = self.host();
        types(
            host,
            self.guide
                .next("apt install ./vmbeam_*.deb ./vmbeam-dkms_*.deb")?,
            APT,
        )?;
        // Without a configuration it is not started, and that is no failure.
        let state = property(host, "vmbeamd", "UnitFileState,ActiveState,ConditionResult")?;
        ensure!(state == "inactive\nenabled\nno", "vmbeamd.service: {state}");
        let mode = host.sh("stat -c %a:%U:%G /run/vmbeam/agents", SHORT)?;
        ensure!(mode.trim() == "700:root:root", "/run/vmbeam/agents: {mode}");
        Ok(())
    }

    fn hypervisor(&self) -> Result<()> {
        let host = self.host();
        types(host, self.guide.next("apt install ./xen-hypervisor")?, APT)?;
        // What an operator does for host VMs that start with the host.
        host.sh("ln -s ../A.cfg ../B.cfg /etc/xen/auto/", SHORT)?;
        Ok(())
    }

    fn restart(&self) -> Result<()> {
        self.reboot(self.guide.next("reboot")?)?;
        let host = self.host();
        host.sh(
            "until grep -q '^vmbeam ' /proc/modules; do sleep 0.2; done",
            SHORT,
        )?;
        let device = host.sh("udevadm settle; stat -c %a:%U:%G /dev/vmbeam", SHORT)?;
        ensure!(device.trim() == "660:root:vmbeam", "/dev/vmbeam: {device}");
        Ok(())
    }

    fn reboot(&self, command: &str) -> Result<()> {
        let host = self.host();
        types(host, command, SHORT)?;
        wait_ready(host, BOOT, "host management VM", &["host.log"])
    }

    fn host_vms(&self) -> Result<()> {
        for vm in HOST_VMS {
            let logs = [&*format!("host-vm-{vm}.log"), "host.log"];
            wait_ready(self.machine.vm(vm), BOOT, &format!("host VM {vm}"), &logs)?;
        }
        settled(self.host())?;
        let list = self.host().sh("xl list", SHORT)?;
        print!("{list}");
        for vm in HOST_VMS {
            settled(self.machine.vm(vm))?;
        }
        Ok(())
    }

    fn daemon(&self) -> Result<()> {
        let host = self.host();
        types(host, self.guide.next("vmbeam init")?, SHORT)?;
        types(host, self.guide.next("systemctl restart vmbeamd")?, SHORT)?;
        let state = property(host, "vmbeamd", "ActiveState,NRestarts,StatusErrno")?;
        ensure!(
            state.lines().any(|l| l == "active"),
            "vmbeamd.service: {state}"
        );
        Ok(())
    }

    fn agents(&self) -> Result<()> {
        let command = self
            .guide
            .next("apt install ./xen*.deb ./libxen*.deb ./vmbeam-agent")?;
        for name in HOST_VMS {
            let vm = self.machine.vm(name);
            copy_packages(vm, "mgmt")?;
            types(vm, command, APT)?;
            let state = property(vm, "vmbeam-agent", "ActiveState,UnitFileState")?;
            ensure!(
                state == "active\nenabled",
                "vmbeam-agent.service in {name}: {state}"
            );
            settled(vm)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.until_content(self.guide.next("vmbeam check")?)
    }

    /// Agents are greeted within some seconds.
    fn until_content(&self, command: &str) -> Result<()> {
        self.host().sh(
            &format!("until {command} >/run/lab/check; do cat /run/lab/check; sleep 1; done"),
            BOOT,
        )?;
        print!("{}", types(self.host(), command, SHORT)?);
        Ok(())
    }

    fn migrate(&self) -> Result<()> {
        let [from, to] = HOST_VMS.map(|name| self.machine.vm(name));
        let config = guest_config(GUEST, GUEST_MIB, "").replace("/boot/", "/boot/guest/");
        from.sh(
            &format!(
                "cat >/etc/xen/{GUEST}.cfg <<'EOF'\n{config}\nEOF\nxl create /etc/xen/{GUEST}.cfg"
            ),
            BOOT,
        )?;
        wait_for_check(from, BOOT)?;
        let command = self.guide.next("vmbeam migrate GUEST --from A --to B")?;
        print!(
            "{}",
            types(self.host(), &command.replace("GUEST", GUEST), BOOT)?
        );
        wait_for_check(to, BOOT)?;
        self.guide.done()
    }

    fn journal(&self) -> Result<()> {
        for vm in HOST_VMS {
            let command = format!("journalctl -u vmbeamd -o cat VMBEAM_HOST_VM={vm}");
            let text = self.host().sh(&command, SHORT)?;
            ensure!(
                text.contains(&format!("host_vm={vm}")),
                "{command}: {text:?}"
            );
        }
        let text = self
            .host()
            .sh("systemd-analyze security vmbeamd | tail -n 1", SHORT)?;
        println!("    {}", text.trim());
        Ok(())
    }

    fn metrics(&self) -> Result<()> {
        let host = self.host();
        host.sh(
            "printf '\n[metrics]\nlisten = \"127.0.0.1:9187\"\n' >>/etc/vmbeam/vmbeamd.toml && \
             systemctl restart vmbeamd",
            SHORT,
        )?;
        let text = host.sh(
            "printf 'GET /metrics HTTP/1.0\r\n\r\n' | socat -t 60 - TCP:127.0.0.1:9187",
            SHORT,
        )?;
        for name in ["vmbeam_build_info", "vmbeam_agent_connected{host_vm=\"A\"}"] {
            ensure!(text.contains(name), "no {name} in {text}");
        }
        Ok(())
    }

    fn again(&self) -> Result<()> {
        self.reboot("reboot")?;
        self.host_vms()?;
        self.until_content("vmbeam check")
    }

    /// For whoever looks at a failure.
    fn keep_journals(&self) {
        for system in [
            self.host(),
            self.machine.vm(HOST_VMS[0]),
            self.machine.vm(HOST_VMS[1]),
        ] {
            if let Ok(output) = system.run("journalctl -b --no-pager", SHORT) {
                let file = paths::logs().join(format!("installed-{}.journal", system.name()));
                let _ = std::fs::write(file, output.text);
            }
        }
    }
}
