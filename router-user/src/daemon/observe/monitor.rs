//! Looks at everything that can be wrong with this router, as it is now.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use router_common::{ports::PortRange, reason::Reason};

use super::{
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
    /// The ports that new sessions get.
    ports: PortRange,
    memory: Locked<Memory>,
}

/// The monitor's memory from one look to the next.
#[derive(Debug, Default)]
struct Memory {
    capacity_alarms: CapacityAlarms,
    checksum_alarm: BadChecksumAlarm,
    history: History,
}

impl Monitor {
    pub(crate) fn new(state: State, plane: &Dataplane, punts: Arc<Tally>, ports: PortRange) -> Self {
        Self {
            state,
            flows: plane.flows.clone(),
            counters: plane.counters.clone(),
            punts,
            ports,
            memory: Locked::default(),
        }
    }

    /// Returns what is wrong as far as it may keep this router from forwarding: for the probe,
    /// which asks often. Nothing is looked at that cannot be the reason for that, and nothing is
    /// remembered of it.
    pub(crate) fn forwarding(&self) -> Conditions {
        let mut conditions = Conditions::at(Instant::now());
        self.look_at_forwarding(&mut conditions);
        conditions
    }

    /// Returns all that is wrong now.
    pub(crate) fn conditions(&self) -> Conditions {
        let now = Instant::now();
        let mut conditions = Conditions::at(now);
        // Locked first: each look has to follow the one before it.
        let memory = &mut *self.memory.lock();
        self.look_at_forwarding(&mut conditions);
        let stats = self.counters.read();
        {
            let sessions = self.state.sessions.lock();
            let usage = Usage {
                sessions: self.flows.sessions(),
                capacity: self.flows.capacity(),
                taken: &sessions.ports,
                ports: self.ports,
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
        conditions
    }

    /// Adds what keeps this router, or one of its rules, from forwarding. Looks at the kernel as it
    /// is now, and not as it was when the daemon started.
    fn look_at_forwarding(&self, conditions: &mut Conditions) {
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
