//! Looks at everything that can be wrong with this router, as it is now.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use router_common::reason::Reason;

use super::{
    answer::{Found, Pending, ProbeAnswer, Times},
    bad_checksums::{BadChecksumAlarm, Counts},
    capacity::{CapacityAlarms, Usage},
    reachability,
};
use crate::{
    daemon::{
        kernel::interfaces::Attached,
        punts::tally::Tally,
        state::{RouteCondition, State},
        sync::Locked,
        upkeep::loss::lost,
    },
    dataplane::{CounterTable, Dataplane, FlowTable, ROUTE_LOOKUPS, route_lookups_are_on},
    health::{Conditions, History, Id, Severity},
};

/// The greatest age of the routing data, which is read every other second.
const STALE: Duration = Duration::from_secs(15);

/// Finds out the conditions that hold. A clone is the same monitor.
#[derive(Clone)]
pub(crate) struct Monitor {
    state: State,
    flows: FlowTable,
    counters: CounterTable,
    punts: Arc<Tally>,
    memory: Locked<Memory>,
    probe: Locked<Probe>,
}

/// The answer of the probe, and what was wrong when something last was.
#[derive(Debug, Default)]
struct Probe {
    answer: ProbeAnswer,
    /// The reasons that keep the router from forwarding, in words for the operator.
    reasons: Vec<String>,
    /// The last of these that were not empty.
    last: Vec<String>,
    /// The words for a drain, while there is one.
    drains: Option<String>,
    /// Faults of the attachment of the programs, in words for the operator.
    unattached: Vec<String>,
}

/// The answer of the probe at a moment.
#[derive(Clone, Debug)]
pub(crate) struct ProbeView {
    pub(crate) forwards: bool,
    /// `false` while a daemon that has just started has no answer.
    pub(crate) is_known: bool,
    /// The time since when it is given.
    pub(crate) since: Instant,
    pub(crate) pending: Option<Pending>,
    /// The reasons that keep the router from forwarding, in words for the operator. If the answer
    /// is that it does not, and nothing keeps it now: what did so last.
    pub(crate) reasons: Vec<String>,
    /// The words for a drain, while there is one.
    pub(crate) drains: Option<String>,
    /// The number of changes since the daemon started.
    pub(crate) changes: u64,
    /// Faults of the attachment of the programs, in words for the operator: why this router is not
    /// live. Empty if it is. Nothing has to last, and no order counts.
    pub(crate) unattached: Vec<String>,
}

impl ProbeView {
    /// Returns the words for a drain, if there is one, and the reasons.
    pub(crate) fn all_reasons(&self) -> Vec<String> {
        self.drains.iter().chain(&self.reasons).cloned().collect()
    }
}

impl Probe {
    /// Takes in what was found at this moment.
    fn follow(&mut self, conditions: &Conditions, times: Times) {
        self.answer.observe(Found::of(conditions), times, conditions.now());
        let down = || conditions.iter().filter(|condition| condition.severity == Severity::Down);
        let unattached = down().filter(|condition| condition.id.is_of_attachment());
        self.unattached = unattached.map(|condition| condition.detail.clone()).collect();
        let (drains, down): (Vec<_>, Vec<_>) = down().partition(|condition| condition.id == Id::Draining);
        self.drains = drains.first().map(|condition| condition.detail.clone());
        self.reasons = down.into_iter().map(|condition| condition.detail.clone()).collect();
        if !self.reasons.is_empty() {
            self.last.clone_from(&self.reasons);
        }
    }

    /// Returns the answer as it is at `now`.
    fn view(&self, now: Instant) -> ProbeView {
        let Self { answer, reasons, last, drains, unattached } = self;
        let is_recovering = !answer.forwards() && reasons.is_empty() && drains.is_none();
        ProbeView {
            forwards: answer.forwards(),
            is_known: answer.since().is_some(),
            since: answer.since().unwrap_or(now),
            pending: answer.pending(),
            reasons: if is_recovering { last.clone() } else { reasons.clone() },
            drains: drains.clone(),
            changes: answer.changes(),
            unattached: unattached.clone(),
        }
    }
}

/// The monitor's memory from one look to the next.
#[derive(Debug, Default)]
struct Memory {
    capacity_alarms: CapacityAlarms,
    checksum_alarm: BadChecksumAlarm,
    history: History,
}

impl Monitor {
    pub(crate) fn new(state: State, plane: &Dataplane, punts: Arc<Tally>) -> Self {
        Self {
            state,
            flows: plane.flows.clone(),
            counters: plane.counters.clone(),
            punts,
            memory: Locked::default(),
            probe: Locked::default(),
        }
    }

    /// Takes over the answer of the probe from the monitor of another instance.
    pub(crate) fn inherit(&self, before: &Self) {
        let probe = std::mem::take(&mut *before.probe.lock());
        self.probe.set(probe);
    }

    /// Looks at what may keep this router from forwarding, and at nothing else, and returns the
    /// answer of the probe.
    pub(crate) fn look(&self) -> ProbeView {
        self.look_at_forwarding().1
    }

    /// Returns all that is wrong now.
    pub(crate) fn conditions(&self) -> Conditions {
        self.all().0
    }

    /// Returns all that is wrong now, and the answer of the probe.
    pub(crate) fn all(&self) -> (Conditions, ProbeView) {
        // Locked first: each look has to follow the one before it.
        let memory = &mut *self.memory.lock();
        let (mut conditions, probe) = self.look_at_forwarding();
        let now = conditions.now();
        let stats = self.counters.read();
        {
            let ports = self.state.own_traffic.lock().snat;
            let sessions = self.state.sessions.lock();
            let usage = Usage {
                sessions: self.flows.sessions(),
                capacity: self.flows.capacity(),
                taken: &sessions.ports,
                ports,
            };
            memory.capacity_alarms.look(usage, &mut conditions);
        }
        let mut degraded = |id, detail: &str| conditions.add(Severity::Degraded, id, "", detail);
        if let Ok(stats) = stats {
            let packets = |reason: Reason| stats.reasons[reason as usize].packets;
            let opened = packets(Reason::Opened) + packets(Reason::OpenedInPlace);
            let counts = Counts { damaged: packets(Reason::BadChecksum), opened };
            if let Some(detail) = memory.checksum_alarm.look(counts, now) {
                degraded(Id::ChecksumsBad, detail);
            }
        }
        if let Some(problem) = self.punts.problem() {
            degraded(Id::PuntsLost, &format!("packets are lost: {problem}"));
        }
        memory.history.follow(&mut conditions);
        (conditions, probe)
    }

    /// Returns what keeps this router, or one of its rules, from forwarding, and the answer of the
    /// probe that follows.
    fn look_at_forwarding(&self) -> (Conditions, ProbeView) {
        // Locked before the look: an older one must not follow a later one.
        let probe = &mut *self.probe.lock();
        let mut conditions = Conditions::at(Instant::now());
        self.add_forwarding(&mut conditions);
        let times = {
            let health = &self.state.config.lock().health;
            Times { down_after: health.down_after, up_after: health.up_after }
        };
        probe.follow(&conditions, times);
        let view = probe.view(conditions.now());
        (conditions, view)
    }

    /// Adds what keeps this router, or one of its rules, from forwarding. Looks at the kernel as it
    /// is now, and not as it was when the daemon started.
    fn add_forwarding(&self, conditions: &mut Conditions) {
        let now = conditions.now();
        if let Some(draining) = &*self.state.draining.lock() {
            let detail = draining.detail();
            conditions.add_since(draining.since(), Severity::Down, Id::Draining, "", detail);
        }
        let mut down =
            |id, subject: &str, detail: String| conditions.add(Severity::Down, id, subject, detail);
        let attachments = self.state.attachments.lock();
        if attachments.is_being_detached {
            let detail = "taken off by `pls-router detach --force`; fix: systemctl restart pls-router";
            down(Id::Detached, "", detail.to_owned());
        }
        let is_known = |name: &str| attachments.upkeep.iter().any(|record| record.knows(name));
        for Attached { attachment, .. } in &attachments.attached {
            if let Some(loss) = attachment.loss().filter(|_| !is_known(&attachment.interface)) {
                down(Id::ProgramLost, &attachment.interface, lost(attachment, loss));
            }
        }
        match route_lookups_are_on() {
            Ok(false) if !is_known(ROUTE_LOOKUPS) => {
                let detail = format!("route lookups are off; fix: sysctl {ROUTE_LOOKUPS}=1");
                down(Id::RouteLookupsOff, ROUTE_LOOKUPS, detail);
            }
            Ok(_) => {}
            Err(error) => down(Id::RouteLookupsOff, ROUTE_LOOKUPS, format!("{error:#}")),
        }
        // Under the same lock, so that each fault is found either here or there.
        let mut upkeep = Conditions::at(now);
        attachments.upkeep.iter().for_each(|record| record.add_to(&mut upkeep));
        drop(attachments);
        let age = self.state.routing.lock().refreshed.elapsed();
        if age > STALE {
            let detail = format!("the kernel's routes have not been read for {} s", age.as_secs());
            down(Id::RoutesStale, "", detail);
        }
        if *self.state.rules_version.lock() == 0 {
            down(Id::NoRules, "", "no rules are loaded".to_owned());
        }
        if let Some(error) = &*self.state.rules_error.lock() {
            let detail = format!("the rules in force are outdated: {error}");
            conditions.add(Severity::Degraded, Id::RulesOutdated, "", detail);
        }
        {
            // Together: names belong to a configuration.
            let config = self.state.config.lock();
            let names = self.state.names.lock();
            let health = self.state.target_health.lock();
            let routing = self.state.routing.lock();
            reachability::judge(conditions, &config, &names, &health, &routing.next_hops);
            for RouteCondition { id, subject, detail } in &routing.conditions {
                conditions.add(Severity::Degraded, *id, subject, detail);
            }
            routing.contested.add_to(conditions);
        }
        conditions.append(upkeep);
        self.state.self_test.lock().add_to(conditions);
        self.state.own_traffic.lock().add_to(conditions);
    }
}
