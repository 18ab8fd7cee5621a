// SPDX-License-Identifier: GPL-2.0-only

//! Running the commands that the harness sends.

use std::collections::HashMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde_json::json;
use serde_json::Value;

/// Process groups of the commands that are running, by request number.
type Running = Arc<Mutex<HashMap<u64, u32>>>;

/// Serve for ever, on a virtio-serial port or on a device that is named by its path.
pub fn exec(name: &str, port: &str) -> Result<()> {
    let path = PathBuf::from("/dev/virtio-ports").join(port);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let writer = Arc::new(Mutex::new(file.try_clone()?));
    let running = Running::default();
    // If the machine was ended and started again, its last line may be cut off.
    if let Ok(mut writer) = writer.lock() {
        let _ = writer.write_all(b"\n");
    }
    send(&writer, &json!({ "ready": name }));

    let mut reader = BufReader::new(file);
    let mut line = String::new();
    loop {
        line.clear();
        // A port whose other end is closed reads as end of file.
        if reader.read_line(&mut line)? == 0 {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        let Ok(request) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let Some(id) = request["id"].as_u64() else {
            continue;
        };
        if request["kill"].as_bool() == Some(true) {
            if let Some(pid) = running.lock().ok().and_then(|r| r.get(&id).copied()) {
                let _ = Command::new("kill")
                    .arg("--")
                    .arg(format!("-{pid}"))
                    .status();
            }
        } else if let Some(text) = request["run"].as_str() {
            let (text, writer, running) = (text.to_owned(), writer.clone(), running.clone());
            thread::spawn(move || run(id, &text, &writer, &running));
        }
    }
}

fn send(writer: &Mutex<File>, message: &Value) {
    if let Ok(mut writer) = writer.lock() {
        let _ = writer.write_all(format!("{message}\n").as_bytes());
    }
}

/// Run one command in a process group of its own and send its output as it comes.
fn run(id: u64, text: &str, writer: &Mutex<File>, running: &Mutex<HashMap<u64, u32>>) {
    let spawned = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 2>&1; {text}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => {
            send(
                writer,
                &json!({ "id": id, "out": format!("cannot start: {e}\n"), "exit": 127 }),
            );
            return;
        }
    };
    if let Ok(mut running) = running.lock() {
        running.insert(id, child.id());
    }
    if let Some(mut out) = child.stdout.take() {
        let mut buffer = [0; 16384];
        while let Ok(n) = out.read(&mut buffer) {
            if n == 0 {
                break;
            }
            send(
                writer,
                &json!({ "id": id, "out": String::from_utf8_lossy(&buffer[..n]) }),
            );
        }
    }
    let code = child.wait().ok().and_then(|s| s.code()).unwrap_or(-1);
    if let Ok(mut running) = running.lock() {
        running.remove(&id);
    }
    send(writer, &json!({ "id": id, "exit": code }));
}
