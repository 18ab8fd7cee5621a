// SPDX-License-Identifier: GPL-2.0-only

//! The serial port to the host, or something that stands in for it.

use crate::hypervisor::Hypervisor;
use crate::server::{Agent, ServeError};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Name of the serial port that the host VM is given.
pub const PORT_NAME: &str = "org.vmbeam.agent.0";
/// How often to look whether the host has opened its end of the port.
const HOST_POLL: Duration = Duration::from_millis(250);
/// How long the host may leave answers unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

/// Find the port with this name, as udev names it or as sysfs does.
pub fn find(name: &str) -> io::Result<PathBuf> {
    let by_name = Path::new("/dev/virtio-ports").join(name);
    if by_name.exists() {
        return Ok(by_name);
    }
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let its_name = std::fs::read_to_string(entry.path().join("name"));
        if its_name.is_ok_and(|n| n.trim() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(
        ErrorKind::NotFound,
        format!("this host VM has no virtio-serial port named {name}"),
    ))
}

/// An open virtio-serial port.
///
/// It is used without blocking and with poll(): a port whose other end nobody
/// has open is always readable, at its end, so waiting for that to change
/// takes a timer.
#[derive(Debug)]
pub struct Port {
    file: File,
}

impl Port {
    /// Open the port.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC);
        Ok(Self {
            file: options.open(path)?,
        })
    }

    fn poll(&self, events: PollFlags, timeout: Duration) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(self.file.as_fd(), events)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds[0].revents().unwrap_or(PollFlags::empty())),
            Err(nix::errno::Errno::EINTR) => Ok(PollFlags::empty()),
            Err(e) => Err(e.into()),
        }
    }

    /// Wait until the host has its end open.
    pub fn wait_for_host(&self) -> io::Result<()> {
        while self
            .poll(PollFlags::POLLIN, Duration::ZERO)?
            .contains(PollFlags::POLLHUP)
        {
            std::thread::sleep(HOST_POLL);
        }
        Ok(())
    }
}

impl Read for Port {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.poll(PollFlags::POLLIN, Duration::from_secs(60))?;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Port {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            match self.file.write(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let left = WRITE_TIMEOUT.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    if self
                        .poll(PollFlags::POLLOUT, left)?
                        .contains(PollFlags::POLLHUP)
                    {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the daemon is to be expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A virtio-serial port.
    Port(PathBuf),
    /// A UNIX socket that something else listens on.
    Connect(PathBuf),
    /// A UNIX socket to listen on, the way QEMU does for a port.
    Listen(PathBuf),
}

impl Channel {
    /// What is at `path`: a socket to connect to, or a port.
    pub fn at(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(m) if m.file_type().is_socket() => Self::Connect(path.into()),
            _ => Self::Port(path.into()),
        }
    }

    /// Serve one conversation after the other, for ever. Returns only if the
    /// channel itself cannot be opened.
    pub fn serve<H: Hypervisor>(&self, agent: &mut Agent<H>) -> io::Result<()> {
        match self {
            Self::Port(path) => {
                let mut port = Port::open(path)?;
                info!(port = %path.display(), "waiting for the host");
                loop {
                    port.wait_for_host()?;
                    finished(agent.serve(&mut port));
                }
            }
            Self::Connect(path) => loop {
                finished(agent.serve(&mut UnixStream::connect(path)?));
                std::thread::sleep(HOST_POLL);
            },
            Self::Listen(path) => {
                let listener = UnixListener::bind(path)?;
                info!(socket = %path.display(), "listening");
                loop {
                    let (mut stream, _) = listener.accept()?;
                    finished(agent.serve(&mut stream));
                }
            }
        }
    }
}

fn finished(result: Result<(), ServeError>) {
    match result {
        Ok(()) => info!("the daemon has closed its end"),
        Err(e) => {
            warn!("dropped the conversation: {e}");
            // An error that repeats must not keep a CPU busy.
            std::thread::sleep(HOST_POLL);
        }
    }
}
