// SPDX-License-Identifier: GPL-2.0-only

//! What the tests of `vmbeam rejuvenate` and `vmbeam replace` share: the toolstack of the host,
//! which is a script, and what the program left.

#![allow(dead_code, reason = "every test file uses a part of it")]

#[path = "../schema/mod.rs"]
mod schema;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Host VM A is domain 1; what is created is domain 5, or what is in `next`. Each has 300 MiB of 1000. At the call
/// whose number is in `kill-at`, counting those of the program but `info`, that is killed: before
/// anything is done, or, if there is `kill-after`, after it. Questions while it waits for the new host
/// VM, how many there are of which is a matter of time, are one call. Instead of a number there may be a
/// stage, which stands for the first call in it.
///
/// Questions are asked often, and to start a program costs more than all else here: the shell
/// answers them by itself.
const XL: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$*" >>calls
take() {
	got=
	[ -e "$1" ] && read -r got <"$1"
}
stage() {
	stage=
	[ -e state/replace-A.json ] || return 0
	while read -r key value; do
		[ "$key" != '"stage":' ] || stage=${value%,}
	done <state/replace-A.json
	stage=${stage#\"}
	stage=${stage%\"}
}
strike() {
	[ "$what" != info ] && take "/proc/$PPID/comm" && [ "$got" = vmbeam ] || return 0
	stage
	[ "$what $stage" != "list checking" ] || echo >looked
	take kill-at || return 0
	at=$got
	take struck
	nr=${got%% *}
	if [ "$1" = before ]; then
		[ "$got" != "$nr list checking" ] || [ "$what $stage" != "list checking" ] || return 0
		nr=$((nr + 1))
		echo "$nr $what $stage" >struck
	fi
	if [ -e kill-after ]; then [ "$1" = after ]; else [ "$1" = before ]; fi || return 0
	[ "$nr" != "$at" ] && [ "$stage" != "$at" ] || kill -9 $PPID
}
find() {
	for f in domid-*; do
		take "$f" && [ "$got" = "$1" ] && return
	done
}
what=$1
strike before
case $1 in
domid | list)
	take asked
	nr=${got:-0}
	echo $((nr + 1)) >asked
	! take fail-at || [ "$nr" != "$got" ] || { echo "no memory" >&2; exit 1; } ;;
esac
case $1 in
domid) take "domid-$2" && echo "$got" || exit 1 ;;
list)
	[ ! -e fail-list ] || exit 1
	echo "Name ID Mem VCPUs State Time(s)"
	echo "Domain-0 0 4096 2 r----- 9.0"
	for f in domid-*; do
		! take "$f" || echo "${f#domid-} $got 1024 1 -b---- 1.0"
	done ;;
info)
	if ! take free; then
		got=1000
		for f in domid-*; do [ ! -e "$f" ] || got=$((got - 300)); done
	fi
	echo "$got" ;;
shutdown)
	[ ! -e refuse-shutdown ] || { echo "no such power button" >&2; exit 1; }
	[ -e hang-shutdown ] || ! find "$3" || rm "$f" ;;
destroy) ! find "$2" || rm "$f" ;;
rename) ! find "$2" || mv "$f" "domid-$3" ;;
create)
	grep SigBlk /proc/self/status >mask
	[ ! -e slow-create ] || exec sleep 60
	[ ! -e refuse-create ] || { echo "out of luck" >&2; exit 1; }
	take next
	id=${got:-5}
	cp "$2" "config-$id"
	echo "Fake 2.0" >version
	echo "$id" >created
	mv created "domid-$(sed -n "s/^name *= *[\"']\(.*\)[\"']$/\1/p" "$2" | tail -n 1)" ;;
esac
strike after
exit 0
"#;

/// Put it there.
pub fn toolstack(dir: &Path) -> PathBuf {
    let xl = dir.join("xl");
    std::fs::write(&xl, XL).unwrap();
    std::fs::set_permissions(&xl, std::fs::Permissions::from_mode(0o755)).unwrap();
    xl
}

/// What was asked of it, but for questions.
pub fn calls(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    let question = |l: &&str| l.starts_with("domid") || l.starts_with("info") || *l == "list";
    text.lines()
        .filter(|l| !question(l))
        .map(|l| l.split('/').next().unwrap().trim().to_owned())
        .collect()
}

/// How it ended.
#[derive(Debug)]
pub struct Done {
    /// 137 if it was killed.
    pub code: i32,
    pub report: serde_json::Value,
    pub stderr: String,
}

impl Done {
    #[track_caller]
    pub fn of(out: Output) -> Self {
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        if let Some(fields) = report.as_object() {
            let both = ["replace", "rejuvenate"];
            let command = both[usize::from(fields.contains_key("evacuated"))];
            schema::assert_fits(command, &report);
        }
        Self {
            code: out.status.code().unwrap_or(137),
            report,
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }

    /// Guests of this list that have moved.
    pub fn names(&self, list: &str) -> Vec<&str> {
        let guests = self.report[list].as_array().unwrap().iter();
        guests
            .filter(|g| g["outcome"] == "moved")
            .map(|g| g["guest"].as_str().unwrap())
            .collect()
    }

    /// It ended with this exit status in this step.
    #[track_caller]
    pub fn assert_ended(&self, code: i32, step: &str) {
        let ended = (self.code, &self.report["step"]);
        assert_eq!(ended, (code, &step.into()), "{self:?}");
    }
}

/// The same keys, and values of the same kind; whatever is null fits.
fn alike(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match (a, b) {
        (Null, _) | (_, Null) => true,
        (Object(a), Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| alike(v, w)))
        }
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Bool(a), Bool(b)) => a == b,
        (String(_), String(_)) | (Number(_), Number(_)) => true,
        _ => false,
    }
}

/// What is printed is like the example that the playbook for many hosts is tried with
/// (tests/packages). With VMBEAM_WRITE_REPORTS set the example is made of it.
#[track_caller]
pub fn assert_like_the_example(name: &str, done: &Done) {
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/packages/reports");
    let example = reports.join(name);
    if std::env::var_os("VMBEAM_WRITE_REPORTS").is_some() {
        let text = serde_json::to_string_pretty(&done.report).unwrap();
        std::fs::write(&example, text + "\n").unwrap();
    }
    let text = std::fs::read(&example).unwrap();
    let example: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert!(alike(&done.report, &example), "{name}: {:#}", done.report);
    assert_eq!(done.report["step"], example["step"], "{name}");
}

pub fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// As Ctrl-C does.
pub fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
}

#[track_caller]
pub fn wait_for(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
