// SPDX-License-Identifier: GPL-2.0-only

//! Running commands inside the lab's machines, over their virtio-serial or serial ports.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use serde_json::json;
use serde_json::Value;

/// Characters in a part of a file; a multiple of four.
const PART: &str = "65536";

/// Time for one of these.
const PUT: Duration = Duration::from_secs(60);

enum Event {
    Out(String),
    Exit(i64),
}

type Waiting = Arc<Mutex<HashMap<u64, mpsc::Sender<Event>>>>;

/// A connection to `labtool exec` in one machine.
pub struct Channel {
    name: &'static str,
    writer: Mutex<Box<dyn Write + Send>>,
    waiting: Waiting,
    ready: Mutex<mpsc::Receiver<()>>,
    next: AtomicU64,
}

/// What a command printed and how it ended.
pub struct Output {
    /// Standard output and standard error, in the order of their coming.
    pub text: String,
    /// Exit status.
    pub code: i64,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({})", self.name)
    }
}

impl Channel {
    /// Connect to the UNIX socket of a machine's port. The machine need not run yet.
    pub fn connect(name: &'static str, path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        Ok(Self::over(name, stream.try_clone()?, stream))
    }

    /// Over a connection that is there.
    pub fn over(
        name: &'static str,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Self {
        let reader = BufReader::new(reader);
        let waiting = Waiting::default();
        let (ready_tx, ready) = mpsc::channel();
        let map = waiting.clone();
        thread::spawn(move || receive(reader, &map, &ready_tx));
        Channel {
            name,
            writer: Mutex::new(Box::new(writer)),
            waiting,
            ready: Mutex::new(ready),
            next: AtomicU64::new(1),
        }
    }

    /// Name of the machine.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Has the machine reported that it is up? Waits at most this long.
    /// An error means that the connection is gone.
    pub fn ready(&self, wait: Duration) -> Result<bool> {
        let ready = self.ready.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        match ready.recv_timeout(wait) {
            Ok(()) => Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(false),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("{}: the connection ended (did the machine end?)", self.name)
            }
        }
    }

    fn start(&self, command: &str) -> Result<(u64, mpsc::Receiver<Event>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = mpsc::channel();
        self.waiting
            .lock()
            .map_err(|_| anyhow::anyhow!("poisoned"))?
            .insert(id, tx);
        self.send(&json!({ "id": id, "run": command }))?;
        Ok((id, rx))
    }

    fn send(&self, message: &Value) -> Result<()> {
        let mut writer = self
            .writer
            .lock()
            .map_err(|_| anyhow::anyhow!("poisoned"))?;
        writer
            .write_all(format!("{message}\n").as_bytes())
            .with_context(|| format!("{}: cannot send", self.name))
    }

    /// Run a shell command and wait for its end, whatever its exit status.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output> {
        self.run_with(command, limit, |_| ())
    }

    /// Like [`Channel::run`]; `each` sees the output as it comes.
    pub fn run_with(
        &self,
        command: &str,
        limit: Duration,
        mut each: impl FnMut(&str),
    ) -> Result<Output> {
        let (id, events) = self.start(command)?;
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Out(part)) => {
                    each(&part);
                    text.push_str(&part);
                }
                Ok(Event::Exit(code)) => return Ok(Output { text, code }),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.send(&json!({ "id": id, "kill": true }))?;
                    bail!(
                        "{}: no end after {} s: {command}\n{}",
                        self.name,
                        limit.as_secs(),
                        last_lines(&text, 20)
                    );
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("{}: the connection ended during: {command}", self.name)
                }
            }
        }
    }

    /// Run a shell command that must succeed; gives its output.
    pub fn sh(&self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit)?;
        if output.code != 0 {
            bail!(
                "{}: exit status {} of: {}\n{}",
                self.name,
                output.code,
                command.lines().next().unwrap_or_default(),
                last_lines(&output.text, 20)
            );
        }
        Ok(output.text)
    }

    /// Copy a file there, in parts that fit on a command line.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        let output = Command::new("base64")
            .args(["-w", PART])
            .arg(from)
            .output()?;
        ensure!(output.status.success(), "base64 {}", from.display());
        self.sh(&format!(": >{to}"), PUT)?;
        for part in String::from_utf8_lossy(&output.stdout).lines() {
            self.sh(&format!("echo {part} | base64 -d >>{to}"), PUT)?;
        }
        Ok(())
    }

    /// Run a command for as long as the machine lives, its output into a file.
    pub fn follow(&self, command: &str, path: &Path) -> Result<()> {
        let (_, events) = self.start(command)?;
        let mut file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        thread::spawn(move || {
            while let Ok(Event::Out(part)) = events.recv() {
                if file.write_all(part.as_bytes()).is_err() {
                    break;
                }
            }
        });
        Ok(())
    }
}

fn receive(mut reader: impl BufRead, waiting: &Waiting, ready: &mpsc::Sender<()>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else {
            continue;
        };
        if message.get("ready").is_some() {
            let _ = ready.send(());
        }
        let (Some(id), Ok(mut waiting)) = (message["id"].as_u64(), waiting.lock()) else {
            continue;
        };
        if let Some(part) = message["out"].as_str() {
            if let Some(tx) = waiting.get(&id) {
                let _ = tx.send(Event::Out(part.to_owned()));
            }
        }
        if let Some(code) = message["exit"].as_i64() {
            if let Some(tx) = waiting.remove(&id) {
                let _ = tx.send(Event::Exit(code));
            }
        }
    }
    // Wake everybody who still waits: their senders go.
    if let Ok(mut waiting) = waiting.lock() {
        waiting.clear();
    }
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
