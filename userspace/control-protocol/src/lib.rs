// SPDX-License-Identifier: GPL-2.0-only

//! What the command line and `vmbeamd` say to each other over the control socket.
//!
//! The command line asks by [`ToDaemon`], the daemon answers by [`FromDaemon`]; the last answer
//! to a question is the one that [`FromDaemon::is_last`] says. The crate `vmbeam-wire` carries
//! them. Reports hand on guests as agents describe them, so a few types are those of
//! `vmbeam-agent-protocol`.

mod evacuation;
mod event;
mod guest;
mod job;
mod memory;
mod message;
mod report;
mod request;
mod upkeep;

pub use evacuation::*;
pub use event::{Event, EventKind};
pub use guest::GuestRef;
pub use job::{JobKind, JobOutcome, JobReport};
pub use memory::{reserve_for, HostMemory, HostVmMemory, MARGIN};
pub use message::{FromDaemon, ToDaemon};
pub use report::*;
pub use request::{Failure, MigrateRequest, Mode, SwapRequest};
pub use upkeep::{UpkeepReport, UpkeepRequest};
pub use vmbeam_agent_protocol::{Guest, GuestKind, GuestState, Toolstack};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vmbeam_wire::{Frame, VERSION};

    proptest! {
        #[test]
        fn hostile_payload_never_panics(payload in vec(any::<u8>(), 0..512), kind in 0u16..6) {
            let f = Frame { version: VERSION, kind, request: 1, session: 1, payload };
            let _ = f.decode::<ToDaemon>();
            let _ = f.decode::<FromDaemon>();
        }
    }
}
