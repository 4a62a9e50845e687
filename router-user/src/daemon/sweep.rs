//! Removes sessions that have been idle for too long, and counts the others.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use router_common::{flow::Protocol, session::State};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::{
    shared::{SessionCounts, Shared},
    target_signs::{self, Gatherer},
};
use crate::{
    config::Timeouts,
    dataplane::{FlowTable, Session, now},
};

/// How often. Timeouts are kept to within this.
const PERIOD: Duration = Duration::from_secs(2);

/// Sweeps for ever.
pub(super) async fn sweep(shared: Arc<Shared>, mut flows: FlowTable) -> Result<()> {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = now();
    loop {
        period.tick().await;
        let timeouts = shared.config.timeouts.clone();
        let now = now();
        let watched = target_signs::watched(&shared);
        let mut signs = Gatherer::new(watched, std::mem::replace(&mut before, now), now);
        // A walk through a large table takes a while, and must not hold up the probe.
        let (returned, signs, result) = tokio::task::spawn_blocking(move || {
            let result = sweep_once(&mut flows, &timeouts, &mut signs);
            (flows, signs, result)
        })
        .await
        .context("the sweep has crashed")?;
        flows = returned;
        target_signs::judge(&shared, &signs.signs())?;
        match result {
            Ok((counts, 0)) => *shared.sessions() = counts,
            Ok((counts, removed)) => {
                debug!(removed, left = counts.total, "swept");
                *shared.sessions() = counts;
            }
            // The next sweep may do better; sessions that stay too long are no harm meanwhile.
            Err(error) => warn!("{error:#}"),
        }
    }
}

fn sweep_once(
    flows: &mut FlowTable,
    timeouts: &Timeouts,
    signs: &mut Gatherer,
) -> Result<(SessionCounts, usize)> {
    let now = now();
    let idle = |since| Duration::from_nanos(now.nanoseconds_since(since));
    let shortest = shortest(timeouts);
    let mut counts = SessionCounts::default();
    let mut suspects = Vec::new();
    let mut young = Vec::new();
    flows.for_each_forward(|key, forward| {
        counts.total += 1;
        *counts.by_rule.entry(forward.rule).or_default() += 1;
        // Most sessions are told alive by this direction alone.
        if idle(forward.last_seen) > shortest {
            suspects.push(*key);
        }
        if signs.wants(key.protocol(), forward.rule, forward.opened) {
            young.push(*key);
        }
    })?;
    for key in young {
        if let Some(session) = flows.get_session(&key)? {
            let Session { forward, reply, .. } = &session;
            let target = (forward.rewrite.destination.into(), forward.rewrite.destination_port.number());
            signs.note(forward.rule, target, forward.opened, reply.packets > 0);
        }
    }
    let mut removed = 0;
    for key in suspects {
        // Looked up now, and not when the walk came by: it may have come back to life since.
        let Some(session) = flows.get_session(&key)? else { continue };
        if timeout(&session, timeouts).is_none_or(|timeout| idle(session.last_seen()) > timeout) {
            flows.remove(&session)?;
            removed += 1;
            counts.total -= 1;
            counts.by_rule.entry(session.forward.rule).and_modify(|count| *count = count.saturating_sub(1));
        }
    }
    Ok((counts, removed))
}

/// No session is removed before this.
fn shortest(timeouts: &Timeouts) -> Duration {
    let Timeouts { tcp_established, tcp_transitory, udp, icmp } = timeouts;
    *tcp_established.min(tcp_transitory).min(udp).min(icmp)
}

/// How long a session may be idle; `None` for one that makes no sense.
pub(super) fn timeout(session: &Session, timeouts: &Timeouts) -> Option<Duration> {
    Some(match (session.protocol()?, session.state()?) {
        (Protocol::Tcp, State::Established) => timeouts.tcp_established,
        (Protocol::Tcp, State::Opening | State::Closing | State::Closed) => timeouts.tcp_transitory,
        (Protocol::Udp, _) => timeouts.udp,
        (Protocol::Icmp, _) => timeouts.icmp,
    })
}
