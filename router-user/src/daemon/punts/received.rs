//! A punted packet.

use router_common::maps::punt::Punted;

/// A packet as it came in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Received {
    /// The index of the interface that it came in on.
    pub(super) interface: u32,
    /// The packet, from its IP header on.
    pub(super) packet: Vec<u8>,
}

impl Received {
    /// The bytes that each packet counts besides its own, to bound the number of small packets.
    const OVERHEAD: usize = 256;

    pub(super) fn of(punted: &Punted<'_>) -> Self {
        Self { interface: punted.interface, packet: punted.packet.to_vec() }
    }

    /// The memory that it counts for.
    pub(super) fn cost(&self) -> usize {
        self.packet.len() + Self::OVERHEAD
    }
}
