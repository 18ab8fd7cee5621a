// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator has written down of guests in fake host VMs.

#![allow(dead_code, reason = "every test file uses a part of it")]

use crate::common::{lock, World};
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmbeam_control_protocol::{FromDaemon, ToDaemon};

pub fn dir(w: &World, name: &str) -> PathBuf {
    w.dir.path().join(format!("xen-{name}"))
}

/// Directories for the files of A, B and C, and what starts the guest in these.
pub fn with_files(w: &World, defined: &[&str]) {
    for name in ["A", "B", "C"] {
        fs::create_dir_all(dir(w, name).join("auto")).unwrap();
        lock(&w.hosts[name]).dir = Some(dir(w, name));
    }
    for name in defined {
        define(w, name);
    }
}

pub fn define(w: &World, name: &str) {
    let (dir, text) = (dir(w, name), format!("name=guest\nof {name}"));
    fs::write(dir.join("guest.cfg"), text).unwrap();
    symlink("../guest.cfg", dir.join("auto/guest")).unwrap();
}

/// The host VMs that would start the guest.
pub fn started_by(w: &World) -> Vec<&'static str> {
    let starts = |name: &&str| dir(w, name).join("auto/guest").exists();
    ["A", "B", "C"].into_iter().filter(starts).collect()
}

/// What it was told.
pub fn gate(w: &World, name: &str) -> Option<String> {
    let file = dir(w, name).join("run/may-start");
    Some(fs::read_to_string(file).ok()?.trim().into())
}

#[track_caller]
pub fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not so after 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn held(w: &World, name: &str) -> String {
    let FromDaemon::List(list) = w.ask(&ToDaemon::List) else {
        panic!()
    };
    let vm = list.into_iter().find(|vm| vm.name == name).unwrap();
    vm.held.unwrap_or_default()
}

/// A host VM is down if there is this file, and is called otherwise if there is another one. Which
/// there are is not told while a third one is there.
pub fn with_domids(w: &mut World) {
    let command = w.dir.path().join("domids");
    let up = w.dir.path().display();
    let text = format!(
        "#!/bin/sh\nn=0\nwhile [ $1 = list ] && [ -e {up}/hold ]; do sleep 0.02; done\n\
         case $1 in list) echo Name ID Mem VCPUs State 'Time(s)'; \
         echo Domain-0 0 1 1 r----- 1;; esac\nfor vm in A B C D; do n=$((n + 1))\n\
         [ -e {up}/down-$vm ] && continue\n[ -e {up}/renamed-$vm ] && vm=renamed\n\
         case $1 in list) echo $vm $n 1 1 r----- 1;; *) [ $2 = $vm ] && echo $n && exit 0;; \
         esac\ndone\n[ $1 = list ]\n"
    );
    fs::write(&command, text).unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    w.domid_command = Some(command);
    w.domid_of_all = true;
    for name in ["C", "D"] {
        fs::write(w.dir.path().join(format!("down-{name}")), "").unwrap();
    }
}
