//! The load balancer's probe of a machine.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    Namespace,
    addresses::{HEALTH_PORT, PLATFORM, ROUTER},
    client::connect_from,
    hosts::router,
};

/// The time that the load balancer waits for an answer: as long as its interval, which is 5 s at
/// least.
const LIMIT: Duration = Duration::from_secs(5);

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
