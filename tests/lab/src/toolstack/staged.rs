// SPDX-License-Identifier: GPL-2.0-only

//! A guest that is saved and restored in two steps, through a pipe: what is found before it
//! is suspended, and that it is not suspended then.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::arrived;
use super::checked;
use super::config;
use super::create;
use super::stream::Layout;
use super::verify_stream;
use super::LIMIT;
use super::SAVED;
use super::XL;
use crate::channel::Channel;
use crate::tally::Tally;
use crate::topology::SHORT;

/// Pipes and what the programs said.
const DIRECTORY: &str = "/run/lab/staged";
/// Leaves something for the guest to give back, and for its network card; and `xl sysrq` may
/// have it panic.
const SPARE: &str = "vmbeam.spare=24 sysrq_always_enabled";
const VIF: &str = "vif=[\"mac=00:16:3e:77:00:09,bridge=br0,script=vif-lab\"]";
/// Of the destination only.
const NO_DISK: &str = "disk=[\"phy:/dev/none,xvda,w\"]";
/// What libxl says before it does it.
const SUSPENDS: &str = "issuing PV suspend request";

pub fn run(tally: &mut Tally, host: &Channel, long: bool) {
    let mut running = false;
    tally.case("toolstack", "a guest with a network card runs", || {
        host.sh("insmod /lib/modules/xen-netback.ko", SHORT)?;
        create(host, "home", VIF, SPARE, "")?;
        checked(host, "home")?;
        running = true;
        Ok(())
    });
    if running {
        tally.case("toolstack", "staged: the gate is closed", || {
            Transfer::start(host, VIF, true)?.closed()
        });
        tally.case(
            "toolstack",
            "staged: a bridge is missing, before the gate",
            || {
                let vif = VIF.replace("br0", "br9");
                Transfer::start(host, &vif, true)?.refused("unable to add nic devices")
            },
        );
        tally.case(
            "toolstack",
            "staged: a disk is missing, before the gate",
            || {
                let devices = format!("{VIF}\n{NO_DISK}");
                Transfer::start(host, &devices, true)?.refused("failed to stat: /dev/none")
            },
        );
        tally.case("toolstack", "staged: the guest gives memory back", || {
            Transfer::start(host, VIF, true)?.balloons()
        });
        // A guest kernel boots again in each.
        if long {
            tally.case("toolstack", "staged: the guest reboots at the gate", || {
                Transfer::start(host, VIF, true)?.reboots()
            });
            tally.case("toolstack", "staged: the guest panics at the gate", || {
                Transfer::start(host, VIF, true)?.panics()
            });
        }
        tally.case(
            "toolstack",
            "staged: the guest loses its network card at the gate",
            || Transfer::start(host, VIF, true)?.detached(),
        );
        tally.case("toolstack", "not staged: a guest through a pipe", || {
            Transfer::start(host, VIF, false)?.arrives()?;
            host.sh("xl destroy away; xl unpause home", LIMIT)?;
            checked(host, "home")
        });
        tally.case("toolstack", "staged: the guest runs until the gate", || {
            Transfer::start(host, VIF, true)?.passes()
        });
    }
    let _ = host.run(&format!("rm -rf {DIRECTORY}"), SHORT);
}

/// `xl save` and `xl restore` with a pipe between them, and `tee` in it.
struct Transfer<'a> {
    host: &'a Channel,
    staged: bool,
}

impl<'a> Transfer<'a> {
    /// Whoever has the gate open for writing keeps the saver waiting there.
    fn start(host: &'a Channel, vif: &str, staged: bool) -> Result<Self> {
        let option = if staged { "--staged 9" } else { "" };
        let stamp = "awk '{ getline t <\"/proc/uptime\"; close(\"/proc/uptime\"); \
                     print t, $0; fflush() }'";
        host.sh(
            &format!(
                "rm -rf {DIRECTORY} && mkdir {DIRECTORY} && cd {DIRECTORY} &&
                cat >away.cfg <<'EOF'\n{}\nEOF
                mkfifo saver restorer gate ready
                exec </dev/null >/dev/null 2>&1
                sleep 100000 >gate & echo $! >holder
                cat ready >domid &
                tee {SAVED} <saver >restorer &
                ( {{ {XL} -vvv save --external-memory {option} -p home saver 9<gate 2>&1
                     echo $? >save.exit; }} | {stamp} >save.log; mv save.exit save.code ) &
                ( {{ {XL} -vvv restore -e --external-memory {option} -p away.cfg restorer 9>ready 2>&1
                     echo $? >restore.exit; }} | {stamp} >restore.log
                  mv restore.exit restore.code ) &",
                config("away", vif, SPARE)
            ),
            SHORT,
        )?;
        Ok(Self { host, staged })
    }

    /// Wait until the destination says that everything is there.
    fn ready(&self) -> Result<u32> {
        let domid = self.sh(
            "until [ -s domid ] || [ -s restore.code ]; do sleep 0.2; done; cat domid",
            LIMIT,
        )?;
        domid
            .strip_suffix('\n')
            .and_then(|line| line.parse().ok())
            .with_context(|| format!("the destination says {domid:?}, and {}", self.said()))
    }

    /// Wait for the end of a program; its exit status and what it said.
    fn ended(&self, program: &str) -> Result<(i32, String)> {
        let code = self.sh(
            &format!("until [ -s {program}.code ]; do sleep 0.2; done; cat {program}.code"),
            LIMIT,
        )?;
        let text = self.sh(&format!("cat {program}.log"), SHORT)?;
        Ok((code.trim().parse()?, text))
    }

    /// The saver must have failed with these words; nothing may be left of the destination.
    fn failed(&self, words: &str, suspended: bool) -> Result<()> {
        let (save, said) = self.ended("save")?;
        ensure!(
            save != 0 && said.contains(words) && said.contains(SUSPENDS) == suspended,
            "xl save: exit status {save}, {said}"
        );
        let (restore, said) = self.ended("restore")?;
        ensure!(restore != 0, "xl restore succeeded: {said}");
        self.nothing_left()?;
        checked(self.host, "home")
    }

    /// Neither of the destination, nor of a domain that somebody had mapped.
    fn nothing_left(&self) -> Result<()> {
        let left = self.sh(
            "xl list away 2>/dev/null; xl list | grep '(null)'; \
             xenstore-ls /local/domain/0/backend/vif 2>/dev/null | grep away; true",
            SHORT,
        )?;
        ensure!(left.is_empty(), "there is left of the destination: {left}");
        Ok(())
    }

    /// The gate is opened to a guest that is not what it was: both programs must fail, however
    /// far they come, and nothing may be left.
    fn in_vain(&self) -> Result<()> {
        self.sh("printf g >gate", SHORT)?;
        let (save, saved) = self.ended("save")?;
        let (restore, restored) = self.ended("restore")?;
        ensure!(
            save != 0 && restore != 0,
            "xl save: exit status {save}, {saved}; xl restore: {restore}, {restored}"
        );
        self.nothing_left()
    }

    /// The next case has a guest with a network card.
    fn again(&self) -> Result<()> {
        self.sh("xl destroy home", LIMIT)?;
        create(self.host, "home", VIF, SPARE, "")?;
        checked(self.host, "home")
    }

    fn reboots(self) -> Result<()> {
        self.ready()?;
        self.sh(
            "old=$(xl domid home); xl reboot home && \
             until new=$(xl domid home 2>/dev/null) && [ $new != $old ]; do sleep 0.5; done",
            LIMIT,
        )?;
        self.in_vain()?;
        checked(self.host, "home")
    }

    fn panics(self) -> Result<()> {
        self.ready()?;
        self.sh(
            "xl sysrq home c && \
             until xl list home | awk 'NR == 2 { print $5 }' | grep -q c; do sleep 0.5; done",
            LIMIT,
        )?;
        self.in_vain()?;
        // It is kept, to be looked at.
        self.sh("xl domid home", SHORT)?;
        self.again()
    }

    /// It arrives: what it needs is there, and a card too many harms nobody.
    fn detached(self) -> Result<()> {
        self.ready()?;
        self.sh("xl network-detach home 0", LIMIT)?;
        self.sh("printf g >gate", SHORT)?;
        self.arrives()?;
        self.sh("xl destroy away; xl unpause home", LIMIT)?;
        self.nothing_left()?;
        checked(self.host, "home")?;
        self.again()
    }

    fn closed(self) -> Result<()> {
        let domid = self.ready()?;
        let name = self.sh(&format!("xl domname {domid}"), SHORT)?;
        ensure!(name.trim() == "away", "domain {domid} is {name}");
        checked(self.host, "home")?;
        self.sh("kill $(cat holder)", SHORT)?;
        self.failed("the domain was not suspended", false)
    }

    /// The destination cannot be made, and says why.
    fn refused(self, words: &str) -> Result<()> {
        let (code, said) = self.ended("restore")?;
        ensure!(
            code != 0 && said.contains(words),
            "xl restore: exit status {code}, {said}"
        );
        ensure!(
            self.sh("cat domid", SHORT)?.is_empty(),
            "the destination said that it was ready"
        );
        self.sh("kill $(cat holder)", SHORT)?;
        self.failed("", false)
    }

    fn balloons(self) -> Result<()> {
        self.ready()?;
        let size = "xl list home | awk 'NR == 2 { print $3 }'";
        self.sh(
            &format!("xl mem-set home 120 && until [ $({size}) -le 124 ]; do sleep 0.2; done"),
            LIMIT,
        )?;
        self.sh("printf g >gate", SHORT)?;
        let result = self.failed("memory changed while it was staged", true);
        self.sh(
            &format!("xl mem-set home 128 && until [ $({size}) -ge 127 ]; do sleep 0.2; done"),
            LIMIT,
        )?;
        result
    }

    fn passes(self) -> Result<()> {
        self.ready()?;
        checked(self.host, "home")?;
        self.sh("printf g >gate", SHORT)?;
        let host = self.host;
        self.arrives()?;
        let (ahead, behind) = Layout::of(&verify_stream(host)?)?.around_gate()?;
        println!("    {ahead} pages are sent before the gate, {behind} behind it");
        ensure!(
            behind < ahead / 4,
            "{behind} of {ahead} pages are sent again"
        );
        arrived(host)?;
        let state = host.sh(
            "xenstore-read /local/domain/0/backend/vif/$(xl domid away)/0/state",
            SHORT,
        )?;
        ensure!(state.trim() == "4", "its network card's state is {state}");
        Ok(())
    }

    /// Both must succeed. Tells how long the guest was not there.
    fn arrives(&self) -> Result<()> {
        let (save, saved) = self.ended("save")?;
        let (restore, restored) = self.ended("restore")?;
        ensure!(
            save == 0 && restore == 0,
            "xl save: exit status {save}, xl restore: {restore}, {}",
            self.said()
        );
        if self.staged {
            let told = self.sh("cat domid", SHORT)?;
            ensure!(told.ends_with("\ndone\n"), "the restorer told {told:?}");
        }
        let suspended = when(&saved, "guest has suspended")?;
        let since = |time: Duration| time.saturating_sub(suspended).as_secs_f64();
        let end = restored
            .lines()
            .last()
            .and_then(time)
            .context("xl restore said nothing")?;
        println!(
            "    {}: suspended for {:.2} s (written after {:.2} s, state restored after {:.2} s)",
            if self.staged { "staged" } else { "not staged" },
            since(end),
            since(when(&saved, "End of stream")?),
            since(when(&restored, "Restore successful")?),
        );
        Ok(())
    }

    fn said(&self) -> String {
        self.sh("tail -n 5 save.log restore.log", SHORT)
            .unwrap_or_else(|e| e.to_string())
    }

    fn sh(&self, command: &str, limit: Duration) -> Result<String> {
        self.host.sh(&format!("cd {DIRECTORY}; {command}"), limit)
    }
}

fn time(line: &str) -> Option<Duration> {
    let seconds = line.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn when(log: &str, words: &str) -> Result<Duration> {
    log.lines()
        .find(|line| line.contains(words))
        .and_then(time)
        .with_context(|| format!("{words:?} is not in {log}"))
}
