//! The addresses that sessions lead to.

use crate::{
    address::Ipv4,
    shared,
    table::{HashSeeds, source_hash},
    time::Ticks,
};

/// The number of [`Peer`]s, see [`peer_slot`].
pub const PEER_SLOTS: u32 = 1 << 16;
/// The time in ticks that an address counts as one that sessions lead to: the sweep renews it every
/// two seconds while a session does.
pub const PEER_TIMEOUT: u32 = 10;

/// Returns the index of an address's [`Peer`]. Addresses with the same index share one.
#[inline(always)]
pub const fn peer_slot(seeds: &HashSeeds, address: Ipv4) -> u32 {
    source_hash(seeds, address) & (PEER_SLOTS - 1)
}

/// The tick in which a session was last known to lead to an address.
///
/// Written when a session opens, and by the daemon's sweep while there is one. Either value is
/// right, so it does not matter which one is written last.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Peer(shared::Shared<u32>);

impl Peer {
    /// Notes that a session leads to the address now.
    #[inline(always)]
    pub fn note(&self, now: Ticks) {
        self.0.set(now.0);
    }

    /// Forgets what was noted.
    pub fn forget(&self) {
        self.0.set(0);
    }

    /// Returns `true` if a session leads to the address, or did moments ago.
    #[inline(always)]
    pub fn is_recent(&self, now: Ticks) -> bool {
        let last = self.0.get();
        last != 0 && now.0.wrapping_sub(last) <= PEER_TIMEOUT
    }
}
