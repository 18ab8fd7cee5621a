// SPDX-License-Identifier: GPL-2.0-only

//! How `vmbeamd` talks to agents and to the command line.
//!
//! Everything travels in frames: a fixed header with magic, version, length,
//! request, session and checksums, then a payload of at most
//! [`MAX_PAYLOAD`] bytes. See [`frame`] for the layout, [`message`] for what
//! the payloads say, and [`list`] for frame lists, which are run-length coded.
//!
//! Nothing that a peer sends is trusted: lengths are checked before anything is
//! buffered, counts before anything is summed, and a frame list is only handed
//! out once it is known to be free of overlaps.

mod compressed;
pub mod cpu;
pub mod decoder;
pub mod definition;
pub mod frame;
pub mod list;
pub mod message;
mod packed;
pub mod preflight;

pub use cpu::CpuFeatures;
pub use decoder::Decoder;
pub use definition::{Definition, Entry, File};
pub use frame::{encode, encode_as, encode_old, Frame, FrameError, MAX_PAYLOAD, PREVIOUS, VERSION};
pub use list::{
    Excluded, FrameList, FrameListBuilder, FrameRun, ListError, PfnRun, Reason, MAX_PAGES,
    MAX_RUNS, RUNS_PER_CHUNK,
};
pub use message::Message;
pub use preflight::{is_plain, Inspection, Need, NeedKind};
pub use uuid::Uuid;
