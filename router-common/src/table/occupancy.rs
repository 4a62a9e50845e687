//! The occupancy of the flow table: counters of sessions and held keys.

use core::mem::size_of;

use crate::shared::AtomicU32;

/// One in this many of the sessions that there is room for may leave a held key.
const HELD_SHARE: u32 = 8;

/// Counters of the table as a whole, in memory that the programs and the daemon share.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Occupancy {
    /// Sessions in the table.
    pub sessions: AtomicU32,
    /// Sessions that it may hold. Written by the daemon.
    pub capacity: AtomicU32,
    /// Held keys, at least: the programs count up, and each sweep counts anew.
    held: AtomicU32,
    zero: [u32; 13],
}

const _: () = assert!(cfg!(model) || size_of::<Occupancy>() == 64);

impl Occupancy {
    /// Sets the maximum number of sessions.
    pub fn set_capacity(&self, sessions: u32) {
        self.capacity.swap(sessions);
    }

    /// Counts one more session. Returns `false`, with nothing counted, if the table is full.
    #[inline(always)]
    pub fn enter(&self) -> bool {
        if self.sessions.add(1) < self.capacity.get() {
            return true;
        }
        self.leave();
        false
    }

    /// Counts one more session, also if the table is full.
    pub fn add(&self) {
        self.sessions.add(1);
    }

    /// Counts one session less.
    #[inline(always)]
    pub fn leave(&self) {
        self.sessions.add(1_u32.wrapping_neg());
    }

    /// Counts one more held key. Returns `false` if that is too many.
    #[inline(always)]
    pub fn hold(&self) -> bool {
        self.held.add(1) < self.capacity.get() / HELD_SHARE
    }

    /// Sets the number of held keys, as a sweep has counted them. Keys that were held meanwhile are
    /// counted by the next sweep.
    pub fn set_held(&self, keys: u32) {
        self.held.swap(keys);
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_held_keys_is_limited() {
        let occupancy = Occupancy::default();
        occupancy.set_capacity(16);
        assert!(occupancy.hold() && occupancy.hold() && !occupancy.hold());
        occupancy.set_held(1);
        assert!(occupancy.hold() && !occupancy.hold());
    }

    #[test]
    fn occupancy_stops_at_the_capacity() {
        let occupancy = Occupancy::default();
        occupancy.set_capacity(3);
        assert!(occupancy.enter() && occupancy.enter() && occupancy.enter());
        assert!(!occupancy.enter());
        occupancy.leave();
        assert!(occupancy.enter() && !occupancy.enter());
    }
}
