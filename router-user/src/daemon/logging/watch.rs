//! Logs what an operator has to know: that the router has stopped forwarding and why, and packets
//! that it should not have to drop.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use router_common::{maps::stats::CpuStats, reason::Reason};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::{
    daemon::{logging::lines::Lines, observe::monitor::Monitor},
    dataplane::CounterTable,
    health::{Condition, Conditions, Key, Severity},
};

/// The period in which conditions are checked.
const PERIOD: Duration = Duration::from_secs(1);
/// Periods between two reports of drops.
const DROPS_EVERY: u64 = 10;

/// Drops that are the router's trouble, or this machine's, and not the sender's.
const TROUBLE: [Reason; 20] = [
    Reason::NoTarget,
    Reason::Refused,
    Reason::NoRoute,
    Reason::RouteUnreachable,
    Reason::RouteProhibited,
    Reason::RouteBlackhole,
    Reason::NeighbourFailed,
    Reason::NetworkUnreachable,
    Reason::HostUnreachable,
    Reason::Prohibited,
    Reason::NeighbourUnresolved,
    Reason::EgressNotAttached,
    Reason::PortsExhausted,
    Reason::Rejected,
    Reason::TableFull,
    Reason::RedirectFailed,
    Reason::StageMissing,
    Reason::RouteLookupsOff,
    Reason::TooBig,
    Reason::AnswerWithheld,
];

/// Logs changes of conditions, and drops.
pub(crate) async fn report(monitor: Monitor, counters: CounterTable) -> Result<()> {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut known, mut lines) = (Known::new(), Lines::default());
    let mut before = None;
    for round in 0_u64.. {
        period.tick().await;
        let conditions = monitor.conditions();
        log_changes(&conditions, &known, &mut lines);
        known = conditions.iter().map(|condition| (condition.key(), condition.detail.clone())).collect();
        if round.is_multiple_of(DROPS_EVERY) {
            let read = counters.read();
            let now = match read {
                Ok(stats) => (drops(&stats), stats.own),
                // Transient: the next round reports the drops of both.
                Err(error) => {
                    warn!("{error:#}");
                    continue;
                }
            };
            let Some((dropped, own)) = before.replace(now) else { continue };
            let (now_dropped, now) = now;
            for (reason, packets) in increases(&dropped, &now_dropped) {
                warn!(reason = reason.as_str(), packets, "not forwarded: {}", reason.description());
            }
            let refused = now.connections_refused.saturating_sub(own.connections_refused);
            if refused > 0 {
                warn!(
                    refused,
                    "connections of this machine's own had the port of a session that is alive; `pls-router check` says how to keep ports apart"
                );
            }
            let ended = now.sessions_ended.saturating_sub(own.sessions_ended);
            if ended > 0 {
                info!(ended, "sessions gave way to this machine's own traffic from the same port");
            }
        }
    }
    Ok(())
}

/// The conditions of the last look, and what was said of each.
type Known = HashMap<Key, String>;

/// Logs conditions that are new and conditions that are over. A detail that has changed is logged
/// again, except of a router that is down: there it may change every second.
fn log_changes(conditions: &Conditions, known: &Known, lines: &mut Lines) {
    let known_of =
        |severity| -> HashSet<Key> { known.keys().filter(|(_, _, of)| *of == severity).cloned().collect() };
    let now_of = |severity| -> HashSet<Key> {
        let of_severity = conditions.iter().filter(|condition| condition.severity == severity);
        of_severity.map(Condition::key).collect()
    };
    let down = now_of(Severity::Down);
    if down != known_of(Severity::Down) {
        if down.is_empty() {
            info!("forwarding");
        } else {
            let reasons = conditions.details(Severity::Down).join("; ");
            warn!(reasons, "not forwarding");
        }
    }
    let is_new = |condition: &&Condition| {
        condition.severity == Severity::Degraded
            && known.get(&condition.key()).is_none_or(|detail| *detail != condition.detail)
    };
    for Condition { id, detail, .. } in conditions.iter().filter(is_new) {
        let condition = id.as_str();
        // Hosts on the network can make conditions come and go.
        match lines.take(Instant::now()) {
            Some(0) => warn!(condition, "degraded: {detail}"),
            Some(withheld) => warn!(condition, withheld, "degraded: {detail}"),
            None => {}
        }
    }
    if now_of(Severity::Degraded).is_empty() && !known_of(Severity::Degraded).is_empty() {
        info!("no longer degraded");
    }
}

/// Returns the number of packets dropped for each of the reasons.
fn drops(stats: &CpuStats) -> [u64; TROUBLE.len()] {
    TROUBLE.map(|reason| stats.reasons[reason as usize].packets)
}

fn increases<'a>(
    before: &'a [u64; TROUBLE.len()],
    now: &'a [u64; TROUBLE.len()],
) -> impl Iterator<Item = (Reason, u64)> + 'a {
    let counts = before.iter().zip(now).map(|(before, now)| now - before);
    TROUBLE.into_iter().zip(counts).filter(|(_, packets)| *packets > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_grown_is_reported() {
        let before = [5; TROUBLE.len()];
        let mut now = before;
        let ports = TROUBLE.iter().position(|reason| *reason == Reason::PortsExhausted).expect("one of them");
        now[ports] += 3;
        let grown: Vec<_> = increases(&before, &now).collect();
        assert_eq!(grown, [(Reason::PortsExhausted, 3)]);
    }
}
