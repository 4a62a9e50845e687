//! Removes sessions that have been idle for too long, and counts the others.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use router_common::{flow::Protocol, session::State};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::shared::{SessionCounts, Shared};
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
    loop {
        period.tick().await;
        let timeouts = shared.config.timeouts.clone();
        // A walk through a large table takes a while, and must not hold up the probe.
        let (returned, result) = tokio::task::spawn_blocking(move || {
            let result = sweep_once(&mut flows, &timeouts);
            (flows, result)
        })
        .await
        .context("the sweep has crashed")?;
        flows = returned;
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

fn sweep_once(flows: &mut FlowTable, timeouts: &Timeouts) -> Result<(SessionCounts, usize)> {
    let now = now();
    let mut counts = SessionCounts::default();
    let mut expired: Vec<Session> = Vec::new();
    flows.for_each(|session| {
        let idle = Duration::from_nanos(now.nanoseconds_since(session.last_seen()));
        if timeout(session, timeouts).is_none_or(|timeout| idle > timeout) {
            expired.push(*session);
        } else {
            counts.total += 1;
            *counts.by_rule.entry(session.forward.rule).or_default() += 1;
        }
    })?;
    for session in &expired {
        flows.remove(session)?;
    }
    Ok((counts, expired.len()))
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
