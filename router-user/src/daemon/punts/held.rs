//! Fragments that came before their datagram's first.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use router_common::fragment::{FragmentKey, PATIENCE};

use super::Received;

/// How long they are held.
pub(super) const LIMIT: Duration = Duration::from_millis(PATIENCE as u64);
/// How many bytes are held, at most: 64 datagrams of the largest size.
const BYTES: usize = 4 << 20;

/// What is held, by datagram.
#[derive(Debug, Default)]
pub(super) struct Held {
    datagrams: HashMap<FragmentKey, Waiting>,
    bytes: usize,
    /// Nothing that is held is older.
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

impl Held {
    /// Holds a fragment; `false` if there is no room.
    pub(super) fn hold(&mut self, key: FragmentKey, fragment: Received, now: Instant) -> bool {
        if self.datagrams.get(&key).is_some_and(|waiting| waiting.is_too_old(now)) {
            // Of another datagram.
            self.release(&key, now);
        }
        let bytes = fragment.cost();
        if self.bytes + bytes > BYTES {
            self.expire(now);
        }
        if self.bytes + bytes > BYTES {
            return false;
        }
        self.bytes += bytes;
        self.oldest.get_or_insert(now);
        let waiting =
            self.datagrams.entry(key).or_insert_with(|| Waiting { since: now, fragments: Vec::new() });
        waiting.fragments.push(fragment);
        true
    }

    /// Gives up the fragments of a datagram, in the order they came in.
    pub(super) fn release(&mut self, key: &FragmentKey, now: Instant) -> Vec<Received> {
        let Some(waiting) = self.datagrams.remove(key) else { return Vec::new() };
        self.bytes -= waiting.bytes();
        // Old ones are of another datagram with the same identification.
        if waiting.is_too_old(now) {
            self.expired += waiting.fragments.len();
            return Vec::new();
        }
        waiting.fragments
    }

    /// Forgets what has been held for too long. Looks only if there may be something: it is asked whenever there is no room.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.oldest.is_none_or(|oldest| now.saturating_duration_since(oldest) < LIMIT) {
            return;
        }
        let before = self.fragments();
        self.datagrams.retain(|_, waiting| !waiting.is_too_old(now));
        self.bytes = self.datagrams.values().map(Waiting::bytes).sum();
        self.oldest = self.datagrams.values().map(|waiting| waiting.since).min();
        self.expired += before - self.fragments();
    }

    /// How many fragments have been forgotten for their age since this was last asked.
    pub(super) fn expired(&mut self) -> usize {
        std::mem::take(&mut self.expired)
    }

    /// How many fragments are held.
    pub(super) fn fragments(&self) -> usize {
        self.datagrams.values().map(|waiting| waiting.fragments.len()).sum()
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u16) -> FragmentKey {
        let [high, low] = id.to_be_bytes();
        FragmentKey::new(&[0x45, 0, 0, 0, high, low, 0, 0, 0, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
    }

    fn fragment(tag: u8, length: usize) -> Received {
        Received { interface: 3, packet: vec![tag; length] }
    }

    #[test]
    fn gives_back_what_it_was_given_once_and_in_order() {
        let (mut held, now) = (Held::default(), Instant::now());
        assert!(held.hold(key(1), fragment(1, 10), now));
        assert!(held.hold(key(2), fragment(2, 10), now));
        assert!(held.hold(key(1), fragment(3, 10), now));
        assert_eq!(held.release(&key(1), now), [fragment(1, 10), fragment(3, 10)]);
        assert_eq!(held.release(&key(1), now), []);
        assert!(!held.is_empty());
        assert_eq!(held.release(&key(2), now), [fragment(2, 10)]);
        assert!(held.is_empty());
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn forgets_by_the_age_of_the_oldest() {
        let (mut held, start) = (Held::default(), Instant::now());
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
        let (mut held, start) = (Held::default(), Instant::now());
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
        let (mut held, start) = (Held::default(), Instant::now());
        let mut taken = 0_usize;
        for id in 0..u16::MAX {
            taken += usize::from(held.hold(key(id), fragment(0, 1480), start));
            assert!(held.bytes <= BYTES);
        }
        assert_eq!(taken, BYTES / fragment(0, 1480).cost());
        assert!(!held.hold(key(u16::MAX), fragment(0, 1480), start));
        assert!(held.hold(key(u16::MAX), fragment(0, 1480), start + LIMIT));
        assert_eq!(held.datagrams.len(), 1);
    }
}
