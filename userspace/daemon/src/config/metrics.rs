// SPDX-License-Identifier: GPL-2.0-only

//! Where metrics can be read.

use super::check_socket;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Where metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAt {
    /// A UNIX socket.
    Socket(PathBuf),
    /// A port of this machine that others cannot reach.
    Port(SocketAddr),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    pub(super) listen: Spanned<String>,
}

impl RawMetrics {
    /// A path, or an address that only this machine has.
    pub(super) fn at(&self) -> Result<MetricsAt, &'static str> {
        let listen = self.listen.get_ref();
        if listen.starts_with('/') {
            check_socket(Path::new(listen))?;
            return Ok(MetricsAt::Socket(listen.into()));
        }
        match listen.parse::<SocketAddr>() {
            Ok(at) if at.ip().is_loopback() => Ok(MetricsAt::Port(at)),
            Ok(_) => Err("must be an address of this machine only, such as 127.0.0.1:9187"),
            Err(_) => Err("must be the path of a UNIX socket, or an address with a port, such as 127.0.0.1:9187"),
        }
    }
}
