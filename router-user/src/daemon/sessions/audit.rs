//! Checks that every session in the flow table is whole, for `pls-router check --live`.

use std::{collections::HashSet, hash::Hash, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use router_common::{
    address::Ipv4,
    tuple::{Direction, FlowKey, Protocol},
};
use tokio::time::sleep;

use crate::{
    dataplane::{Audit, CounterTable, Flow, FlowTable, RuleTable},
    model::{self, AuditKind},
    sys::proc_net,
};

/// Looks at something that looks wrong: sessions come and go meanwhile, and only what
/// is wrong every time is.
const LOOKS: u32 = 5;
/// From one look to the next. A sweep gives ports back when it is through, which takes less.
const PAUSE: Duration = Duration::from_millis(300);
/// Findings that are named, at most.
const MAX_NAMED: usize = 1000;

/// The parts of the daemon that the audit has access to.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) flows: FlowTable,
    pub(crate) counters: CounterTable,
    pub(crate) rules: RuleTable,
}

/// Looks at the whole table, until nothing is wrong or what is wrong has been so for more than a
/// second.
pub(crate) async fn audit(access: Access) -> Result<model::Audit> {
    let mut last = look(&access).await?;
    for _ in 1..LOOKS {
        if last.is_good() {
            break;
        }
        sleep(PAUSE).await;
        let again = look(&access).await?;
        last = again.confirms(&last);
    }
    Ok(report(&last, &access.rules.names()))
}

async fn look(access: &Access) -> Result<Look> {
    let Access { flows, counters, .. } = access.clone();
    // A walk through a large table takes a while.
    let looking = move || -> Result<Look> {
        let counted = || -> Result<Counted> {
            let stats = counters.read()?;
            let opened = stats.decisions.iter().map(|rule| rule.opened).sum();
            Ok(Counted { opened, sessions: u64::from(flows.sessions()) })
        };
        let before = counted()?;
        let mut found = flows.audit()?;
        excuse_sockets(&mut found.leaked_ports);
        let miscounted = miscount(&found, before, counted()?);
        Ok(Look { found, miscounted })
    };
    tokio::task::spawn_blocking(looking).await.context("the look at the flow table has crashed")?
}

/// Takes out the ports that sockets of this machine have: those are marked as taken, too, and no
/// session has them.
fn excuse_sockets(leaked: &mut Vec<FlowKey>) {
    if leaked.is_empty() {
        return;
    }
    let ports = |lists| proc_net::sockets(lists).iter().map(|socket| socket.port).collect::<HashSet<_>>();
    let (tcp, udp) = (ports(proc_net::TCP), ports(proc_net::UDP));
    leaked.retain(|reply| {
        let port = reply.destination_port.number();
        match reply.protocol() {
            Some(Protocol::Tcp) => !tcp.contains(&port),
            Some(Protocol::Udp) => !udp.contains(&port),
            Some(Protocol::Icmp) | None => true,
        }
    });
}

/// The data plane's counters at one moment.
#[derive(Clone, Copy)]
struct Counted {
    /// Sessions that have been opened since the beginning.
    opened: u64,
    /// Sessions that there are.
    sessions: u64,
}

/// Returns how many sessions are counted and not there, beyond those that came and went while the
/// table was walked.
fn miscount(found: &Audit, before: Counted, after: Counted) -> i64 {
    let sessions = clients_flows(found).cast_signed();
    let opened = after.opened.saturating_sub(before.opened);
    let ended = (before.sessions + opened).saturating_sub(after.sessions);
    let moved = (opened + ended).cast_signed();
    let excess = after.sessions.cast_signed() - sessions;
    if excess.abs() <= moved { 0 } else { excess }
}

/// The flows that stand for a session: those of the clients' direction.
fn clients_flows(found: &Audit) -> u64 {
    let half =
        |direction| found.half_sessions.iter().filter(|flow| flow.direction() == direction).count() as u64;
    (found.flows + half(Direction::Forward)).saturating_sub(half(Direction::Reply)) / 2
}

struct Look {
    found: Audit,
    /// Sessions that are counted and not there.
    miscounted: i64,
}

impl Look {
    fn is_good(&self) -> bool {
        let Audit { half_sessions, twice, leaked_ports, .. } = &self.found;
        half_sessions.is_empty() && twice.is_empty() && leaked_ports.is_empty() && self.miscounted == 0
    }

    /// This look, with only what was wrong before, too.
    fn confirms(mut self, before: &Self) -> Self {
        let Audit { half_sessions, twice, leaked_ports, .. } = &mut self.found;
        keep_common(half_sessions, &before.found.half_sessions, |flow| flow.key);
        keep_common(twice, &before.found.twice, |flow| flow.key);
        keep_common(leaked_ports, &before.found.leaked_ports, |key| *key);
        if self.miscounted.signum() != before.miscounted.signum() {
            self.miscounted = 0;
        }
        self
    }
}

fn keep_common<T, K: Eq + Hash>(items: &mut Vec<T>, others: &[T], key: fn(&T) -> K) {
    let others: HashSet<K> = others.iter().map(key).collect();
    items.retain(|item| others.contains(&key(item)));
}

fn report(look: &Look, rules: &[Option<String>]) -> model::Audit {
    let Look { found, miscounted } = look;
    let Audit { flows, sessions, held, retired: _, half_sessions, twice, leaked_ports } = found;
    let rule = |flow: &Flow| rules.get(usize::from(flow.rule())).cloned().flatten();
    let of_flow = |kind| move |flow: &Flow| finding(kind, &flow.key, rule(flow));
    let findings = half_sessions
        .iter()
        .map(of_flow(AuditKind::HalfSession))
        .chain(twice.iter().map(of_flow(AuditKind::Duplicate)))
        .chain(leaked_ports.iter().map(|key| finding(AuditKind::LeakedPort, key, None)));
    model::Audit {
        ok: look.is_good(),
        sessions: u64::from(*sessions),
        flows: *flows,
        half_sessions: half_sessions.len() as u64,
        duplicates: twice.len() as u64,
        leaked_ports: leaked_ports.len() as u64,
        held_ports: *held,
        miscounted_sessions: *miscounted,
        findings: findings.take(MAX_NAMED).collect(),
    }
}

fn finding(kind: AuditKind, key: &FlowKey, rule: Option<String>) -> model::AuditFinding {
    let end = |address: Ipv4, port: router_common::address::Port| {
        SocketAddr::from((std::net::Ipv4Addr::from(address), port.number()))
    };
    model::AuditFinding {
        kind,
        rule,
        protocol: key.protocol().map_or("?", |protocol| protocol.as_str()).to_owned(),
        source: end(key.source, key.source_port),
        destination: end(key.destination, key.destination_port),
    }
}

#[cfg(test)]
mod tests {
    use router_common::address::Port;

    use super::*;

    fn port(number: u16) -> FlowKey {
        let (target, snat) = (Ipv4([203, 0, 113, 10]), Ipv4([10, 0, 2, 68]));
        FlowKey::new(Protocol::Tcp, target, Port::new(443), snat, Port::new(number))
    }

    fn look(ports: &[u16], miscounted: i64) -> Look {
        let leaked_ports = ports.iter().copied().map(port).collect();
        Look { found: Audit { leaked_ports, ..Audit::default() }, miscounted }
    }

    #[test]
    fn only_what_is_wrong_every_time_is_wrong() {
        let again = look(&[2, 3], -1).confirms(&look(&[1, 2], -2));
        assert_eq!((again.found.leaked_ports.clone(), again.miscounted), (vec![port(2)], -1));
        assert!(!again.is_good());
        assert!(look(&[1], 1).confirms(&look(&[2], -1)).is_good());
    }

    #[test]
    fn a_port_that_a_socket_has_is_not_leaked() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let number = socket.local_addr().expect("its address").port();
        let tcp = port(number);
        // A UDP port of this number some other test may have.
        let icmp =
            FlowKey::new(Protocol::Icmp, tcp.source, tcp.source_port, tcp.destination, tcp.destination_port);
        let mut leaked = vec![tcp, icmp];
        excuse_sockets(&mut leaked);
        assert_eq!(leaked, [icmp]);
    }

    #[test]
    fn sessions_that_come_and_go_meanwhile_are_no_miscount() {
        let counted = |opened, sessions| Counted { opened, sessions };
        let found = |flows| Audit { flows, ..Audit::default() };
        assert_eq!(miscount(&found(20), counted(50, 10), counted(50, 10)), 0);
        assert_eq!(miscount(&found(20), counted(50, 12), counted(50, 12)), 2);
        assert_eq!(miscount(&found(20), counted(50, 9), counted(50, 9)), -1);
        // Four opened, one of them found; or three that ended, none of which was found.
        assert_eq!(miscount(&found(22), counted(50, 10), counted(54, 14)), 0);
        assert_eq!(miscount(&found(14), counted(50, 10), counted(50, 7)), 0);
        assert_eq!(miscount(&found(22), counted(50, 10), counted(51, 11)), 0);
        assert_eq!(miscount(&found(22), counted(50, 13), counted(51, 14)), 3);
    }

    #[test]
    fn few_of_many_findings_are_named_and_all_are_counted() {
        let ports: Vec<u16> = (1..=2000).collect();
        let report = report(&look(&ports, 0), &[]);
        assert_eq!((report.ok, report.leaked_ports, report.findings.len()), (false, 2000, MAX_NAMED));
        let first = report.findings.first().expect("a finding");
        assert_eq!((first.kind, first.protocol.as_str()), (AuditKind::LeakedPort, "tcp"));
        assert_eq!(
            (first.source, first.destination),
            ("203.0.113.10:443".parse().unwrap(), "10.0.2.68:1".parse().unwrap())
        );
    }
}
