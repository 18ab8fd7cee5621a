// SPDX-License-Identifier: GPL-2.0-only

//! How messages travel between `vmbeamd` and agents, and between `vmbeamd` and the command line.
//!
//! Everything travels in frames: a fixed header with magic, version, length,
//! request, session and checksums, then a payload of at most
//! [`MAX_PAYLOAD`] bytes. See [`frame`] for the layout. What the payloads say is in
//! two other crates: `vmbeam-agent-protocol` and `vmbeam-control-protocol`.
//!
//! Nothing that a peer sends is trusted: lengths are checked before anything is
//! buffered, and a [`Message`] is checked before anybody sees it.

pub mod decoder;
pub mod frame;
pub mod message;

pub use decoder::Decoder;
pub use frame::{encode, encode_as, encode_old, Frame, FrameError, MAX_PAYLOAD, PREVIOUS, VERSION};
pub use message::{is_plain, Message};
