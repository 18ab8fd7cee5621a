// SPDX-License-Identifier: GPL-2.0-only

//! The superpages that a host VM's P2M has, as QEMU sees them in the memory of the machine.
//! Nothing inside of it is asked but where that table is, which the host hypervisor prints
//! with its debug key `v`. So it can be held against what the hypervisor counts.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use serde_json::Value;

use crate::machine;
use crate::paths;
use crate::topology::Topology;
use crate::topology::HOST_VMS;
use crate::topology::SHORT;

/// Bytes of a page table.
const PAGE: u64 = 4096;
/// Superpages of 2 MiB that one of 1 GiB becomes.
const ENTRIES: i128 = 512;

// Bits of an entry. AMD's NPT and Intel's EPT have them in the same places: one of the first
// three is set in each that is present.
const PRESENT: u64 = 7;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a P2M that are larger than 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Superpages {
    /// Entries of 2 MiB.
    pub of_2m: u64,
    /// Entries of 1 GiB.
    pub of_1g: u64,
}

impl Superpages {
    /// Bytes that they map.
    pub fn bytes(&self) -> u64 {
        (self.of_2m << 21) + (self.of_1g << 30)
    }

    /// Those of each host VM.
    pub fn count(topology: &Topology) -> Result<[Self; 2]> {
        let host = &topology.machine.host;
        let domains = host.sh("xl domid A && xl domid B", SHORT)?;
        // The dump of all their processors can be more than the hypervisor's log holds, and
        // then what is lost is its beginning: the first domains.
        let text = host.sh("xl dmesg -c >/dev/null; xl debug-keys v; xl dmesg", SHORT)?;
        let mut monitor = Monitor::connect()?;
        let mut counts = [Superpages::default(); HOST_VMS.len()];
        for (counted, domain) in counts.iter_mut().zip(domains.split_whitespace()) {
            let root = root(&text, domain)
                .with_context(|| format!("no table of domain {domain} in: {text}"))?;
            counted.below(root, 4, &mut |address| monitor.table(address))?;
        }
        Ok(counts)
    }

    /// Add those of a table of this level and of all below.
    fn below(
        &mut self,
        table: u64,
        level: u8,
        read: &mut impl FnMut(u64) -> Result<Vec<u64>>,
    ) -> Result<()> {
        for entry in read(table)? {
            if entry & PRESENT == 0 {
                continue;
            }
            match (level, entry & LARGE != 0) {
                (3, true) => self.of_1g += 1,
                (2, true) => self.of_2m += 1,
                (3.., false) => self.below(entry & ADDRESS, level - 1, read)?,
                (2, false) => {}
                _ => bail!("{entry:#x} in a table of level {level} at {table:#x}"),
            }
        }
        Ok(())
    }

    /// Whether so many splits and merges, as the hypervisor counts them, make the one of the other.
    pub fn become_by(before: &[Self], after: &[Self], splits: u64, merges: u64) -> bool {
        let sum = |of: fn(&Self) -> u64, all: &[Self]| i128::from(all.iter().map(of).sum::<u64>());
        let (before_2m, before_1g) = (sum(|s| s.of_2m, before), sum(|s| s.of_1g, before));
        let (after_2m, after_1g) = (sum(|s| s.of_2m, after), sum(|s| s.of_1g, after));
        let (splits, merges) = (i128::from(splits), i128::from(merges));
        // One of 1 GiB that is split counts as a split, but makes 2 MiB entries of one.
        after_2m == before_2m - splits + merges + (ENTRIES + 1) * (before_1g - after_1g)
    }
}

/// Where a domain's P2M is, in what the hypervisor printed.
fn root(text: &str, domain: &str) -> Option<u64> {
    let (_, text) = text.rsplit_once(&format!(">>> Domain {domain} <<<"))?;
    let text = text.split(">>> Domain").next()?;
    let hex = ["H_CR3 = 0x", "EPT pointer = 0x"]
        .iter()
        .find_map(|name| text.split_once(name))?
        .1
        .split(|c: char| !c.is_ascii_hexdigit())
        .next()?;
    Some(u64::from_str_radix(hex, 16).ok()? & ADDRESS)
}

/// QEMU's monitor.
struct Monitor {
    answers: BufReader<UnixStream>,
}

impl Monitor {
    fn connect() -> Result<Self> {
        let stream = UnixStream::connect(machine::socket("qmp")).context("QEMU's monitor")?;
        let mut monitor = Monitor {
            answers: BufReader::new(stream),
        };
        monitor.execute(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// Its answer, which comes between a greeting and events.
    fn execute(&mut self, command: &Value) -> Result<()> {
        writeln!(self.answers.get_mut(), "{command}")?;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                bail!("QEMU's monitor ended during {command}");
            }
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
        }
    }

    /// The entries of a page table at this address of the machine.
    fn table(&mut self, address: u64) -> Result<Vec<u64>> {
        let path = paths::run().join("page");
        self.execute(&json!({
            "execute": "pmemsave",
            "arguments": { "val": address, "size": PAGE, "filename": path }
        }))?;
        let bytes = fs::read(path)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ADDRESSES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

    fn count(tables: &BTreeMap<u64, Vec<u64>>) -> Result<Superpages> {
        let mut counted = Superpages::default();
        counted.below(ADDRESSES[0], 4, &mut |address| {
            tables.get(&address).cloned().context("no such table")
        })?;
        Ok(counted)
    }

    #[test]
    fn superpages_are_counted_by_their_level() {
        let [top, third, second, first] = ADDRESSES;
        let mut tables = BTreeMap::from([
            (top, vec![0, third | 7]),
            // 1 GiB, a table, and what is not present, whatever else it says.
            (third, vec![0x4000_0000 | 0x87, second | 7, 0xfff8]),
            // Two of 2 MiB, one of them for reading only as EPT has it, and a table.
            (second, vec![0x20_0000 | 0x87, 0x40_0000 | 0x81, first | 7]),
        ]);
        let expected = Superpages { of_2m: 2, of_1g: 1 };
        assert_eq!(count(&tables).unwrap(), expected);
        tables.insert(top, vec![third | 0x87]);
        assert!(count(&tables).is_err());
        tables.insert(top, vec![0x9000 | 7]);
        assert!(count(&tables).is_err());
    }

    #[test]
    fn the_table_is_found_in_what_the_hypervisor_prints() {
        let text = ">>> Domain 1 <<<\n\tVCPU 0\nH_CR3 = 0x0000000111111000 CleanBits = 0\n\
                    \n>>> Domain 12 <<<\n\tVCPU 0\nH_CR3 = 0x0000000222222000 CleanBits = 0\n\
                    \n>>> Domain 3 <<<\n\tVCPU 0\nEPT pointer = 0x000000033333305e  EPTP\n\
                    \n>>> Domain 4 <<<\n";
        assert_eq!(root(text, "1"), Some(0x1_1111_1000));
        assert_eq!(root(text, "12"), Some(0x2_2222_2000));
        assert_eq!(root(text, "3"), Some(0x3_3333_3000));
        assert_eq!(root(text, "4"), None);
        assert_eq!(root(text, "2"), None);
    }

    #[test]
    fn splits_and_merges_explain_the_difference() {
        let s = |of_2m, of_1g| [Superpages { of_2m, of_1g }; 2];
        let explains = Superpages::become_by;
        assert!(explains(&s(100, 0), &s(97, 0), 6, 0));
        assert!(!explains(&s(100, 0), &s(97, 0), 5, 0));
        // One of 1 GiB on each side, and one of the 2 MiB that it became.
        assert!(explains(&s(100, 1), &s(611, 0), 4, 0));
        assert!(explains(&s(612, 0), &s(100, 1), 0, 2));
        assert!(!explains(&s(612, 0), &s(100, 1), 0, 1));
        assert!(explains(&s(97, 0), &s(100, 0), 2, 8));
    }
}
