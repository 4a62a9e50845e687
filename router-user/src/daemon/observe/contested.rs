//! Next hops that change their MAC address back and forth: two machines answer for one address, by
//! mistake or on purpose. No I/O, no clock.
//!
//! One change is what a firewall's twin does that takes over. A second one within a minute is
//! something that somebody has to know: half of the packets go to the wrong machine, and to whom is
//! for whoever spoke last to say.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use router_common::maps::punt::Neighbour;

use crate::{
    health::{Conditions, Id, Severity},
    model::ContestedNextHop,
};

/// After so long without a change it is over.
const QUIET: Duration = Duration::from_secs(60);
/// So many changes without such a pause are not one machine's.
const CHANGES: u64 = 2;
/// As many next hops are watched at a time.
const ROOM: usize = 1024;
/// As many are told one by one.
const LISTED: usize = 16;

/// The next hops that have changed their MAC address lately.
#[derive(Debug, Default)]
pub(crate) struct Rivals {
    changed: HashMap<Neighbour, Rivalry>,
}

/// The changes of a next hop.
#[derive(Debug)]
struct Rivalry {
    /// The interface's name.
    interface: String,
    /// The first two addresses, in the order of their numbers, so that what is told of them stays
    /// the same for as long as it lasts.
    macs: [[u8; 6]; 2],
    /// There were others besides.
    others: bool,
    /// The one that it has had last.
    now: [u8; 6],
    changes: u64,
    began: Instant,
    last: Instant,
}

impl Rivals {
    /// Returns `true` if this neighbour's changes are of interest, beside those of next hops in
    /// use.
    pub(crate) fn watches(&self, neighbour: &Neighbour) -> bool {
        self.changed.contains_key(neighbour)
    }

    /// Takes in that a next hop on the interface of this name has the address `mac`, and had
    /// another one `before`.
    pub(crate) fn note(
        &mut self,
        neighbour: Neighbour,
        interface: &str,
        before: Option<[u8; 6]>,
        mac: [u8; 6],
        now: Instant,
    ) {
        self.pass_time(now);
        if let Some(known) = self.changed.get_mut(&neighbour) {
            if known.now != mac {
                known.others |= !known.macs.contains(&mac);
                known.now = mac;
                known.changes = known.changes.saturating_add(1);
                known.last = now;
            }
        } else if let Some(before) = before.filter(|before| *before != mac)
            && self.changed.len() < ROOM
        {
            let rivalry = Rivalry {
                interface: interface.to_owned(),
                macs: [before.min(mac), before.max(mac)],
                others: false,
                now: mac,
                changes: 1,
                began: now,
                last: now,
            };
            self.changed.insert(neighbour, rivalry);
        }
    }

    /// Ends what has been quiet for long enough.
    pub(crate) fn pass_time(&mut self, now: Instant) {
        self.changed.retain(|_, rivalry| now.saturating_duration_since(rivalry.last) < QUIET);
    }

    /// Returns `true` if two machines answer for an address on the interface of this name.
    pub(crate) fn contest(&self, interface: Option<&str>, address: Option<IpAddr>) -> bool {
        self.contested().any(|(neighbour, rivalry)| {
            Some(neighbour.ip()) == address && Some(rivalry.interface.as_str()) == interface
        })
    }

    /// Adds a condition for each.
    pub(crate) fn add_to(&self, conditions: &mut Conditions) {
        let items = self.sorted().into_iter().map(|(neighbour, Rivalry { interface, macs: [one, other], others, .. })| {
            let (address, one, other) = (neighbour.ip(), format_mac(*one), format_mac(*other));
            let more = if *others { ", and others" } else { "" };
            let detail = format!(
                "two machines answer for {address} ({one} and {other}{more}) on {interface}, and packets go to whoever spoke last; fix: find the \
                 one that must not, or `ip neigh replace {address} lladdr MAC dev {interface} nud permanent` with the right one's"
            );
            (address.to_string(), detail)
        });
        let rest = |more| format!("two machines each answer for {more} more next hops");
        conditions.add_first(Severity::Degraded, Id::NextHopContested, items, LISTED, rest);
    }

    /// Returns the same as data.
    pub(crate) fn status(&self, now: Instant) -> Vec<ContestedNextHop> {
        let row = |(neighbour, rivalry): (&Neighbour, &Rivalry)| ContestedNextHop {
            address: neighbour.ip(),
            interface: rivalry.interface.clone(),
            macs: rivalry.macs.map(format_mac).into(),
            others: rivalry.others,
            changes: rivalry.changes,
            since_seconds: now.saturating_duration_since(rivalry.began).as_secs(),
        };
        self.sorted().into_iter().map(row).collect()
    }

    fn contested(&self) -> impl Iterator<Item = (&Neighbour, &Rivalry)> {
        self.changed.iter().filter(|(_, rivalry)| rivalry.changes >= CHANGES)
    }

    fn sorted(&self) -> Vec<(&Neighbour, &Rivalry)> {
        let mut sorted: Vec<_> = self.contested().collect();
        sorted.sort_unstable_by_key(|(neighbour, _)| (neighbour.interface, neighbour.address));
        sorted
    }
}

/// A MAC address, as `ip neigh` shows it.
pub(crate) fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn conditions(rivals: &Rivals) -> Vec<String> {
        let mut conditions = Conditions::at(Instant::now());
        rivals.add_to(&mut conditions);
        conditions.details(Severity::Degraded)
    }

    const A: [u8; 6] = [0xaa, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [0xbb, 0, 0, 0, 0, 2];

    fn gateway(last: u8) -> Neighbour {
        Neighbour::new(2, Ipv4Addr::new(10, 0, 2, last).into())
    }

    /// A story of who answers when: so many seconds after the start, with which address.
    fn after(story: &[(u64, [u8; 6])]) -> (Rivals, Instant) {
        let (mut rivals, start) = (Rivals::default(), Instant::now());
        let mut before = None;
        for (second, mac) in story {
            rivals.note(gateway(1), "eth0", before, *mac, start + Duration::from_secs(*second));
            before = Some(*mac);
        }
        (rivals, start)
    }

    #[test]
    fn back_and_forth_is_two_machines() {
        let (rivals, start) = after(&[(0, A), (5, B), (6, A), (7, A), (8, B)]);
        let [text] = &conditions(&rivals)[..] else { panic!("{:?}", conditions(&rivals)) };
        let expected = "two machines answer for 10.0.2.1 (aa:00:00:00:00:01 and bb:00:00:00:00:02) on eth0";
        assert!(text.starts_with(expected), "{text}");
        assert!(rivals.contest(Some("eth0"), Some(gateway(1).ip())));
        assert!(!rivals.contest(Some("eth1"), Some(gateway(1).ip())) && !rivals.contest(Some("eth0"), None));
        let [row] = &rivals.status(start + Duration::from_secs(9))[..] else { panic!("one row") };
        assert_eq!((row.changes, row.since_seconds, row.macs.len()), (3, 4, 2));
        // Whoever comes first is told first.
        let (others, _) = after(&[(0, B), (5, A), (6, B)]);
        assert_eq!(conditions(&others), conditions(&rivals));
    }

    #[test]
    fn one_that_takes_over_is_none() {
        let (rivals, _) = after(&[(0, A), (5, B), (6, B), (100, A)]);
        assert_eq!(conditions(&rivals), [""; 0]);
        assert!(rivals.watches(&gateway(1)));
    }

    #[test]
    fn it_ends_by_itself() {
        let (mut rivals, start) = after(&[(0, A), (5, B), (6, A)]);
        rivals.pass_time(start + Duration::from_secs(65));
        assert_eq!(conditions(&rivals).len(), 1);
        rivals.pass_time(start + Duration::from_secs(66));
        assert!(conditions(&rivals).is_empty() && !rivals.watches(&gateway(1)));
    }

    /// Somebody who makes up an address each time gets one line, which stays the same.
    #[test]
    fn many_addresses_are_one_condition() {
        let (rivals, _) = after(&[(0, A), (1, B), (1, A)]);
        let before = conditions(&rivals);
        let story: Vec<_> =
            (0..1000_u64).map(|n| (n / 100, [2, 0, 0, 0, n.to_be_bytes()[6], n.to_be_bytes()[7]])).collect();
        let (rivals, _) = after(&[&[(0, A), (1, B), (1, A)][..], &story].concat());
        assert_eq!(conditions(&rivals), [before[0].replace(") on", ", and others) on")]);
    }

    #[test]
    fn what_is_kept_and_told_is_bounded() {
        let (mut rivals, start) = (Rivals::default(), Instant::now());
        for n in 0..5000_u32 {
            let neighbour = Neighbour::new(2, Ipv4Addr::from(0x0a00_0000 + n).into());
            for mac in [B, A] {
                rivals.note(neighbour, "eth0", Some(A), mac, start);
            }
        }
        assert_eq!((rivals.changed.len(), conditions(&rivals).len()), (ROOM, LISTED + 1));
        assert_eq!(conditions(&rivals)[LISTED], "two machines each answer for 1008 more next hops");
    }
}
