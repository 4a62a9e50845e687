//! The idle timeouts of sessions.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

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

/// The timeouts of rules that were removed: their sessions go on, as their clients expect them to.
#[derive(Debug, Default)]
pub(crate) struct RemovedTimeouts(HashMap<String, Timeouts>);

impl RemovedTimeouts {
    /// Notes that one configuration takes the place of another one.
    pub(crate) fn follow(&mut self, before: &Config, after: &Config) {
        self.0.extend(by_name(before).map(|(name, timeouts)| (name.clone(), timeouts.clone())));
        for (name, _) in by_name(after) {
            self.0.remove(name);
        }
    }

    /// Forgets those of rules that no session can be of.
    pub(crate) fn retain(&mut self, names: &[Option<String>]) {
        if !self.0.is_empty() {
            let known: HashSet<&String> = names.iter().flatten().collect();
            self.0.retain(|name, _| known.contains(name));
        }
    }

    /// Returns the timeouts of a rule that was removed.
    pub(crate) fn get(&self, name: &str) -> Option<&Timeouts> {
        self.0.get(name)
    }
}

/// The rules of a configuration and their timeouts.
fn by_name(config: &Config) -> impl Iterator<Item = (&String, &Timeouts)> {
    let forwards = config.forwards.iter().map(|rule| (&rule.name, &rule.timeouts));
    forwards.chain(config.masquerades.iter().map(|rule| (&rule.name, &rule.timeouts)))
}

/// Timeouts by rule number.
#[derive(Clone, Debug)]
pub(crate) struct RuleTimeouts {
    /// Of sessions whose rule is gone.
    others: Timeouts,
    by_rule: Vec<Option<Timeouts>>,
}

impl RuleTimeouts {
    /// Returns the timeouts of a configuration, and those of rules that were removed. All of them
    /// have the numbers of `rules`.
    pub(crate) fn new(config: &Config, removed: &RemovedTimeouts, rules: &RuleTable) -> Self {
        let mut by_rule = vec![None; router_common::limits::MAX_RULES];
        for (place, name) in by_rule.iter_mut().zip(rules.names().iter()) {
            *place = name.as_ref().and_then(|name| removed.get(name)).cloned();
        }
        for (name, timeouts) in by_name(config) {
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
