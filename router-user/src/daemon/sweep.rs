//! Removes sessions that have been idle for too long, and counts the others.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use router_common::{
    MAX_RULES,
    flow::{Direction, Protocol},
    session::State,
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::shared::{SessionCounts, Shared};
use crate::{
    config::Timeouts,
    dataplane::{Flow, FlowTable, Session, Verdict, now},
};

/// How often. Timeouts are kept to within this.
const PERIOD: Duration = Duration::from_secs(2);

/// One in so many flows of the target's direction is asked for its other half in each sweep.
const ORPHAN_SHARE: u64 = 16;
/// A flow younger than this is not asked: it may still be in the making.
const YOUNG: Duration = Duration::from_secs(10);

/// Sweeps for ever.
pub(super) async fn sweep(shared: Arc<Shared>) -> Result<()> {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0;
    loop {
        period.tick().await;
        round += 1;
        let shared = shared.clone();
        // A walk through a large table takes a while, and must not hold up the probe.
        tokio::task::spawn_blocking(move || sweep_once(&shared, round))
            .await
            .context("the sweep has crashed")?;
    }
}

fn sweep_once(shared: &Shared, round: u64) {
    let generation = shared.plane().settings.current().next_hop_generation;
    let timeouts = shared.rule_timeouts();
    let swept = Sweep { flows: &shared.flows, timeouts: &timeouts, round }.run(generation);
    match swept {
        Ok((counts, removed)) => {
            if removed > 0 {
                debug!(removed, left = counts.total, "swept");
            }
            *shared.sessions() = counts;
        }
        // The next sweep may do better; sessions that stay too long are no harm meanwhile.
        Err(error) => warn!("{error:#}"),
    }
    let ports = &shared.config.snat.ports;
    if let Err(error) = shared.flows.clean_pools(u32::from(*ports.end()) - u32::from(*ports.start()) + 1) {
        warn!("{error:#}");
    }
}

struct Sweep<'a> {
    flows: &'a FlowTable,
    timeouts: &'a RuleTimeouts,
    round: u64,
}

impl Sweep<'_> {
    /// The sessions that are left, and how many were removed.
    fn run(&self, generation: u32) -> Result<(SessionCounts, usize)> {
        let mut by_rule = vec![0_u64; MAX_RULES];
        let mut removed = 0;
        let mut replies = 0_u64;
        self.flows.sweep(generation, |flow| {
            let verdict = match flow.direction() {
                Direction::Forward => self.judge(flow),
                Direction::Reply => {
                    replies += 1;
                    self.judge_reply(flow, replies)
                }
            };
            match (flow.direction(), verdict) {
                (Direction::Forward, Verdict::Keep) => {
                    if let Some(count) = by_rule.get_mut(usize::from(flow.rule())) {
                        *count += 1;
                    }
                }
                (Direction::Reply, Verdict::Keep) => {}
                (_, Verdict::Remove) => removed += 1,
            }
            verdict
        })?;
        let total = by_rule.iter().sum();
        let by_rule = (0..).zip(by_rule).filter(|(_, count)| *count > 0).collect();
        Ok((SessionCounts { total, by_rule }, removed))
    }

    /// Most sessions are told alive by their client's direction alone.
    fn judge(&self, forward: &Flow) -> Verdict {
        let now = now();
        let idle = |since| Duration::from_nanos(now.nanoseconds_since(since));
        let timeouts = self.timeouts.of(forward.rule());
        let Some(limit) = limit_of(forward, timeouts) else { return Verdict::Remove };
        if idle(forward.entry.last_seen) <= limit {
            return Verdict::Keep;
        }
        let Some(session) = self.flows.session_of(forward) else { return Verdict::Remove };
        match timeout(&session, timeouts) {
            Some(timeout) if idle(session.last_seen()) <= timeout => Verdict::Keep,
            _ => Verdict::Remove,
        }
    }

    /// A target's direction goes with its client's. One that has lost it (a daemon was killed between the two) is found here.
    fn judge_reply(&self, reply: &Flow, number: u64) -> Verdict {
        let young = u128::from(now().nanoseconds_since(reply.entry.opened)) < YOUNG.as_nanos();
        if number % ORPHAN_SHARE != self.round % ORPHAN_SHARE || young {
            return Verdict::Keep;
        }
        match self.flows.get(&reply.twin()) {
            Some(forward) if forward.twin() == reply.key => Verdict::Keep,
            _ => Verdict::Remove,
        }
    }
}

/// How long a session may be idle, as far as its client's direction tells.
fn limit_of(forward: &Flow, timeouts: &Timeouts) -> Option<Duration> {
    let Timeouts { tcp_established, tcp_transitory, udp, udp_unreplied, icmp } = timeouts;
    Some(match forward.protocol()? {
        Protocol::Tcp if forward.is_opening() || forward.entry.seen.either_has_ended() => *tcp_transitory,
        Protocol::Tcp => *tcp_established,
        Protocol::Udp if forward.is_opening() => *udp_unreplied,
        Protocol::Udp => *udp,
        Protocol::Icmp => *icmp,
    })
}

/// How long a session may be idle; `None` for one that makes no sense.
pub(super) fn timeout(session: &Session, timeouts: &Timeouts) -> Option<Duration> {
    Some(match (session.protocol()?, session.state()?) {
        (Protocol::Tcp, State::Established) => timeouts.tcp_established,
        (Protocol::Tcp, State::Opening | State::Closing | State::Closed) => timeouts.tcp_transitory,
        (Protocol::Udp, State::Opening) => timeouts.udp_unreplied,
        (Protocol::Udp, _) => timeouts.udp,
        (Protocol::Icmp, _) => timeouts.icmp,
    })
}

/// Timeouts by rule number.
#[derive(Clone, Debug)]
pub(super) struct RuleTimeouts {
    /// Of sessions whose rule is gone.
    pub(super) others: Timeouts,
    pub(super) by_rule: Vec<Option<Timeouts>>,
}

impl RuleTimeouts {
    pub(super) fn of(&self, rule: u16) -> &Timeouts {
        self.by_rule.get(usize::from(rule)).and_then(Option::as_ref).unwrap_or(&self.others)
    }
}
