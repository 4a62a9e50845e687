//! The results of self-tests: plain data, and what is said of it.

use std::time::Instant;

use super::arrivals::Unseen;
use crate::{
    health::{Conditions, Id, Severity},
    model::SelfTestStatus,
};

/// The results of self-tests.
#[derive(Debug, Default)]
pub(crate) struct SelfTest {
    /// `false` if the configuration switches it off.
    pub(super) is_on: bool,
    pub(super) sessions: u64,
    pub(super) packets: u64,
    pub(super) failures: u64,
    /// The time of the last session that was tested.
    pub(super) last: Option<Instant>,
    /// Why the last rule in turn was not tested; empty if it was.
    pub(super) untested: String,
    /// The failure, if it is a fault.
    pub(super) failure: Option<String>,
    pub(super) impossible: Option<String>,
    /// The interfaces whose packets the programs do not see.
    pub(super) unseen: Vec<UnseenOn>,
}

/// An interface whose packets its program does not see, or most of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct UnseenOn {
    /// The interface, as the configuration names it.
    interface: String,
    severity: Severity,
    /// The words for the operator.
    detail: String,
}

impl UnseenOn {
    /// `interface` is the name in the configuration, and `name` the one now.
    pub(super) fn new(interface: &str, name: &str, packets: Unseen) -> Self {
        let advice = format!(
            "fix: `ip link set dev {name} down` and `up` again, or `pls-router detach` and systemctl restart pls-router"
        );
        let (severity, detail) = match packets {
            Unseen::All(packets) => (
                Severity::Down,
                format!(
                    "{packets} packets have come in on {name}, and its program has seen none of them: the driver does \
                     not run it; {advice}"
                ),
            ),
            // It may be a driver that counts packets which it drops.
            Unseen::Most { unseen, arrived } => (
                Severity::Degraded,
                format!(
                    "{unseen} of {arrived} packets that came in on {name} within seconds were not seen by its program: \
                     the driver does not run it on all queues, or not on the virtual function below the interface; \
                     {advice}"
                ),
            ),
        };
        Self { interface: interface.to_owned(), severity, detail }
    }

    /// Returns `true` if it says the same of the same interface, but for the numbers.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (&self.interface, self.severity) == (&other.interface, other.severity)
    }
}

impl SelfTest {
    /// Adds what is wrong.
    pub(crate) fn add_to(&self, conditions: &mut Conditions) {
        if let Some(failure) = &self.failure {
            let detail = format!(
                "the programs do not forward: {failure}; fix: systemctl restart pls-router loads them again, and \
                 `bpftool prog` and `bpftool map` show who else has opened them"
            );
            conditions.add(Severity::Down, Id::SelfTestFailed, "", detail);
        }
        if let Some(error) = &self.impossible {
            let detail = format!(
                "the self-test cannot be run: {error}; fix: if it never can on this machine, set self_test = \"off\" in \
                 [health]"
            );
            conditions.add(Severity::Degraded, Id::SelfTestImpossible, "", detail);
        }
        for UnseenOn { interface, severity, detail } in &self.unseen {
            conditions.add(*severity, Id::PacketsUnseen, interface, detail);
        }
    }

    /// Returns what `status` says of them.
    pub(crate) fn status(&self) -> SelfTestStatus {
        SelfTestStatus {
            enabled: self.is_on,
            sessions: self.sessions,
            packets: self.packets,
            failures: self.failures,
            last_seconds: self.last.map(|last| last.elapsed().as_secs()),
            untested: self.untested.clone(),
            problem: self.failure.clone().or_else(|| self.impossible.clone()).unwrap_or_default(),
        }
    }
}
