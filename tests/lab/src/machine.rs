// SPDX-License-Identifier: GPL-2.0-only

//! The emulated (or, with nested KVM, virtualized) host machine.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::channel::last_lines;
use crate::channel::Channel;
use crate::paths;

/// What runs QEMU's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization with nesting.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// KVM if this machine offers nested virtualization, else TCG.
    pub fn detect() -> Self {
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|v| matches!(v.trim(), "1" | "Y"))
        });
        let usable = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        if nested && usable {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }

    /// Name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host,migratable=off,+invtsc"],
            // RDTSCP is left out because QEMU reports its intercept as that of
            // RDTSC, which Xen then cannot emulate.
            Accelerator::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max,+svm,-rdtscp"],
        }
    }
}

/// What the host machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The host hypervisor.
    pub xen: PathBuf,
    /// Who runs the processors.
    pub accelerator: Accelerator,
    /// Memory of the machine in MiB.
    pub memory_mib: u32,
    /// Memory of the host management VM in MiB.
    pub dom0_mib: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Of these, the first ones are the host management VM's.
    pub dom0_cpus: u32,
    /// Further options of the hypervisor.
    pub xen_options: &'static str,
    /// Further options of the host management VM's kernel.
    pub dom0_options: &'static str,
    /// Name of its image.
    pub image: &'static str,
}

/// A running QEMU. It is ended when this is dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    /// Commands in the host management VM.
    pub host: Channel,
    /// Commands in the guest management VM of host VM A.
    pub a: Channel,
    /// Commands in the guest management VM of host VM B.
    pub b: Channel,
}

/// Socket of one of the machine's ports.
pub fn socket(name: &str) -> PathBuf {
    paths::run().join(format!("{name}.sock"))
}

impl Machine {
    /// Start QEMU. Nothing has booted yet when this returns.
    pub fn start(config: &Config) -> Result<Self> {
        let mut qemu = qemu(config.accelerator, config.cpus, config.memory_mib)?;
        qemu.arg("-no-reboot");
        qemu.arg("-kernel")
            .arg(&config.xen)
            .arg("-append")
            .arg(format!(
                "console=com1 com1=115200 loglvl=info guest_loglvl=warning \
             spec-ctrl=no,eager-fpu dom0_mem={0}M,max:{0}M dom0_max_vcpus={1} dom0_vcpus_pin {2}",
                config.dom0_mib, config.dom0_cpus, config.xen_options
            ));
        qemu.arg("-initrd").arg(format!(
            "{} console=hvc0 quiet mitigations=off clocksource=xen tsc=nowatchdog {},{}",
            paths::vmlinux().display(),
            config.dom0_options,
            paths::image(config.image).display()
        ));
        Self::run(qemu)
    }

    /// The same with disks, from the first of which it starts. What is written to them is gone
    /// with the machine; it may restart.
    pub fn start_disks(cpus: u32, memory_mib: u32, disks: &[Disk<'_>]) -> Result<Self> {
        let mut qemu = qemu(Accelerator::detect(), cpus, memory_mib)?;
        for Disk { name, image } in disks {
            qemu.arg("-drive")
                .arg(format!(
                    "file={},if=none,id={name},format=raw,cache=unsafe,snapshot=on",
                    image.display()
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        Self::run(qemu)
    }

    fn run(mut qemu: Command) -> Result<Self> {
        let logs = paths::logs();
        let child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(logs.join("qemu.log"))?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;

        let mut guard = Guard(Some(child));
        for name in ["host", "A", "B"] {
            guard.wait_for_socket(&socket(name))?;
        }
        Ok(Machine {
            host: Channel::connect("host", &socket("host"))?,
            a: Channel::connect("A", &socket("A"))?,
            b: Channel::connect("B", &socket("B"))?,
            qemu: guard.0.take().context("QEMU is gone")?,
        })
    }

    /// Channel of a guest management VM by the name of its host VM.
    pub fn vm(&self, name: &str) -> &Channel {
        if name == "A" {
            &self.a
        } else {
            &self.b
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whoever waited for it only knows that a connection ended.
        if let Ok(Some(status)) = self.qemu.try_wait() {
            println!("    QEMU ended by itself, {status}; the last it said:");
            for log in ["qemu.log", "host.log"] {
                let text = fs::read(paths::logs().join(log)).unwrap_or_default();
                println!("{}", last_lines(&String::from_utf8_lossy(&text), 20));
            }
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A disk of a machine: its serial number, and the image.
#[derive(Clone, Debug)]
pub struct Disk<'a> {
    /// `/dev/disk/by-id/virtio-NAME` in the machine.
    pub name: &'a str,
    /// A raw image.
    pub image: PathBuf,
}

/// QEMU with the ports that every machine has; their directory is new.
fn qemu(accelerator: Accelerator, cpus: u32, memory_mib: u32) -> Result<Command> {
    let (run, logs) = (paths::run(), paths::logs());
    let _ = fs::remove_dir_all(&run);
    fs::create_dir_all(&run)?;
    fs::create_dir_all(&logs)?;

    let log = |name: &str| logs.join(name).display().to_string();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-machine", "pc"])
        .args(accelerator.arguments())
        .args(["-smp", &cpus.to_string()])
        .args(["-m", &memory_mib.to_string()])
        .arg("-qmp")
        .arg(format!(
            "unix:{},server=on,wait=off",
            socket("qmp").display()
        ))
        .arg("-chardev")
        .arg(format!(
            "socket,id=console,path={},server=on,wait=off,logfile={}",
            socket("console").display(),
            log("host.log")
        ))
        .args([
            "-serial",
            "chardev:console",
            "-device",
            "virtio-serial-pci,max_ports=16",
        ]);
    for name in ["host", "A", "B"] {
        qemu.arg("-chardev")
            .arg(format!(
                "socket,id=lab{name},path={},server=on,wait=off",
                socket(name).display()
            ))
            .arg("-device")
            .arg(format!("virtserialport,chardev=lab{name},name=lab.{name}"));
    }
    for name in ["A", "B"] {
        qemu.arg("-chardev")
            .arg(format!(
                "file,id=log{name},path={}",
                log(&format!("host-vm-{name}.log"))
            ))
            .arg("-device")
            .arg(format!("virtserialport,chardev=log{name},name=log.{name}"));
    }
    Ok(qemu)
}

/// Ends QEMU when its start fails.
struct Guard(Option<Child>);

impl Guard {
    fn wait_for_socket(&mut self, path: &Path) -> Result<()> {
        for _ in 0..200 {
            if path.exists() {
                return Ok(());
            }
            if let Some(status) = self.0.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                let log = fs::read_to_string(paths::logs().join("qemu.log")).unwrap_or_default();
                anyhow::bail!("QEMU ended at its start ({status}): {}", log.trim());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("QEMU made no socket {} within 10 s", path.display())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
