//! The places of flows: the regions of the table, and the chains of slots that a key hashes to.

use crate::{
    address::{Ipv4, Port},
    tuple::{FlowKey, Protocol},
};

/// The maximum length of a chain, in slots. At half load, the load of a full table, the probability
/// of a chain of this length is about 2^-35 (linear probing: e^(-n (a - 1 - ln a)) for load a =
/// 1/2).
pub const CHAIN: u32 = 128;

/// Slots for each session that the table has room for: two in use, and two free.
pub const SLOTS_PER_SESSION: u32 = 4;

/// The number of slots where a chain may start in the near region of a table with two regions: 16
/// MiB of slots, of which every other one starts a chain. Of 40,000 sessions, hardly any flow is in
/// the far region.
pub const NEAR_HOMES: u32 = 1 << 18;

/// Slots that are next to each other in 128 bytes. Chains start at whole buckets: processors fetch
/// cache lines in such pairs, so that a look at both slots of a bucket waits once.
pub const BUCKET: u32 = 2;

/// The number of slots of a chain that the fast path looks at: two buckets. In a full table, 99
/// flows of 100 are there.
pub const REACH: u32 = 2 * BUCKET;

const _: () = assert!(REACH <= CHAIN);
/// Chains start and end with whole buckets, in either region.
const _: () = assert!(
    REACH.is_multiple_of(BUCKET)
        && CHAIN.is_multiple_of(BUCKET)
        && NEAR_HOMES.is_multiple_of(BUCKET)
        && SLOTS_PER_SESSION.is_multiple_of(BUCKET)
);

/// No slot.
pub const NO_SLOT: u32 = u32::MAX;

/// The regions of a table. Chains start in the near region from slot 0 on, and in the far region
/// after it. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Regions {
    /// The number of slots of the near region where chains may start: the first of each [`BUCKET`].
    pub near: u32,
    /// The same for the far region; 0 if there is none.
    pub far: u32,
}

impl Regions {
    /// Returns the regions of a table for this many sessions; `None` if that is too many.
    pub const fn of(sessions: u32) -> Option<Self> {
        match sessions.checked_mul(SLOTS_PER_SESSION) {
            Some(homes) if homes <= NEAR_HOMES => Some(Self { near: homes, far: 0 }),
            Some(homes) if homes < NO_SLOT - NEAR_HOMES - 2 * CHAIN => {
                Some(Self { near: NEAR_HOMES, far: homes })
            }
            _ => None,
        }
    }

    /// Returns the regions of a table with this many slots.
    pub const fn of_slots(slots: u32) -> Self {
        let homes = slots.saturating_sub(CHAIN);
        if homes <= NEAR_HOMES {
            Self { near: homes, far: 0 }
        } else {
            Self { near: NEAR_HOMES, far: homes.saturating_sub(NEAR_HOMES + CHAIN) }
        }
    }

    /// Returns the number of slots. After the last start of each region there is room for a chain
    /// of the maximum length.
    pub const fn slots(&self) -> u32 {
        self.near + CHAIN + if self.far == 0 { 0 } else { self.far + CHAIN }
    }

    /// Returns the number of sessions that there is room for.
    pub const fn sessions(&self) -> u32 {
        if self.far == 0 { self.near / SLOTS_PER_SESSION } else { self.far / SLOTS_PER_SESSION }
    }

    /// Returns the length in slots of the chain that starts here. In a near region, that is no more
    /// than the fast path looks at. The region fills up, and every new session would otherwise walk
    /// along a long chain without finding room.
    #[inline(always)]
    pub const fn chain(&self, home: u32) -> u32 {
        if self.far != 0 && home < self.near { REACH } else { CHAIN }
    }

    /// Returns where the chain starts that is searched first.
    #[inline(always)]
    pub const fn near_home(&self, hash: u32) -> u32 {
        Self::place(hash, self.near)
    }

    /// Returns where the other chain starts, or [`NO_SLOT`].
    #[inline(always)]
    pub const fn far_home(&self, hash: u32) -> u32 {
        if self.far == 0 {
            return NO_SLOT;
        }
        Self::place(hash, self.far).wrapping_add(self.near).wrapping_add(CHAIN)
    }

    /// Maps a hash to one of the first `slots` slots that starts a bucket.
    #[inline(always)]
    const fn place(hash: u32, slots: u32) -> u32 {
        ((hash as u64 * slots as u64) >> u32::BITS) as u32 & !(BUCKET - 1)
    }

    /// Returns where both chains start.
    #[inline(always)]
    pub const fn homes(&self, hash: u32) -> [u32; 2] {
        [self.near_home(hash), self.far_home(hash)]
    }
}

/// The key of the table's hash function, drawn at random when the table is made.
///
/// The function is multiply-shift over the key's words (Dietzfelbinger et al., 1997): for any two
/// flows, the probability over the seeds that they start in the same of `n` buckets is at most
/// about `2/n`. The last word has 40 bits, the ports and above them the protocol. A multiplier of
/// 64 bits is too short for arbitrary pairs of such words, but protocols differ by 5, 11 or 16. An
/// odd difference costs nothing. A difference of 16 costs four bits: for UDP and ICMP with the same
/// ports between the same ends, the probability is `16/n`. A fixed permutation of the 32 bits keeps
/// regular keys (consecutive ports) from making regular chains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HashSeeds {
    /// One multiplier for each word (source, destination, ports and protocol), and an addend.
    pub words: [u64; 4],
}

impl HashSeeds {
    /// Returns 32 bits for a flow.
    #[inline(always)]
    pub const fn hash(&self, key: &FlowKey) -> u32 {
        let [source, destination, service, addend] = self.words;
        let sum = addend
            .wrapping_add(source.wrapping_mul(u32::from_le_bytes(key.source.0) as u64))
            .wrapping_add(destination.wrapping_mul(u32::from_le_bytes(key.destination.0) as u64))
            .wrapping_add(service.wrapping_mul(key.ports_and_protocol()));
        let mut hash = (sum >> 32) as u32;
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(if cfg!(feature = "other-layout") { 0xc2b2_ae35 } else { 0x85eb_ca6b });
        hash ^ (hash >> 13)
    }

    /// Returns where the two chains of a flow start, see [`Regions::homes`].
    #[inline(always)]
    pub const fn homes(&self, key: &FlowKey, regions: &Regions) -> [u32; 2] {
        regions.homes(self.hash(key))
    }
}

/// Returns 32 bits for an address. Without the seeds, it cannot be foreseen which other addresses
/// have the same hash.
#[inline(always)]
pub const fn source_hash(seeds: &HashSeeds, source: Ipv4) -> u32 {
    let (no_address, no_port) = (Ipv4([0; 4]), Port([0; 2]));
    seeds.hash(&FlowKey::new(Protocol::Icmp, source, no_port, no_address, no_port))
}
