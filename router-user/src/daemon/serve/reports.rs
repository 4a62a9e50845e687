//! The daemon's state as the types of [`crate::model`].

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Result;
use router_common::{
    address::{Ipv4, Port},
    maps::stats::{CpuStats, RuleStats},
    reason::Reason,
    tuple::Protocol,
};

use crate::{
    config::{CheckKind, Config, Forward},
    daemon::{
        checks::plan,
        control::desired,
        drain::Draining,
        kernel::{interfaces::Attached, next_hop::NextHop},
        names::resolved::Names,
        observe::{
            answer::Pending,
            capacity,
            check_health::{Counts, Outcome},
            monitor::{Monitor, ProbeView},
            reachability,
            target_health::{Report, TargetHealth},
        },
        punts::tally::Tally,
        serve::probe,
        sessions::{
            listing::Walk,
            timeouts::{RuleTimeouts, timeout},
        },
        state::{Routing, State},
        sync::Locked,
        upkeep::record::Record,
    },
    dataplane::{CounterTable, Dataplane, FlowTable, RuleTable, Session, now},
    health::{Condition, Severity},
    model::{
        CheckHealth, CheckStatus, ConditionStatus, Counters, Flow, FlowQuery, FlowTableStatus,
        InterfaceCounters, InterfaceStatus, NameStatus, OwnTrafficCounters, PendingAnswer, ProbeStatus,
        ReasonCounter, Rule, RuleCheckStatus, RuleCounters, RuleKind, Status, TargetStatus,
    },
};

/// The most checks in a status.
const MAX_CHECKS: usize = 4096;

/// The sources of reports. A clone reports the same.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) config_path: Arc<Path>,
    pub(crate) started: Instant,
    pub(crate) state: State,
    pub(crate) monitor: Monitor,
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) flows: FlowTable,
    pub(crate) counters: CounterTable,
    pub(crate) rules: RuleTable,
    pub(crate) punts: Arc<Tally>,
}

/// `GET /v1/status`.
pub(crate) fn status(reports: &Reports) -> Status {
    let Reports { state, plane, .. } = reports;
    // Asked of the kernel, so not with the lock held.
    let attached = state.attachments.lock().attached.clone();
    let interfaces = attached.into_iter().map(|Attached { attachment, roles }| {
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
    let (conditions, probe) = reports.monitor.all();
    let repairs = state.attachments.lock().upkeep.iter().map(Record::status).collect();
    let draining = state.draining.lock().as_ref().map(Draining::report);
    let invalidations = plane.lock().settings.invalidations();
    let mut names: Vec<_> = state
        .names
        .lock()
        .iter()
        .map(|(name, resolved)| NameStatus {
            name: name.clone(),
            addresses: resolved.addresses.iter().copied().map(IpAddr::V4).collect(),
            age_seconds: resolved.since.elapsed().as_secs(),
            ttl_seconds: resolved.ttl.map(|ttl| ttl.as_secs()),
            next_seconds: resolved.next.saturating_duration_since(Instant::now()).as_secs(),
            problem: resolved.problem.clone().unwrap_or_default(),
            left_out: resolved.left_out.clone().unwrap_or_default(),
        })
        .collect();
    names.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let config = state.config.get();
    let (targets, checks) = {
        let (names, health) = (state.names.lock(), state.target_health.lock());
        let of_rules = config.forwards.iter().flat_map(|forward| checks(forward, &names, &health));
        (targets(&config, &names, &health), of_rules.take(MAX_CHECKS).collect())
    };
    let ports = state.own_traffic.lock().snat;
    let routing = state.routing.lock();
    let sessions = state.sessions.lock();
    Status {
        version: crate::VERSION.to_owned(),
        healthy: probe.forwards,
        reasons: conditions.details(Severity::Down),
        probe: probe_status(&probe),
        degraded: conditions.details(Severity::Degraded),
        conditions: conditions.iter().map(condition).collect(),
        uptime_seconds: reports.started.elapsed().as_secs(),
        config: reports.config_path.display().to_string(),
        interfaces,
        snat_addresses: sources(&config, &routing),
        next_hops: routing.next_hops.iter().map(NextHop::status).collect(),
        contested_next_hops: routing.contested.status(Instant::now()),
        next_hop_invalidations: invalidations,
        names,
        targets,
        checks,
        flows: FlowTableStatus {
            sessions: sessions.total,
            capacity: u64::from(reports.flows.capacity()),
            sweep_seconds: sessions.took.as_secs_f64(),
        },
        punts: reports.punts.status(),
        snat_ports: capacity::snat_ports(&sessions.ports, ports),
        repairs,
        draining,
        self_test: state.self_test.lock().status(),
    }
}

fn probe_status(view: &ProbeView) -> ProbeStatus {
    const ANSWERS: [u16; 2] = [503, 200];
    let ProbeView { forwards, since, pending, changes, unattached, .. } = view;
    let now = Instant::now();
    ProbeStatus {
        answer: ANSWERS[usize::from(*forwards)],
        since: probe::time(*since, now, SystemTime::now()),
        since_seconds: now.saturating_duration_since(*since).as_secs(),
        changes: *changes,
        live: unattached.is_empty(),
        reasons: if *forwards { Vec::new() } else { view.all_reasons() },
        pending: pending.map(|Pending { since, after }| PendingAnswer {
            answer: ANSWERS[usize::from(!forwards)],
            for_seconds: now.saturating_duration_since(since).as_secs_f64(),
            after_seconds: after.as_secs_f64(),
        }),
    }
}

/// Returns the active checks of a rule's targets, in the order of the targets.
fn checks(forward: &Forward, names: &Names, health: &TargetHealth) -> Vec<CheckStatus> {
    let Some(check) = &forward.check else { return Vec::new() };
    let mut known = HashSet::new();
    let all = desired::with_hosts(forward, names).filter_map(|(host, target)| {
        let (address, port, _) = desired::endpoint(forward, &target);
        let checked = health.checks.of(&forward.name, (address, port))?;
        if !known.insert((address, port)) {
            return None;
        }
        let last = checked.last.as_ref();
        let reason = match last.map(|last| &last.outcome) {
            Some(Outcome::NotMade(reason) | Outcome::Bad(reason)) => reason,
            Some(Outcome::Good(_)) | None if checked.health == CheckHealth::Failed => checked.reason(),
            Some(Outcome::Good(_)) | None => "",
        };
        Some(CheckStatus {
            rule: forward.name.clone(),
            target: SocketAddr::from((address, port)),
            port: plan::checked_port(check, port),
            kind: match check.kind {
                CheckKind::Tcp => "tcp".to_owned(),
                CheckKind::Tls { .. } => "tls".to_owned(),
            },
            sni: plan::server_name(check, host).map(ToOwned::to_owned),
            health: checked.health,
            since_seconds: checked.since.elapsed().as_secs(),
            last: last.map(|last| last.outcome.result()),
            last_seconds: last.map(|last| last.at.elapsed().as_secs()),
            latency_seconds: match last.map(|last| &last.outcome) {
                Some(Outcome::Good(latency)) => Some(latency.as_secs_f64()),
                Some(Outcome::Bad(_) | Outcome::NotMade(_)) | None => None,
            },
            reason: reason.to_owned(),
        })
    });
    all.collect()
}

/// Returns the state of a rule with active checks.
fn rule_check(forward: &Forward, names: &Names, health: &TargetHealth) -> Option<RuleCheckStatus> {
    forward.check.as_ref()?;
    let Counts { good, bad, not_made } = health.checks.counts(&forward.name);
    Some(RuleCheckStatus {
        healthy: reachability::passes_its_checks(forward, names, health),
        targets: checks(forward, names, health),
        good,
        failed: bad,
        not_made,
    })
}

fn condition(condition: &Condition) -> ConditionStatus {
    ConditionStatus {
        id: condition.id.as_str().to_owned(),
        subject: condition.subject.clone(),
        severity: condition.severity,
        since_seconds: condition.since.elapsed().as_secs(),
        detail: condition.detail.clone(),
    }
}

/// The addresses that new sessions come from.
fn sources(config: &Config, routing: &Routing) -> Vec<IpAddr> {
    let given = &config.snat.addresses;
    if !given.is_empty() {
        return given.iter().copied().map(IpAddr::V4).collect();
    }
    let by_route: BTreeSet<IpAddr> =
        routing.next_hops.iter().filter_map(|next_hop| next_hop.source).collect();
    by_route.into_iter().collect()
}

/// Returns the targets with passive health, in the order of the rules.
fn targets(config: &Config, names: &Names, health: &TargetHealth) -> Vec<TargetStatus> {
    let mut all: Vec<TargetStatus> = Vec::new();
    for forward in config.forwards.iter().filter(|forward| desired::is_judged(forward, names)) {
        for target in desired::targets(forward, names) {
            let endpoint @ (address, port, protocol) = desired::endpoint(forward, &target);
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
                        health,
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
pub(crate) fn counters(reports: &Reports) -> Result<Counters> {
    let stats = reports.counters.read()?;
    let config = reports.state.config.get();
    let attached = &reports.state.attachments.lock().attached;
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
        rules: rule_names(&config).map(|name| rule_counters(name, &reports.rules, &stats)).collect(),
        own_traffic: OwnTrafficCounters {
            sessions_ended: stats.own.sessions_ended,
            connections_refused: stats.own.connections_refused,
        },
    })
}

/// The names of the rules, in the order of the configuration, forwards first.
fn rule_names(config: &Config) -> impl Iterator<Item = &str> {
    let forwards = config.forwards.iter().map(|forward| forward.name.as_str());
    forwards.chain(config.masquerades.iter().map(|masquerade| masquerade.name.as_str()))
}

fn rule_counters(name: &str, rules: &RuleTable, stats: &CpuStats) -> RuleCounters {
    let RuleStats { forward, reply, opened, denied } =
        rules.number(name).map(|number| rules.counted(number, stats)).unwrap_or_default();
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
pub(crate) fn rules(reports: &Reports) -> Result<Vec<Rule>> {
    let Reports { state, rules, .. } = reports;
    let stats = reports.counters.read()?;
    let config = state.config.get();
    let names = &*state.names.lock();
    let health = &*state.target_health.lock();
    let sessions = state.sessions.lock();
    let count = |name: &str| {
        rules.number(name).and_then(|number| sessions.by_rule.get(&number)).copied().unwrap_or_default()
    };
    let forwards = config.forwards.iter().map(|forward| Rule {
        name: forward.name.clone(),
        kind: RuleKind::Forward,
        protocol: Some(forward.protocol.as_str().to_owned()),
        listen: Some(forward.listen.to_string()),
        targets: forward.targets.iter().map(ToString::to_string).collect(),
        addresses: desired::in_use(forward, names, health)
            .into_iter()
            .map(|target| {
                let (address, port, _) = desired::endpoint(forward, &target);
                SocketAddr::from((address, port))
            })
            .collect(),
        sources: forward.sources.iter().map(ToString::to_string).collect(),
        destinations: Vec::new(),
        sessions: count(&forward.name),
        counters: rule_counters(&forward.name, rules, &stats),
        check: rule_check(forward, names, health),
    });
    let masquerades = config.masquerades.iter().map(|masquerade| Rule {
        name: masquerade.name.clone(),
        kind: RuleKind::Masquerade,
        protocol: None,
        listen: None,
        targets: Vec::new(),
        addresses: Vec::new(),
        sources: masquerade.sources.iter().map(ToString::to_string).collect(),
        destinations: masquerade.destinations.iter().map(ToString::to_string).collect(),
        sessions: count(&masquerade.name),
        counters: rule_counters(&masquerade.name, rules, &stats),
        check: None,
    });
    Ok(forwards.chain(masquerades).collect())
}

/// Returns `true` if sessions may be shown under this name.
pub(crate) fn is_rule(reports: &Reports, name: &str) -> bool {
    // Sessions of a rule that has lost its name are shown by its number. Others may be of a rule
    // that was configured once.
    name.starts_with('#')
        || rule_names(&reports.state.config.get()).any(|known| known == name)
        || reports.rules.names().iter().flatten().any(|known| known == name)
}

/// `GET /v1/flows`: a walk through the sessions that are wanted, by all but the limit.
pub(crate) fn flows(reports: &Reports, query: FlowQuery) -> impl Walk + use<> {
    let names = reports.rules.names();
    let state = &reports.state;
    let timeouts = RuleTimeouts::new(&state.config.get(), &state.removed_timeouts.lock(), &reports.rules);
    let table = reports.flows.clone();
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
    let limit = timeout(session, timeouts.of(forward.rule()))?;
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
        expires_seconds: limit.as_secs().saturating_sub(idle),
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
