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

const XEN_BIN: &str = "/usr/lib/xen-4.20/bin";

/// Modules of the stock kernel that the machines need.
const MODULES: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "tun",
    "llc",
    "stp",
    "bridge",
    "failover",
    "net_failover",
    "virtio_net",
];

/// What the toolstack patches change.
const PATCHED_TOOLSTACK: [&str; 4] = [
    "xl",
    "libxl-save-helper",
    "libxenguest.so.4.20",
    "libxenlight.so.4.20",
];

/// In the host management VM: `console A` reaches the console of host VM A.
const CONSOLE: &str = "#!/bin/sh\n\
    exec socat -,raw,echo=0,escape=0x1e UNIX-CONNECT:/run/lab/$1-console.sock\n";

/// Build all images. The result is the image of the host management VM.
pub fn build() -> Result<()> {
    fs::create_dir_all(paths::images())?;
    guest()?;
    management()?;
    mock()?;
    host()
}

fn guest() -> Result<()> {
    let mut image = Image::new("guest")?;
    image.busybox()?;
    image.stripped(&paths::target("labtool"), "/bin/labtool")?;
    image.copy(&paths::lab_sources("guest-init"), "/init")?;
    image.pack()
}

/// For a plain VM without Xen.
fn mock() -> Result<()> {
    let mut image = Image::new("mock")?;
    image.busybox()?;
    image.copy(&paths::lab_sources("mock-init"), "/init")?;
    image.stripped(&paths::debug_driver(), "/lib/modules/vmbeam.ko")?;
    image.stripped(&paths::target("vmbeam"), "/usr/bin/vmbeam")?;
    image.tests(&paths::kselftests())?;
    image.tests(&paths::driver_tests())?;
    image.pack()
}

/// For a plain VM with one build of the driver, as it is: DKMS signs modules.
pub fn load(module: &Path) -> Result<()> {
    let mut image = Image::new("load")?;
    image.busybox()?;
    image.copy(&paths::lab_sources("load-init"), "/init")?;
    image.copy(module, "/lib/modules/vmbeam.ko")?;
    image.tests(&paths::kselftests()[..1])?;
    image.pack()
}

fn management() -> Result<()> {
    let mut image = Image::new("mgmt")?;
    image.xen_services()?;
    image.patched_toolstack()?;
    image.stripped(&paths::target("labtool"), "/usr/bin/labtool")?;
    image.stripped(&paths::target("vmbeam-agent"), "/usr/bin/vmbeam-agent")?;
    image.copy(&paths::lab_sources("mgmt-init"), "/init")?;
    image.copy(&paths::vmlinux(), "/boot/vmlinux")?;
    image.copy(&paths::image("guest"), "/boot/guest.cpio")?;
    image.pack()
}

fn host() -> Result<()> {
    let mut image = Image::new("host")?;
    image.xen_services()?;
    image.device_model()?;
    for program in ["labtool", "vmbeam", "vmbeamd"] {
        image.stripped(&paths::target(program), &format!("/usr/bin/{program}"))?;
    }
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
    for name in PATCHED_TOOLSTACK {
        image.stripped(
            &paths::toolstack(name),
            &format!("/usr/lib/vmbeam/toolstack/{name}"),
        )?;
    }
    image.stripped(&paths::driver(), "/lib/modules/vmbeam.ko")?;
    image.stripped(&paths::debug_driver(), "/lib/modules/vmbeam-debug.ko")?;
    image.tests(&[paths::mem_swap_test(), paths::target("stress")])?;
    image.tests(&paths::kselftests())?;
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

    /// One of our own programs, without its debugging information, which would only
    /// have to be loaded again and again.
    fn stripped(&mut self, from: &Path, to: &str) -> Result<()> {
        self.program(from, to)?;
        sh(&format!(
            "strip --strip-debug {}",
            self.place(to)?.display()
        ))?;
        Ok(())
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

    /// A program with the libraries that it is linked against.
    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.copy(from, to)?;
        self.libraries_of(from)
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(program).output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let path = match line.split_once("=>") {
                Some((_, path)) => path,
                None => line,
            };
            let path = path.split('(').next().unwrap_or_default().trim();
            if path.starts_with('/') && self.libraries.insert(PathBuf::from(path)) {
                self.copy(Path::new(path), path)?;
            }
        }
        Ok(())
    }

    /// A file of the sysroot under its own name.
    fn same(&mut self, path: &str) -> Result<()> {
        self.program(Path::new(path), path)
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
    fn xen_services(&mut self) -> Result<()> {
        self.busybox()?;
        for name in [
            "xl",
            "xenstored",
            "xenconsoled",
            "xen-init-dom0",
            "libxl-save-helper",
        ] {
            self.same(&format!("{XEN_BIN}/{name}"))?;
        }
        self.same(&format!("{XEN_BIN}/xenconsole"))?;
        for name in [
            "xenstore-read",
            "xenstore-list",
            "xenstore-ls",
            "xenstore-write",
        ] {
            let real = fs::canonicalize(format!("/usr/bin/{name}"))?;
            self.program(&real, &format!("/usr/bin/{name}"))?;
        }
        // Loaded at run time by the agent and by `xl console`.
        for library in ["libxenctrl.so", "libxenguest.so", "libxenforeignmemory.so"] {
            let found = sh(&format!("ls /usr/lib/x86_64-linux-gnu/{library}.*"))?;
            for path in String::from_utf8_lossy(&found).lines() {
                self.same(path)?;
            }
        }
        self.same("/lib/x86_64-linux-gnu/libgcc_s.so.1")?;
        for name in ["/usr/bin/socat", "/usr/bin/ip"] {
            self.same(name)?;
        }
        fs::create_dir_all(self.root.join("etc/xen"))?;
        self.write(b"autoballoon=\"off\"\n", "/etc/xen/xl.conf")?;
        self.write(b"root:x:0:0:root:/root:/bin/sh\n", "/etc/passwd")?;
        self.write(b"root:x:0:\n", "/etc/group")?;
        self.copy(&paths::lab_sources("init-common"), "/etc/lab/init-common")?;
        for module in MODULES {
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
    fn patched_toolstack(&mut self) -> Result<()> {
        for name in PATCHED_TOOLSTACK {
            let from = paths::toolstack(name);
            if !name.contains(".so.") {
                self.stripped(&from, &format!("{XEN_BIN}/{name}"))?;
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
                self.stripped(&from, place)?;
            }
        }
        Ok(())
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
