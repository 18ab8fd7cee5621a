// SPDX-License-Identifier: GPL-2.0-only

//! The program as a service runs it: with few system calls, as another user if this
//! is root, with metrics, until SIGTERM.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{lock, wait_until, Trouble, World};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{Failure, FromDaemon, GuestRef, MigrateRequest, Mode, ToDaemon};

/// Ends with the test, whatever happens.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// An answer to this question, once the daemon is there.
fn ask(control: &Path, request: &ToDaemon) -> FromDaemon {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut stream = loop {
        match UnixStream::connect(control) {
            Ok(stream) => break stream,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let bytes = vmbeam_wire::encode(1, 1, request).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut decoder = vmbeam_wire::Decoder::strict();
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return frame.decode().unwrap();
        }
        assert_ne!(decoder.fill(&mut stream).unwrap(), 0, "the daemon hung up");
    }
}

#[test]
fn it_lives_with_few_system_calls_and_ends_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (control, metrics) = (dir.path().join("run/c.sock"), dir.path().join("run/m.sock"));
    let base = dir.path().display();
    let config = dir.path().join("vmbeamd.toml");
    let text = format!(
        "[daemon]\ncontrol_socket = {control:?}\nstate_dir = \"{base}/state\"\n\
         device = \"/nonexistent/vmbeam\"\n[metrics]\nlisten = {metrics:?}\n\
         [[host_vm]]\nname = \"A\"\nsocket = \"{base}/A.sock\"\ndomid = 1\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeamd"));
    command
        .arg("--config")
        .arg(&config)
        .args(["--seccomp", "kill"]);
    if nix::unistd::Uid::effective().is_root() {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), everybody).unwrap();
        command.args(["--user", "nobody"]);
    }
    let mut service = Service(command.stderr(Stdio::piped()).spawn().unwrap());

    for _ in 0..2 {
        assert!(matches!(
            ask(&control, &ToDaemon::Check),
            FromDaemon::Check(_)
        ));
        let text = get(UnixStream::connect(&metrics).unwrap(), "/metrics");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        for line in [
            "vmbeam_moves_total{result=\"completed\"} 0",
            "vmbeam_agent_connected{host_vm=\"A\"} 0",
            "vmbeam_build_info{version=\"",
            "# EOF",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        let text = get(UnixStream::connect(&metrics).unwrap(), "/metrics?x=1");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let text = get(UnixStream::connect(&metrics).unwrap(), "/other");
        assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    }
    // A client that says nothing of use, and a job that is refused.
    drop(UnixStream::connect(&metrics).unwrap().write_all(b"\0\n"));
    let status = ask(&control, &ToDaemon::Status);
    assert_eq!(status, FromDaemon::Status(vec![]));

    let pid = nix::unistd::Pid::from_raw(service.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = service.0.wait().unwrap();
    let mut log = String::new();
    let mut stderr = service.0.stderr.take().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    assert!(ended.success(), "{ended}: {log}");
    assert!(
        log.contains("offering metrics") && log.contains("SIGTERM: stopping"),
        "{log}"
    );
    assert!(!control.exists());
}

fn request() -> MigrateRequest {
    MigrateRequest {
        from: GuestRef {
            host_vm: "A".into(),
            guest: "guest".into(),
        },
        to: "B".into(),
        mode: Mode::Swap,
        dry_run: false,
        verify: false,
        timeout_seconds: None,
        max_downtime_ms: None,
    }
}

/// A daemon with metrics at a port that is free.
fn world() -> (World, u16) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut w = World::new();
    w.metrics = Some(format!("127.0.0.1:{port}"));
    lock(&w.hosts["B"]).guests.clear();
    w.agents(&["A", "B"]);
    w.start();
    for name in ["A", "B"] {
        w.wait_agent(name, None);
    }
    (w, port)
}

#[test]
fn moves_are_counted() {
    let (w, port) = world();
    let migrate = || w.ask(&ToDaemon::Migrate(request()));
    lock(&w.hosts["B"]).trouble = Trouble::RestoreFails;
    assert!(matches!(migrate(), FromDaemon::Error { .. }));
    lock(&w.hosts["B"]).trouble = Trouble::None;
    let page = lock(&w.hosts["A"]).guests[&1].pages[200];
    lock(&w.driver.faults).refuse = [(page.gfn, -(vmbeam_uapi::Errno::EBUSY as i32))].into();
    assert!(matches!(migrate(), FromDaemon::Migrated(_)));
    // It is not there any more.
    assert!(matches!(migrate(), FromDaemon::Error { .. }));
    let text = get(TcpStream::connect(("127.0.0.1", port)).unwrap(), "/metrics");
    for line in [
        "vmbeam_moves_total{result=\"completed\"} 1",
        "vmbeam_moves_total{result=\"rolled_back\"} 1",
        "vmbeam_moves_total{result=\"refused\"} 1",
        "vmbeam_moves_total{result=\"failed\"} 0",
        "vmbeam_pages_total{how=\"swapped\"} 957",
        "vmbeam_pages_total{how=\"copied\"} 1",
        "vmbeam_pages_total{how=\"sent\"} 66",
        "vmbeam_pages_refused_total{reason=\"referenced\"} 1",
        "vmbeam_move_seconds_total{phase=\"swap\"} ",
        "vmbeam_agent_connected{host_vm=\"A\"} 1",
        "vmbeam_agent_connected{host_vm=\"C\"} 0",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

#[test]
fn the_head_of_the_metrics() {
    let (_w, port) = world();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let (head, none) = ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .split_once("\r\n\r\n")
        .map(|(h, b)| (h.to_owned(), b.to_owned()))
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(none, "");
    let whole = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(whole.starts_with(&head), "{head}\n{whole}");
    let length = whole.split_once("\r\n\r\n").unwrap().1.len();
    assert!(
        head.contains(&format!("Content-Length: {length}\r\n")),
        "{head}"
    );
    for other in [
        "POST /metrics HTTP/1.1\r\n\r\n",
        "\r\n\r\n",
        "GET /metricsx HTTP/1.1\r\n\r\n",
    ] {
        assert!(ask(other).starts_with("HTTP/1.1 404"), "{other}");
    }
    // More than a request, and no text.
    for other in ["x".repeat(20 << 10), "\u{0}\u{ff}\r\n\r\n".into()] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = stream.write_all(other.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
}

#[test]
fn connections_that_say_nothing_cost_nothing() {
    let (w, port) = world();
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut idle: Vec<_> = (0..600).map(|_| connect()).collect();
    // One that says a little from time to time.
    let mut slow = connect();
    let _ = slow.write_all(b"GET /");
    assert!(matches!(
        w.ask(&ToDaemon::Migrate(request())),
        FromDaemon::Migrated(_)
    ));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let _ = slow.write_all(b"x");
        let mut stream = connect();
        let mut text = String::new();
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
        if text.contains("vmbeam_moves_total{result=\"completed\"} 1") {
            break;
        }
        assert!(Instant::now() < deadline, "no metrics: {text}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // They have been hung up on.
    idle[599]
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert!(matches!(idle[599].read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn metrics_that_cannot_be_offered_stop_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut w = World::new();
    w.metrics = Some(format!("127.0.0.1:{port}"));
    w.start();
    assert!(matches!(w.ask(&ToDaemon::Check), FromDaemon::Check(_)));
    drop(taken);
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "they are not tried again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_stop_undoes_what_has_not_passed_the_point_of_no_return() {
    let (mut w, _) = world();
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    let control = w.control();
    let job = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(control).unwrap();
        let bytes = vmbeam_wire::encode(1, 1, &ToDaemon::Migrate(request())).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut decoder = vmbeam_wire::Decoder::strict();
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                let answer: FromDaemon = frame.decode().unwrap();
                if answer.is_last() {
                    return answer;
                }
            }
            assert_ne!(decoder.fill(&mut stream).unwrap(), 0);
        }
    });
    w.wait_paused("A");
    w.stop();
    let FromDaemon::Error { failure, message } = job.join().unwrap() else {
        panic!()
    };
    assert_eq!(failure, Failure::RolledBack);
    assert!(message.contains("stopping"), "{message}");
    assert_eq!(lock(&w.hosts["A"]).running(), ["guest"]);
    assert_eq!(w.records(), 0);
}

/// The daemon, with this as its standard error, and a control socket.
fn service(
    dir: &Path,
    stderr: Stdio,
    change: impl FnOnce(&mut Command),
) -> (Service, std::path::PathBuf) {
    let control = dir.join("run/c.sock");
    let config = dir.join("vmbeamd.toml");
    let base = dir.display();
    let text = format!(
        "[daemon]\ncontrol_socket = {control:?}\nstate_dir = \"{base}/state\"\n\
         device = \"/nonexistent/vmbeam\"\n\
         [[host_vm]]\nname = \"A\"\nsocket = \"{base}/A.sock\"\ndomid = 1\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmbeamd"));
    command.arg("--config").arg(&config).arg("--verbose");
    change(&mut command);
    let service = Service(command.stderr(stderr).spawn().unwrap());
    (service, control)
}

fn signal(service: &Service, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(service.0.id() as i32);
    nix::sys::signal::kill(pid, signal).unwrap();
}

#[test]
fn sighup_ends_nothing_and_systemd_is_told() {
    use nix::sys::signal::Signal;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let notify = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    notify
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let told = || {
        let mut text = [0; 100];
        let length = notify.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let (mut service, control) = service(dir.path(), Stdio::null(), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(told(), "READY=1");
    // It listens when it says so.
    UnixStream::connect(&control).unwrap();
    for _ in 0..3 {
        signal(&service, Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(100));
        ask(&control, &ToDaemon::Status);
    }
    signal(&service, Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    assert!(service.0.wait().unwrap().success());
}

/// As root only: another user, and root again, both with what the other has left.
#[test]
fn another_user_has_the_records_of_the_one_before() {
    use nix::sys::signal::Signal;
    use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
    if !nix::unistd::Uid::effective().is_root() {
        // Where the project tests itself nothing is left out.
        assert!(std::env::var_os("VMBEAM_IN_SYSROOT").is_none());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let everybody = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let (record, elsewhere) = (state.join("migration-7.json"), dir.path().join("elsewhere"));
    for file in [&record, &elsewhere, &state.join("rejuvenate-A.json")] {
        std::fs::write(file, "{}").unwrap();
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap();
    }
    symlink(&elsewhere, state.join("migration-8.json")).unwrap();
    std::fs::hard_link(&elsewhere, state.join("migration-9.json")).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
    for (user, uid) in [
        ("nobody", nobody.uid.as_raw()),
        ("", 0),
        ("nobody", nobody.uid.as_raw()),
    ] {
        let (mut service, control) = service(dir.path(), Stdio::piped(), |command| {
            if user.is_empty() {
                // As the unit does, and in it.
                let run = dir.path().join("run");
                std::os::unix::fs::chown(run, Some(0), Some(0)).unwrap();
                let bounded =
                    "exec setpriv --bounding-set=-all,+chown,+setgid,+setuid \"$0\" \"$@\"";
                let (program, args) = (command.get_program().to_owned(), command.get_args());
                let args: Vec<_> = args.map(ToOwned::to_owned).collect();
                *command = Command::new("sh");
                command.args(["-c", bounded]).arg(program).args(args);
            } else {
                command.args(["--user", user]);
            }
        });
        ask(&control, &ToDaemon::Status);
        assert_eq!((owner(&state), owner(&record)), (uid, uid));
        assert_eq!(owner(&elsewhere), 0, "given away by another name");
        signal(&service, Signal::SIGTERM);
        service.0.wait().unwrap();
        let mut log = String::new();
        service
            .0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        // It was read, and is no record.
        assert!(log.contains("migration-7.json: "), "{log}");
        let of_record = log
            .lines()
            .find(|l| l.contains("migration-7.json"))
            .unwrap();
        assert!(!of_record.contains("ermission"), "{log}");
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let (reader, gone) = nix::unistd::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::create("/dev/full").unwrap();
    for stderr in [Stdio::from(gone), Stdio::from(full)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut service, control) = service(dir.path(), stderr, |_| {});
        for _ in 0..3 {
            // It has said that it listens, and says that this is no request.
            ask(&control, &ToDaemon::Status);
            let mut stream = UnixStream::connect(&control).unwrap();
            stream.write_all(&[0; 64]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let pid = nix::unistd::Pid::from_raw(service.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(service.0.wait().unwrap().success());
    }
}

/// Two daemons would settle each other's migrations, and number theirs alike.
#[test]
fn a_second_daemon_does_not_get_the_journal_of_one_that_runs() {
    let mut w = World::new();
    w.start();
    let error = w.start_on("other.sock").unwrap_err();
    assert!(error.contains("another vmbeamd uses it"), "{error}");
    let same = w.start_on("control.sock").unwrap_err();
    assert!(same.contains("another vmbeamd uses it"), "{same}");
    // The first one is as it was, and the next one can have it.
    assert_eq!(w.ask(&ToDaemon::Status), FromDaemon::Status(vec![]));
    w.stop();
    w.start();
}

/// Whoever comes while it stops is told so, and does not start another one.
#[test]
fn a_daemon_that_is_stopping_says_so() {
    let mut w = World::new();
    lock(&w.hosts["B"]).guests.clear();
    lock(&w.hosts["A"]).trouble = Trouble::SaveHangs;
    w.agents(&["A", "B"]);
    w.start();
    w.wait_agent("A", None);
    w.wait_agent("B", None);
    let migrate = |w: &World| w.ask(&ToDaemon::Migrate(request()));
    let control = w.control();
    std::thread::scope(|s| {
        let daemon = w.take();
        let moving = s.spawn(|| migrate(&w));
        w.wait_paused("A");
        // A step that takes a while, for the stop to wait for.
        lock(&w.hosts["A"]).trouble = Trouble::None;
        lock(&w.hosts["B"]).trouble = Trouble::RestoreSleeps;
        wait_until("the restore sleeps", || {
            lock(&w.hosts["B"]).trouble != Trouble::RestoreSleeps
        });
        let stopping = s.spawn(|| daemon.stop());
        std::thread::sleep(Duration::from_millis(300));
        let answer = migrate(&w);
        let FromDaemon::Error { failure, message } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(failure, Failure::Refused);
        assert!(message.contains("vmbeamd is stopping"), "{message}");
        stopping.join().unwrap();
        assert!(matches!(moving.join().unwrap(), FromDaemon::Error { .. }));
    });
    assert!(!control.exists());
}
