//! The limits of what a router can carry: the arithmetic of `docs/capacity.md`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use router_common::ports::PortRange;

use crate::{
    config::{Config, Forward, Host, Protocol},
    model::{CapacityLimit, Counters, Rule, SnatPortStatus, Status},
};

/// Above this share of a limit, something should be done.
pub const NEAR: f64 = 0.8;
/// Bytes of memory for each session of `limits.flows`.
const SESSION_BYTES: u64 = 256;
/// Connections that a NAT address of a Private Link Service can have to one VM, as Azure documents
/// it ("64k").
const SERVICE_PORTS: u64 = 64_000;
/// The active connections that Azure's documentation says a VM with a network virtual appliance can
/// handle.
const AZURE_FLOWS: u64 = 250_000;
/// The seconds that a closed TCP session keeps its port when more than 80 % of the ports are in
/// use.
const CLOSED: u64 = 30;
/// New sessions a second that one core opens with 99 % of the ports taken: docs/performance.md.
const OPENED: u64 = 280_000;
/// Packets a second that one core forwards, of 64 bytes, by the number of sessions:
/// docs/performance.md.
const PACKETS: [(u64, u64); 3] = [(64, 5_830_000), (40_000, 5_490_000), (1_000_000, 2_930_000)];

const ADD_SNAT: &str =
    "add an address: an IP configuration of the NIC, and `addresses` of [snat]; or widen its `ports`";

/// The numbers and settings that the arithmetic starts from.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The SNAT ports of each address.
    pub ports: PortRange,
    /// NAT addresses of the Private Link Service.
    pub service_addresses: u64,
    /// Cores that forward.
    pub cores: u64,
    /// The bandwidth of the VM size, in bit/s.
    pub bandwidth: Option<u64>,
    /// The reports of a daemon; `None` without one.
    pub measured: Option<Measured<'a>>,
}

/// Reports of a running daemon.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// Its status.
    pub status: &'a Status,
    /// Its rules.
    pub rules: &'a [Rule],
    /// Its counters, and those of before.
    pub counters: [&'a Counters; 2],
    /// The time between these.
    pub time: Duration,
}

/// A kind of limit.
struct Kind {
    id: &'static str,
    unit: &'static str,
    basis: &'static str,
}

impl Kind {
    fn limit(
        &self,
        subject: &str,
        (now, limit): (Option<u64>, Option<u64>),
        why: String,
        fix: impl Into<String>,
    ) -> CapacityLimit {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
        let share = |now: u64, limit: u64| (now as f64 / limit as f64 * 10_000.0).round() / 10_000.0;
        CapacityLimit {
            id: self.id.to_owned(),
            subject: subject.to_owned(),
            limit,
            unit: self.unit.to_owned(),
            now,
            share: now.zip(limit.filter(|limit| *limit > 0)).map(|(now, limit)| share(now, limit)),
            basis: self.basis.to_owned(),
            why,
            fix: fix.into(),
        }
    }
}

/// Returns all limits, those of the whole router first.
#[must_use]
pub fn limits(given: &Given<'_>) -> Vec<CapacityLimit> {
    let mut limits = of_sessions(given);
    limits.extend(of_the_machine(given));
    for forward in &given.config.forwards {
        limits.extend(of_forward(given, forward));
    }
    let fullest = given.measured.as_ref().map(fullest);
    for masquerade in &given.config.masquerades {
        let (addresses, ports) = (snat_addresses(given), u64::from(given.ports.size()));
        let kind = Kind { id: "snat_ports", unit: "sessions", basis: "calculated" };
        let factors = product(&[("SNAT address", addresses), ("port", ports)]);
        let why = format!("{factors}, for each destination address and port (now: the one with the most)");
        limits.push(kind.limit(
            &masquerade.name,
            (fullest, Some(addresses.saturating_mul(ports))),
            why,
            ADD_SNAT,
        ));
    }
    limits
}

fn of_sessions(given: &Given<'_>) -> Vec<CapacityLimit> {
    let flows = u64::from(given.config.limits.flows);
    let now = given.measured.as_ref().map(|measured| measured.status.flows.sessions);
    let memory = flows.saturating_mul(SESSION_BYTES) >> 20;
    let addresses = given.service_addresses;
    let kind = |id, basis| Kind { id, unit: "sessions", basis };
    vec![
        kind("sessions", "configured").limit(
            "",
            (now, Some(flows)),
            format!("`flows` of [limits], {memory} MiB of memory"),
            "raise `flows` of [limits]: sessions move to the larger table, and none is lost",
        ),
        kind("service_ports", "azure").limit(
            "",
            (now, Some(addresses.saturating_mul(SERVICE_PORTS))),
            format!(
                "{} of the Private Link Service, {SERVICE_PORTS} connections each to one VM",
                counted(addresses, "NAT address")
            ),
            "add a NAT address to the Private Link Service (8 at most, none can be removed), or a VM",
        ),
        kind("azure_flows", "azure").limit(
            "",
            (now, Some(AZURE_FLOWS)),
            "active connections that Azure says a VM that forwards can handle".to_owned(),
            "add a VM",
        ),
    ]
}

fn of_the_machine(given: &Given<'_>) -> Vec<CapacityLimit> {
    let cores = given.cores;
    let rates = given.measured.as_ref().map(Rates::of);
    let measured = given.measured.as_ref().map(|measured| measured.status.flows.sessions);
    let sessions = measured.unwrap_or_else(|| given.config.limits.flows.into());
    // The next larger number of sessions that was measured.
    let [.., most] = PACKETS;
    let (at, packets) = PACKETS.into_iter().find(|(at, _)| sessions <= *at).unwrap_or(most);
    let larger = "a VM with more cores, or another VM";
    let kind = |id, unit, basis| Kind { id, unit, basis };
    vec![
        kind("new_sessions_cpu", "sessions/s", "measured").limit(
            "",
            (rates.map(|rates| rates.opened), Some(OPENED.saturating_mul(cores))),
            format!(
                "{} x {OPENED}, with 99 % of the ports taken; on veth, not on Azure",
                counted(cores, "core")
            ),
            larger,
        ),
        kind("packets_cpu", "packets/s", "measured").limit(
            "",
            (rates.map(|rates| rates.packets), Some(packets.saturating_mul(cores))),
            format!(
                "{} x {packets}, with up to {at} sessions; on veth, not on Azure",
                counted(cores, "core")
            ),
            larger,
        ),
        kind("bandwidth", "bit/s", "azure").limit(
            "",
            (rates.map(|rates| rates.bits), given.bandwidth),
            "the VM size's: Azure counts what leaves, by all NICs together, so each forwarded byte once"
                .to_owned(),
            "a larger VM, or another VM; another NIC adds no bandwidth",
        ),
    ]
}

fn of_forward(given: &Given<'_>, forward: &Forward) -> Vec<CapacityLimit> {
    let measured = given.measured.as_ref();
    let rule = measured.and_then(|measured| measured.rules.iter().find(|rule| rule.name == forward.name));
    let (targets, is_least) = match rule {
        Some(rule) if !rule.addresses.is_empty() => {
            (rule.addresses.iter().collect::<BTreeSet<_>>().len(), false)
        }
        Some(_) | None => {
            let hosts: BTreeSet<String> = forward.targets.iter().map(ToString::to_string).collect();
            let has_name = forward.targets.iter().any(|target| matches!(target.host, Host::Name(_)));
            (hosts.len(), has_name)
        }
    };
    let (addresses, targets) = (snat_addresses(given), u64::try_from(targets).unwrap_or(u64::MAX));
    let ways = addresses.saturating_mul(targets);
    let rows = measured.zip(rule).map(|(measured, rule)| rows_of(measured.status, rule, forward.protocol));
    let now = rows.as_ref().map(|rows| rows.iter().map(|row| u64::from(row.used)).sum());
    let of_one_source = rows.and_then(|rows| most_of_one_source(&rows));
    let [ports, per_source] = [given.ports.size(), given.ports.per_source()].map(u64::from);
    let of = |ports| product(&[("SNAT address", addresses), ("target", targets), ("port", ports)]);
    let least = if is_least { "; a name may have more addresses" } else { "" };
    let fix = format!("{ADD_SNAT}; or add a target");
    let kind = |id| Kind { id, unit: "sessions", basis: "calculated" };
    let mut limits = vec![
        kind("snat_ports").limit(
            &forward.name,
            (now, Some(ways.saturating_mul(ports))),
            format!("{}{least}", of(ports)),
            fix.as_str(),
        ),
        kind("snat_ports_per_source").limit(
            &forward.name,
            (of_one_source, Some(ways.saturating_mul(per_source))),
            format!(
                "{}: what one NAT address of the Private Link Service gets, so that others find some",
                of(per_source)
            ),
            "add a NAT address to the Private Link Service, or do as for all ports",
        ),
    ];
    if forward.protocol == Protocol::Tcp {
        let rate = measured.and_then(|measured| opened(measured, &forward.name));
        let limit = ways.saturating_mul(ports).saturating_mul(8) / 10 / CLOSED;
        let why = format!("80 % of the ports, each kept for {CLOSED} s after a short connection");
        let kind = Kind { id: "new_sessions_ports", unit: "sessions/s", basis: "calculated" };
        limits.push(kind.limit(&forward.name, (rate, Some(limit)), why, fix.as_str()));
    }
    limits
}

/// The addresses that a session can get for one target.
fn snat_addresses(given: &Given<'_>) -> u64 {
    // Without a list, the route to a target says which one.
    u64::try_from(given.config.snat.addresses.len()).unwrap_or(1).max(1)
}

/// The SNAT ports of sessions to the targets of a rule.
fn rows_of<'a>(status: &'a Status, rule: &Rule, protocol: Protocol) -> Vec<&'a SnatPortStatus> {
    // A rule for a range has port 0 in its targets: any.
    let is_of = |known: &SocketAddr, target: &SocketAddr| {
        known.ip() == target.ip() && (known.port() == target.port() || known.port() == 0)
    };
    let rows = status.snat_ports.iter().filter(|row| {
        row.protocol == protocol.as_str() && rule.addresses.iter().any(|known| is_of(known, &row.target))
    });
    rows.collect()
}

/// The ports of the source that has the most; `None` while the daemon names no source, because
/// fewer than four fifths of the ports are in use, or no source has more than half of them.
fn most_of_one_source(rows: &[&SnatPortStatus]) -> Option<u64> {
    let mut by_source = BTreeMap::new();
    for holder in rows.iter().filter_map(|row| row.most) {
        *by_source.entry(holder.source).or_default() += u64::from(holder.used);
    }
    by_source.into_values().max()
}

/// The ports of the target with the most.
fn fullest(measured: &Measured<'_>) -> u64 {
    measured.status.snat_ports.iter().map(|row| u64::from(row.used)).max().unwrap_or_default()
}

/// Rates, for each second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    opened: u64,
    packets: u64,
    bits: u64,
}

impl Rates {
    fn of(measured: &Measured<'_>) -> Self {
        let [now, before] = measured.counters.map(|counters| {
            let opened: u64 = counters.rules.iter().map(|rule| rule.sessions_opened).sum();
            let packets: u64 = counters.interfaces.iter().map(|interface| interface.tx_packets).sum();
            let bytes: u64 = counters.interfaces.iter().map(|interface| interface.tx_bytes).sum();
            [opened, packets, bytes]
        });
        let [opened, packets, bytes] =
            [0, 1, 2].map(|what: usize| per_second(now[what], before[what], measured.time));
        Self { opened, packets, bits: bytes.saturating_mul(8) }
    }
}

/// The sessions that a rule opens in a second.
fn opened(measured: &Measured<'_>, name: &str) -> Option<u64> {
    let [now, before] = measured.counters.map(|counters| {
        let rule = counters.rules.iter().find(|rule| rule.name == name);
        rule.map(|rule| rule.sessions_opened)
    });
    Some(per_second(now?, before?, measured.time))
}

fn per_second(now: u64, before: u64, time: Duration) -> u64 {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    now.saturating_sub(before).saturating_mul(1000) / milliseconds
}

fn product(factors: &[(&str, u64)]) -> String {
    factors.iter().map(|(what, number)| counted(*number, what)).collect::<Vec<_>>().join(" x ")
}

fn counted(number: u64, what: &str) -> String {
    let plural = match number {
        1 => "",
        _ if what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{InterfaceCounters, PortHolder, RuleCounters, RuleKind};

    const CONFIG: &str = "interfaces.pls = \"eth0\"\nlimits.flows = 100000\nsnat.addresses = [\"10.0.2.68\", \"10.0.2.69\"]\n\
        [[forward]]\nname = \"https\"\nprotocol = \"tcp\"\nlisten = \"443\"\ntarget = [\"203.0.113.10\", \"a.example.com\"]\n\
        sources = [\"10.0.2.64/26\"]\n\
        [[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\ndestinations = [\"0.0.0.0/0\"]\n";

    fn config() -> Config {
        Config::parse(CONFIG, Path::new("test.toml")).map_err(|error| error.to_string()).expect("good").config
    }

    fn given(config: &Config) -> Given<'_> {
        Given {
            config,
            ports: PortRange { first: 1024, last: 32_767 },
            service_addresses: 2,
            cores: 4,
            bandwidth: None,
            measured: None,
        }
    }

    #[track_caller]
    fn find<'a>(limits: &'a [CapacityLimit], id: &str, subject: &str) -> &'a CapacityLimit {
        let is_meant = |limit: &&CapacityLimit| limit.id == id && limit.subject == subject;
        limits.iter().find(is_meant).unwrap_or_else(|| panic!("no {id} of {subject:?} in {limits:#?}"))
    }

    #[test]
    fn a_configuration_alone_has_limits_and_no_use() {
        let config = config();
        let limits = limits(&given(&config));
        assert!(limits.iter().all(|limit| limit.now.is_none() && limit.share.is_none()), "{limits:#?}");
        let limit = |id, subject| find(&limits, id, subject).limit;
        assert_eq!(limit("sessions", ""), Some(100_000));
        assert_eq!(limit("service_ports", ""), Some(128_000));
        assert_eq!(limit("packets_cpu", ""), Some(4 * 2_930_000));
        assert_eq!(limit("bandwidth", ""), None);
        // Two addresses, two targets, 31,744 ports; and 29,760 of them for one source.
        assert_eq!(limit("snat_ports", "https"), Some(126_976));
        assert_eq!(limit("snat_ports_per_source", "https"), Some(119_040));
        assert_eq!(limit("new_sessions_ports", "https"), Some(126_976 * 8 / 10 / 30));
        assert_eq!(limit("snat_ports", "vnet"), Some(63_488));
        assert!(find(&limits, "snat_ports", "https").why.ends_with("a name may have more addresses"));
    }

    /// The number in README.md.
    #[test]
    fn one_address_and_target_sustain_846_short_connections_a_second() {
        let mut config = config();
        config.snat.addresses.truncate(1);
        config.forwards[0].targets.truncate(1);
        assert_eq!(find(&limits(&given(&config)), "new_sessions_ports", "https").limit, Some(846));
    }

    fn counters(opened: u64, packets: u64, bytes: u64) -> Counters {
        let rule = RuleCounters {
            name: "https".to_owned(),
            sessions_opened: opened,
            forward_packets: 0,
            forward_bytes: 0,
            reply_packets: 0,
            reply_bytes: 0,
            denied_packets: 0,
        };
        let interface = InterfaceCounters {
            name: "eth0".to_owned(),
            rx_packets: 0,
            rx_bytes: 0,
            tx_packets: packets,
            tx_bytes: bytes,
        };
        Counters { rules: vec![rule], interfaces: vec![interface], ..Counters::default() }
    }

    #[test]
    fn what_a_daemon_says_is_compared_with_the_limits() {
        let config = config();
        let row = |snat: &str, target: &str, protocol: &str, used| SnatPortStatus {
            snat: snat.parse().expect("an address"),
            target: target.parse().expect("a target"),
            protocol: protocol.to_owned(),
            used,
            free: 31_744 - used,
            most: None,
        };
        let mut status = Status::default();
        status.flows.sessions = 90_000;
        status.snat_ports = vec![
            row("10.0.2.68", "203.0.113.10:443", "tcp", 20_000),
            SnatPortStatus {
                most: Some(PortHolder { source: [10, 0, 2, 70].into(), used: 4_000 }),
                ..row("10.0.2.69", "203.0.113.10:443", "tcp", 5_000)
            },
            row("10.0.2.69", "203.0.113.10:443", "udp", 300),
            row("10.0.2.69", "203.0.113.99:443", "tcp", 7),
        ];
        let rules = [Rule {
            name: "https".to_owned(),
            kind: RuleKind::Forward,
            protocol: Some("tcp".to_owned()),
            listen: None,
            targets: Vec::new(),
            addresses: vec!["203.0.113.10:443".parse().expect("a target")],
            sources: Vec::new(),
            destinations: Vec::new(),
            sessions: 0,
            counters: counters(0, 0, 0).rules.remove(0),
            check: None,
        }];
        let (before, after) = (counters(100, 1_000, 50_000), counters(300, 3_000, 250_000));
        let measured = Measured {
            status: &status,
            rules: &rules,
            counters: [&after, &before],
            time: Duration::from_secs(2),
        };
        let given = Given { measured: Some(measured), bandwidth: Some(1_000_000), ..given(&config) };
        let limits = limits(&given);
        let use_of = |id, subject| {
            let limit = find(&limits, id, subject);
            (limit.now, limit.limit, limit.share)
        };
        assert_eq!(use_of("sessions", ""), (Some(90_000), Some(100_000), Some(0.9)));
        assert_eq!(use_of("snat_ports", "https"), (Some(25_000), Some(63_488), Some(0.3938)));
        assert_eq!(use_of("snat_ports_per_source", "https").0, Some(4_000));
        assert_eq!(use_of("snat_ports", "vnet"), (Some(20_000), Some(63_488), Some(0.315)));
        assert_eq!(use_of("new_sessions_ports", "https").0, Some(100));
        assert_eq!(use_of("packets_cpu", "").0, Some(1_000));
        assert_eq!(use_of("bandwidth", ""), (Some(800_000), Some(1_000_000), Some(0.8)));
    }
}
