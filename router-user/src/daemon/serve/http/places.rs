//! Places for connections: which connection gets one, and which one makes room. No I/O, no clock.
//!
//! Connections are in rooms that do not know of each other: a full room takes nothing from the
//! others. In a room, each party has a share. One that has had it makes room for its next
//! connection itself. Where a room is full, whoever has most makes room for whoever has less: the
//! connection that has been open longest goes, which for a request that comes at once is long
//! enough.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// The time that a connection stays at least, before it goes for the next one of the same party.
/// One that connects all the time is closed at the door then, which costs little.
const STAY: Duration = Duration::from_millis(100);

/// A client, as connections are counted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Party {
    /// A user of this machine, by number.
    User(u32),
    /// An address. Of IPv6, what one machine usually has: a /64.
    Address(IpAddr),
}

impl Party {
    /// The party of a peer with this address.
    pub(crate) fn of(address: IpAddr) -> Self {
        const NETWORK: u128 = !0 << 64;
        Self::Address(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        })
    }
}

/// Connections at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Capacity {
    /// In all.
    pub(crate) places: usize,
    /// Of one party.
    pub(crate) share: usize,
}

/// The fate of a new connection.
#[derive(Debug, Eq, PartialEq)]
enum Decision {
    /// It comes in.
    Enter,
    /// It comes in for the one at this position, which goes.
    Instead(usize),
    /// It is closed.
    Refuse,
}

struct Guest<T> {
    serial: u64,
    party: Party,
    since: Instant,
    ticket: T,
}

/// One room.
pub(super) struct Room<T> {
    capacity: Capacity,
    /// The one that has been here longest is first.
    guests: Vec<Guest<T>>,
}

impl<T> Room<T> {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self { capacity, guests: Vec::new() }
    }

    /// Lets a connection in, if it may come in: then `ticket` is kept until it
    /// [leaves](Self::leave), or has to, which drops it.
    pub(super) fn enter(&mut self, serial: u64, party: Party, now: Instant, ticket: T) -> bool {
        match self.decide(party, now) {
            Decision::Enter => {}
            Decision::Instead(position) => drop(self.guests.remove(position).ticket),
            Decision::Refuse => return false,
        }
        self.guests.push(Guest { serial, party, since: now, ticket });
        true
    }

    pub(super) fn leave(&mut self, serial: u64) {
        self.guests.retain(|guest| guest.serial != serial);
    }

    fn decide(&self, party: Party, now: Instant) -> Decision {
        let oldest = |party: Party| self.guests.iter().position(|guest| guest.party == party);
        let own = self.of(party);
        if own >= self.capacity.share {
            let rested = oldest(party).filter(|position| {
                self.guests.get(*position).is_some_and(|guest| now.duration_since(guest.since) >= STAY)
            });
            return rested.map_or(Decision::Refuse, Decision::Instead);
        }
        if self.guests.len() < self.capacity.places {
            return Decision::Enter;
        }
        // Of several that have most, whose oldest has been here longest.
        let mut most = None;
        for (position, guest) in self.guests.iter().enumerate() {
            let has = self.of(guest.party);
            if has > most.map_or(own, |(has, _)| has) {
                most = Some((has, position));
            }
        }
        most.map_or(Decision::Refuse, |(_, position)| Decision::Instead(position))
    }

    fn of(&self, party: Party) -> usize {
        self.guests.iter().filter(|guest| guest.party == party).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity = Capacity { places: 6, share: 3 };

    fn room(parties: &[u32], at: Instant) -> Room<()> {
        let mut room = Room::new(CAPACITY);
        for (serial, party) in (0..).zip(parties) {
            assert!(room.enter(serial, Party::User(*party), at, ()), "{party}");
        }
        room
    }

    #[test]
    fn who_has_had_its_share_makes_room_itself() {
        let start = Instant::now();
        let room = room(&[1, 2, 1, 1], start);
        assert_eq!(room.decide(Party::User(1), start), Decision::Refuse);
        assert_eq!(room.decide(Party::User(1), start + STAY), Decision::Instead(0));
        assert_eq!(room.decide(Party::User(2), start), Decision::Enter);
    }

    #[test]
    fn who_has_most_makes_room_in_a_full_room() {
        let start = Instant::now();
        assert_eq!(room(&[2, 1, 1, 1, 2, 3], start).decide(Party::User(4), start), Decision::Instead(1));
        assert_eq!(room(&[2, 1, 1, 1, 2, 3], start).decide(Party::User(3), start), Decision::Instead(1));
        // All have the same number: the oldest connection has had enough time.
        assert_eq!(room(&[1, 2, 3, 4, 5, 6], start).decide(Party::User(7), start), Decision::Instead(0));
        // No connection goes for a party that has as many.
        assert_eq!(room(&[1, 2, 3, 4, 5, 6], start).decide(Party::User(3), start), Decision::Refuse);
    }

    #[test]
    fn an_ipv6_machine_is_one_party() {
        let party = |address: &str| Party::of(address.parse().expect("an address"));
        assert_eq!(party("2001:db8::1"), party("2001:db8::ffff:1"));
        assert_ne!(party("2001:db8::1"), party("2001:db8:0:1::1"));
        assert_eq!(party("::ffff:10.0.2.4"), party("10.0.2.4"));
        assert_ne!(party("10.0.2.4"), party("10.0.2.5"));
    }

    proptest! {
        /// A party without a connection gets one whatever others do, and there are never more
        /// connections than places.
        #[test]
        fn a_new_party_always_gets_in(steps in prop::collection::vec((0_u32..20, 0_u64..50, any::<bool>()), 1..200)) {
            let mut now = Instant::now();
            let mut room = Room::new(CAPACITY);
            for (serial, (party, pause, leaves)) in (0..).zip(steps) {
                now += Duration::from_millis(pause);
                if leaves && serial > 0 {
                    room.leave(serial / 2);
                }
                room.enter(serial, Party::User(party), now, ());
                let mut count: HashMap<Party, usize> = HashMap::new();
                for guest in &room.guests {
                    *count.entry(guest.party).or_default() += 1;
                }
                prop_assert!(room.guests.len() <= CAPACITY.places);
                prop_assert!(count.values().all(|count| *count <= CAPACITY.share));
                prop_assert_ne!(room.decide(Party::User(1000), now), Decision::Refuse);
            }
        }
    }
}
