// SPDX-License-Identifier: GPL-2.0-only

//! The initramfs images of the lab's machines, made from the sysroot that we run in.
//!
//! Three of them, one inside the other: the host management VM's holds the guest
//! management VM's, and that holds the guest VM's.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::paths;

/// One of the versions of Xen that the lab has.
struct Release {
    version: &'static str,
    /// Where Debian's packages of it are unpacked.
    root: PathBuf,
    /// What the toolstack patches change of it.
    patched: PathBuf,
}

impl Release {
    /// Debian 13's, which the sysroot has.
    fn current() -> Self {
        Release {
            version: "4.20",
            root: "/".into(),
            patched: paths::toolstack(""),
        }
    }

    /// Debian 12's.
    fn old() -> Self {
        Release {
            version: OLD_XEN,
            root: paths::old_toolstack().join("root"),
            patched: paths::old_toolstack(),
        }
    }

    /// A file of its packages, in the sysroot.
    fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Directory of its programs.
    fn bin(&self) -> String {
        format!("/usr/lib/xen-{}/bin", self.version)
    }

    /// What the toolstack patches change.
    fn patched(&self) -> [String; 4] {
        [
            "xl".to_owned(),
            "libxl-save-helper".to_owned(),
            format!("libxenguest.so.{}", self.version),
            format!("libxenlight.so.{}", self.version),
        ]
    }
}

/// The version of the guest hypervisor that is there to be replaced.
pub const OLD_XEN: &str = "4.17";

/// Name of what the images with a defect of the driver have in common.
const DRIVER_MUTANTS: &str = "driver-mutants";

/// Modules of the stock kernel for hypercalls and the memory of other domains.
const PRIVCMD: [&str; 5] = [
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
];

/// Further modules that the management VMs need.
const MODULES: &[&str] = &[
    "tun",
    "llc",
    "stp",
    "bridge",
    "failover",
    "net_failover",
    "virtio_net",
];

/// In the guest management VMs: a disk of the host, and backends of guests' devices.
const BACKENDS: &[&str] = &["virtio_blk", "xen-netback", "xen-blkback"];

/// In the guest VMs: their network and their disk, and a page of another domain.
const GUEST_MODULES: &[&str] = &["xen-netfront", "xen-blkfront", "xen-gntdev"];

/// In the host management VM: `console A` reaches the console of host VM A.
const CONSOLE: &str = "#!/bin/sh\n\
    exec socat -,raw,echo=0,escape=0x1e UNIX-CONNECT:/run/lab/$1-console.sock\n";

/// Build all images. The result is the image of the host management VM.
pub fn build() -> Result<()> {
    fs::create_dir_all(paths::images())?;
    guest()?;
    management("mgmt", &Release::current())?;
    mock()?;
    ept()?;
    host()
}

fn guest() -> Result<()> {
    let mut image = Image::new("guest")?;
    image.busybox()?;
    image.stripped(&paths::target("labtool"), "/bin/labtool")?;
    image.modules(GUEST_MODULES)?;
    image.copy(&paths::lab_sources("guest-init"), "/init")?;
    image.pack()
}

/// For a plain VM without Xen.
fn mock() -> Result<()> {
    let mut image = Image::new("mock")?;
    image.busybox()?;
    image.copy(&paths::lab_sources("mock-init"), "/init")?;
    image.stripped(&paths::debug_driver(), "/lib/modules/vmbeam.ko")?;
    image.stripped(&paths::driver(), "/lib/modules/vmbeam-release.ko")?;
    image.packaged("/usr/bin/vmbeam")?;
    image.tests(&paths::kselftests())?;
    image.tests(&paths::driver_tests())?;
    image.pack()
}

/// For a machine that is emulated slowly: what tests the hypercall and the driver on bare
/// domains, and nothing else.
fn ept() -> Result<()> {
    let mut image = Image::new("ept")?;
    image.busybox()?;
    image.xen_libraries(&Release::current())?;
    image.modules(&PRIVCMD)?;
    image.stripped(&paths::target("labtool"), "/usr/bin/labtool")?;
    image.copy(&paths::lab_sources("init-common"), "/etc/lab/init-common")?;
    image.copy(&paths::lab_sources("ept-init"), "/init")?;
    image.domain_tests()?;
    image.pack()
}

/// For a plain VM with the programs that record trace events.
pub fn tracing() -> Result<()> {
    let tools = paths::trace_tools();
    if !tools.exists() {
        bail!("perf and bpftrace are not there: run make trace-tools");
    }
    let mut image = Image::new("tracing")?;
    image.busybox()?;
    image.copy(&paths::lab_sources("tracing-init"), "/init")?;
    image.stripped(&paths::debug_driver(), "/lib/modules/vmbeam.ko")?;
    image.tests(&paths::kselftests())?;
    for name in ["perf", "trace-cmd", "bpftrace"] {
        let program = tools.join("usr/bin").join(name);
        image.copy(&program, &format!("/usr/bin/{name}"))?;
        image.libraries_with(&program, &tools)?;
    }
    image.pack()
}

/// For a plain VM with one build of the driver, as it is: DKMS signs modules.
pub fn load(module: &Path) -> Result<()> {
    let mut image = Image::new("load")?;
    image.busybox()?;
    image.copy(&paths::lab_sources("load-init"), "/init")?;
    image.copy(module, "/lib/modules/vmbeam.ko")?;
    image.pack()
}

/// The tests of the driver for a plain VM, without a driver.
pub fn driver_mutants() -> Result<()> {
    let mut image = Image::new(DRIVER_MUTANTS)?;
    image.busybox()?;
    image.copy(&paths::lab_sources("driver-mutants-init"), "/init")?;
    image.tests(&paths::kselftests())?;
    image.tests(&paths::driver_tests())?;
    image.pack()
}

/// The same with one build of the driver, of which it keeps no debugging information; a
/// kernel unpacks what it finds one behind the other.
pub fn driver_mutant(module: &Path, image: &str) -> Result<()> {
    let directory = module.parent().context("a module is in a directory")?;
    sh(&format!(
        "cd {} && strip --strip-debug vmbeam.ko && echo vmbeam.ko | \
         cpio --quiet -R 0:0 -o -H newc | cat {} - >{}",
        directory.display(),
        paths::image(DRIVER_MUTANTS).display(),
        paths::image(image).display()
    ))?;
    Ok(())
}

/// The image of the host management VM with the old guest hypervisor besides, and a
/// management VM for it; a kernel unpacks what it finds one behind the other.
pub fn with_old_xen() -> Result<()> {
    if !paths::old_toolstack().exists() {
        bail!("Xen {OLD_XEN} is not there: run make xen-tools-old");
    }
    management("mgmt-old", &Release::old())?;
    let image = Image::new("old")?;
    image.copy(&paths::image("mgmt-old"), "/boot/mgmt-old.cpio")?;
    let xen = Release::old().file(&format!("/boot/xen-{OLD_XEN}-amd64.gz"));
    image.write(&sh(&format!("zcat {}", xen.display()))?, "/boot/xen-old")?;
    image.pack()?;
    let [host, old, both] = ["host", "old", "host-old"].map(paths::image);
    sh(&format!(
        "cat {} {} >{}",
        host.display(),
        old.display(),
        both.display()
    ))?;
    Ok(())
}

fn management(name: &'static str, release: &Release) -> Result<()> {
    let mut image = Image::new(name)?;
    image.xen_services(release)?;
    image.patched_toolstack(release)?;
    image.modules(BACKENDS)?;
    image.hotplug_scripts()?;
    if release.version != OLD_XEN {
        image.xendomains(release)?;
    }
    for name in [
        "/usr/bin/dbclient",
        "/usr/bin/dropbearkey",
        "/usr/sbin/dropbear",
    ] {
        image.same(name)?;
    }
    image.stripped(&paths::target("labtool"), "/usr/bin/labtool")?;
    image.packaged("/usr/sbin/vmbeam-agent")?;
    image.copy(&paths::lab_sources("mgmt-init"), "/init")?;
    image.copy(&paths::vmlinux(), "/boot/vmlinux")?;
    image.copy(&paths::image("guest"), "/boot/guest.cpio")?;
    image.pack()
}

fn host() -> Result<()> {
    let mut image = Image::new("host")?;
    let release = Release::current();
    image.xen_services(&release)?;
    image.device_model()?;
    // For PVH host VMs, which have no device model.
    image.modules(&["xen-netback"])?;
    image.hotplug_scripts()?;
    image.stripped(&paths::target("labtool"), "/usr/bin/labtool")?;
    image.packaged("/usr/bin/vmbeam")?;
    image.packaged("/usr/sbin/vmbeamd")?;
    image.copy(&paths::lab_sources("host-init"), "/init")?;
    // The daemon's user and group, and somebody else.
    image.write(
        b"root:x:0:0:root:/root:/bin/sh\nvmbeam:x:990:990::/:/bin/false\n\
          nobody:x:65534:65534::/:/bin/false\n",
        "/etc/passwd",
    )?;
    image.write(
        b"root:x:0:\nvmbeam:x:990:\nnogroup:x:65534:\n",
        "/etc/group",
    )?;
    image.copy(&paths::vmlinux(), "/boot/vmlinux")?;
    image.copy(&paths::image("mgmt"), "/boot/mgmt.cpio")?;
    // For the tests of the patched toolstack, beside Debian's.
    image.copy(&paths::image("guest"), "/boot/guest.cpio")?;
    for name in release.patched() {
        image.stripped(
            &release.patched.join(&name),
            &format!("/usr/lib/vmbeam/toolstack/{name}"),
        )?;
    }
    image.domain_tests()?;
    image.tests(&paths::driver_tests())?;
    // The guest hypervisor, as Debian ships it.
    let xen = sh("zcat /boot/xen-4.20-amd64.gz")?;
    image.write(&xen, "/boot/xen")?;
    fs::write(paths::stock_xen(), &xen)?;
    image.write(CONSOLE.as_bytes(), "/usr/bin/console")?;
    image.executable("/usr/bin/console")?;
    image.pack()
}

/// A directory that becomes a cpio archive.
struct Image {
    name: &'static str,
    root: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    fn new(name: &'static str) -> Result<Self> {
        let root = paths::images().join(format!("{name}.root"));
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for dir in [
            "bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/log",
        ] {
            fs::create_dir_all(root.join(dir))?;
        }
        Ok(Image {
            name,
            root,
            libraries: BTreeSet::new(),
        })
    }

    fn place(&self, to: &str) -> Result<PathBuf> {
        let path = self.root.join(to.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let path = self.place(to)?;
        fs::copy(from, &path)
            .with_context(|| format!("cannot copy {} into the image", from.display()))?;
        Ok(())
    }

    fn write(&self, bytes: &[u8], to: &str) -> Result<()> {
        Ok(fs::write(self.place(to)?, bytes)?)
    }

    fn executable(&self, path: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        Ok(fs::set_permissions(
            path,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    /// A program that was built here, without its debugging information, which would
    /// only have to be loaded again and again.
    fn stripped(&mut self, from: &Path, to: &str) -> Result<()> {
        self.libraries_of(from)?;
        self.replace(from, to)
    }

    /// The same where the libraries are there already.
    fn replace(&self, from: &Path, to: &str) -> Result<()> {
        self.copy(from, to)?;
        sh(&format!(
            "strip --strip-debug {}",
            self.place(to)?.display()
        ))?;
        Ok(())
    }

    /// One of our programs as it is shipped.
    fn packaged(&mut self, path: &str) -> Result<()> {
        self.program(&paths::packaged(path), path)
    }

    /// Test programs.
    fn tests(&mut self, programs: &[PathBuf]) -> Result<()> {
        for program in programs {
            if let Some(name) = program.file_name().and_then(|n| n.to_str()) {
                self.stripped(program, &format!("/usr/lib/vmbeam/tests/{name}"))?;
            }
        }
        Ok(())
    }

    /// The driver, and the tests of it and of the hypercall on bare domains.
    fn domain_tests(&mut self) -> Result<()> {
        self.stripped(&paths::driver(), "/lib/modules/vmbeam.ko")?;
        self.stripped(&paths::debug_driver(), "/lib/modules/vmbeam-debug.ko")?;
        self.tests(&[paths::mem_swap_test(), paths::target("stress")])?;
        self.tests(&paths::kselftests())
    }

    /// A program with the libraries that it is linked against.
    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.copy(from, to)?;
        self.libraries_of(from)
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        self.libraries_with(program, Path::new("/"))
    }

    /// The same, where those that are under `root` come from there.
    fn libraries_with(&mut self, program: &Path, root: &Path) -> Result<()> {
        let output = Command::new("ldd")
            .arg(program)
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let path = match line.split_once("=>") {
                Some((_, path)) => path,
                None => line,
            };
            let path = path.split('(').next().unwrap_or_default().trim();
            if path.starts_with('/') && self.libraries.insert(PathBuf::from(path)) {
                let path = Path::new(path);
                let to = Path::new("/").join(path.strip_prefix(root).unwrap_or(path));
                self.copy(path, &to.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// A file of the sysroot under its own name.
    fn same(&mut self, path: &str) -> Result<()> {
        self.program(Path::new(path), path)
    }

    /// A file of Xen's packages under its own name.
    fn xen(&mut self, release: &Release, path: &str) -> Result<()> {
        let from = fs::canonicalize(release.file(path))?;
        self.copy(&from, path)?;
        self.libraries_with(&from, &release.root)
    }

    fn busybox(&mut self) -> Result<()> {
        self.copy(Path::new("/usr/bin/busybox"), "/bin/busybox")?;
        let list = sh("/usr/bin/busybox --list")?;
        for applet in String::from_utf8_lossy(&list).lines() {
            let path = self.root.join("bin").join(applet);
            if !path.exists() {
                symlink("busybox", path)?;
            }
        }
        Ok(())
    }

    /// What both kinds of management VM need to run the Xen toolstack.
    fn xen_services(&mut self, release: &Release) -> Result<()> {
        self.busybox()?;
        for name in [
            "xl",
            "xenstored",
            "xenconsoled",
            "xen-init-dom0",
            "libxl-save-helper",
            "xenconsole",
        ] {
            self.xen(release, &format!("{}/{name}", release.bin()))?;
        }
        for name in [
            "xenstore-read",
            "xenstore-list",
            "xenstore-ls",
            "xenstore-write",
        ] {
            self.xen(release, &format!("/usr/bin/{name}"))?;
        }
        self.xen_libraries(release)?;
        for name in ["/usr/bin/socat", "/usr/bin/ip"] {
            self.same(name)?;
        }
        fs::create_dir_all(self.root.join("etc/xen"))?;
        self.write(b"autoballoon=\"off\"\n", "/etc/xen/xl.conf")?;
        self.write(b"root:x:0:0:root:/root:/bin/sh\n", "/etc/passwd")?;
        self.write(b"root:x:0:\n", "/etc/group")?;
        self.copy(&paths::lab_sources("init-common"), "/etc/lab/init-common")?;
        self.modules(&PRIVCMD)?;
        self.modules(MODULES)
    }

    /// What the agent, `xl console` and the stress program load at run time.
    fn xen_libraries(&mut self, release: &Release) -> Result<()> {
        for library in [
            format!("libxenctrl.so.{}", release.version),
            format!("libxenguest.so.{}", release.version),
            "libxenforeignmemory.so.1".to_owned(),
            "libxenstore.so.4".to_owned(),
        ] {
            self.xen(release, &format!("/usr/lib/x86_64-linux-gnu/{library}"))?;
        }
        self.same("/lib/x86_64-linux-gnu/libgcc_s.so.1")
    }

    fn modules(&self, names: &[&str]) -> Result<()> {
        for module in names {
            let found = sh(&format!(
                "find {}/kernel/ -name {module}.ko.xz",
                paths::modules().display()
            ))?;
            let path = String::from_utf8_lossy(&found).trim().to_owned();
            if path.is_empty() {
                bail!("the kernel has no module {module}");
            }
            self.write(
                &sh(&format!("xzcat {path}"))?,
                &format!("/lib/modules/{module}.ko"),
            )?;
        }
        Ok(())
    }

    /// The patched toolstack in place of Debian's. The hypervisor remains Debian's.
    fn patched_toolstack(&mut self, release: &Release) -> Result<()> {
        for name in release.patched() {
            let from = release.patched.join(&name);
            if !name.contains(".so.") {
                self.replace(&from, &format!("{}/{name}", release.bin()))?;
                continue;
            }
            // The loader's directories are two names of one, but not in the image.
            let places = ["/lib", "/usr/lib"].map(|d| format!("{d}/x86_64-linux-gnu/{name}"));
            let taken: Vec<_> = places
                .iter()
                .filter(|p| self.root.join(p.trim_start_matches('/')).exists())
                .collect();
            if taken.is_empty() {
                bail!("{name} is not in the image: nothing to replace");
            }
            for place in taken {
                self.replace(&from, place)?;
            }
        }
        Ok(())
    }

    /// What connects the backends of guests' devices.
    fn hotplug_scripts(&self) -> Result<()> {
        for name in ["vif-lab", "block-lab"] {
            let path = format!("/etc/xen/scripts/{name}");
            self.copy(&paths::lab_sources(name), &path)?;
            self.executable(&path)?;
        }
        Ok(())
    }

    /// Xen's own script that starts guests at boot.
    fn xendomains(&mut self, release: &Release) -> Result<()> {
        self.xen(release, &format!("{}/xendomains", release.bin()))?;
        self.same("/etc/xen/scripts/hotplugpath.sh")?;
        self.write(
            b"XENDOMAINS_AUTO=/etc/xen/auto\nXENDOMAINS_CREATE_USLEEP=5000\n",
            "/etc/default/xendomains",
        )?;
        // It is where that file says.
        symlink(format!("{}/xl", release.bin()), self.place("/usr/sbin/xl")?)?;
        self.program(Path::new("/usr/bin/bash"), "/bin/bash")
    }

    fn device_model(&mut self) -> Result<()> {
        self.same("/usr/libexec/xen-qemu-system-i386")?;
        self.same("/usr/lib/xen-4.20/boot/hvmloader")?;
        // Wanted even though there is no display.
        self.same("/usr/share/qemu/keymaps/en-us")?;
        for dir in ["/usr/share/seabios", "/usr/share/qemu"] {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                let name = path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                let wanted = name.starts_with("bios")
                    || name.starts_with("multiboot")
                    || name.starts_with("kvmvapic");
                if wanted {
                    self.copy(&fs::canonicalize(&path)?, &path.to_string_lossy())?;
                }
            }
        }
        Ok(())
    }

    /// Write the archive. Times are fixed, so that the same files give the same bytes.
    fn pack(self) -> Result<()> {
        let archive = paths::image(self.name);
        let root = self.root.display();
        sh(&format!(
            "cd {root} && find . -exec touch -h -d @0 {{}} + && find . | LC_ALL=C sort | \
             cpio --quiet --reproducible -R 0:0 -o -H newc > {}",
            archive.display()
        ))?;
        fs::remove_dir_all(&self.root)?;
        Ok(())
    }
}

/// Run a shell command of the sysroot; gives its standard output.
fn sh(command: &str) -> Result<Vec<u8>> {
    let output = Command::new("sh").arg("-c").arg(command).output()?;
    if !output.status.success() {
        bail!(
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}
