//! What the daemon knows, as the types of [`crate::model`].

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::Result;
use router_common::{
    address::{Ipv4, Port},
    maps::stats::{CpuStats, RuleStats},
    reason::Reason,
    tuple::Protocol,
};

use crate::{
    daemon::{
        control::rule_set,
        observe::{capacity, target_health::Report},
        sessions::{
            listing::Walk,
            sweep::{self, RuleTimeouts},
        },
        state::{Attached, Shared, State},
        upkeep::record::Record,
    },
    dataplane::{RuleTable, Session, now},
    health::{Condition, Severity},
    model::{
        ConditionStatus, Counters, Flow, FlowQuery, FlowTableStatus, InterfaceCounters, InterfaceStatus,
        NameStatus, OwnTrafficCounters, ReasonCounter, Rule, RuleCounters, Status, TargetStatus,
    },
};

/// `GET /v1/status`.
pub(crate) fn status(shared: &Shared) -> Status {
    // Asked of the kernel, so not with the lock held.
    let interfaces = shared.attached().into_iter().map(|Attached { attachment, roles }| {
        let program_id = attachment.program_id().filter(|_| attachment.loss().is_none());
        InterfaceStatus {
            index: attachment.index,
            roles,
            attached: program_id.is_some(),
            mode: attachment.mode.as_str().to_owned(),
            program_id,
            name: attachment.interface,
        }
    });
    let interfaces = interfaces.collect();
    let conditions = shared.conditions();
    let reasons = conditions.details(Severity::Down);
    let state = &*shared.state();
    let mut names: Vec<_> = state
        .names
        .iter()
        .map(|(name, resolved)| NameStatus {
            name: name.clone(),
            addresses: resolved.addresses.iter().copied().map(IpAddr::V4).collect(),
            age_seconds: resolved.since.elapsed().as_secs(),
            ttl_seconds: resolved.ttl.map(|ttl| ttl.as_secs()),
            next_seconds: resolved.next.saturating_duration_since(Instant::now()).as_secs(),
            problem: resolved.problem.clone(),
            left_out: resolved.left_out.clone(),
        })
        .collect();
    names.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let sessions = &state.sessions;
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        healthy: reasons.is_empty(),
        reasons,
        degraded: conditions.details(Severity::Degraded),
        conditions: conditions.iter().map(condition).collect(),
        uptime_seconds: shared.started.elapsed().as_secs(),
        config: shared.config_path.display().to_string(),
        interfaces,
        snat_addresses: sources(shared, state),
        next_hops: state.next_hops.clone(),
        contested_next_hops: state.rivals.status(Instant::now()),
        next_hop_invalidations: state.plane.settings.invalidations(),
        names,
        targets: targets(shared, state),
        flows: FlowTableStatus {
            sessions: sessions.total,
            capacity: u64::from(shared.flows.capacity()),
            sweep_seconds: sessions.took.as_secs_f64(),
        },
        punts: shared.punts.status(),
        snat_ports: capacity::snat_ports(&sessions.ports, shared.snat_ports()),
        repairs: state.upkeep.iter().map(Record::status).collect(),
    }
}

fn condition(condition: &Condition) -> ConditionStatus {
    ConditionStatus {
        id: condition.id.as_str().to_owned(),
        subject: condition.subject.clone(),
        severity: condition.severity.as_str().to_owned(),
        since_seconds: condition.since.elapsed().as_secs(),
        detail: condition.detail.clone(),
    }
}

/// The addresses that new sessions come from.
fn sources(shared: &Shared, state: &State) -> Vec<IpAddr> {
    let given = &shared.config.snat.addresses;
    if !given.is_empty() {
        return given.iter().copied().map(IpAddr::V4).collect();
    }
    let by_route: BTreeSet<IpAddr> = state.next_hops.iter().filter_map(|next_hop| next_hop.source).collect();
    by_route.into_iter().collect()
}

/// The targets that sessions tell something of, in the order of the rules.
fn targets(shared: &Shared, state: &State) -> Vec<TargetStatus> {
    let State { names, target_health: health, .. } = state;
    let mut all: Vec<TargetStatus> = Vec::new();
    for forward in shared.config.forwards.iter().filter(|forward| rule_set::is_judged(forward, names)) {
        for target in rule_set::targets(forward, names) {
            let endpoint @ (address, port, protocol) = rule_set::endpoint(forward, &target);
            let (target, protocol) = (SocketAddr::from((address, port)), protocol.as_str());
            match all.iter_mut().find(|known| known.target == target && known.protocol == protocol) {
                Some(known) if known.rules.contains(&forward.name) => {}
                Some(known) => known.rules.push(forward.name.clone()),
                None => {
                    let Report { health, since, reason } = health.report(endpoint);
                    all.push(TargetStatus {
                        rules: vec![forward.name.clone()],
                        protocol: protocol.to_owned(),
                        target,
                        health: health.as_str().to_owned(),
                        since_seconds: since.map(|since| since.elapsed().as_secs()),
                        reason: reason.to_owned(),
                    });
                }
            }
        }
    }
    all
}

/// `GET /v1/counters`.
pub(crate) fn counters(shared: &Shared) -> Result<Counters> {
    let State { plane, attached, .. } = &*shared.state();
    let stats = plane.counters.read()?;
    let reasons = Reason::ALL.iter().map(|reason| {
        let counter = stats.reasons[*reason as usize];
        ReasonCounter {
            number: *reason as u32,
            reason: reason.as_str().to_owned(),
            action: reason.action().as_str().to_owned(),
            packets: counter.packets,
            bytes: counter.bytes,
            description: reason.description().to_owned(),
        }
    });
    let interfaces = attached.iter().zip(&stats.interfaces).map(|(attached, stats)| InterfaceCounters {
        name: attached.attachment.interface.clone(),
        rx_packets: stats.received.packets,
        rx_bytes: stats.received.bytes,
        tx_packets: stats.transmitted.packets,
        tx_bytes: stats.transmitted.bytes,
    });
    Ok(Counters {
        reasons: reasons.collect(),
        interfaces: interfaces.collect(),
        rules: rule_names(shared).map(|name| rule_counters(name, &plane.rules, &stats)).collect(),
        own_traffic: OwnTrafficCounters {
            sessions_ended: stats.own.sessions_ended,
            connections_refused: stats.own.connections_refused,
        },
    })
}

/// The names of the rules, in the order of the configuration, forwards first.
fn rule_names(shared: &Shared) -> impl Iterator<Item = &str> {
    let forwards = shared.config.forwards.iter().map(|forward| forward.name.as_str());
    forwards.chain(shared.config.masquerades.iter().map(|masquerade| masquerade.name.as_str()))
}

fn rule_counters(name: &str, rules: &RuleTable, stats: &CpuStats) -> RuleCounters {
    let RuleStats { forward, reply, opened, denied } =
        rules.number(name).map(|number| stats.rule(number)).unwrap_or_default();
    RuleCounters {
        name: name.to_owned(),
        sessions_opened: opened,
        forward_packets: forward.packets,
        forward_bytes: forward.bytes,
        reply_packets: reply.packets,
        reply_bytes: reply.bytes,
        denied_packets: denied,
    }
}

/// `GET /v1/rules`.
pub(crate) fn rules(shared: &Shared) -> Result<Vec<Rule>> {
    let State { plane, names, target_health: health, sessions, .. } = &*shared.state();
    let stats = plane.counters.read()?;
    let count = |name: &str| {
        plane.rules.number(name).and_then(|number| sessions.by_rule.get(&number)).copied().unwrap_or_default()
    };
    let forwards = shared.config.forwards.iter().map(|forward| Rule {
        name: forward.name.clone(),
        kind: "forward".to_owned(),
        protocol: Some(forward.protocol.as_str().to_owned()),
        listen: Some(forward.listen.to_string()),
        targets: forward.targets.iter().map(ToString::to_string).collect(),
        addresses: rule_set::in_use(forward, names, health)
            .into_iter()
            .map(|target| {
                let (address, port, _) = rule_set::endpoint(forward, &target);
                SocketAddr::from((address, port))
            })
            .collect(),
        sources: forward.sources.iter().map(ToString::to_string).collect(),
        destinations: Vec::new(),
        sessions: count(&forward.name),
        counters: rule_counters(&forward.name, &plane.rules, &stats),
    });
    let masquerades = shared.config.masquerades.iter().map(|masquerade| Rule {
        name: masquerade.name.clone(),
        kind: "masquerade".to_owned(),
        protocol: None,
        listen: None,
        targets: Vec::new(),
        addresses: Vec::new(),
        sources: masquerade.sources.iter().map(ToString::to_string).collect(),
        destinations: masquerade.destinations.iter().map(ToString::to_string).collect(),
        sessions: count(&masquerade.name),
        counters: rule_counters(&masquerade.name, &plane.rules, &stats),
    });
    Ok(forwards.chain(masquerades).collect())
}

/// The names of the rules by their numbers, with those that have been configured once and may have
/// sessions still.
pub(crate) fn all_rule_names(shared: &Shared) -> Vec<Option<String>> {
    let State { plane, .. } = &*shared.state();
    (0..router_common::limits::MAX_RULES).map(|n| plane.rules.name(n as u16).map(str::to_owned)).collect()
}

/// Whether sessions may be shown under this name.
pub(crate) fn is_rule(shared: &Shared, name: &str) -> bool {
    // Sessions of a rule that has lost its name are shown by its number.
    name.starts_with('#')
        || rule_names(shared).any(|known| known == name)
        || all_rule_names(shared).iter().flatten().any(|known| known == name)
}

/// `GET /v1/flows`: a walk through the sessions that are wanted, by all but the limit.
pub(crate) fn flows(shared: &Shared, query: FlowQuery) -> impl Walk {
    let names = all_rule_names(shared);
    let timeouts = shared.rule_timeouts();
    let table = shared.flows.clone();
    move |start, each| {
        table.for_each_from(start, |session| match flow(session, &names, &timeouts) {
            Some(flow) if query.matches(&flow) => each(&flow),
            _ => true,
        })
    }
}

fn flow(session: &Session, names: &[Option<String>], timeouts: &RuleTimeouts) -> Option<Flow> {
    let Session { forward, reply } = session;
    let (key, protocol) = (forward.key, session.protocol()?);
    let outbound = forward.twin().reversed();
    let now = now();
    let seconds = |nanoseconds: u64| nanoseconds / 1_000_000_000;
    let idle = seconds(now.nanoseconds_since(session.last_seen()));
    let timeout = sweep::timeout(session, timeouts.of(forward.rule()))?;
    let rule = names.get(usize::from(forward.rule())).cloned().flatten();
    Some(Flow {
        rule: rule.unwrap_or_else(|| format!("#{}", forward.rule())),
        protocol: protocol.as_str().to_owned(),
        client: end(key.source, key.source_port),
        listen: end(key.destination, destination_port(protocol, key.destination_port)),
        snat: end(outbound.source, outbound.source_port),
        target: end(outbound.destination, outbound.destination_port),
        state: session.state()?.as_str().to_owned(),
        age_seconds: seconds(now.nanoseconds_since(forward.entry.opened)),
        idle_seconds: idle,
        expires_seconds: timeout.as_secs().saturating_sub(idle),
        forward_packets: forward.entry.packets,
        forward_bytes: forward.entry.bytes,
        reply_packets: reply.entry.packets,
        reply_bytes: reply.entry.bytes,
    })
}

/// An echo has one identifier, which stands beside the client.
fn destination_port(protocol: Protocol, port: Port) -> Port {
    match protocol {
        Protocol::Icmp => Port::new(0),
        Protocol::Tcp | Protocol::Udp => port,
    }
}

fn end(address: Ipv4, port: Port) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(address), port.number()))
}
