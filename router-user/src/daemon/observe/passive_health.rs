//! Signs of dead targets from sessions: gathered by the sweep, judged by
//! [`target_health`](super::target_health).

use std::{collections::HashMap, net::Ipv4Addr, time::Instant};

use router_common::{time::Ticks, tuple::Protocol};
use tracing::{info, warn};

use super::target_health::{Change, Health, TargetHealth, TargetSigns, UNANSWERED_AFTER};
use crate::{
    config::Config,
    daemon::{control::desired, names::resolved::Names, sync::Locked},
    dataplane::RuleTable,
};

/// The rules whose sessions matter, by number, and whether their targets have the port that the
/// client used.
pub(crate) type Watched = HashMap<u16, bool>;

/// Returns the rules that lead to several targets now: only they have a choice.
pub(crate) fn watched(config: &Config, names: &Names, rules: &RuleTable) -> Watched {
    let judged = config.forwards.iter().filter(|forward| desired::is_judged(forward, names));
    judged.filter_map(|forward| Some((rules.number(&forward.name)?, forward.listen.is_range()))).collect()
}

/// Gathers signs in one sweep.
pub(crate) struct Gatherer {
    watched: Watched,
    before: Ticks,
    now: Ticks,
    signs: TargetSigns,
}

impl Gatherer {
    /// For the sweep at `now` that follows the one at `before`.
    pub(crate) fn new(watched: Watched, before: Ticks, now: Ticks) -> Self {
        Self { watched, before, now, signs: TargetSigns::default() }
    }

    /// Returns `true` if a session counts: it was young at the last sweep, or is new. An older one
    /// has been counted, or looks like one that lost its answer long ago.
    pub(crate) fn wants(&self, protocol: Option<Protocol>, rule: u16, opened: Ticks) -> bool {
        protocol == Some(Protocol::Tcp) && self.watched.contains_key(&rule) && !is_old(self.before, opened)
    }

    /// Notes a session that is wanted, and whether its target has sent a packet.
    pub(crate) fn note(&mut self, rule: u16, target: (Ipv4Addr, u16), opened: Ticks, answered: bool) {
        let Some(ports_vary) = self.watched.get(&rule) else { return };
        let (address, port) = target;
        let port = if *ports_vary { 0 } else { port };
        let signs = self.signs.by_target.entry((address, port, Protocol::Tcp)).or_default();
        if answered {
            signs.answered += 1;
        } else if is_old(self.now, opened) {
            signs.unanswered += 1;
        }
    }

    /// Returns the signs that were gathered.
    pub(crate) fn signs(self) -> TargetSigns {
        self.signs
    }
}

fn is_old(now: Ticks, opened: Ticks) -> bool {
    u128::from(now.nanoseconds_since(opened)) >= UNANSWERED_AFTER.as_nanos()
}

/// Judges the targets by what was gathered. Returns `true` if new sessions are to avoid others than
/// before.
pub(crate) fn judge(health: &Locked<TargetHealth>, signs: &TargetSigns) -> bool {
    let changes = health.lock().observe(signs, Instant::now());
    for Change { target: (address, port, _), to, reason, .. } in &changes {
        match to {
            Health::Avoided => warn!(%address, port, reason, "new sessions avoid a target"),
            Health::Trial => info!(%address, port, reason, "a target is on trial"),
            Health::Good => info!(%address, port, reason, "a target is good again"),
        }
    }
    changes.iter().any(|change| change.from == Health::Avoided || change.to == Health::Avoided)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::target_health::Signs, *};

    const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 0, 4), 443);

    fn gatherer(before: u32, now: u32) -> Gatherer {
        Gatherer::new(HashMap::from([(7, false), (8, true)]), Ticks(before), Ticks(now))
    }

    /// Returns the signs that sweeps at these ticks find of a session of rule 7 that was opened at
    /// `opened` and answered at `answered`, in all.
    fn seen(sweeps: &[u32], opened: u32, answered: Option<u32>) -> Signs {
        let mut all = Signs::default();
        for pair in sweeps.windows(2).filter(|pair| pair[1] >= opened) {
            let mut gatherer = gatherer(pair[0], pair[1]);
            if gatherer.wants(Some(Protocol::Tcp), 7, Ticks(opened)) {
                gatherer.note(7, TARGET, Ticks(opened), answered.is_some_and(|answered| answered <= pair[1]));
            }
            for signs in gatherer.signs().by_target.into_values() {
                all.answered += signs.answered;
                all.unanswered += signs.unanswered;
            }
        }
        all
    }

    #[test]
    fn only_tcp_of_watched_rules_tells_anything() {
        let gatherer = gatherer(10, 12);
        assert!(gatherer.wants(Some(Protocol::Tcp), 7, Ticks(11)));
        assert!(!gatherer.wants(Some(Protocol::Tcp), 9, Ticks(11)));
        assert!(!gatherer.wants(Some(Protocol::Udp), 7, Ticks(11)));
        assert!(!gatherer.wants(None, 7, Ticks(11)));
    }

    #[test]
    fn the_ports_of_a_range_are_one_target() {
        let mut gatherer = gatherer(10, 12);
        for port in [8000, 8001] {
            gatherer.note(8, (TARGET.0, port), Ticks(11), true);
            gatherer.note(7, (TARGET.0, port), Ticks(11), true);
        }
        let mut targets: Vec<_> = gatherer.signs().by_target.into_keys().map(|(_, port, _)| port).collect();
        targets.sort_unstable();
        assert_eq!(targets, [0, 8000, 8001]);
    }

    proptest! {
        /// For any time between the sweeps, a session without an answer counts once, and one that
        /// is answered in time never.
        #[test]
        fn a_session_without_an_answer_counts_once(steps in proptest::collection::vec(1..8_u32, 3..40), opened in 1..20_u32, late in 0..10_u32) {
            let sweeps: Vec<u32> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
            let (first, last) = (sweeps[0], sweeps[sweeps.len() - 1]);
            prop_assume!(opened >= first && opened + 3 <= last);
            prop_assert_eq!(seen(&sweeps, opened, None), Signs { answered: 0, unanswered: 1 });
            let answered = seen(&sweeps, opened, Some(opened + late));
            if late < 3 {
                prop_assert!(answered.unanswered == 0 && answered.answered > 0, "{:?}", answered);
            }
            prop_assert!(answered.unanswered <= 1);
        }
    }
}
