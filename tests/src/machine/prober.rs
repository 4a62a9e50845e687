//! The load balancer's probe of a machine.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    Namespace,
    addresses::{HEALTH_PORT, PLATFORM, ROUTER},
    client::connect_from,
    hosts::router,
};

/// The time in which a connection opens: that of the load balancer, whose interval is 5 s at least.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The time in which an answer comes. A probe that arrives while no daemon runs waits for the next
/// one, whose start takes many times as long in an emulated machine as elsewhere; the lab's own
/// tests have a router that is not emulated, and the limit of the load balancer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

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
            .inside(|| connect_from(PLATFORM, address, CONNECT_LIMIT))?
            .with_context(|| format!("cannot connect to the health endpoint {address}"))?;
        router::ask(stream, path, ANSWER_LIMIT)
    }
}
