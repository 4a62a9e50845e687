//! The use of the flow table and of SNAT ports, and the conditions that follow from it.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use router_common::{
    address::Ipv4,
    ports::{PoolKey, PortRange},
    tuple::Protocol,
};

use crate::{
    health::{Conditions, Id, Severity},
    model::{PortHolder, SnatPortStatus},
};

/// Targets whose ports are named at once.
const MAX_NAMED: usize = 8;

/// The most sources whose ports are counted. One with many is among the first that a sweep meets.
const MAX_COUNTED_SOURCES: usize = 4096;

/// The SNAT ports in use, by pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    /// The number of ports.
    pub(crate) by_pool: HashMap<PoolKey, u32>,
    /// The source with most, where they are crowded.
    pub(crate) most: HashMap<PoolKey, (Ipv4, u32)>,
}

/// Counts how many ports each source has.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    by_source: HashMap<(PoolKey, Ipv4), u32>,
}

impl Holders {
    /// Counts one port of a source's.
    pub(crate) fn count(&mut self, pool: PoolKey, source: Ipv4) {
        if let Some(count) = self.by_source.get_mut(&(pool, source)) {
            *count += 1;
        } else if self.by_source.len() < MAX_COUNTED_SOURCES {
            self.by_source.insert((pool, source), 1);
        }
    }

    /// Returns the source with most, for each pool.
    pub(crate) fn most(self) -> HashMap<PoolKey, (Ipv4, u32)> {
        let mut most: HashMap<PoolKey, (Ipv4, u32)> = HashMap::new();
        for ((pool, source), count) in self.by_source {
            let holder = most.entry(pool).or_insert((source, count));
            if (holder.1, source) < (count, holder.0) {
                *holder = (source, count);
            }
        }
        most
    }
}

/// The room that there is, and the part of it in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage<'a> {
    pub(crate) sessions: u32,
    pub(crate) capacity: u32,
    /// SNAT ports taken.
    pub(crate) taken: &'a Taken,
    /// The SNAT ports that there are, for each target.
    pub(crate) ports: PortRange,
}

/// The room that is left. Each step has one threshold up and a lower one down, so that a condition
/// does not come and go with every session.
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

/// The shortages found by the last look.
#[derive(Debug, Default)]
pub(crate) struct CapacityAlarms {
    table: Room,
    /// Targets whose ports are not enough.
    targets: BTreeMap<PoolName, Shortage>,
}

/// Too few ports for a target.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Shortage {
    room: Room,
    /// The source that had all ports that one may have, and has nine of ten of them still.
    full: Option<Ipv4>,
}

impl Shortage {
    fn after(self, taken: u32, most: Option<(Ipv4, u32)>, ports: PortRange) -> Self {
        let may = ports.per_source();
        let is_full = |(source, used): &(Ipv4, u32)| {
            used_up(*used, may) == may || (self.full == Some(*source) && *used >= may / 10 * 9)
        };
        Self {
            room: self.room.after(used_up(taken, ports.size()), ports.size()),
            full: most.filter(is_full).map(|(source, _)| source),
        }
    }
}

/// The name of a pool, in the order in which conditions are shown.
type PoolName = (SocketAddr, IpAddr, String);

impl CapacityAlarms {
    /// Looks at what there is now, and adds what there is too little of.
    pub(crate) fn look(&mut self, usage: Usage<'_>, conditions: &mut Conditions) {
        let Usage { sessions, capacity, taken, ports } = usage;
        let mut add = |id, subject: String, detail: String| {
            conditions.add(Severity::Degraded, id, subject, detail);
        };
        self.table = self.table.after(sessions, capacity);
        match self.table {
            Room::Enough => {}
            Room::Little => {
                let detail = "the flow table is 80 % full: raise limits.flows";
                add(Id::FlowTableFilling, String::new(), detail.to_owned());
            }
            Room::None => {
                let detail = "the flow table is full, new sessions are dropped: raise limits.flows";
                add(Id::FlowTableFull, String::new(), detail.to_owned());
            }
        }
        let before = std::mem::take(&mut self.targets);
        for (key, count) in &taken.by_pool {
            let name = name(key);
            let shortage = before.get(&name).copied().unwrap_or_default();
            let shortage = shortage.after(*count, taken.most.get(key).copied(), ports);
            if shortage.room != Room::Enough {
                self.targets.insert(name, shortage);
            }
        }
        for ((target, snat, protocol), Shortage { room, full }) in self.targets.iter().take(MAX_NAMED) {
            let ports = format!("SNAT ports of {snat} to {target}/{protocol}");
            let (id, detail) = match (room, full) {
                (Room::None, _) => (
                    Id::SnatPortsExhausted,
                    format!("all {ports} are in use, new sessions there are refused: add to snat.addresses"),
                ),
                (Room::Little | Room::Enough, Some(source)) => (
                    Id::SnatShareExhausted,
                    format!(
                        "{source} has all {ports} that one source may have, its new sessions there are refused: \
                         add to snat.addresses"
                    ),
                ),
                (Room::Little | Room::Enough, None) => {
                    (Id::SnatPortsFilling, format!("80 % of the {ports} are in use: add to snat.addresses"))
                }
            };
            add(id, format!("{snat} {target}/{protocol}"), detail);
        }
        if self.targets.len() > MAX_NAMED {
            let detail = "SNAT ports run short for more targets: add to snat.addresses";
            add(Id::SnatPortsFilling, String::new(), detail.to_owned());
        }
    }
}

/// Ports that are taken, or all of them where the rest is what sockets of this machine have: those
/// no session gets.
fn used_up(taken: u32, ports: u32) -> u32 {
    if ports.saturating_sub(taken) <= ports / 200 { ports } else { taken }
}

/// Returns a row for each target with SNAT ports in use, the fullest first.
pub(crate) fn snat_ports(taken: &Taken, ports: PortRange) -> Vec<SnatPortStatus> {
    let row = |(key, used): (&PoolKey, &u32)| {
        let (target, snat, protocol) = name(key);
        let most = taken.most.get(key).filter(|(_, used)| *used > ports.size() / 2);
        SnatPortStatus {
            snat,
            target,
            protocol,
            used: *used,
            // More are used than there are where `snat.ports` has shrunk.
            free: ports.size().saturating_sub(*used),
            most: most.map(|(source, used)| PortHolder { source: address(*source), used: *used }),
        }
    };
    let mut rows: Vec<_> = taken.by_pool.iter().map(row).collect();
    rows.sort_unstable_by(|one, other| {
        let name = |row: &SnatPortStatus| (row.snat, row.target, row.protocol.clone());
        other.used.cmp(&one.used).then_with(|| name(one).cmp(&name(other)))
    });
    rows
}

fn name(key: &PoolKey) -> PoolName {
    let protocol = Protocol::from_number(key.protocol).map_or("?", Protocol::as_str);
    let target = SocketAddr::new(address(key.target), key.target_port.number());
    (target, address(key.snat), protocol.to_owned())
}

fn address(address: Ipv4) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address))
}

#[cfg(test)]
mod tests {
    use router_common::address::Port;

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

    fn look(alarms: &mut CapacityAlarms, usage: Usage<'_>) -> Vec<String> {
        let mut conditions = Conditions::at(std::time::Instant::now());
        alarms.look(usage, &mut conditions);
        conditions.details(Severity::Degraded)
    }

    /// This many ports.
    const fn range(size: u16) -> PortRange {
        PortRange { first: 1024, last: 1023 + size }
    }

    fn taken(by_pool: impl IntoIterator<Item = (PoolKey, u32)>) -> Taken {
        Taken { by_pool: by_pool.into_iter().collect(), most: HashMap::new() }
    }

    #[test]
    fn a_full_table_is_said_and_taken_back_late() {
        let mut alarms = CapacityAlarms::default();
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
            let usage = Usage { sessions, capacity: 100, taken: &Taken::default(), ports: range(100) };
            assert_eq!(look(&mut alarms, usage).join("\n"), said, "{sessions} of 100");
        }
    }

    #[test]
    fn ports_that_run_short_are_said_by_target() {
        let mut alarms = CapacityAlarms::default();
        let ports = "SNAT ports of 10.0.2.68 to 203.0.113.10:443/tcp";
        let few = format!("80 % of the {ports} are in use: add to snat.addresses");
        let none = format!("all {ports} are in use, new sessions there are refused: add to snat.addresses");
        for (used, said) in [(79, ""), (80, &*few), (100, &none), (71, &few), (69, ""), (79, "")] {
            let taken = taken([(pool(443), used), (pool(444), 10)]);
            let usage = Usage { sessions: 0, capacity: 100, taken: &taken, ports: range(100) };
            assert_eq!(look(&mut alarms, usage).join("\n"), said, "{used} of 100");
        }
        let taken = taken((1..=20).map(|port| (pool(port), 90)));
        let said = look(&mut alarms, Usage { sessions: 0, capacity: 100, taken: &taken, ports: range(100) });
        assert_eq!(said.len(), MAX_NAMED + 1, "{said:?}");
        assert!(said.last().is_some_and(|last| last.contains("more targets")), "{said:?}");
    }

    #[test]
    fn ports_of_own_sockets_do_not_hide_that_all_others_are_taken() {
        let said = |used| {
            let taken = taken([(pool(443), used)]);
            let usage = Usage { sessions: 0, capacity: 100, taken: &taken, ports: range(64_512) };
            look(&mut CapacityAlarms::default(), usage).concat()
        };
        assert!(said(64_000).starts_with("80 % of the "), "{}", said(64_000));
        assert!(said(64_511).starts_with("all "), "{}", said(64_511));
    }

    #[test]
    fn rows_are_the_fullest_first() {
        let taken = taken([(pool(1), 5), (pool(2), 70), (pool(3), 200), (pool(4), 5)]);
        let rows: Vec<_> = snat_ports(&taken, range(100))
            .iter()
            .map(|row| (row.target.port(), row.used, row.free))
            .collect();
        assert_eq!(rows, [(3, 200, 0), (2, 70, 30), (1, 5, 95), (4, 5, 95)]);
    }

    #[test]
    fn a_source_that_has_all_it_may_is_named() {
        let (source, other) = (Ipv4([10, 0, 2, 4]), Ipv4([10, 0, 2, 5]));
        let mut alarms = CapacityAlarms::default();
        let ports = "SNAT ports of 10.0.2.68 to 203.0.113.10:443/tcp";
        let few = format!("80 % of the {ports} are in use: add to snat.addresses");
        let full = format!(
            "10.0.2.4 has all {ports} that one source may have, its new sessions there are refused: add to \
             snat.addresses"
        );
        let none = format!("all {ports} are in use, new sessions there are refused: add to snat.addresses");
        // Of 1000, one source may have 938.
        let story = [
            ((source, 900), 900, &*few),
            ((source, 938), 938, &full),
            ((source, 850), 860, &full),
            ((other, 850), 860, &few),
            ((source, 850), 860, &few),
            ((source, 938), 940, &full),
            ((source, 938), 1000, &none),
            ((source, 700), 750, &few),
            ((source, 600), 600, ""),
        ];
        for (holder, used, said) in story {
            let taken = Taken { most: HashMap::from([(pool(443), holder)]), ..taken([(pool(443), used)]) };
            let usage = Usage { sessions: 0, capacity: 100, taken: &taken, ports: range(1000) };
            assert_eq!(look(&mut alarms, usage).join("\n"), said, "{used}, of them {holder:?}");
            let row = snat_ports(&taken, range(1000)).remove(0);
            let most = PortHolder { source: address(holder.0), used: holder.1 };
            assert_eq!(row.most, Some(most));
        }
        // A source with less than half is not named.
        let taken = Taken { most: HashMap::from([(pool(443), (source, 500))]), ..taken([(pool(443), 990)]) };
        assert_eq!(snat_ports(&taken, range(1000)).remove(0).most, None);
    }

    #[test]
    fn holders_are_counted_for_each_target_and_many_are_no_more_work() {
        let source = |number: u32| Ipv4(number.to_be_bytes());
        let mut holders = Holders::default();
        for number in 0..100_000 {
            holders.count(pool(443), source(number));
            holders.count(pool(443), source(7));
            holders.count(pool(444), source(number % 3));
        }
        assert_eq!(holders.by_source.len(), MAX_COUNTED_SOURCES);
        let most = holders.most();
        assert_eq!(most[&pool(443)], (source(7), 100_001));
        // Of two that have as many, always the same.
        assert_eq!(most[&pool(444)], (source(0), 33_334));
    }
}
