//! How full the flow table and the SNAT ports are, and when that is to be said.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use router_common::{flow::Protocol, ports::PoolKey};

use crate::model::SnatPortStatus;

/// Targets whose ports are named at once.
const MAX_NAMED: usize = 8;

/// What there is and what of it is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage<'a> {
    pub(super) sessions: u32,
    pub(super) capacity: u32,
    /// SNAT ports taken, by what they are taken towards.
    pub(super) taken: &'a HashMap<PoolKey, u32>,
    /// SNAT ports that there are, towards each.
    pub(super) ports: u32,
}

/// How much room is left. Each becomes worse at one share and better below another, so that it is not said and taken back with every
/// session more or less.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Room {
    #[default]
    Enough,
    /// 80 % were taken, and it is 70 % still.
    Little,
    /// All was taken, and it is 95 % still.
    None,
}

impl Room {
    fn after(self, taken: u32, of: u32) -> Self {
        let percent = u64::from(taken) * 100 / u64::from(of.max(1));
        match (self, percent) {
            (_, 100..) | (Self::None, 95..) => Self::None,
            (_, 80..) | (Self::Little | Self::None, 70..) => Self::Little,
            _ => Self::Enough,
        }
    }
}

/// What there was too little of at the last look.
#[derive(Debug, Default)]
pub(super) struct Crowding {
    table: Room,
    /// Targets whose ports are not enough.
    targets: BTreeMap<PoolName, Room>,
}

/// A target as ports are taken towards it, in an order.
type PoolName = (SocketAddr, IpAddr, String);

impl Crowding {
    /// What there is too little of, in words for the operator that stay the same while it is so.
    pub(super) fn look(&mut self, usage: Usage<'_>) -> Vec<String> {
        let Usage { sessions, capacity, taken, ports } = usage;
        let mut texts = Vec::new();
        self.table = self.table.after(sessions, capacity);
        match self.table {
            Room::Enough => {}
            Room::Little => texts.push("the flow table is 80 % full: raise limits.flows".to_owned()),
            Room::None => {
                texts.push("the flow table is full, new sessions are dropped: raise limits.flows".to_owned());
            }
        }
        let before = std::mem::take(&mut self.targets);
        for (key, taken) in taken {
            let SnatPortStatus { snat, target, protocol, .. } = status(key, *taken, ports);
            let name = (target, snat, protocol);
            let room = before.get(&name).copied().unwrap_or_default().after(used_up(*taken, ports), ports);
            if room != Room::Enough {
                self.targets.insert(name, room);
            }
        }
        for ((target, snat, protocol), room) in self.targets.iter().take(MAX_NAMED) {
            let ports = format!("SNAT ports of {snat} towards {target}/{protocol}");
            texts.push(match room {
                Room::None => {
                    format!("all {ports} are in use, new sessions there are refused: add to snat.addresses")
                }
                Room::Little | Room::Enough => {
                    format!("80 % of the {ports} are in use: add to snat.addresses")
                }
            });
        }
        if self.targets.len() > MAX_NAMED {
            texts.push("SNAT ports run short towards more targets: add to snat.addresses".to_owned());
        }
        texts
    }
}

/// Ports that are taken, or all of them where the rest is what sockets of this machine have: those no session gets.
fn used_up(taken: u32, ports: u32) -> u32 {
    if ports.saturating_sub(taken) <= ports / 200 { ports } else { taken }
}

/// A row for each target that SNAT ports are taken towards, the fullest first.
pub(super) fn snat_ports(taken: &HashMap<PoolKey, u32>, ports: u32) -> Vec<SnatPortStatus> {
    let mut rows: Vec<_> = taken.iter().map(|(key, taken)| status(key, *taken, ports)).collect();
    rows.sort_unstable_by(|one, other| {
        let name = |row: &SnatPortStatus| (row.snat, row.target, row.protocol.clone());
        other.used.cmp(&one.used).then_with(|| name(one).cmp(&name(other)))
    });
    rows
}

fn status(key: &PoolKey, taken: u32, ports: u32) -> SnatPortStatus {
    let address = |address| IpAddr::V4(Ipv4Addr::from(address));
    SnatPortStatus {
        snat: address(key.snat),
        target: SocketAddr::new(address(key.target), key.target_port.number()),
        protocol: Protocol::from_number(key.protocol).map_or("?", Protocol::as_str).to_owned(),
        used: taken,
        // More are used than there are where `snat.ports` has shrunk.
        free: ports.saturating_sub(taken),
    }
}

#[cfg(test)]
mod tests {
    use router_common::address::{Ipv4, Port};

    use super::*;

    fn pool(port: u16) -> PoolKey {
        PoolKey {
            snat: Ipv4([10, 0, 2, 68]),
            target: Ipv4([203, 0, 113, 10]),
            target_port: Port::new(port),
            protocol: 6,
            zero: 0,
        }
    }

    #[test]
    fn a_full_table_is_said_and_taken_back_late() {
        let mut crowding = Crowding::default();
        let little = "the flow table is 80 % full: raise limits.flows";
        let full = "the flow table is full, new sessions are dropped: raise limits.flows";
        let story = [
            (79, ""),
            (80, little),
            (99, little),
            (100, full),
            (95, full),
            (94, little),
            (70, little),
            (69, ""),
            (79, ""),
        ];
        for (sessions, said) in story {
            let usage = Usage { sessions, capacity: 100, taken: &HashMap::new(), ports: 100 };
            assert_eq!(crowding.look(usage).join("\n"), said, "{sessions} of 100");
        }
    }

    #[test]
    fn ports_that_run_short_are_said_by_target() {
        let mut crowding = Crowding::default();
        let towards = "SNAT ports of 10.0.2.68 towards 203.0.113.10:443/tcp";
        let few = format!("80 % of the {towards} are in use: add to snat.addresses");
        let none = format!("all {towards} are in use, new sessions there are refused: add to snat.addresses");
        for (used, said) in [(79, ""), (80, &*few), (100, &none), (71, &few), (69, ""), (79, "")] {
            let taken = HashMap::from([(pool(443), used), (pool(444), 10)]);
            let usage = Usage { sessions: 0, capacity: 100, taken: &taken, ports: 100 };
            assert_eq!(crowding.look(usage).join("\n"), said, "{used} of 100");
        }
        let taken: HashMap<_, _> = (1..=20).map(|port| (pool(port), 90)).collect();
        let said = crowding.look(Usage { sessions: 0, capacity: 100, taken: &taken, ports: 100 });
        assert_eq!(said.len(), MAX_NAMED + 1, "{said:?}");
        assert!(said.last().is_some_and(|last| last.contains("more targets")), "{said:?}");
    }

    #[test]
    fn ports_of_own_sockets_do_not_hide_that_all_others_are_taken() {
        let said = |used| {
            let taken = HashMap::from([(pool(443), used)]);
            Crowding::default()
                .look(Usage { sessions: 0, capacity: 100, taken: &taken, ports: 64_512 })
                .concat()
        };
        assert!(said(64_000).starts_with("80 % of the "), "{}", said(64_000));
        assert!(said(64_511).starts_with("all "), "{}", said(64_511));
    }

    #[test]
    fn rows_are_the_fullest_first() {
        let taken = HashMap::from([(pool(1), 5), (pool(2), 70), (pool(3), 200), (pool(4), 5)]);
        let rows: Vec<_> =
            snat_ports(&taken, 100).iter().map(|row| (row.target.port(), row.used, row.free)).collect();
        assert_eq!(rows, [(3, 200, 0), (2, 70, 30), (1, 5, 95), (4, 5, 95)]);
    }
}
