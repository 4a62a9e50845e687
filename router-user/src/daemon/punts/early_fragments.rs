//! Early fragments: those that arrive before their datagram's first one.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use router_common::{
    address::Ipv4,
    fragment::{FragmentKey, TIMEOUT},
};

use super::received::Received;

/// The time after which an early fragment is dropped.
pub(super) const LIMIT: Duration = Duration::from_millis(TIMEOUT as u64);
/// The maximum number of bytes held: 64 datagrams of the largest size.
const BYTES: usize = 4 << 20;

/// The early fragments, by datagram.
#[derive(Debug, Default)]
pub(super) struct EarlyFragments {
    datagrams: HashMap<FragmentKey, Waiting>,
    bytes: usize,
    /// The number of bytes held for each source.
    by_source: HashMap<Ipv4, usize>,
    /// A lower bound of the times of arrival of all fragments held.
    oldest: Option<Instant>,
    expired: usize,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    fragments: Vec<Received>,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.fragments.iter().map(Received::cost).sum()
    }

    fn is_too_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LIMIT
    }
}

impl EarlyFragments {
    /// Holds a fragment, and returns the number of fragments that are dropped for it. If there is
    /// no room, the source that takes the most loses its oldest datagram, or this fragment if it
    /// is that source's.
    pub(super) fn hold(&mut self, key: FragmentKey, fragment: Received, now: Instant) -> usize {
        if self.datagrams.get(&key).is_some_and(|waiting| waiting.is_too_old(now)) {
            // Of another datagram.
            self.release(&key, now);
        }
        let bytes = fragment.cost();
        if self.bytes + bytes > BYTES {
            self.expire(now);
        }
        let mut lost = 0;
        while self.bytes + bytes > BYTES {
            let Some(greatest) = self.greatest_source(key.source).filter(|greatest| *greatest != key.source)
            else {
                return lost + 1;
            };
            lost += self.drop_oldest_of(greatest);
        }
        self.bytes += bytes;
        *self.by_source.entry(key.source).or_default() += bytes;
        self.oldest.get_or_insert(now);
        let waiting =
            self.datagrams.entry(key).or_insert_with(|| Waiting { since: now, fragments: Vec::new() });
        waiting.fragments.push(fragment);
        lost
    }

    /// The source that has most of what is held. `sender` goes before another that has as much: it
    /// is the one that wants more.
    fn greatest_source(&self, sender: Ipv4) -> Option<Ipv4> {
        self.by_source
            .iter()
            .max_by_key(|(source, bytes)| (**bytes, **source == sender))
            .map(|(source, _)| *source)
    }

    /// Drops the datagram of a source that has been held for longest; how many fragments that were.
    fn drop_oldest_of(&mut self, source: Ipv4) -> usize {
        let theirs = self.datagrams.iter().filter(|(key, _)| key.source == source);
        let oldest = theirs.min_by_key(|(_, waiting)| waiting.since).map(|(key, _)| *key);
        oldest.and_then(|key| self.take(&key)).map_or(0, |waiting| waiting.fragments.len())
    }

    /// Takes a datagram out.
    fn take(&mut self, key: &FragmentKey) -> Option<Waiting> {
        let waiting = self.datagrams.remove(key)?;
        let bytes = waiting.bytes();
        self.bytes -= bytes;
        if let Entry::Occupied(mut theirs) = self.by_source.entry(key.source) {
            *theirs.get_mut() -= bytes;
            if *theirs.get() == 0 {
                theirs.remove();
            }
        }
        Some(waiting)
    }

    /// Gives up the fragments of a datagram, in the order they came in.
    pub(super) fn release(&mut self, key: &FragmentKey, now: Instant) -> Vec<Received> {
        let Some(waiting) = self.take(key) else { return Vec::new() };
        // Old ones are of another datagram with the same identification.
        if waiting.is_too_old(now) {
            self.expired += waiting.fragments.len();
            return Vec::new();
        }
        waiting.fragments
    }

    /// Forgets what has been held for too long. Looks only if there may be something: it is asked
    /// whenever there is no room.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.oldest.is_none_or(|oldest| now.saturating_duration_since(oldest) < LIMIT) {
            return;
        }
        let old = self.datagrams.iter().filter(|(_, waiting)| waiting.is_too_old(now));
        let old: Vec<_> = old.map(|(key, _)| *key).collect();
        let gone = old.iter().filter_map(|key| self.take(key));
        let expired: usize = gone.map(|waiting| waiting.fragments.len()).sum();
        self.oldest = self.datagrams.values().map(|waiting| waiting.since).min();
        self.expired += expired;
    }

    /// Returns the number of fragments that have expired since the last call.
    pub(super) fn expired(&mut self) -> usize {
        std::mem::take(&mut self.expired)
    }

    /// Returns the number of fragments held.
    pub(super) fn fragments(&self) -> usize {
        self.datagrams.values().map(|waiting| waiting.fragments.len()).sum()
    }

    /// Returns `true` if no fragments are held.
    pub(super) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u16) -> FragmentKey {
        key_of(1, id)
    }

    fn key_of(source: u8, id: u16) -> FragmentKey {
        let [high, low] = id.to_be_bytes();
        FragmentKey::new(&[0x45, 0, 0, 0, high, low, 0, 0, 0, 17, 0, 0, 10, 0, 0, source, 10, 0, 0, 2])
    }

    fn fragment(tag: u8, length: usize) -> Received {
        Received { interface: 3, packet: vec![tag; length] }
    }

    #[test]
    fn gives_back_what_it_was_given_once_and_in_order() {
        let (mut held, now) = (EarlyFragments::default(), Instant::now());
        assert_eq!(held.hold(key(1), fragment(1, 10), now), 0);
        assert_eq!(held.hold(key(2), fragment(2, 10), now), 0);
        assert_eq!(held.hold(key(1), fragment(3, 10), now), 0);
        assert_eq!(held.release(&key(1), now), [fragment(1, 10), fragment(3, 10)]);
        assert_eq!(held.release(&key(1), now), []);
        assert!(!held.is_empty());
        assert_eq!(held.release(&key(2), now), [fragment(2, 10)]);
        assert!(held.is_empty());
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn forgets_by_the_age_of_the_oldest() {
        let (mut held, start) = (EarlyFragments::default(), Instant::now());
        held.hold(key(1), fragment(1, 10), start);
        held.hold(key(2), fragment(2, 10), start + LIMIT / 2);
        held.hold(key(1), fragment(3, 10), start + LIMIT / 2);
        held.expire(start + LIMIT / 2);
        assert_eq!(held.datagrams.len(), 2);
        held.expire(start + LIMIT);
        assert_eq!(held.release(&key(1), start + LIMIT), []);
        assert_eq!((held.datagrams.len(), held.expired()), (1, 2));
        held.expire(start + LIMIT * 2);
        assert!(held.is_empty());
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn what_is_too_old_is_not_of_the_datagram_that_comes() {
        let (mut held, start) = (EarlyFragments::default(), Instant::now());
        held.hold(key(1), fragment(1, 10), start);
        assert_eq!(held.release(&key(1), start + LIMIT), []);
        assert_eq!((held.is_empty(), held.bytes), (true, 0));
        held.hold(key(1), fragment(2, 10), start + LIMIT);
        held.hold(key(1), fragment(3, 10), start + LIMIT * 2);
        assert_eq!(held.release(&key(1), start + LIMIT * 2), [fragment(3, 10)]);
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn never_holds_more_than_it_may_and_makes_room_by_age() {
        let (mut held, start) = (EarlyFragments::default(), Instant::now());
        let mut taken = 0_usize;
        for id in 0..u16::MAX {
            taken += 1 - held.hold(key(id), fragment(0, 1480), start);
            assert!(held.bytes <= BYTES);
        }
        assert_eq!(taken, BYTES / fragment(0, 1480).cost());
        assert_eq!(held.hold(key(u16::MAX), fragment(0, 1480), start), 1);
        assert_eq!(held.hold(key(u16::MAX), fragment(0, 1480), start + LIMIT), 0);
        assert_eq!(held.datagrams.len(), 1);
    }

    #[test]
    fn who_holds_most_makes_room_for_others() {
        let (mut held, start) = (EarlyFragments::default(), Instant::now());
        let cost = fragment(0, 1480).cost();
        let fit = BYTES / cost;
        for id in 0..fit as u16 {
            assert_eq!(held.hold(key_of(1, id), fragment(1, 1480), start), 0);
        }
        // Another source gets as much as the first has, and no more.
        for id in 0..fit as u16 {
            let now = start + Duration::from_millis(1 + u64::from(id / 100));
            assert_eq!(held.hold(key_of(2, id), fragment(2, 1480), now), 1, "{id}");
            assert!(held.bytes <= BYTES);
        }
        let of = |held: &EarlyFragments, source| held.by_source[&Ipv4([10, 0, 0, source])] / cost;
        assert!(of(&held, 1).abs_diff(of(&held, 2)) <= 1, "{} and {}", of(&held, 1), of(&held, 2));
        // One fragment of another source is always held.
        assert_eq!(held.hold(key_of(3, 7), fragment(3, 1480), start), 1);
        assert_eq!(held.release(&key_of(3, 7), start), [fragment(3, 1480)]);
        held.expire(start + 2 * LIMIT);
        assert_eq!((held.bytes, held.by_source.len(), held.fragments()), (0, 0, 0));
    }
}
