//! Where flows go: the regions of the table, and the chains of slots that a key hashes to.

use crate::{
    address::{Ipv4, Port},
    tuple::{FlowKey, Protocol},
};

/// How many slots a chain has at most. At half load, the load of a full table, a chain of this
/// length has a probability of about 2^-35 (linear probing: e^(-n (a - 1 - ln a)) for load a =
/// 1/2).
pub const CHAIN: u32 = 128;

/// Slots for each session that there is room for: two in use, and as many free.
pub const SLOTS_PER_SESSION: u32 = 4;

/// In how many slots a chain may start, every other one, in the near region of a table that has
/// two: 16 MiB of slots. Of 40,000 sessions, hardly a flow has to be elsewhere.
pub const NEAR_HOMES: u32 = 1 << 18;

/// Slots that are next to each other in 128 bytes. Chains start at whole ones: processors fetch
/// cache lines in such pairs, so that a look at both slots of a bucket waits once.
pub const BUCKET: u32 = 2;

/// How far from where its chain starts the fast path looks for a flow, in slots: two buckets. In a
/// full table, all but one flow in a hundred is there.
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

/// Where the chains of a table start: in the near region from slot 0 on, in the far region behind
/// it. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Regions {
    /// In how many slots of the near region chains may start, at every other one ([`BUCKET`]).
    pub near: u32,
    /// In how many of the far region; 0 if there is none.
    pub far: u32,
}

impl Regions {
    /// Those of a table for this many sessions. `None` if that is too many.
    pub const fn of(sessions: u32) -> Option<Self> {
        match sessions.checked_mul(SLOTS_PER_SESSION) {
            Some(homes) if homes <= NEAR_HOMES => Some(Self { near: homes, far: 0 }),
            Some(homes) if homes < NO_SLOT - NEAR_HOMES - 2 * CHAIN => {
                Some(Self { near: NEAR_HOMES, far: homes })
            }
            _ => None,
        }
    }

    /// Those of a table of this many slots.
    pub const fn of_slots(slots: u32) -> Self {
        let homes = slots.saturating_sub(CHAIN);
        if homes <= NEAR_HOMES {
            Self { near: homes, far: 0 }
        } else {
            Self { near: NEAR_HOMES, far: homes.saturating_sub(NEAR_HOMES + CHAIN) }
        }
    }

    /// The number of slots: behind the last start of each region there is room for a whole chain,
    /// whether it may be that long or not.
    pub const fn slots(&self) -> u32 {
        self.near + CHAIN + if self.far == 0 { 0 } else { self.far + CHAIN }
    }

    /// How many sessions there is room for.
    pub const fn sessions(&self) -> u32 {
        if self.far == 0 { self.near / SLOTS_PER_SESSION } else { self.far / SLOTS_PER_SESSION }
    }

    /// How many slots the chain that starts here has. In a near region, no more than the fast path
    /// looks at: it fills up, and whoever opens a session would walk along all of a long one in
    /// vain.
    #[inline(always)]
    pub const fn chain(&self, home: u32) -> u32 {
        if self.far != 0 && home < self.near { REACH } else { CHAIN }
    }

    /// Where the chain of a key with this hash starts that is looked through first.
    #[inline(always)]
    pub const fn near_home(&self, hash: u32) -> u32 {
        Self::place(hash, self.near)
    }

    /// Where the other one starts, or [`NO_SLOT`].
    #[inline(always)]
    pub const fn far_home(&self, hash: u32) -> u32 {
        if self.far == 0 {
            return NO_SLOT;
        }
        Self::place(hash, self.far).wrapping_add(self.near).wrapping_add(CHAIN)
    }

    /// One of so many slots, the first of a bucket.
    #[inline(always)]
    const fn place(hash: u32, slots: u32) -> u32 {
        ((hash as u64 * slots as u64) >> u32::BITS) as u32 & !(BUCKET - 1)
    }

    /// Where both start.
    #[inline(always)]
    pub const fn homes(&self, hash: u32) -> [u32; 2] {
        [self.near_home(hash), self.far_home(hash)]
    }
}

/// The key of the table's hash function: drawn at random when the table is made.
///
/// The function is multiply-shift over the key's words (Dietzfelbinger et al., 1997): for any two
/// flows, the probability over the seeds that they start in the same of `n` buckets is at most
/// about `2/n`. The last word has 40 bits, the ports and above them the protocol, and 64 bits would
/// be too few for any two of those; but protocols differ by 5, 11 or 16, which costs nothing where
/// it is odd, and four bits where it is 16: for UDP and ICMP with the same ports between the same
/// ends, it is `16/n`. A fixed permutation of the 32 bits keeps regular keys (ports in a row) from
/// making regular chains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HashSeeds {
    /// One multiplier for each word: source, destination, ports and protocol; and an addend.
    pub words: [u64; 4],
}

impl HashSeeds {
    /// 32 bits for a flow.
    #[inline(always)]
    pub const fn hash(&self, key: &FlowKey) -> u32 {
        let [source, destination, service, addend] = self.words;
        let sum = addend
            .wrapping_add(source.wrapping_mul(u32::from_le_bytes(key.source.0) as u64))
            .wrapping_add(destination.wrapping_mul(u32::from_le_bytes(key.destination.0) as u64))
            .wrapping_add(service.wrapping_mul(key.ports_and_protocol()));
        let mut hash = (sum >> 32) as u32;
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^ (hash >> 13)
    }

    /// Where the two chains of a flow start, see [`Regions::homes`].
    #[inline(always)]
    pub const fn homes(&self, key: &FlowKey, regions: &Regions) -> [u32; 2] {
        regions.homes(self.hash(key))
    }
}

/// Returns 32 bits for an address. Without the seeds, nobody can foresee which other addresses have
/// the same.
#[inline(always)]
pub const fn source_hash(seeds: &HashSeeds, source: Ipv4) -> u32 {
    let (nobody, no_port) = (Ipv4([0; 4]), Port([0; 2]));
    seeds.hash(&FlowKey::new(Protocol::Icmp, source, no_port, nobody, no_port))
}
