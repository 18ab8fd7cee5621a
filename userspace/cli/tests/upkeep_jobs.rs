// SPDX-License-Identifier: GPL-2.0-only

//! `vmbeam rejuvenate` and `vmbeam replace` as jobs of the daemon: a process of its own does the
//! work, and the command only watches.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
#[path = "rejuvenate/lab.rs"]
mod lab;
mod upkeep;

use lab::Lab;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use upkeep::{wait_for, Done};

/// A command that is going on, and what it says.
struct Going {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
}

impl Going {
    fn start(vmbeam: &Command) -> Self {
        // Whoever runs the tests may ignore it, as shells let their jobs do.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT");
        command.arg(vmbeam.get_program()).args(vmbeam.get_args());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, said }
    }

    /// Until it says this.
    fn until(&mut self, words: &str) {
        let line = self.said.find(|l| l.as_ref().unwrap().contains(words));
        assert!(line.is_some(), "it did not say {words:?}");
    }

    /// Its end.
    fn end(mut self) -> Done {
        let rest: Vec<_> = self.said.map(Result::unwrap).collect();
        let mut stdout = Vec::new();
        let mut out = self.child.stdout.take().unwrap();
        out.read_to_end(&mut stdout).unwrap();
        Done::of(std::process::Output {
            status: self.child.wait().unwrap(),
            stdout,
            stderr: rest.join("\n").into_bytes(),
        })
    }
}

/// A rejuvenation that waits for A to shut down.
fn held() -> (Lab, u64) {
    let lab = Lab::start();
    lab.put("hang-shutdown", "");
    let job = begin(&lab);
    wait_for("A is being shut down", || !lab.calls().is_empty());
    (lab, job)
}

fn begin(lab: &Lab) -> u64 {
    let done = Done::of(lab.job(&["--detach"]).output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    done.report["job"].as_u64().unwrap()
}

fn run(mut command: Command) -> Done {
    Done::of(command.output().unwrap())
}

fn watch(lab: &Lab, job: u64) -> Command {
    lab.vmbeam(&["watch", &job.to_string(), "--json"])
}

fn abort(lab: &Lab, job: u64) {
    let done = run(lab.vmbeam(&["abort", &job.to_string()]));
    assert_eq!(done.code, 0, "{done:?}");
}

/// The job in the list of them.
fn listed(lab: &Lab, job: u64) -> Option<serde_json::Value> {
    let out = lab.vmbeam(&["status", "--json"]).output().unwrap();
    let jobs: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
    jobs.into_iter().find(|j| j["id"] == job)
}

fn record(lab: &Lab, job: u64) -> PathBuf {
    lab.path(&format!("state/upkeep-{job}.json"))
}

/// End the process that does the work in this lab.
fn kill_worker(lab: &Lab) {
    let own = lab.w.control().into_os_string().into_string().unwrap();
    let is_it = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|l| l.contains(&own) && l.split('\0').any(|w| w == "--worker"))
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = all.filter_map(|p| p.file_name().to_str()?.parse().ok());
    let pid = numbers.find(is_it).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn it_can_be_left_watched_from_two_terminals_and_aborted() {
    let (lab, job) = held();
    let shown = listed(&lab, job).unwrap();
    assert_eq!(
        (&shown["kind"], &shown["running"], &shown["phase"]),
        (
            &"rejuvenate".into(),
            &true.into(),
            &"shutting down host VM A".into()
        )
    );
    // The same command is the same job; nothing else of this host VM is begun beside it.
    let mut same = Going::start(&lab.job(&[]));
    let mut other = Going::start(&watch(&lab, job));
    same.until("shutting down host VM A");
    other.until("shutting down host VM A");
    let mut replace = lab.vmbeam(&["replace", "A", "--config"]);
    replace.arg(lab.path("A.cfg"));
    for command in [lab.job(&["--boot-timeout", "7"]), replace] {
        let done = run(command);
        assert_eq!(done.code, 3, "{done:?}");
        let words = format!("job {job} has to do with host VM A already");
        assert!(done.stderr.contains(&words), "{done:?}");
    }
    let done = run(lab.vmbeam(&["forget", "--job", &job.to_string()]));
    assert!(
        done.code == 3 && done.stderr.contains("still works"),
        "{done:?}"
    );
    // Whoever only watches ends nothing else.
    kill(Pid::from_raw(other.child.id() as i32), Signal::SIGINT).unwrap();
    other.child.wait().unwrap();
    assert_eq!(listed(&lab, job).unwrap()["running"], true);

    abort(&lab, job);
    let done = same.end();
    done.assert_ended(5, "shutdown");
    assert_eq!(done.report["interrupted"], true);
    assert!(done.stderr.contains("goes on from here"), "{done:?}");
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
    assert_eq!(listed(&lab, job).unwrap()["outcome"], "incomplete");
    run(watch(&lab, job)).assert_ended(5, "shutdown");
    let text = lab.vmbeam(&["watch", &job.to_string()]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("A: NOT done\n"), "{text}");

    // It is gone on with, by a job of its own.
    lab.remove("hang-shutdown");
    let done = run(lab.job(&[]));
    done.assert_ended(0, "done");
    assert_eq!(done.report["resumed"], true);
    lab.assert_done();
    let done = run(lab.vmbeam(&["forget", "--job", &job.to_string()]));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!record(&lab, job).exists() && listed(&lab, job).is_none());
}

#[test]
fn ctrl_c_stops_it_for_whoever_has_begun_it() {
    let lab = Lab::start();
    lab.put("hang-shutdown", "");
    let going = Going::start(&lab.job(&[]));
    wait_for("A is being shut down", || !lab.calls().is_empty());
    kill(Pid::from_raw(going.child.id() as i32), Signal::SIGINT).unwrap();
    going.end().assert_ended(5, "shutdown");
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
}

#[test]
fn it_outlives_the_daemon_and_its_command() {
    let (mut lab, job) = held();
    let mut first = Going::start(&watch(&lab, job));
    first.until("shutting down host VM A");
    lab.w.stop();
    first.until("goes on when it is back");
    // It has shut down, and all goes on while there is no daemon.
    lab.remove("domid-A");
    wait_for("A is created", || lab.path("domid-A").exists());
    lab.w.start();
    let done = first.end();
    done.assert_ended(0, "done");
    assert_eq!(done.names("returned"), ["guest", "second"]);
    assert_eq!(lab.calls(), ["shutdown -F 1", "create"]);
    lab.assert_done();
    assert_eq!(listed(&lab, job).unwrap()["outcome"], "done");
    // The next daemon knows it as well.
    lab.w.stop();
    lab.w.start();
    run(watch(&lab, job)).assert_ended(0, "done");
}

/// A wish to stop is not lost with a daemon.
#[test]
fn it_is_stopped_by_whatever_daemon_there_is() {
    let (mut lab, job) = held();
    lab.w.stop();
    lab.w.start();
    abort(&lab, job);
    run(watch(&lab, job)).assert_ended(5, "shutdown");
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
}

#[test]
fn what_is_killed_is_gone_on_with_by_the_same_command() {
    let (mut lab, job) = held();
    let going = Going::start(&watch(&lab, job));
    kill_worker(&lab);
    let done = going.end();
    assert_eq!(done.code, 1, "{done:?}");
    let words = "the process that did it has ended before it was done";
    assert!(done.stderr.contains(words), "{done:?}");
    assert_eq!(listed(&lab, job).unwrap()["outcome"], "failed");
    assert!(lab.path("state/rejuvenate-A.json").exists());

    // The same while there is no daemon that could see it.
    let job = begin(&lab);
    wait_for("it is asked to shut down again", || lab.calls().len() == 2);
    lab.w.stop();
    kill_worker(&lab);
    lab.w.start();
    let done = run(watch(&lab, job));
    assert!(done.code == 1 && done.stderr.contains(words), "{done:?}");
    lab.remove("hang-shutdown");
    run(lab.job(&[])).assert_ended(0, "done");
    lab.assert_done();
}

#[test]
fn after_a_restart_of_the_host_it_is_told_and_dismissed() {
    let (mut lab, job) = held();
    lab.w.stop();
    kill_worker(&lab);
    let text = std::fs::read_to_string(record(&lab, job)).unwrap();
    let mut kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    kept["boot"] = "another".into();
    std::fs::write(record(&lab, job), kept.to_string()).unwrap();
    lab.w.start();
    let done = run(watch(&lab, job));
    assert_eq!(done.code, 1, "{done:?}");
    let words = "the host was restarted while host VM A was rejuvenated";
    assert!(done.stderr.contains(words), "{done:?}");
    assert_eq!(lab.calls(), ["shutdown -F 1"]);
    let done = run(lab.vmbeam(&["forget", "--job", &job.to_string()]));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!record(&lab, job).exists());
    let done = run(watch(&lab, job));
    assert_eq!(done.code, 3, "{done:?}");
}

#[test]
fn what_is_refused_says_why_wherever_that_is_found_out() {
    let lab = Lab::start();
    // By the process that does it.
    let done = run(lab.job(&["--config", "/nonexistent"]));
    done.assert_ended(3, "preflight");
    assert!(done.stderr.contains("/nonexistent: "), "{done:?}");
    let mut command = lab.vmbeam(&["rejuvenate", "A/B", "--config", "/nonexistent"]);
    let done = Done::of(command.output().unwrap());
    assert_eq!(done.code, 3, "{done:?}");
    assert!(
        done.stderr.contains("is not the name of a host VM"),
        "{done:?}"
    );
    // Without a daemon.
    let mut alone = Command::new(env!("CARGO_BIN_EXE_vmbeam"));
    alone.args(["--socket", "/nonexistent/control.sock", "rejuvenate", "A"]);
    alone.args(["--config", "/nonexistent"]);
    let done = run(alone);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("cannot reach vmbeamd"), "{done:?}");
}
