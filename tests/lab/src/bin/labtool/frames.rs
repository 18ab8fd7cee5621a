// SPDX-License-Identifier: GPL-2.0-only

//! Did a swap change anything that was not on its lists?
//!
//! Two independent looks, from the host management VM:
//!
//! * the host hypervisor's whole M2P table: an entry may change only from one
//!   gfn of a listed pair to the other;
//! * the contents of a sample of frames of both host VMs that are not on the
//!   lists, each neighbour of a listed frame among them. The host VMs run on, so
//!   their kernels write to some of these frames, and as both run the same programs,
//!   sometimes what the other one had written before. A frame counts as changed when
//!   it took over contents that only the other host VM had, these are gone from where
//!   they must be, and something of this host VM is there instead: which is what a
//!   misplaced frame looks like.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use vmbeam_xen::Xen;
use vmbeam_xen::PAGE_SIZE;
use xxhash_rust::xxh3::xxh3_64;

/// Besides the neighbours of moved frames, every so-manieth frame is looked at.
const STRIDE: u64 = 8;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Domid of host VM A.
    #[arg(long)]
    a: u32,
    /// Domid of host VM B.
    #[arg(long)]
    b: u32,
    /// The runs that move, as `vmbeam swap --dry-run --runs` writes them.
    #[arg(long)]
    runs: PathBuf,
    /// File that holds what was seen before.
    #[arg(long)]
    state: PathBuf,
}

#[derive(Deserialize)]
struct Run {
    gfn_a: u64,
    gfn_b: u64,
    nr: u64,
}

#[derive(Deserialize, Serialize)]
struct State {
    m2p: Vec<u64>,
    a: Seen,
    b: Seen,
}

/// Hashes of a host VM's frames by gfn.
#[derive(Deserialize, Serialize)]
struct Seen {
    moved: HashMap<u64, u64>,
    others: HashMap<u64, u64>,
}

/// Remember how things are.
pub fn save(arguments: &Arguments) -> Result<()> {
    let xen = Xen::open()?;
    let runs = runs(arguments)?;
    let state = State {
        a: look(&xen, arguments.a, &gfns(&runs, |r| r.gfn_a))?,
        b: look(&xen, arguments.b, &gfns(&runs, |r| r.gfn_b))?,
        m2p: xen.machine_to_physical()?,
    };
    fs::write(&arguments.state, serde_json::to_vec(&state)?)
        .with_context(|| format!("cannot write {}", arguments.state.display()))
}

/// Compare with what was remembered; prints counts as JSON.
pub fn compare(arguments: &Arguments) -> Result<()> {
    let xen = Xen::open()?;
    let pairs: HashSet<(u64, u64)> = runs(arguments)?
        .iter()
        .flat_map(|r| (0..r.nr).map(|i| (r.gfn_a + i, r.gfn_b + i)))
        .collect();
    let before: State = serde_json::from_slice(&fs::read(&arguments.state)?)?;

    let m2p = xen.machine_to_physical()?;
    let unexpected: Vec<_> = before
        .m2p
        .iter()
        .zip(&m2p)
        .enumerate()
        .filter(|(_, (old, new))| {
            old != new && !pairs.contains(&(**old, **new)) && !pairs.contains(&(**new, **old))
        })
        .map(|(mfn, (old, new))| json!({ "mfn": mfn, "before": old, "after": new }))
        .collect();

    let mut checked = 0;
    let mut busy = 0;
    let mut changed = Vec::new();
    let there: HashMap<u64, u64> = pairs.iter().copied().collect();
    let back: HashMap<u64, u64> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
    let a = (arguments.a, &before.a, &there);
    let b = (arguments.b, &before.b, &back);
    for ((domid, own, _), (other_domid, other, partner)) in [(a, b), (b, a)] {
        let rule = Rule {
            own_only: own.without(other),
            other_only: other.without(own),
            other,
            partner,
        };
        let at = |domid, gfn| Ok(hashes(&xen, domid, &[gfn])?.get(&gfn).copied());
        let list: Vec<u64> = own.others.keys().copied().collect();
        for (gfn, hash) in hashes(&xen, domid, &list)? {
            checked += 1;
            if own.others.get(&gfn) == Some(&hash) {
                continue;
            }
            if rule.misplaced(hash, |gfn| at(domid, gfn), |gfn| at(other_domid, gfn))? {
                changed.push(json!({ "domid": domid, "gfn": gfn }));
            } else {
                busy += 1;
            }
        }
    }
    println!(
        "{}",
        json!({
            "m2p_checked": m2p.len(),
            "m2p_unexpected": unexpected.len(),
            "m2p_examples": unexpected.iter().take(8).collect::<Vec<_>>(),
            "frames_checked": checked,
            "frames_changed": changed.len(),
            "frames_examples": changed.iter().take(8).collect::<Vec<_>>(),
            "frames_written_by_their_owner": busy,
        })
    );
    Ok(())
}

impl Seen {
    fn all(&self) -> impl Iterator<Item = u64> + '_ {
        self.moved.values().chain(self.others.values()).copied()
    }

    /// What only this one had.
    fn without(&self, other: &Self) -> HashSet<u64> {
        let known: HashSet<u64> = other.all().collect();
        self.all().filter(|hash| !known.contains(hash)).collect()
    }

    /// Where it had these contents.
    fn places(&self, hash: u64) -> impl Iterator<Item = u64> + '_ {
        let all = self.moved.iter().chain(&self.others);
        all.filter(move |(_, h)| **h == hash).map(|(gfn, _)| *gfn)
    }
}

/// Whether contents that are new in a frame of a host VM came with a frame of the other.
struct Rule<'a> {
    own_only: HashSet<u64>,
    other_only: HashSet<u64>,
    other: &'a Seen,
    /// Where the frames of the other one go.
    partner: &'a HashMap<u64, u64>,
}

impl Rule<'_> {
    /// `own` and `other` tell what is in a frame of these host VMs now.
    fn misplaced(
        &self,
        hash: u64,
        own: impl Fn(u64) -> Result<Option<u64>>,
        other: impl Fn(u64) -> Result<Option<u64>>,
    ) -> Result<bool> {
        if !self.other_only.contains(&hash) {
            return Ok(false);
        }
        for from in self.other.places(hash) {
            let stays = other(from)?;
            let goes = match self.partner.get(&from) {
                Some(to) => own(*to)?,
                None => None,
            };
            let instead = stays.is_some_and(|h| self.own_only.contains(&h));
            if stays == Some(hash) || goes == Some(hash) || !instead {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The domid and the number of pages of each domain.
pub fn pages() -> Result<()> {
    for domain in Xen::open()?.domains()? {
        println!("{} {}", domain.domid, domain.pages);
    }
    Ok(())
}

fn runs(arguments: &Arguments) -> Result<Vec<Run>> {
    let text = fs::read(&arguments.runs)
        .with_context(|| format!("cannot read {}", arguments.runs.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn gfns(runs: &[Run], first: impl Fn(&Run) -> u64) -> BTreeSet<u64> {
    runs.iter()
        .flat_map(|r| first(r)..first(r) + r.nr)
        .collect()
}

fn look(xen: &Xen, domid: u32, moved: &BTreeSet<u64>) -> Result<Seen> {
    let end = xen.domain(domid)?.pages;
    let sample: BTreeSet<u64> = moved
        .iter()
        .flat_map(|gfn| [gfn.wrapping_sub(1), gfn + 1])
        .chain((0..end).step_by(STRIDE as usize))
        .filter(|gfn| *gfn < end && !moved.contains(gfn))
        .collect();
    let moved: Vec<u64> = moved.iter().copied().collect();
    let sample: Vec<u64> = sample.into_iter().collect();
    Ok(Seen {
        moved: hashes(xen, domid, &moved)?,
        others: hashes(xen, domid, &sample)?,
    })
}

/// Hashes of the frames that are there. Nothing stays mapped.
fn hashes(xen: &Xen, domid: u32, gfns: &[u64]) -> Result<HashMap<u64, u64>> {
    let mut hashes = HashMap::with_capacity(gfns.len());
    xen.read_present_pages(domid, gfns, |i, page: &[u8; PAGE_SIZE]| {
        hashes.insert(gfns[i], xxh3_64(page));
    })?;
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames 0 and 1 of both are listed, 2 to 4 are not; 9 is in both.
    fn before() -> [Seen; 2] {
        let seen = |first: u64| Seen {
            moved: [(0, first), (1, first + 1)].into(),
            others: [(2, first + 2), (3, first + 3), (4, 9)].into(),
        };
        [seen(100), seen(200)]
    }

    /// Which frames of A count, with these contents of both now.
    fn changed(a: [u64; 5], b: [u64; 5]) -> Vec<usize> {
        let [own, other] = before();
        let rule = Rule {
            own_only: own.without(&other),
            other_only: other.without(&own),
            other: &other,
            partner: &[(0, 0), (1, 1)].into(),
        };
        let at = |now: [u64; 5]| move |gfn: u64| Ok(now.get(gfn as usize).copied());
        (2..5)
            .filter(|i| own.others.get(&(*i as u64)) != Some(&a[*i]))
            .filter(|i| rule.misplaced(a[*i], at(a), at(b)).unwrap())
            .collect()
    }

    #[test]
    fn a_swap_of_what_is_listed_is_fine() {
        assert!(changed([200, 201, 102, 103, 9], [100, 101, 202, 203, 9]).is_empty());
        assert!(changed([200, 101, 102, 103, 9], [100, 201, 202, 203, 9]).is_empty());
    }

    #[test]
    fn a_frame_that_is_not_listed_was_swapped() {
        assert_eq!(
            changed([200, 201, 202, 103, 9], [100, 101, 102, 203, 9]),
            [2]
        );
    }

    #[test]
    fn a_listed_frame_went_elsewhere() {
        // To the neighbour of where it belongs, which went to where it came from.
        assert_eq!(
            changed([200, 101, 201, 103, 9], [100, 102, 202, 203, 9]),
            [2]
        );
        // And with a third one.
        assert_eq!(
            changed([200, 102, 201, 103, 9], [100, 101, 202, 203, 9]),
            [2]
        );
    }

    #[test]
    fn both_write_the_same_at_last() {
        // B still has it.
        assert!(changed([200, 201, 202, 103, 9], [100, 101, 202, 203, 9]).is_empty());
        // B has something new, or what both had.
        assert!(changed([200, 201, 202, 103, 9], [100, 101, 77, 203, 9]).is_empty());
        assert!(changed([200, 201, 202, 103, 9], [100, 101, 9, 203, 9]).is_empty());
        // A wrote something new.
        assert!(changed([200, 201, 77, 103, 9], [100, 101, 202, 203, 9]).is_empty());
    }
}
