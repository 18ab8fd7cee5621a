// SPDX-License-Identifier: GPL-2.0-only

//! What pages say that tell where the memory of a guest is.

use crate::journal::Probe;
use vmbeam_agent_protocol::Digest;
use vmbeam_migration::Memory;

/// What a digest at the source (or at the destination) says.
pub(crate) fn vote(probe: &Probe, digest: &Digest, at_source: bool) -> Memory {
    let (here, there) = if at_source {
        (Memory::Source, Memory::Destination)
    } else {
        (Memory::Destination, Memory::Source)
    };
    // The source's page is `source`; where that is found, there is the memory.
    if *digest == probe.source {
        here
    } else if *digest == probe.destination {
        there
    } else {
        Memory::Unknown
    }
}

/// A page may have been written to by a hypervisor meanwhile and tell nothing;
/// contradictions are another matter.
pub(crate) fn count(votes: &[Memory]) -> Memory {
    let source = votes.contains(&Memory::Source);
    let destination = votes.contains(&Memory::Destination);
    match (source, destination) {
        (true, false) => Memory::Source,
        (false, true) => Memory::Destination,
        (true, true) => Memory::Torn,
        (false, false) => Memory::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe {
            pfn: 1,
            source: [1; 16],
            destination: [2; 16],
        }
    }

    #[test]
    fn memory_is_where_the_source_page_is() {
        let p = probe();
        assert_eq!(vote(&p, &[1; 16], true), Memory::Source);
        assert_eq!(vote(&p, &[2; 16], true), Memory::Destination);
        assert_eq!(vote(&p, &[1; 16], false), Memory::Destination);
        assert_eq!(vote(&p, &[2; 16], false), Memory::Source);
        assert_eq!(vote(&p, &[3; 16], false), Memory::Unknown);
    }

    #[test]
    fn contradictions_are_not_outvoted() {
        use Memory::*;
        assert_eq!(count(&[Source, Unknown, Source]), Source);
        assert_eq!(count(&[Destination, Unknown]), Destination);
        assert_eq!(count(&[Source, Source, Destination]), Torn);
        assert_eq!(count(&[]), Unknown);
    }
}
