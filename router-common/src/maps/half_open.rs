//! Counters of half-open sessions, by their source.

use crate::{
    address::Ipv4,
    shared,
    table::{HashSeeds, source_hash},
};

/// The number of counters, see [`half_open_slot`].
pub const HALF_OPEN_SLOTS: u32 = 1 << 16;

/// Returns the index of a source's counter. Sources with the same index share a counter.
#[inline(always)]
pub const fn half_open_slot(seeds: &HashSeeds, source: Ipv4) -> u32 {
    source_hash(seeds, source) & (HALF_OPEN_SLOTS - 1)
}

/// A counter of half-open sessions, in memory that the programs and the daemon share.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct HalfOpen(shared::AtomicU32);

impl HalfOpen {
    /// Counts one more session. Returns `false`, with nothing counted, if that exceeds the limit.
    #[inline(always)]
    pub fn enter(&self, limit: u32) -> bool {
        if self.0.add(1) < limit {
            return true;
        }
        self.leave();
        false
    }

    /// Returns the number of half-open sessions.
    pub fn count(&self) -> u32 {
        self.0.load()
    }

    /// Counts one session less.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.add(1_u32.wrapping_neg());
    }
}
