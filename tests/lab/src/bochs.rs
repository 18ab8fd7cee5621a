// SPDX-License-Identifier: GPL-2.0-only

//! A machine with Intel's VMX and EPT: Bochs, which interprets every instruction and so is
//! slow. It starts from a disk, by GRUB; Documentation/lab.rst says what it cannot do.

use std::fs;
use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::channel::last_lines;
use crate::channel::Channel;
use crate::paths;

/// Most that it can have, in MiB.
const MEMORY: u32 = 2048;
/// Of this, the host management VM's.
const DOM0: u32 = 512;

/// What it cannot do, as options of the hypervisor that go without. APICV: posted interrupts
/// want a page of their own in Bochs, in Xen they have less. The other two: with several CPUs
/// nobody wakes one that waits by MWAIT.
const WITHOUT: &str = "apicv=0 cpuidle=0 mwait-idle=0";

/// What takes long here and no test needs: the hypervisor clears memory that is clear; the
/// kernel clears what it allocates, and looks through its page tables.
const QUICK: &str = "bootscrub=0";
const QUICK_KERNEL: &str = "init_on_alloc=0 rodata=off cryptomgr.notests";

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, that of its logs.
    pub name: &'static str,
    /// The hypervisor.
    pub xen: PathBuf,
    /// CPUs, of which the first one is the host management VM's.
    pub cpus: u32,
}

/// A running Bochs. It is ended when this is dropped.
#[derive(Debug)]
pub struct Machine {
    bochs: Child,
    dir: PathBuf,
    /// Commands in the host management VM.
    pub host: Channel,
}

/// Name of the log of what the hypervisor and the kernel print.
pub fn console(name: &str) -> String {
    format!("{name}.log")
}

impl Machine {
    /// Start it. Nothing has booted yet when this returns.
    pub fn start(config: &Config) -> Result<Self> {
        let dir = paths::run().join(config.name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(paths::logs())?;
        disk(config, &dir)?;

        let listener = TcpListener::bind("127.0.0.1:0")?;
        let settings = dir.join("bochsrc");
        fs::write(
            &settings,
            bochsrc(config, &dir, listener.local_addr()?.port()),
        )?;
        let output = paths::logs().join(format!("{}.out", config.name));
        let bochs = Command::new("bochs")
            .args(["-q", "-f"])
            .arg(&settings)
            .arg("-log")
            .arg(emulator(config.name))
            // Its display is a terminal without a person.
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&output)?)
            .spawn()
            .context("cannot start bochs")?;
        let mut guard = Guard(Some(bochs));
        let stream = guard.accept(&listener, config.name)?;
        Ok(Machine {
            host: Channel::over(config.name, stream.try_clone()?, stream),
            bochs: guard.0.take().context("Bochs is gone")?,
            dir,
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.bochs.kill();
        let _ = self.bochs.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Log of the emulator itself.
fn emulator(name: &str) -> PathBuf {
    paths::logs().join(format!("{name}.bochs"))
}

/// Ends Bochs when its start fails.
struct Guard(Option<Child>);

impl Guard {
    /// Wait until it connects its serial port.
    fn accept(&mut self, listener: &TcpListener, name: &str) -> Result<TcpStream> {
        listener.set_nonblocking(true)?;
        for _ in 0..600 {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            if let Some(status) = self.0.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                let log = fs::read(emulator(name)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                bail!(
                    "Bochs ended at its start ({status}): {}",
                    last_lines(&log, 5)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("Bochs did not connect its serial port within a minute")
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

/// The disk: GRUB, the hypervisor, the kernel and the image.
fn disk(config: &Config, dir: &Path) -> Result<()> {
    let settings = dir.join("grub.cfg");
    fs::write(
        &settings,
        format!(
            "set timeout=0\n\
             set gfxpayload=text\n\
             multiboot /boot/xen placeholder console=com1 com1=115200,8n1 loglvl=info \
             guest_loglvl=warning flask=disabled spec-ctrl=no,eager-fpu noreboot \
             dom0_mem={DOM0}M,max:{DOM0}M dom0_max_vcpus=1 dom0_vcpus_pin \
             altp2m=1 {WITHOUT} {QUICK}\n\
             module /boot/vmlinux placeholder console=hvc0 quiet mitigations=off \
             clocksource=xen tsc=nowatchdog {QUICK_KERNEL}\n\
             module /boot/initrd\n\
             boot\n"
        ),
    )?;
    let file = |to: &str, from: &Path| format!("/boot/{to}={}", from.display());
    let made = Command::new("grub-mkrescue")
        .arg("--output")
        .arg(dir.join("disk"))
        .args(["--directory", "/usr/lib/grub/i386-pc"])
        .args([
            "--install-modules",
            "multiboot iso9660 part_msdos biosdisk normal boot",
        ])
        .args(["--modules", "iso9660 part_msdos biosdisk"])
        .args(["--fonts=", "--locales=", "--themes="])
        .arg(file("grub/grub.cfg", &settings))
        .arg(file("xen", &config.xen))
        .arg(file("vmlinux", &paths::vmlinux()))
        .arg(file("initrd", &paths::image("ept")))
        .output()
        .context("cannot start grub-mkrescue")?;
    ensure!(
        made.status.success(),
        "grub-mkrescue: {}",
        last_lines(&String::from_utf8_lossy(&made.stderr), 5)
    );
    Ok(())
}

/// Settings of Bochs. The first serial port is the hypervisor's console, the second one is
/// connected to this process. Errors are mostly accesses to MSRs that there are not.
fn bochsrc(config: &Config, dir: &Path, port: u16) -> String {
    let Config { name, cpus, .. } = config;
    let console = paths::logs().join(console(name));
    format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, \
         gameport=0, iodebug=0\n\
         config_interface: textconfig\n\
         display_library: term\n\
         megs: {MEMORY}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         vga: extension=vbe, update_freq=1, realtime=0\n\
         cpu: model=corei7_skylake_x, count=1:{cpus}:1, ips={ips}, reset_on_triple_fault=0\n\
         clock: sync=none, time0=utc\n\
         pci: enabled=1, chipset=i440fx\n\
         floppy_bootsig_check: disabled=1\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path={disk}, mode=flat\n\
         boot: disk\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=report\n\
         debug: action=ignore\n",
        disk = dir.join("disk").display(),
        console = console.display(),
        // Instructions of a CPU in a second of the machine's own time: few enough that what
        // only waits does not take long, and many more than timer interrupts take.
        ips = 40_000_000,
    )
}
