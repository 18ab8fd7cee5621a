// SPDX-License-Identifier: GPL-2.0-only

//! The daemon of the host management VM.
//!
//! `vmbeamd` owns `/dev/vmbeam` and the sockets of the agents in the host VMs.
//! It lets two agents list the frames of a guest each, joins the lists, and has
//! the driver swap the frames.
//!
//! An agent is not trusted: its socket decides which host VM it speaks for, which it has
//! to prove to be in, so that nobody has mixed up the sockets; its
//! lists are checked, and one that breaks the protocol is dropped without harm
//! to the others.

pub mod args;
mod autostart;
pub mod boot;
mod client;
mod clock;
pub mod config;
pub mod control;
mod definitions;
mod differ;
pub mod driver;
mod durable;
mod evacuate;
mod evacuations;
pub mod events;
pub mod exchange;
mod execute;
mod held;
mod hooks;
pub mod host_vm;
mod http;
pub mod identity;
mod inspection;
mod job;
mod jobs;
pub mod join;
pub mod journal;
mod known;
mod ledger;
mod limits;
pub mod link;
mod load;
mod maintenance;
mod memory;
pub mod metrics;
mod migrate;
mod numbers;
mod pauses;
mod port;
mod preflight;
mod presence;
pub mod privilege;
mod probe;
mod relay;
mod settle;
mod shared;
mod side;
mod stage;
pub mod swap;
mod tidy;
mod transfer;
mod unsettled;
mod upkeep;
mod upkeeps;
mod verify;
mod version;
mod whereabouts;
mod work;

pub use args::Args;
pub use config::{Config, CONFIG_PATH};
pub use control::Daemon;
pub use version::VERSION;
