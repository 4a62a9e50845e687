//! Decides which connections get a place, and which ones are closed for others. No I/O, no clock.
//!
//! Connections are in groups, each with places that the other groups cannot use. Within a group,
//! each party has a share. At its share, a party's next connection replaces its oldest one. In a
//! full group, a connection of a party with fewer connections replaces the oldest one of the party
//! with the most. The oldest has had the most time, which is enough for a request that is
//! sent at once.

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

/// The decision about a new connection.
#[derive(Debug, Eq, PartialEq)]
enum Decision {
    /// It is admitted.
    Enter,
    /// It is admitted, and replaces the one at this position.
    Instead(usize),
    /// It is closed.
    Refuse,
}

struct Connection<T> {
    serial: u64,
    party: Party,
    since: Instant,
    ticket: T,
}

/// The connections of a group.
pub(super) struct Group<T> {
    capacity: Capacity,
    /// The oldest is first.
    connections: Vec<Connection<T>>,
}

impl<T> Group<T> {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self { capacity, connections: Vec::new() }
    }

    /// Returns `true` if a connection is admitted. Then `ticket` is kept until the connection
    /// [leaves](Self::leave) or is replaced, which drops the ticket.
    pub(super) fn enter(&mut self, serial: u64, party: Party, now: Instant, ticket: T) -> bool {
        match self.decide(party, now) {
            Decision::Enter => {}
            Decision::Instead(position) => drop(self.connections.remove(position).ticket),
            Decision::Refuse => return false,
        }
        self.connections.push(Connection { serial, party, since: now, ticket });
        true
    }

    pub(super) fn leave(&mut self, serial: u64) {
        self.connections.retain(|connection| connection.serial != serial);
    }

    fn decide(&self, party: Party, now: Instant) -> Decision {
        let oldest = |party: Party| self.connections.iter().position(|connection| connection.party == party);
        let own = self.of(party);
        if own >= self.capacity.share {
            let rested = oldest(party).filter(|position| {
                self.connections
                    .get(*position)
                    .is_some_and(|connection| now.duration_since(connection.since) >= STAY)
            });
            return rested.map_or(Decision::Refuse, Decision::Instead);
        }
        if self.connections.len() < self.capacity.places {
            return Decision::Enter;
        }
        // Of several that have most, whose oldest has been here longest.
        let mut most = None;
        for (position, connection) in self.connections.iter().enumerate() {
            let has = self.of(connection.party);
            if has > most.map_or(own, |(has, _)| has) {
                most = Some((has, position));
            }
        }
        most.map_or(Decision::Refuse, |(_, position)| Decision::Instead(position))
    }

    fn of(&self, party: Party) -> usize {
        self.connections.iter().filter(|connection| connection.party == party).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity = Capacity { places: 6, share: 3 };

    fn group(parties: &[u32], at: Instant) -> Group<()> {
        let mut group = Group::new(CAPACITY);
        for (serial, party) in (0..).zip(parties) {
            assert!(group.enter(serial, Party::User(*party), at, ()), "{party}");
        }
        group
    }

    #[test]
    fn a_party_at_its_share_replaces_its_own_oldest_connection() {
        let start = Instant::now();
        let group = group(&[1, 2, 1, 1], start);
        assert_eq!(group.decide(Party::User(1), start), Decision::Refuse);
        assert_eq!(group.decide(Party::User(1), start + STAY), Decision::Instead(0));
        assert_eq!(group.decide(Party::User(2), start), Decision::Enter);
    }

    #[test]
    fn in_a_full_group_the_party_with_the_most_loses_a_connection() {
        let start = Instant::now();
        assert_eq!(group(&[2, 1, 1, 1, 2, 3], start).decide(Party::User(4), start), Decision::Instead(1));
        assert_eq!(group(&[2, 1, 1, 1, 2, 3], start).decide(Party::User(3), start), Decision::Instead(1));
        // All have the same number: the oldest connection has had enough time.
        assert_eq!(group(&[1, 2, 3, 4, 5, 6], start).decide(Party::User(7), start), Decision::Instead(0));
        // No connection goes for a party that has as many.
        assert_eq!(group(&[1, 2, 3, 4, 5, 6], start).decide(Party::User(3), start), Decision::Refuse);
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
            let mut group = Group::new(CAPACITY);
            for (serial, (party, pause, leaves)) in (0..).zip(steps) {
                now += Duration::from_millis(pause);
                if leaves && serial > 0 {
                    group.leave(serial / 2);
                }
                group.enter(serial, Party::User(party), now, ());
                let mut count: HashMap<Party, usize> = HashMap::new();
                for connection in &group.connections {
                    *count.entry(connection.party).or_default() += 1;
                }
                prop_assert!(group.connections.len() <= CAPACITY.places);
                prop_assert!(count.values().all(|count| *count <= CAPACITY.share));
                prop_assert_ne!(group.decide(Party::User(1000), now), Decision::Refuse);
            }
        }
    }
}
