//! Removes sessions that have been idle for too long, and counts the others.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use router_common::{
    address::Ipv4,
    limits::MAX_RULES,
    ports::PoolKey,
    time::Ticks,
    tuple::{Direction, Protocol},
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::{
    recount::Recount,
    timeouts::{RemovedTimeouts, RuleTimeouts, timeout},
};
use crate::{
    config::{Config, Timeouts},
    daemon::{
        control::requests::Requests,
        kernel::own_traffic::OwnTraffic,
        names::resolved::Names,
        observe::{
            capacity::{Holders, Taken},
            passive_health::{self, Gatherer},
            target_health::TargetHealth,
        },
        self_test,
        state::{Routing, SessionCounts},
        sync::{Locked, Work},
    },
    dataplane::{CounterTable, Dataplane, Flow, FlowTable, RuleTable, Verdict, now, port_pool, port_source},
};

/// The period of sweeps. Timeouts are kept to within this.
const PERIOD: Duration = Duration::from_secs(2);

/// A target's direction younger than this is not asked for its other half: the session may still be
/// in the making.
const YOUNG: Duration = Duration::from_secs(10);

/// Above this share of the table, or of the SNAT ports to a target, sessions that are opening
/// or have ended go early, so that others find room. Those that are opening also do where their
/// source has half as many of them as it may.
const PRESSURE_PERCENT: u64 = 80;
/// The time that opening sessions may be idle then: long enough to see that the target does not
/// answer.
const OPENING_UNDER_PRESSURE: Duration = Duration::from_secs(7);
// Both FINs may have passed while data in front of one was lost behind this router: the sender
// tries again for a while. As long is enough for a client of UDP that has sent a single datagram
// and had its answer, as of a name server.
const ENDED_UNDER_PRESSURE: Duration = Duration::from_secs(30);

/// The time that an address may be gone before its sessions are removed: a renewal takes it off for
/// a moment.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);

/// Targets whose ports are counted, at most: masquerades may lead anywhere.
const MAX_COUNTED_TARGETS: usize = 4096;

/// The parts of the daemon that the sweep has access to.
pub(crate) struct Access {
    pub(crate) config: Locked<Arc<Config>>,
    pub(crate) names: Locked<Names>,
    pub(crate) target_health: Locked<TargetHealth>,
    pub(crate) routing: Locked<Routing>,
    pub(crate) sessions: Locked<SessionCounts>,
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) flows: FlowTable,
    pub(crate) counters: CounterTable,
    pub(crate) rules: RuleTable,
    pub(crate) own_traffic: Locked<OwnTraffic>,
    pub(crate) removed_timeouts: Locked<RemovedTimeouts>,
    pub(crate) requests: Requests,
    pub(crate) work: Work,
}

/// Sweeps periodically.
///
/// `is_adopted`: on top of an earlier daemon's sessions.
pub(crate) async fn sweep(access: Access, is_adopted: bool) -> Result<()> {
    let access = Arc::new(access);
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u32;
    let mut before = now();
    let mut recount = is_adopted.then(Recount::default);
    let mut orphans = Orphans::default();
    loop {
        period.tick().await;
        round = round.wrapping_add(1);
        let now = now();
        let watched = passive_health::watched(&access.config.get(), &access.names.lock(), &access.rules);
        let signs = Gatherer::new(watched, std::mem::replace(&mut before, now), now);
        let sweeping = access.clone();
        let work = access.work.begin().await?;
        // A walk through a large table takes a while, and must not hold up the probe.
        let walks = move || {
            let _work = work;
            let recount = recount.and_then(|recount| recount.look(&sweeping.flows, &sweeping.counters));
            let signs = sweep_once(&sweeping, round, signs, &mut orphans);
            (recount, signs, orphans)
        };
        let signs;
        (recount, signs, orphans) =
            tokio::task::spawn_blocking(walks).await.context("the sweep has crashed")?;
        if passive_health::judge(&access.target_health, &signs.signs()) {
            access.requests.ask();
        }
    }
}

fn sweep_once(access: &Access, round: u32, mut signs: Gatherer, orphans: &mut Orphans) -> Gatherer {
    let started = Instant::now();
    let settings = *access.plane.lock().settings.current();
    let generation = settings.next_hop_generation;
    let config = access.config.get();
    let timeouts = {
        let mut removed = access.removed_timeouts.lock();
        removed.retain(&access.rules.names());
        RuleTimeouts::new(&config, &removed, &access.rules)
    };
    let ports = access.own_traffic.lock().snat.size();
    let flows = &access.flows;
    let pressure = u64::from(flows.sessions()) * 100 > u64::from(flows.capacity()) * PRESSURE_PERCENT;
    let crowded = crowded(&access.sessions.lock().ports.by_pool, ports);
    let gone = orphans.look(&access.routing.lock(), &access.sessions.lock(), started);
    for address in &gone {
        info!(address = %Ipv4Addr::from(*address), "sessions from an address that this machine has no more are removed");
    }
    let sweep = Sweep {
        flows,
        timeouts: &timeouts,
        round,
        pressure,
        crowded: &crowded,
        gone: &gone,
        half_open_limit: settings.half_open_per_source,
        now: now(),
    };
    let swept = sweep.run(generation, &mut signs);
    match swept {
        Ok((counts, removed)) => {
            if removed > 0 {
                debug!(removed, left = counts.total, pressure, crowded = crowded.len(), "swept");
            }
            access.sessions.set(SessionCounts { took: started.elapsed(), ..counts });
        }
        // The next sweep may do better; sessions that stay too long are no harm meanwhile.
        Err(error) => warn!("{error:#}"),
    }
    let taken = access.sessions.lock().ports.by_pool.clone();
    if let Err(error) = flows.clean_pools(ports, |target| taken.get(target).copied().unwrap_or_default()) {
        warn!("{error:#}");
    }
    signs
}

/// Returns the pools whose ports are few, as of the last sweep.
fn crowded(taken: &HashMap<PoolKey, u32>, ports: u32) -> HashSet<PoolKey> {
    let is_crowded = |taken: u32| u64::from(taken) * 100 > u64::from(ports) * PRESSURE_PERCENT;
    taken.iter().filter(|(_, taken)| is_crowded(**taken)).map(|(pool, _)| *pool).collect()
}

/// The addresses that sessions come from and that this machine has lost, and since when.
#[derive(Default)]
struct Orphans {
    lost: HashMap<Ipv4, Instant>,
}

impl Orphans {
    /// Returns the addresses that have been gone for so long that they will not be back.
    fn look(&mut self, routing: &Routing, sessions: &SessionCounts, now: Instant) -> HashSet<Ipv4> {
        let in_use = sessions.ports.by_pool.keys().map(|pool| pool.snat);
        self.note(in_use, &routing.own_addresses.own, now)
    }

    fn note(
        &mut self,
        in_use: impl Iterator<Item = Ipv4>,
        own: &HashSet<Ipv4Addr>,
        now: Instant,
    ) -> HashSet<Ipv4> {
        let lost: HashSet<Ipv4> = in_use.filter(|address| !own.contains(&(*address).into())).collect();
        self.lost.retain(|address, _| lost.contains(address));
        for address in lost {
            self.lost.entry(address).or_insert(now);
        }
        let is_gone = |since: &Instant| now.duration_since(*since) >= ADDRESS_PATIENCE;
        self.lost.iter().filter(|(_, since)| is_gone(since)).map(|(address, _)| *address).collect()
    }
}

struct Sweep<'a> {
    flows: &'a FlowTable,
    timeouts: &'a RuleTimeouts,
    round: u32,
    /// `true` if the table is crowded.
    pressure: bool,
    /// The pools that are crowded.
    crowded: &'a HashSet<PoolKey>,
    /// Addresses that sessions come from and that this machine has no more.
    gone: &'a HashSet<Ipv4>,
    /// The most half-open sessions of a source.
    half_open_limit: u32,
    now: Ticks,
}

impl Sweep<'_> {
    /// The sessions that are left, and how many were removed.
    fn run(&self, generation: u32, signs: &mut Gatherer) -> Result<(SessionCounts, usize)> {
        let mut by_rule = vec![0_u64; MAX_RULES];
        let mut by_pool: HashMap<PoolKey, u32, BuildHasherDefault<PoolHasher>> = HashMap::default();
        let mut holders = Holders::default();
        let mut removed = 0;
        let mut count_port = |flow: &Flow| {
            let pool = port_pool(flow);
            if !self.crowded.is_empty() && self.crowded.contains(&pool) {
                holders.count(pool, port_source(flow));
            }
            if let Some(count) = by_pool.get_mut(&pool) {
                *count += 1;
            } else if by_pool.len() < MAX_COUNTED_TARGETS {
                by_pool.insert(pool, 1);
            }
        };
        self.flows.sweep(generation, self.round, |flow| match flow.direction() {
            Direction::Forward => {
                self.gather(flow, signs);
                let verdict = self.judge(flow);
                if verdict == Verdict::Remove {
                    removed += 1;
                    return verdict;
                }
                if let Some(count) = by_rule.get_mut(usize::from(flow.rule())) {
                    *count += 1;
                }
                count_port(flow);
                verdict
            }
            Direction::Reply if flow.is_held() => {
                let verdict = self.judge_held(flow);
                if verdict == Verdict::Keep {
                    count_port(flow);
                }
                verdict
            }
            Direction::Reply => {
                let verdict = self.judge_reply(flow);
                removed += usize::from(verdict == Verdict::Remove);
                verdict
            }
        })?;
        let total = by_rule.iter().sum();
        let by_rule = (0..).zip(by_rule).filter(|(_, count)| *count > 0).collect();
        let ports = Taken { by_pool: by_pool.into_iter().collect(), most: holders.most() };
        Ok((SessionCounts { total, by_rule, ports, took: Duration::ZERO }, removed))
    }

    /// Gathers the sign that a young session gives of its target.
    fn gather(&self, forward: &Flow, signs: &mut Gatherer) {
        if self_test::is_test_session(&forward.key)
            || !signs.wants(forward.protocol(), forward.rule(), forward.entry.opened)
        {
            return;
        }
        let Some(session) = self.flows.session_of(forward) else { return };
        let rewrite = &forward.entry.rewrite;
        let target = (rewrite.destination.into(), rewrite.destination_port.number());
        signs.note(forward.rule(), target, forward.entry.opened, session.reply.entry.packets > 0);
    }

    /// The port of a session that was over and has moved stays taken for as long as the session
    /// would have stayed: its target may still send.
    fn judge_held(&self, held: &Flow) -> Verdict {
        let timeout = self.timeouts.of(held.rule()).tcp_transitory;
        let timeout = if self.is_crowded(held) { timeout.min(ENDED_UNDER_PRESSURE) } else { timeout };
        let idle = Duration::from_nanos(self.now.nanoseconds_since(held.entry.last_seen));
        if idle <= timeout { Verdict::Keep } else { Verdict::Remove }
    }

    /// Judges a session. For most, the client's direction is enough.
    fn judge(&self, forward: &Flow) -> Verdict {
        // No answer finds the way back to it. The kernel's MASQUERADE does the same
        // (`masq_inet_event`), so that clients open others.
        if !self.gone.is_empty() && self.gone.contains(&port_pool(forward).snat) {
            return Verdict::Remove;
        }
        let idle = |since| Duration::from_nanos(self.now.nanoseconds_since(since));
        let timeouts = self.timeouts.of(forward.rule());
        let Some(limit) = self.under_pressure(limit_of(forward, timeouts), forward) else {
            return Verdict::Remove;
        };
        if idle(forward.entry.last_seen) <= limit {
            return Verdict::Keep;
        }
        let Some(session) = self.flows.session_of(forward) else { return Verdict::Remove };
        match self.under_pressure(timeout(&session, timeouts), forward) {
            Some(timeout) if idle(session.last_seen()) <= timeout => Verdict::Keep,
            _ => Verdict::Remove,
        }
    }

    fn under_pressure(&self, timeout: Option<Duration>, forward: &Flow) -> Option<Duration> {
        let timeout = timeout?;
        Some(match Need::of(forward) {
            Need::Attempt if self.is_crowded(forward) || self.has_many_attempts(forward) => {
                timeout.min(OPENING_UNDER_PRESSURE)
            }
            Need::Over if self.is_crowded(forward) => timeout.min(ENDED_UNDER_PRESSURE),
            Need::Attempt | Need::Over | Need::InUse => timeout,
        })
    }

    /// Returns `true` if others lack room in the table, or ports to the same target.
    fn is_crowded(&self, flow: &Flow) -> bool {
        self.pressure || (!self.crowded.is_empty() && self.crowded.contains(&port_pool(flow)))
    }

    /// Returns `true` if its source has half of the half-open sessions that it may have: soon, a
    /// target that does not answer would keep it from all others.
    fn has_many_attempts(&self, forward: &Flow) -> bool {
        self.flows.half_open(forward.key.source) > self.half_open_limit / 2
    }

    /// A target's direction goes with its client's. One that has lost it (a daemon was killed
    /// between the two) is found here.
    fn judge_reply(&self, reply: &Flow) -> Verdict {
        let young = u128::from(self.now.nanoseconds_since(reply.entry.opened)) < YOUNG.as_nanos();
        if young {
            return Verdict::Keep;
        }
        match self.flows.get(&reply.twin()) {
            Some(forward) if forward.twin() == reply.key => Verdict::Keep,
            _ => Verdict::Remove,
        }
    }
}

/// A session's claim to its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Need {
    /// Its target has not answered, or its client has not finished the handshake.
    Attempt,
    /// It has probably served its purpose: a connection that has ended, or a single datagram of the
    /// client's that was answered.
    Over,
    /// It may be in use for long.
    InUse,
}

impl Need {
    fn of(forward: &Flow) -> Self {
        let is_opening = forward.is_opening() || forward.seen().is_unanswered();
        let is_over = match forward.protocol() {
            Some(Protocol::Tcp) => forward.seen().is_over(),
            Some(Protocol::Udp) => forward.entry.packets == 1,
            Some(Protocol::Icmp) | None => false,
        };
        match (is_opening, is_over) {
            (true, _) => Self::Attempt,
            (false, true) => Self::Over,
            (false, false) => Self::InUse,
        }
    }
}

/// A quick hash for counting a million times by one of a few keys. What goes in is bounded, so
/// collisions gain nothing.
#[derive(Default)]
struct PoolHasher(u64);

impl Hasher for PoolHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_ne_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// Returns the time that a session may be idle, by its client's direction alone.
fn limit_of(forward: &Flow, timeouts: &Timeouts) -> Option<Duration> {
    let Timeouts { tcp_established, tcp_transitory, udp, udp_unreplied, icmp } = timeouts;
    Some(match forward.protocol()? {
        Protocol::Tcp
            if forward.is_opening() || forward.seen().is_unanswered() || forward.seen().is_over() =>
        {
            *tcp_transitory
        }
        Protocol::Tcp => *tcp_established,
        Protocol::Udp if forward.is_opening() => *udp_unreplied,
        Protocol::Udp => *udp,
        Protocol::Icmp => *icmp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_gone_when_it_does_not_come_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (kept, lost) = (Ipv4([10, 0, 2, 68]), Ipv4([10, 0, 2, 70]));
        let both: HashSet<Ipv4Addr> = [kept.into(), lost.into()].into();
        let one: HashSet<Ipv4Addr> = [kept.into()].into();
        let mut orphans = Orphans::default();
        let mut look = |own, seconds| orphans.note([kept, lost].into_iter(), own, at(seconds));
        assert_eq!(look(&both, 0), HashSet::new());
        assert_eq!(look(&one, 2), HashSet::new(), "it may be renewed");
        assert_eq!(look(&both, 8), HashSet::new());
        assert_eq!(look(&one, 13), HashSet::new(), "counted anew");
        assert_eq!(look(&one, 23), HashSet::from([lost]));
        assert_eq!(look(&both, 24), HashSet::new());
    }
}
