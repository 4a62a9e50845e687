//! SNAT ports: which port to try for a new session, and which ports are taken.
//!
//! A port is taken by the reply flow in the table, and by nothing else: the same port serves
//! sessions to different targets. This module only helps to find a free port fast. A session first
//! makes a few guesses, beginning with the client's own port. If they fail, there are many sessions
//! with that target, and a [`Pool`] remembers which ports are taken. So a taken port costs no look
//! at the table, and even the last free one is found at a bounded cost.

use core::{mem::size_of, ops::Range};

use crate::{
    address::{Ipv4, Port},
    bounds::opaque,
    shared::{AtomicU32, AtomicU64, order},
    tuple::FlowKey,
};

/// The number of failed guesses, its own port and random ones, after which a session makes a pool
/// for its target, if one is to spare. If clients share their ports, the first guess fails then,
/// and a pool is to be expected when one port in 30 of the range is taken; if they do not, one in
/// 10.
pub const GUESSES_BEFORE_POOL: u32 = 3;

/// The number of failed guesses after which a third of the ports or more should be taken. A session
/// then makes a pool from the reserve. If no pool is left, it tries one port after the other.
pub const GUESSES: u32 = 8;

/// A range of ports, both ends included. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortRange {
    /// The first port, as a number. At least 1.
    pub first: u16,
    /// The last port, as a number. At least `first`.
    pub last: u16,
}

impl PortRange {
    /// Returns the number of ports.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        (self.last as u32).wrapping_sub(self.first as u32).wrapping_add(1)
    }

    /// Returns `true` if the port is in the range.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Returns a random port, another one for each attempt.
    #[inline(always)]
    const fn any(self, attempt: u32, random: u32) -> u16 {
        // Each attempt is elsewhere: clients' own ports fill solid blocks.
        let mut bits = random.wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
        bits ^= bits >> 16;
        bits = bits.wrapping_mul(0x85eb_ca6b);
        bits ^= bits >> 13;
        // A multiplication in place of a remainder: maps 32 bits evenly to 0..size.
        let at = ((bits as u64 * self.size() as u64) >> 32) as u32;
        self.first.wrapping_add(at as u16)
    }

    /// Returns the port that is `step` ports after a random one, around the range.
    #[inline(always)]
    pub const fn in_turn(self, random: u32, step: u32) -> Port {
        let size = self.size();
        let start = ((random as u64 * size as u64) >> 32) as u32;
        // A range is never empty, but the verifier accepts only a remainder that cannot panic.
        let at = match start.wrapping_add(step).checked_rem(size) {
            Some(at) => at,
            None => 0,
        };
        Port::new(self.first.wrapping_add(at as u16))
    }

    /// Returns the first word of a pool's bitmap that has ports of this range.
    #[inline(always)]
    const fn first_word(self) -> u32 {
        self.first as u32 / 64
    }

    /// Returns the number of words that have ports of this range.
    #[inline(always)]
    pub const fn words(self) -> u32 {
        (self.last as u32 / 64).wrapping_sub(self.first_word()).wrapping_add(1)
    }

    /// Returns a random one of these words.
    #[inline(always)]
    pub const fn any_word(self, random: u32) -> u32 {
        self.first_word().wrapping_add(((random as u64 * self.words() as u64) >> 32) as u32)
    }

    /// Returns the next one of these words, around the range.
    #[inline(always)]
    pub const fn word_after(self, word: u32) -> u32 {
        if word >= self.last as u32 / 64 { self.first_word() } else { word.wrapping_add(1) }
    }

    /// Returns the ports of this range among the 64 of a word, as bits.
    #[inline(always)]
    const fn in_word(self, word: u32) -> u64 {
        let start = word * 64;
        let end = start + 63;
        let (first, last) = (self.first as u32, self.last as u32);
        if last < start || first > end {
            return 0;
        }
        let low = first.saturating_sub(start);
        let high = if last < end { last - start } else { 63 };
        (u64::MAX << low) & (u64::MAX >> (63 - high))
    }

    /// Returns the number of ports that one source may use.
    pub const fn per_source(self) -> u32 {
        self.size() - self.in_pairs().size() / 2
    }

    /// Returns the ports in pairs ([`SourcePorts`]): an eighth of the range, in whole fours, which
    /// are two pairs each. A range of less than 32 ports has none.
    ///
    /// They begin at a sixth of the range. In the usual ranges, few clients have their own ports
    /// there, which are kept if possible: 1024 to 5000 in old systems, 32768 and above today.
    const fn in_pairs(self) -> Self {
        let size = self.size() / 8 / 4 * 4;
        if size == 0 {
            return Self { first: self.first, last: self.first.wrapping_sub(1) };
        }
        let first = (self.first as u32).wrapping_add(self.size() / 6).wrapping_add(3) / 4 * 4;
        Self { first: first as u16, last: first.wrapping_add(size).wrapping_sub(1) as u16 }
    }
}

/// The ports of a range that one source may use: 15 of 16, different ones for each source.
///
/// An eighth of the range is in pairs, a port and the next but one. Of each pair, a source may use
/// one port, chosen by a keyed hash. So a source that takes all its ports leaves half of another
/// source's ports among the pairs, and two such sources leave a quarter. That needs no counting: it
/// holds at every moment, on every CPU and after a restart.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SourcePorts {
    range: PortRange,
    /// The ports in pairs.
    pairs: PortRange,
    /// See [`crate::table::source_hash`].
    source: u32,
}

impl SourcePorts {
    /// Returns the ports of the source with this hash.
    #[inline(always)]
    pub const fn new(range: PortRange, source: u32) -> Self {
        Self { range, pairs: range.in_pairs(), source }
    }

    /// Returns the whole range.
    #[inline(always)]
    pub const fn range(&self) -> PortRange {
        self.range
    }

    /// Returns `true` if the source may use the port.
    #[inline(always)]
    pub const fn contains(&self, port: u16) -> bool {
        self.range.contains(port) && self.others(port as u32 / 64) >> (port % 64) & 1 == 0
    }

    /// Returns the port if the source may use it, or else the other one of its pair, which has the
    /// same parity.
    #[inline(always)]
    pub const fn nearest(&self, port: u16) -> u16 {
        if self.contains(port) { port } else { port ^ 2 }
    }

    /// Returns the port for the `attempt`-th guess, from 0: the client's own if it is in the range
    /// (RFC 4787 REQ-3's port preservation), then random ones.
    #[inline(always)]
    pub const fn guess(&self, attempt: u32, own: Port, random: u32) -> Port {
        let keeps = attempt == 0 && self.range.contains(own.number());
        Port::new(self.nearest(if keeps { own.number() } else { self.range.any(attempt, random) }))
    }

    /// Returns these ports among the 64 of a word, as bits.
    #[inline(always)]
    const fn in_word(&self, word: u32) -> u64 {
        self.range.in_word(word) & !self.others(word)
    }

    /// Returns the ports among the 64 of a word that this source may not use, as bits.
    #[inline(always)]
    const fn others(&self, word: u32) -> u64 {
        /// The first two of every four: the first port of each pair.
        const FIRST: u64 = 0x3333_3333_3333_3333;
        // The finalizer of SplitMix64 (Steele et al., 2014).
        let mut bits = (self.source as u64) << 32 | word as u64;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        self.pairs.in_word(word) & (bits & FIRST | (!bits & FIRST) << 2)
    }
}

/// The key of a port pool: the reply flow's tuple without the port. Map data: no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// The SNAT address.
    pub snat: Ipv4,
    /// The target.
    pub target: Ipv4,
    /// The target's port.
    pub target_port: Port,
    /// The IP protocol number.
    pub protocol: u8,
    /// Padding.
    pub zero: u8,
}

const _: () = assert!(size_of::<PoolKey>() == 12);

impl PoolKey {
    /// Returns the key of the pool that a reply flow's port belongs to.
    #[inline(always)]
    pub const fn of(reply: &FlowKey) -> Self {
        Self {
            snat: reply.destination,
            target: reply.source,
            target_port: reply.source_port,
            protocol: reply.protocol_number(),
            zero: 0,
        }
    }
}

/// The number of words of a pool's bitmap, which has a bit for each port. A model has only the
/// first words.
pub const POOL_WORDS: u32 = if cfg!(model) { 2 } else { 1024 };

/// The number of sources whose exhaustion is remembered: a Private Link Service has up to eight
/// addresses. Sources that share a place only search more often.
const EXHAUSTED: usize = 8;

/// The ports that are taken for one target, in memory that the programs and the daemon share.
///
/// A pool is only a hint: the flow table decides. A bit may be missing for a taken port: the
/// attempt to take the port finds out and sets it. But a bit must not stay set for a free port, or
/// the port would be lost. So a CPU that sets a bit for a port that it did not take itself looks at
/// the table once more *after* setting it, and clears it if the port is free. And a CPU that frees
/// a port does so in the table *before* it clears the bit. Whichever comes last sees the other.
#[repr(C, align(64))]
pub struct Pool {
    /// 1 while a [`PoolKey`] leads to this pool.
    used: AtomicU32,
    /// Goes up whenever a port is freed.
    frees: AtomicU32,
    /// The value of `frees` when a search found all ports taken that a source may use, see
    /// [`Pool::exhaustion`]. By the source's hash.
    exhausted: [AtomicU32; EXHAUSTED],
    zero: [u32; 6],
    bits: [AtomicU64; POOL_WORDS as usize],
}

const _: () = assert!(cfg!(model) || size_of::<Pool>() == 64 + 8192);

impl Pool {
    #[inline(always)]
    fn bits(&self, word: u32) -> &AtomicU64 {
        // For a port's word, the compiler would leave the remainder out.
        &self.bits[(opaque(word) % POOL_WORDS) as usize]
    }

    /// Claims a pool that is not in use. Returns `false` if it is in use.
    #[inline(always)]
    pub fn claim(&self) -> bool {
        self.used.change(0, 1)
    }

    /// Gives back a pool that was just claimed, before another CPU can find it.
    #[inline(always)]
    pub fn unclaim(&self) {
        self.used.swap(0);
    }

    /// Returns `true` if the pool is in use.
    #[inline(always)]
    pub fn is_used(&self) -> bool {
        self.used.load() != 0
    }

    /// Gives the pool back, empty. Only the daemon does, when no program can have it any more.
    pub fn release(&self) {
        for word in 0..POOL_WORDS {
            self.bits(word).swap(0);
        }
        for exhausted in &self.exhausted {
            exhausted.swap(0);
        }
        self.used.swap(0);
    }

    /// Marks a port as taken. Returns `true` if it was marked as free.
    #[inline(always)]
    pub fn take(&self, port: u16) -> bool {
        let bit = 1 << (port % 64);
        self.bits(u32::from(port) / 64).or(bit) & bit == 0
    }

    /// Marks one of these ports in this word as taken, if one is free: a random one, so that others
    /// cannot foresee it (RFC 6056).
    #[inline(always)]
    pub fn take_from(&self, word: u32, ports: &SourcePorts, random: u32) -> Take {
        let word = word % POOL_WORDS;
        let bits = self.bits(word);
        let free = !bits.load() & ports.in_word(word);
        if free == 0 {
            return Take::AllTaken;
        }
        let behind = free & (u64::MAX << (random % 64));
        let free = if behind == 0 { free } else { behind };
        // The lowest bit, and its number: a count of trailing zeros is a long table in BPF.
        let bit = free & free.wrapping_neg();
        if bits.or(bit) & bit != 0 {
            return Take::Lost;
        }
        Take::Port((word * 64 + bit_number(bit)) as u16)
    }

    /// Marks a port as free, after it has become free in the flow table.
    #[inline(always)]
    pub fn clear(&self, port: u16) {
        self.bits(u32::from(port) / 64).and(!(1 << (port % 64)));
        self.frees.add(1);
    }

    /// Marks a port as taken.
    #[inline(always)]
    pub fn set(&self, port: u16) {
        self.take(port);
    }

    /// Returns the ports that are marked as taken in these words.
    pub fn taken_in(&self, words: Range<u32>) -> impl Iterator<Item = u16> {
        words.flat_map(|word| {
            let mut bits = self.bits(word).load();
            core::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                // Clears that bit; 0 stays 0.
                bits &= bits.wrapping_sub(1);
                (bit < 64).then(|| (word * 64 + bit) as u16)
            })
        })
    }

    /// Returns the number of ports that are marked as taken.
    pub fn taken(&self) -> u32 {
        (0..POOL_WORDS).map(|word| self.bits(word).load().count_ones()).sum()
    }

    /// Returns the count of freed ports, for [`set_exhausted`](Self::set_exhausted) after a search.
    #[inline(always)]
    pub fn frees(&self) -> u32 {
        let frees = self.frees.load();
        // A search must see all ports that are counted here as freed.
        order();
        frees
    }

    /// Returns `true` if a search has found all of these ports taken, and no port of the target has
    /// been freed since.
    #[inline(always)]
    pub fn is_exhausted(&self, ports: &SourcePorts) -> bool {
        let exhausted = self.exhausted(ports).load();
        exhausted != 0 && exhausted == Self::exhaustion(self.frees.load(), ports)
    }

    /// Remembers that all of these ports were taken, since `frees` was read.
    #[inline(always)]
    pub fn set_exhausted(&self, frees: u32, ports: &SourcePorts) {
        // A hint in a separate word, so a plain exchange is enough.
        self.exhausted(ports).swap(Self::exhaustion(frees, ports));
    }

    #[inline(always)]
    fn exhausted(&self, ports: &SourcePorts) -> &AtomicU32 {
        &self.exhausted[opaque(ports.source) as usize % EXHAUSTED]
    }

    /// Combines everything that ends an exhaustion in one word: another source may use other ports,
    /// and the range of another configuration may have other ports.
    #[inline(always)]
    const fn exhaustion(frees: u32, ports: &SourcePorts) -> u32 {
        let SourcePorts { range, source, .. } = ports;
        frees.wrapping_add((range.first as u32) << 16 | range.last as u32).wrapping_add(*source)
    }
}

/// The result of [`Pool::take_from`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Take {
    /// This port was free, and is now marked as taken.
    Port(u16),
    /// Another CPU was faster; there may be more free ports.
    Lost,
    /// No port is free in this word.
    AllTaken,
}

/// Returns the number of the one bit that is set.
#[inline(always)]
const fn bit_number(bit: u64) -> u32 {
    let mut number = 0;
    if bit & 0xffff_ffff_0000_0000 != 0 {
        number += 32;
    }
    if bit & 0xffff_0000_ffff_0000 != 0 {
        number += 16;
    }
    if bit & 0xff00_ff00_ff00_ff00 != 0 {
        number += 8;
    }
    if bit & 0xf0f0_f0f0_f0f0_f0f0 != 0 {
        number += 4;
    }
    if bit & 0xcccc_cccc_cccc_cccc != 0 {
        number += 2;
    }
    if bit & 0xaaaa_aaaa_aaaa_aaaa != 0 {
        number += 1;
    }
    number
}

#[cfg(all(test, model))]
mod models;

#[cfg(all(test, not(model)))]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::effort::tries;

    fn pool() -> Box<Pool> {
        Box::new(Pool {
            used: AtomicU32::default(),
            frees: AtomicU32::default(),
            exhausted: core::array::from_fn(|_| AtomicU32::default()),
            zero: [0; 6],
            bits: core::array::from_fn(|_| AtomicU64::default()),
        })
    }

    fn ranges() -> impl Strategy<Value = PortRange> {
        (1..=u16::MAX, prop_oneof![0..tries(200, 40) as u16, 0..=tries(65_535, 60) as u16])
            .prop_map(|(first, length)| PortRange { first, last: first.saturating_add(length) })
    }

    /// Takes a port as a program does: from every word of the range in turn, starting at a random
    /// one, until a whole round has found nothing.
    fn take(pool: &Pool, ports: &SourcePorts, random: &mut u32) -> Option<u16> {
        *random = random.wrapping_mul(0x9e37_79b9).wrapping_add(1);
        let range = ports.range();
        let mut word = range.any_word(*random);
        (0..range.words()).find_map(|_| match pool.take_from(word, ports, *random) {
            Take::Port(port) => Some(port),
            Take::Lost | Take::AllTaken => {
                word = range.word_after(word);
                None
            }
        })
    }

    /// Has a source take all ports that it gets.
    fn take_all(pool: &Pool, ports: &SourcePorts, random: &mut u32) -> HashSet<u16> {
        std::iter::from_fn(|| take(pool, ports, random)).collect()
    }

    fn all(ports: &SourcePorts) -> HashSet<u16> {
        let PortRange { first, last } = ports.range();
        // Beyond, there are none; under Miri, only what is near is asked.
        let beyond = tries(65_535, 9) as u16;
        let near = first.saturating_sub(beyond)..=last.saturating_add(beyond);
        near.filter(|port| ports.contains(*port)).collect()
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn guesses_are_in_the_range(range in ranges(), source in any::<u32>(), own in any::<u16>(), random in any::<u32>()) {
            let ports = SourcePorts::new(range, source);
            for attempt in 0..GUESSES {
                prop_assert!(ports.contains(ports.guess(attempt, Port::new(own), random).number()));
            }
        }

        /// Exactly the ports that the source may use are given out, each once; then freed ones are,
        /// in any order.
        #[test]
        fn a_pool_gives_out_every_port_once(
            range in ranges(),
            source in any::<u32>(),
            mut random in any::<u32>(),
            freed in proptest::collection::vec(any::<u16>(), 0..50),
        ) {
            let (pool, ports) = (pool(), SourcePorts::new(range, source));
            let taken: HashSet<u16> = (0..range.per_source()).map(|_| take(&pool, &ports, &mut random).unwrap()).collect();
            prop_assert_eq!(&taken, &all(&ports));
            prop_assert_eq!(take(&pool, &ports, &mut random), None);
            prop_assert_eq!(pool.taken(), range.per_source());
            let freed: HashSet<u16> = freed.into_iter().filter(|port| ports.contains(*port)).collect();
            freed.iter().for_each(|port| pool.clear(*port));
            prop_assert_eq!(take_all(&pool, &ports, &mut random), freed);
            prop_assert_eq!(pool.taken_in(0..POOL_WORDS).collect::<HashSet<_>>(), taken);
        }

        /// A source may use 15 of 16 ports of a range, of a small range a few more. For each port
        /// that it may not use, it has another one of the same parity.
        #[test]
        fn a_source_may_use_fifteen_of_sixteen(range in ranges(), source in any::<u32>()) {
            let ports = SourcePorts::new(range, source);
            let may = all(&ports);
            prop_assert_eq!(may.len() as u32, range.per_source());
            prop_assert!(may.iter().all(|port| range.contains(*port)));
            let less = range.size() - range.per_source();
            prop_assert!(less <= range.size() / 16 && less + 2 > range.size() / 16, "{} of {}", less, range.size());
            for port in (range.first..=range.last).filter(|port| !may.contains(port)) {
                let other = ports.nearest(port);
                prop_assert!(may.contains(&other) && other % 2 == port % 2, "{} for {}", other, port);
            }
        }

        /// Sources that take all their ports leave some of another source's: of 4032 pairs one of
        /// them leaves half, the next one half of that, and so on.
        #[test]
        #[cfg_attr(miri, ignore = "counts all pairs of ports")]
        fn others_cannot_take_a_sources_share(source in any::<u32>(), others in proptest::collection::hash_set(any::<u32>(), 1..6)) {
            prop_assume!(!others.contains(&source));
            let range = PortRange { first: 1024, last: 65_535 };
            let in_word = |source, word| SourcePorts::new(range, source).in_word(word);
            let left = |word| in_word(source, word) & others.iter().fold(!0, |left, other| left & !in_word(*other, word));
            let left: u32 = (0..POOL_WORDS).map(|word| left(word).count_ones()).sum();
            let chance = 0.5_f64.powi(others.len().try_into().unwrap());
            let (mean, deviation) = (4032.0 * chance, (4032.0 * chance * (1.0 - chance)).sqrt());
            prop_assert!((f64::from(left) - mean).abs() < 7.0 * deviation, "{} and not {}", left, mean);
        }
    }

    #[test]
    fn exhaustion_ends_when_a_port_is_freed_or_the_range_is_another() {
        let pool = pool();
        let range = PortRange { first: 1, last: 65535 };
        let ports = SourcePorts::new(range, 7);
        assert!(!pool.is_exhausted(&ports));
        let frees = pool.frees();
        pool.set_exhausted(frees, &ports);
        assert!(pool.is_exhausted(&ports));
        assert!(!pool.is_exhausted(&SourcePorts::new(PortRange { first: 2, ..range }, 7)));
        pool.clear(7);
        assert!(!pool.is_exhausted(&ports));
        // A port that is freed while the search goes on counts.
        let frees = pool.frees();
        pool.clear(8);
        pool.set_exhausted(frees, &ports);
        assert!(!pool.is_exhausted(&ports));
    }

    #[test]
    fn exhaustion_is_kept_for_each_source() {
        let pool = pool();
        let range = PortRange { first: 1024, last: 65_535 };
        let sources: Vec<_> = (0..32).map(|source| SourcePorts::new(range, source)).collect();
        for source in &sources[..8] {
            pool.set_exhausted(pool.frees(), source);
        }
        assert!(sources[..8].iter().all(|source| pool.is_exhausted(source)));
        assert!(!sources[8..].iter().any(|source| pool.is_exhausted(source)));
        assert!(pool.claim());
        pool.release();
        assert!(!sources.iter().any(|source| pool.is_exhausted(source)));
    }

    #[test]
    fn a_pool_has_one_owner() {
        let pool = pool();
        assert!(pool.claim() && !pool.claim());
        pool.set(9);
        assert!(pool.take(10) && !pool.take(10) && !pool.take(9));
        assert!(pool.taken_in(0..1).eq([9, 10]) && pool.is_used());
        pool.release();
        assert!(!pool.is_used() && pool.taken() == 0);
    }

    #[test]
    fn own_port_comes_first() {
        let ports = SourcePorts::new(PortRange { first: 1024, last: 65535 }, 7);
        assert_eq!(ports.guess(0, Port::new(40_000), 7).number(), 40_000);
        assert_ne!(ports.guess(0, Port::new(80), 7).number(), 80);
        // Otherwise the other port of its pair.
        for port in (1024..=65_535).step_by(tries(1, 4099) as usize) {
            assert!([port, port ^ 2].contains(&ports.guess(0, Port::new(port), 7).number()));
        }
    }

    #[test]
    fn bits_are_numbered() {
        for number in 0..64 {
            assert_eq!(bit_number(1 << number), number);
        }
    }
}
