//! Next hops that change their MAC address back and forth: two machines answer for one address, by
//! mistake or on purpose. No I/O, no clock.
//!
//! One change is normal, for example when a standby firewall takes over. A second one within a
//! minute is a condition: half of the packets go to the wrong machine, which is the one that has
//! not sent last.

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

/// The time without a change after which a contest is over.
const QUIET: Duration = Duration::from_secs(60);
/// Changes without such a pause that show two machines.
const CHANGES: u64 = 2;
/// The most next hops that are watched at a time.
const ROOM: usize = 1024;
/// The most that have a condition each; the others are one together.
const LISTED: usize = 16;

/// The next hops that have changed their MAC address lately.
#[derive(Debug, Default)]
pub(crate) struct ContestedNextHops {
    changed: HashMap<Neighbour, Contest>,
}

/// The changes of a next hop.
#[derive(Debug)]
struct Contest {
    /// The interface's name.
    interface: String,
    /// The first two addresses in numeric order, so that the condition stays the same while it
    /// lasts.
    macs: [[u8; 6]; 2],
    /// `true` if there were others as well.
    others: bool,
    /// The one that it has had last.
    now: [u8; 6],
    changes: u64,
    began: Instant,
    last: Instant,
}

impl ContestedNextHops {
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
            let contest = Contest {
                interface: interface.to_owned(),
                macs: [before.min(mac), before.max(mac)],
                others: false,
                now: mac,
                changes: 1,
                began: now,
                last: now,
            };
            self.changed.insert(neighbour, contest);
        }
    }

    /// Ends what has been quiet for long enough.
    pub(crate) fn pass_time(&mut self, now: Instant) {
        self.changed.retain(|_, contest| now.saturating_duration_since(contest.last) < QUIET);
    }

    /// Returns `true` if two machines answer for an address on the interface of this name.
    pub(crate) fn is_contested(&self, interface: Option<&str>, address: Option<IpAddr>) -> bool {
        self.contested().any(|(neighbour, contest)| {
            Some(neighbour.ip()) == address && Some(contest.interface.as_str()) == interface
        })
    }

    /// Adds a condition for each.
    pub(crate) fn add_to(&self, conditions: &mut Conditions) {
        let items = self.sorted().into_iter().map(|(neighbour, Contest { interface, macs: [one, other], others, .. })| {
            let (address, one, other) = (neighbour.ip(), format_mac(*one), format_mac(*other));
            let more = if *others { ", and others" } else { "" };
            let detail = format!(
                "two machines answer for {address} ({one} and {other}{more}) on {interface}, and packets go to the machine that answered last; fix: find the \
                 wrong one, or `ip neigh replace {address} lladdr MAC dev {interface} nud permanent` with the right one's"
            );
            (address.to_string(), detail)
        });
        let rest = |more| format!("two machines each answer for {more} more next hops");
        conditions.add_first(Severity::Degraded, Id::NextHopContested, items, LISTED, rest);
    }

    /// Returns the same as data.
    pub(crate) fn status(&self, now: Instant) -> Vec<ContestedNextHop> {
        let row = |(neighbour, contest): (&Neighbour, &Contest)| ContestedNextHop {
            address: neighbour.ip(),
            interface: contest.interface.clone(),
            macs: contest.macs.map(format_mac).into(),
            others: contest.others,
            changes: contest.changes,
            since_seconds: now.saturating_duration_since(contest.began).as_secs(),
        };
        self.sorted().into_iter().map(row).collect()
    }

    fn contested(&self) -> impl Iterator<Item = (&Neighbour, &Contest)> {
        self.changed.iter().filter(|(_, contest)| contest.changes >= CHANGES)
    }

    fn sorted(&self) -> Vec<(&Neighbour, &Contest)> {
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

    fn conditions(contested: &ContestedNextHops) -> Vec<String> {
        let mut conditions = Conditions::at(Instant::now());
        contested.add_to(&mut conditions);
        conditions.details(Severity::Degraded)
    }

    const A: [u8; 6] = [0xaa, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [0xbb, 0, 0, 0, 0, 2];

    fn gateway(last: u8) -> Neighbour {
        Neighbour::new(2, Ipv4Addr::new(10, 0, 2, last).into())
    }

    /// Replays answers: the seconds after the start, and the address.
    fn after(story: &[(u64, [u8; 6])]) -> (ContestedNextHops, Instant) {
        let (mut contested, start) = (ContestedNextHops::default(), Instant::now());
        let mut before = None;
        for (second, mac) in story {
            contested.note(gateway(1), "eth0", before, *mac, start + Duration::from_secs(*second));
            before = Some(*mac);
        }
        (contested, start)
    }

    #[test]
    fn back_and_forth_is_two_machines() {
        let (contested, start) = after(&[(0, A), (5, B), (6, A), (7, A), (8, B)]);
        let [text] = &conditions(&contested)[..] else { panic!("{:?}", conditions(&contested)) };
        let expected = "two machines answer for 10.0.2.1 (aa:00:00:00:00:01 and bb:00:00:00:00:02) on eth0";
        assert!(text.starts_with(expected), "{text}");
        assert!(contested.is_contested(Some("eth0"), Some(gateway(1).ip())));
        assert!(
            !contested.is_contested(Some("eth1"), Some(gateway(1).ip()))
                && !contested.is_contested(Some("eth0"), None)
        );
        let [row] = &contested.status(start + Duration::from_secs(9))[..] else { panic!("one row") };
        assert_eq!((row.changes, row.since_seconds, row.macs.len()), (3, 4, 2));
        // The order of the addresses is always the same.
        let (others, _) = after(&[(0, B), (5, A), (6, B)]);
        assert_eq!(conditions(&others), conditions(&contested));
    }

    #[test]
    fn one_that_takes_over_is_none() {
        let (contested, _) = after(&[(0, A), (5, B), (6, B), (100, A)]);
        assert_eq!(conditions(&contested), [""; 0]);
        assert!(contested.watches(&gateway(1)));
    }

    #[test]
    fn it_ends_by_itself() {
        let (mut contested, start) = after(&[(0, A), (5, B), (6, A)]);
        contested.pass_time(start + Duration::from_secs(65));
        assert_eq!(conditions(&contested).len(), 1);
        contested.pass_time(start + Duration::from_secs(66));
        assert!(conditions(&contested).is_empty() && !contested.watches(&gateway(1)));
    }

    /// A host that makes up addresses gets one condition, which stays the same.
    #[test]
    fn many_addresses_are_one_condition() {
        let (contested, _) = after(&[(0, A), (1, B), (1, A)]);
        let before = conditions(&contested);
        let story: Vec<_> =
            (0..1000_u64).map(|n| (n / 100, [2, 0, 0, 0, n.to_be_bytes()[6], n.to_be_bytes()[7]])).collect();
        let (contested, _) = after(&[&[(0, A), (1, B), (1, A)][..], &story].concat());
        assert_eq!(conditions(&contested), [before[0].replace(") on", ", and others) on")]);
    }

    #[test]
    fn what_is_kept_and_told_is_bounded() {
        let (mut contested, start) = (ContestedNextHops::default(), Instant::now());
        for n in 0..5000_u32 {
            let neighbour = Neighbour::new(2, Ipv4Addr::from(0x0a00_0000 + n).into());
            for mac in [B, A] {
                contested.note(neighbour, "eth0", Some(A), mac, start);
            }
        }
        assert_eq!((contested.changed.len(), conditions(&contested).len()), (ROOM, LISTED + 1));
        assert_eq!(conditions(&contested)[LISTED], "two machines each answer for 1008 more next hops");
    }
}
