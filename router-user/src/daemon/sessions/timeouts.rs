//! The idle timeouts of sessions.

use std::time::Duration;

use router_common::{session::State, tuple::Protocol};

use crate::{
    config::{Config, Timeouts},
    dataplane::{RuleTable, Session},
};

/// Returns the time that a session may be idle; `None` for one that makes no sense.
pub(crate) fn timeout(session: &Session, timeouts: &Timeouts) -> Option<Duration> {
    Some(match (session.protocol()?, session.state()?) {
        // A connection that is closed on one side only may go on for long on the other (RFC 7857
        // section 2).
        (Protocol::Tcp, State::Established | State::Closing) => timeouts.tcp_established,
        (Protocol::Tcp, State::Opening | State::Closed) => timeouts.tcp_transitory,
        (Protocol::Udp, State::Opening) => timeouts.udp_unreplied,
        (Protocol::Udp, _) => timeouts.udp,
        (Protocol::Icmp, _) => timeouts.icmp,
    })
}

/// Timeouts by rule number.
#[derive(Clone, Debug)]
pub(crate) struct RuleTimeouts {
    /// Of sessions whose rule is gone.
    others: Timeouts,
    by_rule: Vec<Option<Timeouts>>,
}

impl RuleTimeouts {
    /// Returns the timeouts of a configuration, whose rules have these numbers.
    pub(crate) fn new(config: &Config, rules: &RuleTable) -> Self {
        let mut by_rule = vec![None; router_common::limits::MAX_RULES];
        let forwards = config.forwards.iter().map(|rule| (&rule.name, &rule.timeouts));
        let masquerades = config.masquerades.iter().map(|rule| (&rule.name, &rule.timeouts));
        for (name, timeouts) in forwards.chain(masquerades) {
            if let Some(place) = rules.number(name).and_then(|number| by_rule.get_mut(usize::from(number))) {
                *place = Some(timeouts.clone());
            }
        }
        Self { others: config.timeouts.clone(), by_rule }
    }

    pub(crate) fn of(&self, rule: u16) -> &Timeouts {
        self.by_rule.get(usize::from(rule)).and_then(Option::as_ref).unwrap_or(&self.others)
    }
}
