//! The load balancer's probe of a machine.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    Namespace,
    addresses::{HEALTH_PORT, PLATFORM, ROUTER},
    client::connect_from,
    hosts::router,
};

/// The time to wait for an answer. The load balancer takes a router out after two probes of 5 s
/// each; twice as long, since a daemon's start, which takes a second, takes many in an emulated
/// machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Asks as the load balancer does: from the platform's address.
#[derive(Debug)]
pub struct Prober {
    pls: Namespace,
}

impl Prober {
    pub(super) fn new(pls: &Namespace) -> Result<Self> {
        Ok(Self { pls: Namespace::existing(pls.name())? })
    }

    pub(super) fn another(&self) -> Result<Self> {
        Self::new(&self.pls)
    }

    /// Asks for a path. Returns the status and text of the answer; that nobody answers is an error.
    pub fn ask(&self, path: &str) -> Result<(u16, String)> {
        let address = SocketAddrV4::new(ROUTER, HEALTH_PORT);
        let stream = self
            .pls
            .inside(|| connect_from(PLATFORM, address, LIMIT))?
            .with_context(|| format!("cannot connect to the health endpoint {address}"))?;
        router::ask(stream, path, LIMIT)
    }
}
