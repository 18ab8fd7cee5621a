// SPDX-License-Identifier: GPL-2.0-only

//! Running a program of the toolstack, but not for ever.

use nix::sys::signal::{killpg, SigSet, Signal};
use nix::unistd::Pid;
use std::fs;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often to look whether a program has ended.
const LOOK: Duration = Duration::from_millis(10);
/// The same of one that hangs.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long a program that was killed may take to be gone.
const DIES: Duration = Duration::from_secs(2);
/// Most bytes of a program's output that are kept.
const KEEP: usize = 1 << 20;
/// The same of its complaints.
const KEEP_LAST: usize = 8 << 10;

/// Programs that were killed and have not ended yet, and the numbers of their processes.
static LEFT: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

fn left() -> MutexGuard<'static, Vec<(String, u32)>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program with all its arguments.
fn line(command: &Command) -> String {
    format!("{command:?}")
}

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The beginning of its standard output.
    pub out: String,
    /// That is all of it.
    pub whole: bool,
    /// The end of its standard error.
    pub err: String,
}

/// Reads what a program prints, so that it never has to wait, and keeps a part.
#[derive(Debug, Default)]
pub struct Collector {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collector {
    /// Keep the first bytes, or the last ones.
    pub fn new(from: Option<impl Read + Send + 'static>, last: bool) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let into = kept.clone();
        let reader = from.map(|mut from| {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&buffer[..n]);
                    if last {
                        let excess = kept.len().saturating_sub(KEEP_LAST);
                        kept.drain(..excess);
                    } else {
                        kept.truncate(KEEP);
                    }
                }
            })
        });
        Self { kept, reader }
    }

    /// What is there now.
    pub fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// Wait for the rest of what a program printed that has ended. A program in
    /// the background may have inherited the other end: not for long, then.
    ///
    /// Says whether there is nothing more to come.
    pub fn settle(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match &self.reader {
                Some(reader) if !reader.is_finished() => {}
                _ => return true,
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Wait until a program ends, at most this long.
pub fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// A process of this group that has not ended. Who leads the group may have: what a shell has begun
/// outlives it. One that has ended and that nobody has waited for yet does nothing any more.
fn member(group: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // Number, name in parentheses, state, parent, group.
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let state = words.next()?;
        let is_in = words.nth(1)?.parse() == Ok(group);
        let number = process.file_name().to_str()?.parse().ok()?;
        (is_in && !["Z", "X"].contains(&state)).then_some(number)
    })
}

/// Kill a program, and wait for its end, but not for long: what the kernel does in its name, a
/// hypercall say, may have to end first. Then somebody else waits for it.
///
/// # Errors
///
/// It was killed and has not ended yet.
pub fn kill(mut child: Child) -> std::io::Result<()> {
    child.kill()?;
    reap(child, DIES, None)
}

/// Wait for what was killed, and all of its process group if it leads one. While one of it has not
/// ended, this command is not run again.
fn reap(mut child: Child, limit: Duration, command: Option<&Command>) -> std::io::Result<()> {
    let (deadline, group) = (Instant::now() + limit, child.id());
    let pid = match wait(&mut child, limit)? {
        None => group,
        Some(_) => loop {
            match member(group) {
                None => return Ok(()),
                Some(pid) if Instant::now() >= deadline => break pid,
                Some(_) => std::thread::sleep(LOOK),
            }
        },
    };
    left().extend(command.map(|c| (line(c), pid)));
    let ended = move || left().retain(|(_, p)| *p != pid);
    // If there cannot be a thread, it stays a zombie for as long as this program runs.
    let waits = std::thread::Builder::new().name("reaper".into());
    let waits = waits.spawn(move || {
        let _ = child.wait();
        while member(group).is_some() {
            std::thread::sleep(LOOK_AGAIN);
        }
        ended();
    });
    if waits.is_err() {
        ended();
    }
    let why =
        format!("process {pid} was killed and has not ended: what the kernel does for it lasts");
    Err(Error::new(ErrorKind::TimedOut, why))
}

/// Run a program to its end; after `limit` it is killed, which is an error. One that was killed and
/// has not ended is not run once more with the same arguments, which is an error at once: who asks
/// again and again would leave a process each time.
///
/// It starts with no signal blocked, whatever this program waits for: what it leaves behind,
/// a device model say, would ignore SIGTERM for ever.
pub fn run(command: &mut Command, limit: Duration) -> std::io::Result<Output> {
    run_while(command, limit, || true)
}

/// The same, for as long as somebody wants it to. If it leads a process group, that is ended
/// with it.
pub fn run_while(
    command: &mut Command,
    limit: Duration,
    wanted: impl Fn() -> bool,
) -> std::io::Result<Output> {
    let same = line(command);
    if let Some((_, pid)) = left().iter().find(|(line, _)| *line == same) {
        let why = format!(
            "process {pid}, which did the same, was killed and has not ended: what the kernel does for it lasts"
        );
        return Err(Error::new(ErrorKind::ResourceBusy, why));
    }
    // To do something between fork and exec wants a copy of this program's page tables, which takes
    // longer than most programs that are run.
    if SigSet::thread_get_mask()?.iter().next().is_some() {
        // SAFETY: sigprocmask() may be called between fork and exec, and nothing else is done.
        unsafe {
            command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
        }
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let out = Collector::new(child.stdout.take(), false);
    let err = Collector::new(child.stderr.take(), true);
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = wait(&mut child, LOOK)? {
            break status;
        }
        let (kind, why) = if Instant::now() >= deadline {
            let why = format!("it did not end within {} s", limit.as_secs());
            (ErrorKind::TimedOut, why)
        } else if !wanted() {
            (ErrorKind::Interrupted, "it was ended".into())
        } else {
            continue;
        };
        // There is no such group if it is in another one. PIDs are that small.
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let killed = child.kill().and_then(|()| reap(child, DIES, Some(command)));
        return Err(match killed {
            Ok(()) => Error::new(kind, why),
            Err(e) => Error::new(kind, format!("{why}; {e}")),
        });
    };
    let ended = out.settle();
    err.settle();
    let text = out.text();
    Ok(Output {
        status,
        whole: ended && text.len() < KEEP,
        out: text,
        err: err.text(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> std::io::Result<Output> {
        run(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn output_is_bounded_and_nobody_waits_for_it() {
        let o = sh(
            "echo first; yes | head -c 3000000; yes n | head -c 300000 >&2; echo last >&2; exit 3",
            Duration::from_secs(20),
        )
        .unwrap();
        assert_eq!(o.status.code(), Some(3));
        assert!(o.out.starts_with("first\ny\n") && o.out.len() <= KEEP);
        assert!(o.err.ends_with("n\nlast\n") && o.err.len() <= KEEP_LAST);
    }

    #[test]
    fn no_signal_is_blocked_in_it() {
        use nix::sys::signal::{SigSet, Signal};
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().unwrap();
        let o = sh("grep SigBlk /proc/self/status", Duration::from_secs(20)).unwrap();
        assert_eq!(o.out.trim(), "SigBlk:\t0000000000000000");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let started = Instant::now();
        let e = sh("exec sleep 60", Duration::from_millis(200)).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(e.to_string(), "it did not end within 0 s");
        assert!(started.elapsed() < Duration::from_secs(50));
    }

    /// One that does not die, as it looks to whoever waits.
    #[test]
    fn nobody_waits_for_what_does_not_die() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (pid, input) = (child.id(), child.stdin.take());
        let e = reap(child, Duration::from_millis(10), None).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TimedOut);
        assert!(
            e.to_string().contains("was killed and has not ended"),
            "{e}"
        );
        // It is no zombie for ever.
        drop(input);
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::sleep(LOOK);
        }
    }

    /// Who asks every few seconds would leave one each time.
    #[test]
    fn what_does_not_die_is_not_run_again() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (pid, input) = (child.id(), child.stdin.take());
        let mut same = Command::new("echo");
        same.args(["does not", "die"]);
        reap(child, Duration::from_millis(10), Some(&same)).unwrap_err();
        let limit = Duration::from_secs(20);
        let e = run(&mut same, limit).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ResourceBusy);
        assert!(
            e.to_string().starts_with(&format!("process {pid}, ")),
            "{e}"
        );
        // Something else is.
        run(Command::new("echo").arg("does not die"), limit).unwrap();
        drop(input);
        while run(&mut same, limit).is_err() {
            std::thread::sleep(LOOK);
        }
    }

    /// The shell is gone, and what it has begun hangs.
    #[test]
    fn what_a_shell_has_begun_is_not_run_again_while_it_hangs() {
        let mut child = Command::new("sh")
            .args(["-c", "exec 3<&0; cat <&3 >/dev/null & echo $!"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut begun = String::new();
        let mut out = child.stdout.take().unwrap();
        out.read_to_string(&mut begun).unwrap();
        let mut same = Command::new("echo");
        same.args(["hangs", "in a shell"]);
        let e = reap(child, Duration::from_millis(10), Some(&same)).unwrap_err();
        let named = format!("process {} was killed", begun.trim());
        assert!(e.to_string().starts_with(&named), "{e}");
        let limit = Duration::from_secs(20);
        let e = run(&mut same, limit).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ResourceBusy);
        drop(input);
        while run(&mut same, limit).is_err() {
            std::thread::sleep(LOOK);
        }
    }

    /// All that it has begun ends with it.
    #[test]
    fn a_process_group_is_killed_with_its_leader() {
        let dir = tempfile::tempdir().unwrap();
        let (file, limit) = (dir.path().join("pid"), Duration::from_millis(500));
        let script = format!("sleep 600 & echo $! >'{}'; wait", file.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).process_group(0);
        run(&mut shell, limit).unwrap_err();
        let begun = fs::read_to_string(file).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", begun.trim()));
        assert!(stat.map_or(true, |s| s.contains(") Z ")));
    }
}
