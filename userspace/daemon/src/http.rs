// SPDX-License-Identifier: GPL-2.0-only

//! As much of HTTP as it takes to give one page, `/metrics`, to whoever may connect.
//!
//! On an address that is everybody on this machine. So there are few connections at a
//! time, each for one request and for a short time, and nothing that happens to them
//! matters to the daemon.

use crate::config::MetricsAt;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::fs::{symlink_metadata, Permissions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Most connections at once; others are turned away.
const CONNECTIONS: usize = 8;
/// How long one may take, from the first byte to the last.
const LIMIT: Duration = Duration::from_secs(2);
/// Most bytes of a request.
const REQUEST: usize = 8 << 10;
/// How often to look whether the daemon stops.
const LOOK: u16 = 1000;
/// How long to wait before listening is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// What Prometheus expects of this format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A connection, of either sort.
trait Stream: Read + Write + Send {
    /// Let nothing take longer.
    fn limit(&self, limit: Duration) -> Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, limit: Duration) -> Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

impl Stream for UnixStream {
    fn limit(&self, limit: Duration) -> Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

/// Where connections come from.
#[derive(Debug)]
enum Listener {
    Socket(UnixListener),
    Port(TcpListener),
}

impl Listener {
    /// A socket of an earlier run is replaced.
    fn new(at: &MetricsAt) -> Result<Self> {
        Ok(match at {
            MetricsAt::Socket(path) => {
                if symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
                listener.set_nonblocking(true)?;
                Self::Socket(listener)
            }
            MetricsAt::Port(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Self::Port(listener)
            }
        })
    }

    fn accept(&self) -> Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(listener) => Box::new(listener.accept()?.0),
            Self::Port(listener) => Box::new(listener.accept()?.0),
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(listener) => listener.as_fd(),
            Self::Port(listener) => listener.as_fd(),
        }
    }
}

/// Offers a page.
#[derive(Debug)]
pub(crate) struct Server {
    at: MetricsAt,
    listener: Option<Listener>,
}

impl Server {
    /// Listen; later if that is not possible now.
    pub(crate) fn new(at: MetricsAt) -> Self {
        let listener = None;
        let mut server = Self { at, listener };
        if let Err(e) = server.listen() {
            warn!("cannot offer metrics at {:?}: {e}; that is tried again and again; change [metrics] listen in the configuration if it cannot be", server.at);
        }
        server
    }

    fn listen(&mut self) -> Result<()> {
        self.listener = Some(Listener::new(&self.at)?);
        info!(at = ?self.at, "offering metrics");
        Ok(())
    }

    /// Answer until the daemon stops.
    pub(crate) fn run(
        mut self,
        stop: &AtomicBool,
        page: impl Fn() -> String + Send + Sync + 'static,
    ) {
        let page = Arc::new(page);
        // Counts the connections.
        let open = Arc::new(());
        let mut tried = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let Some(listener) = &self.listener else {
                std::thread::sleep(Duration::from_millis(LOOK.into()));
                if tried.elapsed() >= AGAIN {
                    tried = Instant::now();
                    let _ = self.listen();
                }
                continue;
            };
            let mut ready = [PollFd::new(listener.fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut ready, PollTimeout::from(LOOK)), Ok(1..)) {
                continue;
            }
            match listener.accept() {
                Ok(stream) if Arc::strong_count(&open) <= CONNECTIONS => {
                    let (page, one) = (page.clone(), open.clone());
                    let thread = std::thread::Builder::new().name("metrics".into());
                    // Whoever asked may be gone, and threads may be short: their loss.
                    let _ = thread.spawn(move || {
                        let _ = answer(stream, &*page);
                        drop(one);
                    });
                }
                Ok(_) => {}
                // It is still readable: not at once.
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(_) => {}
            }
        }
    }
}

/// The beginning of a request, to the empty line.
fn request(stream: &mut dyn Stream, until: Instant) -> Result<String> {
    let mut text = Vec::new();
    let mut part = [0; 1024];
    while !text.windows(4).any(|w| w == b"\r\n\r\n") {
        limit(stream, until)?;
        let read = again(|| stream.read(&mut part))?;
        text.extend_from_slice(&part[..read]);
        if read == 0 || text.len() > REQUEST {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    String::from_utf8(text).map_err(|_| ErrorKind::InvalidData.into())
}

/// What a signal cuts short, which a program's end may be, is done again.
fn again<T>(mut what: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match what() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn limit(stream: &dyn Stream, until: Instant) -> Result<()> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(Error::from(ErrorKind::TimedOut)),
        left => stream.limit(left),
    }
}

fn answer(mut stream: Box<dyn Stream>, page: &dyn Fn() -> String) -> Result<()> {
    let until = Instant::now() + LIMIT;
    let request = request(&mut *stream, until)?;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", Some("/metrics")) => ("200 OK", CONTENT_TYPE, page()),
        _ => (
            "404 Not Found",
            "text/plain",
            "GET /metrics is all there is\n".into(),
        ),
    };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method != "HEAD" {
        text += &body;
    }
    let mut left = text.as_bytes();
    while !left.is_empty() {
        limit(&*stream, until)?;
        let written = again(|| stream.write(left))?;
        left = &left[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Every other call is cut short.
    #[derive(Default)]
    struct Interrupts {
        calls: u32,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Interrupts {
        fn call<T>(&mut self, done: T) -> Result<T> {
            self.calls += 1;
            match self.calls % 2 {
                0 => Ok(done),
                _ => Err(ErrorKind::Interrupted.into()),
            }
        }
    }

    impl Read for Interrupts {
        fn read(&mut self, into: &mut [u8]) -> Result<usize> {
            let request = b"GET /metrics HTTP/1.1\r\n\r\n";
            into[..request.len()].copy_from_slice(request);
            self.call(request.len())
        }
    }

    impl Write for Interrupts {
        fn write(&mut self, from: &[u8]) -> Result<usize> {
            let written = self.call(from.len())?;
            self.written.lock().unwrap().extend(&from[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Stream for Interrupts {
        fn limit(&self, _: Duration) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_signal_loses_no_answer() {
        let stream = Interrupts::default();
        let written = stream.written.clone();
        answer(Box::new(stream), &|| "all is well".into()).unwrap();
        assert!(written.lock().unwrap().ends_with(b"all is well"));
    }
}
