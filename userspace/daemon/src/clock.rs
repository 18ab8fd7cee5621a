// SPDX-License-Identifier: GPL-2.0-only

//! Clocks of host VMs: a guest that moves goes by another one from then on.

use crate::host_vm::{expected, side_by_side, HostVm};
use crate::link::Reading;
use std::collections::HashMap;
use std::sync::Arc;
use vmbeam_control_protocol::Clocks;

/// Clocks may differ by so many nanoseconds without anybody being told.
const MOST: u128 = 1_000_000_000;

/// What to tell of two host VMs whose clocks certainly differ.
pub(crate) fn apart(a: (&str, Reading), b: (&str, Reading)) -> Option<String> {
    let (by, wrong) = a.1.ahead_of(&b.1);
    let (ahead, behind) = if by > 0 { (a.0, b.0) } else { (b.0, a.0) };
    (by.unsigned_abs().saturating_sub(wrong) > MOST).then(|| {
        format!(
            "the clock of host VM {ahead} is {:.1} s ahead of that of host VM {behind}, and so the time of a guest that moves jumps; have both management VMs set theirs from the network (NTP)",
            by.unsigned_abs() as f64 / 1e9
        )
    })
}

/// The clocks of these pairs, as far as their host VMs should be there. Only of agents that
/// are idle: who looks whether all is well does not wait for jobs.
pub(crate) fn clocks(
    host_vms: &[Arc<HostVm>],
    pairs: &[(String, String)],
) -> Vec<((String, String), Clocks)> {
    let host_vms = expected(host_vms);
    let readings = side_by_side(&host_vms, |vm| {
        let reading = vm.agent().and_then(|mut agent| agent.time_soon());
        (vm.config.name.clone(), reading)
    });
    let readings: HashMap<_, _> = readings.into_iter().collect();
    let known = |name: &String, reading: &Result<Option<Reading>, String>| {
        let silent = || format!("the agent of host VM {name} does not tell the time");
        reading.clone()?.ok_or_else(silent)
    };
    let compared = |pair: &(String, String)| {
        let (a, b) = (&pair.0, &pair.1);
        let (of_a, of_b) = (readings.get(a)?, readings.get(b)?);
        let clocks = known(a, of_a).and_then(|of_a| {
            let told = apart((a, of_a), (b, known(b, of_b)?));
            Ok(told.map_or(Clocks::Together, Clocks::Apart))
        });
        Some((pair.clone(), clocks.unwrap_or_else(Clocks::Unknown)))
    };
    pairs.iter().filter_map(compared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_a_slow_answer_may_explain_is_not_told() {
        let at = Instant::now();
        let reading = |ms: u64, within| Reading {
            nanoseconds: 1_000_000 * ms,
            at,
            within: Duration::from_millis(within),
        };
        let told = |ms, within| apart(("A", reading(10_000, 0)), ("B", reading(ms, within)));
        assert_eq!(told(10_900, 0), None);
        assert_eq!(told(12_500, 1_600), None);
        let fast = told(12_500, 1_400).unwrap();
        assert!(
            fast.starts_with("the clock of host VM B is 2.5 s ahead of that of host VM A"),
            "{fast}"
        );
        let slow = told(7_000, 0).unwrap();
        assert!(
            slow.contains("A is 3.0 s ahead of that of host VM B"),
            "{slow}"
        );
    }
}
