// SPDX-License-Identifier: GPL-2.0-only

//! Bringing the whole topology up: host, two host VMs, a guest VM in each.

use std::fs;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::channel::last_lines;
use crate::channel::Channel;
use crate::machine::Accelerator;
use crate::machine::Config;
use crate::machine::Machine;
use crate::paths;
use crate::progress::Progress;

/// Names of the host VMs.
pub const HOST_VMS: [&str; 2] = ["A", "B"];

/// Name of the guest VM in each of them.
pub const GUEST: &str = "guest";

/// Seed of the pattern in the guest VM of A.
pub const SEED: u64 = 20_151_019;
/// Virtual CPUs of a guest VM: each must be where the other is after a migration.
pub const GUEST_CPUS: u32 = 2;

/// In the host management VM: the disk of a guest.
const DISK: &str = "/run/lab/disk.img";
/// Its blocks: so few that a write that comes late finds something newer in its place.
pub const DISK_BLOCKS: u64 = 8;
/// How the device model of a host VM calls it.
pub const DRIVE: &str = "disk";

/// What a host VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Debian 13's guest hypervisor and toolstack.
    Current,
    /// Debian 12's. Only in the image `host-old`.
    Old,
}

impl System {
    /// The guest hypervisor and the management VM's image, in the host management VM.
    fn files(self) -> [&'static str; 2] {
        match self {
            System::Current => ["/boot/xen", "/boot/mgmt.cpio"],
            System::Old => ["/boot/xen-old", "/boot/mgmt-old.cpio"],
        }
    }
}

/// A short command.
pub const SHORT: Duration = Duration::from_secs(60);

/// Time for the host management VM to come up.
pub const BOOT_HOST: Duration = Duration::from_secs(600);
const BOOT_HOST_VM: Duration = Duration::from_secs(1800);
const START_GUEST: Duration = Duration::from_secs(1200);

/// Words in a console's log that mean that a machine will not come up any more.
const DEATHS: &[&str] = &[
    "Triple fault",
    "Panic on CPU",
    "Kernel panic",
    "Domain 0 crashed",
];

/// What a guest VM's kernel has for itself, in MiB: its block device takes 5 of them
/// whenever it connects.
pub const SPARE_MIB: u32 = 24;

/// What it loses to its network device in so many migrations, in MiB. Linux 7.3's
/// xen-netfront never frees the page pool of a connection, which holds a little more than
/// 1 MiB; and when it has nothing left, by its source, xen-blkfront does not connect any more.
pub fn lost_mib(moves: u32) -> u32 {
    (moves * 3).div_ceil(2)
}

/// Sizes that follow from the guest VM's.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Memory of a guest VM in MiB.
    pub guest_mib: u32,
    /// How much of it its kernel has for itself, if it is to migrate often.
    pub spare_mib: Option<u32>,
    /// Memory of a guest management VM in MiB.
    pub management_mib: u32,
    /// Memory of a host VM in MiB.
    pub host_vm_mib: u32,
    /// Memory of the host management VM in MiB.
    pub dom0_mib: u32,
    /// Memory of the machine in MiB.
    pub machine_mib: u32,
}

impl Sizes {
    /// Sizes for guest VMs of this many MiB.
    pub fn new(guest_mib: u32) -> Result<Self> {
        if !(256..=1024).contains(&guest_mib) {
            bail!("GUEST_MIB={guest_mib} is out of range: choose 256 to 1024");
        }
        Ok(Self::for_guests(1, guest_mib))
    }

    /// The same with guest VMs that are larger by what their kernel loses if they migrate
    /// so often.
    pub fn for_moves(self, moves: u32) -> Self {
        let lost = lost_mib(moves);
        Sizes {
            spare_mib: Some(SPARE_MIB + lost),
            ..Self::for_guests(1, self.guest_mib + lost)
        }
    }

    /// Sizes for so many guest VMs of this many MiB.
    pub fn for_guests(count: u32, guest_mib: u32) -> Self {
        let management_mib = 640;
        let host_vm_mib = count * guest_mib + management_mib + 192;
        let dom0_mib = 2048;
        Sizes {
            guest_mib,
            spare_mib: None,
            management_mib,
            host_vm_mib,
            dom0_mib,
            machine_mib: dom0_mib + 2 * host_vm_mib + 512,
        }
    }
}

/// The booted topology.
#[derive(Debug)]
pub struct Topology {
    /// The machine that it runs on.
    pub machine: Machine,
    /// Its sizes.
    pub sizes: Sizes,
}

/// Seconds that the parts of the start took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct BootTimes {
    /// QEMU's start to the host management VM's shell.
    pub host: f64,
    /// From there until both guest management VMs answer.
    pub host_vms: f64,
    /// From there until the guest VM in A has filled its memory.
    pub guests: f64,
}

/// Number of a host VM, and of its physical CPU.
fn number(name: &str) -> u32 {
    if name == HOST_VMS[0] {
        1
    } else {
        2
    }
}

/// What a host VM has for itself, beside its name.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// How its sockets and its network device are called.
    pub called: &'static str,
    /// Its number on the virtual network.
    pub number: u32,
    /// Each host VM has a physical CPU of its own: see Documentation/lab.rst.
    pub cpu: u32,
}

impl Place {
    /// That of a host VM that is not replaced.
    pub fn of(name: &str) -> Self {
        let number = number(name);
        Self {
            called: HOST_VMS[number as usize - 1],
            number,
            cpu: number,
        }
    }

    /// For a shell: make what its devices need.
    pub fn devices(self) -> String {
        let called = self.called;
        format!(
            "truncate -s {} {DISK} && /usr/bin/ip tuntap add tap{called} mode tap && \
             /usr/bin/ip link set tap{called} mtu 65000 master br0 up",
            DISK_BLOCKS * 4096
        )
    }

    /// Where its console is written.
    fn console_log(self) -> String {
        match HOST_VMS.contains(&self.called) {
            true => format!("/dev/virtio-ports/log.{}", self.called),
            false => format!("/var/log/xen/{}-console.log", self.called),
        }
    }
}

/// Where a guest management VM is on the virtual network.
pub fn address(name: &str) -> String {
    format!("10.77.0.{}", number(name))
}

impl Topology {
    /// Boot the host only, with this hypervisor; also tells the seconds.
    pub fn boot_host(sizes: Sizes, xen: &Path, progress: &Progress) -> Result<(Self, f64)> {
        Self::boot_host_with(sizes, xen, "host", (1, ""), progress)
    }

    /// The same with this image, so many processors and these options of its kernel.
    pub fn boot_host_with(
        sizes: Sizes,
        xen: &Path,
        image: &'static str,
        (dom0_cpus, dom0_options): (u32, &'static str),
        progress: &Progress,
    ) -> Result<(Self, f64)> {
        let accelerator = Accelerator::detect();
        let stage = progress.stage(&format!(
            "boot the host: {} and Debian's kernel ({})",
            if xen == paths::stock_xen() {
                "Debian's Xen"
            } else {
                "patched Xen"
            },
            accelerator.name()
        ));
        let config = Config {
            xen: xen.to_owned(),
            accelerator,
            memory_mib: sizes.machine_mib,
            dom0_mib: sizes.dom0_mib,
            cpus: 3,
            dom0_cpus,
            xen_options: "flask=disabled",
            dom0_options,
            image,
        };
        let machine = Machine::start(&config)?;
        wait_ready(
            &machine.host,
            BOOT_HOST,
            "host management VM",
            &["host.log"],
        )?;
        let seconds = stage.done();
        Ok((Topology { machine, sizes }, seconds))
    }

    /// Start both host VMs and wait for their management VMs.
    pub fn start_host_vms(&self, progress: &Progress) -> Result<f64> {
        self.start_host_vms_with([System::Current; 2], progress)
    }

    /// The same with these systems in A and B.
    pub fn start_host_vms_with(&self, systems: [System; 2], progress: &Progress) -> Result<f64> {
        let stage = progress.stage("start host VMs A and B: Debian's Xen and kernel in each");
        for (name, system) in HOST_VMS.into_iter().zip(systems) {
            self.create_host_vm(name, system)?;
        }
        for name in HOST_VMS {
            self.wait_for_host_vm(name)?;
        }
        Ok(stage.done())
    }

    /// Create a host VM.
    pub fn create_host_vm(&self, name: &str, system: System) -> Result<()> {
        self.create_host_vm_at(name, system, Place::of(name))
    }

    /// Create a host VM at this place.
    pub fn create_host_vm_at(&self, name: &str, system: System, place: Place) -> Result<()> {
        let config = self.host_vm_config_at(name, system, place);
        self.create_host_vm_of(name, place, &config)
    }

    /// Create a host VM that has so many MiB, and lets its guest hypervisor believe that it has
    /// as much as others.
    pub fn create_small_host_vm(&self, name: &str, mib: u32) -> Result<()> {
        let place = Place::of(name);
        let config = self.host_vm_config_at(name, System::Current, place);
        let maximum = self.sizes.host_vm_mib;
        // The last of two lines counts.
        let config = format!("{config}\nmemory={mib}\nmaxmem={maximum}");
        self.create_host_vm_of(name, place, &config)
    }

    fn create_host_vm_of(&self, name: &str, place: Place, config: &str) -> Result<()> {
        self.machine.host.sh(
            &format!(
                "{} && cat >/etc/xen/{name}.cfg <<'EOF'\n{config}\nEOF\nxl create /etc/xen/{name}.cfg || \
                 {{ tail -n 20 /var/log/xen/qemu-dm-{name}.log; false; }}",
                place.devices()
            ),
            SHORT,
        )?;
        Ok(())
    }

    /// Start a host VM again that is gone, with another line of configuration, and wait
    /// for its management VM.
    pub fn restart_host_vm(&self, name: &str, line: &str, progress: &Progress) -> Result<()> {
        let stage = progress.stage(&format!("start host VM {name} again"));
        self.machine.host.sh(
            &format!(
                "{{ cat /etc/xen/{name}.cfg; echo '{line}'; }} >/run/lab/again.cfg && \
                 xl create /run/lab/again.cfg"
            ),
            SHORT,
        )?;
        self.wait_for_host_vm(name)?;
        stage.done();
        Ok(())
    }

    /// Wait for its management VM.
    pub fn wait_for_host_vm(&self, name: &str) -> Result<()> {
        let log = format!("host-vm-{name}.log");
        wait_ready(
            self.machine.vm(name),
            BOOT_HOST_VM,
            &format!("host VM {name}"),
            &[&log, "host.log"],
        )
    }

    /// Configuration of a host VM with this system, for `xl`.
    pub fn host_vm_config(&self, name: &str, system: System) -> String {
        self.host_vm_config_at(name, system, Place::of(name))
    }

    /// The same at this place.
    pub fn host_vm_config_at(&self, name: &str, system: System, place: Place) -> String {
        let Place {
            called,
            number,
            cpu,
        } = place;
        let [xen, image] = system.files();
        let Sizes {
            host_vm_mib,
            management_mib,
            ..
        } = self.sizes;
        // Buffers from one pool, since the device model maps a megabyte for each that lies
        // somewhere else: see Documentation/lab.rst.
        let kernel = format!(
            "console=hvc0 quiet mitigations=off clocksource=xen tsc=nowatchdog swiotlb=force \
             vmbeam.name={name} vmbeam.ip=10.77.0.{number}"
        );
        let device_model = [
            "-device",
            // Few ports and no ioeventfd: every file descriptor that the device model
            // waits for is paid for at each event, and dom0's CPU is the slowest part.
            "virtio-serial-pci,max_ports=4,ioeventfd=off",
            "-chardev",
            &format!("socket,id=lab,path=/run/lab/{called}.sock,server=on,wait=off"),
            "-device",
            "virtserialport,chardev=lab,name=org.vmbeam.lab.0",
            "-chardev",
            &format!("socket,id=agent,path=/run/vmbeam/agents/{name}.sock,server=on,wait=off"),
            "-device",
            "virtserialport,chardev=agent,name=org.vmbeam.agent.0",
            // One image for both host VMs: a guest's disk has to be where it goes.
            "-drive",
            &format!("file={DISK},if=none,id={DRIVE},format=raw,file.locking=off"),
            "-device",
            &format!("virtio-blk-pci,drive={DRIVE},share-rw=on,ioeventfd=off"),
            "-netdev",
            &format!("tap,id=net,ifname=tap{called},script=no,downscript=no"),
            "-device",
            &format!(
                "virtio-net-pci,netdev=net,ioeventfd=off,romfile=,mac=52:54:00:77:00:0{number}"
            ),
        ]
        .map(|a| format!("\"{a}\""))
        .join(", ");
        let console_log = place.console_log();
        format!(
            "name=\"{name}\"\n\
             type=\"hvm\"\n\
             memory={host_vm_mib}\n\
             vcpus=1\n\
             cpus=\"{cpu}\"\n\
             tsc_mode=\"native\"\n\
             kernel=\"{xen}\"\n\
             ramdisk=\"/boot/vmlinux {kernel},{image}\"\n\
             cmdline=\"console=com1 loglvl=error guest_loglvl=error flask=disabled \
             spec-ctrl=no,eager-fpu dom0_mem={management_mib}M,max:{management_mib}M dom0_max_vcpus=1\"\n\
             serial=\"unix:/run/lab/{called}-console.sock,server=on,wait=off,\
             logfile={console_log}\"\n\
             vga=\"none\"\n\
             vnc=0\n\
             sdl=0\n\
             usb=0\n\
             on_crash=\"destroy\"\n\
             on_reboot=\"destroy\"\n\
             device_model_args=[{device_model}]"
        )
    }

    /// Start the guest VM in A and wait until it has filled its memory; create an
    /// empty guest VM of the same shape, paused, in B.
    pub fn start_guests(&self, progress: &Progress) -> Result<f64> {
        let stage = progress.stage(&format!(
            "start a guest VM of {} MiB in A, an empty one in B",
            self.sizes.guest_mib
        ));
        std::thread::scope(|scope| {
            let b = scope.spawn(|| self.start_guest("B", "-p"));
            self.start_guest("A", "")?;
            b.join()
                .map_err(|_| anyhow::anyhow!("a thread of the harness panicked"))?
        })?;
        wait_for_check(&self.machine.a, START_GUEST)?;
        Ok(stage.done())
    }

    /// Start a guest VM in a host VM.
    pub fn start_guest(&self, name: &str, options: &str) -> Result<()> {
        let vm = self.machine.vm(name);
        let spare = self
            .sizes
            .spare_mib
            .map(|mib| format!("vmbeam.spare={mib}"));
        vm.sh(
            &format!(
                "cat >/etc/xen/{GUEST}.cfg <<'EOF'\n{}\nEOF\nxl create {options} /etc/xen/{GUEST}.cfg",
                guest_config(GUEST, self.sizes.guest_mib, &spare.unwrap_or_default())
            ),
            START_GUEST,
        )?;
        vm.follow(
            &format!("tail -n +1 -F /var/log/xen/console/guest-{GUEST}.log"),
            &paths::logs().join(format!("guest-{name}.log")),
        )
    }
}

/// Configuration of a guest VM of this name and size, for `xl`, with these words more on
/// its kernel's command line, where the last of two that say the same counts.
pub fn guest_config(name: &str, mib: u32, words: &str) -> String {
    format!(
        "name=\"{name}\"\n\
         type=\"pv\"\n\
         memory={mib}\n\
         vcpus={GUEST_CPUS}\n\
         kernel=\"/boot/vmlinux\"\n\
         ramdisk=\"/boot/guest.cpio\"\n\
         cmdline=\"console=hvc0 quiet mitigations=off clocksource=xen tsc=nowatchdog \
         vmbeam.seed={SEED} {words}\"\n\
         on_crash=\"preserve\""
    )
}

/// Wait for a line of the guest VM that says that its memory is as it wrote it, and
/// that was printed after this call.
pub fn wait_for_check(vm: &Channel, limit: Duration) -> Result<String> {
    wait_for_check_of(vm, GUEST, limit)
}

/// The same of another guest VM.
pub fn wait_for_check_of(vm: &Channel, guest: &str, limit: Duration) -> Result<String> {
    let log = format!("/var/log/xen/console/guest-{guest}.log");
    let text = vm.sh(
        &format!(
            "touch {log}; tail -n 0 -F {log} 2>/dev/null | \
             sed -n -e '/CHECK/{{p;q}}' -e '/panic/{{p;q}}'"
        ),
        limit,
    )?;
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    if !line.contains(" ok ") || !line.contains(&format!(" cpus={GUEST_CPUS}")) {
        bail!("{guest}'s own check in {} failed: {line}", vm.name());
    }
    Ok(line)
}

/// Wait until a machine reports that it is up; on failure say which layer it was.
pub fn wait_ready(channel: &Channel, limit: Duration, layer: &str, logs: &[&str]) -> Result<()> {
    let start = Instant::now();
    loop {
        let ready = channel.ready(Duration::from_millis(500));
        if matches!(ready, Ok(true)) {
            return Ok(());
        }
        let death = logs.iter().find_map(|log| death_in(log));
        if ready.is_err() || death.is_some() || start.elapsed() > limit {
            let why = match (&ready, death) {
                (Err(e), _) => format!("{e:#}"),
                (_, Some(line)) => line,
                _ => format!("nothing after {} s", limit.as_secs()),
            };
            return Err(describe(layer, &why, logs));
        }
    }
}

fn death_in(log: &str) -> Option<String> {
    let text = fs::read(paths::logs().join(log)).ok()?;
    String::from_utf8_lossy(&text)
        .lines()
        .find(|line| DEATHS.iter().any(|d| line.contains(d)))
        .map(str::to_owned)
}

fn describe(layer: &str, why: &str, logs: &[&str]) -> anyhow::Error {
    let mut message = format!("{layer} did not come up: {why}");
    for log in logs {
        let text = fs::read(paths::logs().join(log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let reached = if text.contains("Linux version") || text.contains("Run /init") {
            "reached the management VM's kernel"
        } else if text.contains("Xen version") {
            "reached the hypervisor"
        } else {
            "the hypervisor printed nothing"
        };
        message.push_str(&format!(
            "\n--- last lines of build/logs/{log} ({reached}):\n{}",
            last_lines(&text, 20)
        ));
    }
    anyhow::anyhow!(message)
}

/// Read a file of the build that the report names.
pub fn kernel_release() -> Result<String> {
    Ok(fs::read_to_string(paths::build("kernel/release"))
        .context("build/kernel/release is missing: run make kernel")?
        .trim()
        .to_owned())
}
