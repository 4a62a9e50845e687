//! What the daemon's parts have in common.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use ipnet::Ipv4Net;
use router_common::{ports::PortRange, reason::Reason};

use super::{
    capacity::{Crowding, Taken, Usage},
    damage::{Counts, Damage},
    kernel::OwnAddresses,
    names::Names,
    own::Own,
    punts::Tally,
    rivals::Rivals,
    rule_set,
    sweep::RuleTimeouts,
    target_health::TargetHealth,
    upkeep::{self, Record},
    ways::{self, Ways},
};
use crate::{
    config::Config,
    dataplane::{Attachment, Dataplane, FlowTable, ROUTE_LOOKUPS, route_lookups_are_on},
    model::NextHopStatus,
};

/// How old what we know of the kernel may be: it is read every other second.
const STALE: Duration = Duration::from_secs(15);

/// An interface that the program is attached to.
#[derive(Clone)]
pub(super) struct Attached {
    pub(super) attachment: Attachment,
    pub(super) roles: Vec<String>,
}

/// Sessions, as of the last sweep.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionCounts {
    pub(super) total: u64,
    /// By rule number.
    pub(super) by_rule: HashMap<u16, u64>,
    /// Their SNAT ports.
    pub(super) ports: Taken,
    /// How long that sweep took.
    pub(super) took: Duration,
}

/// What changes while the daemon runs.
pub(super) struct State {
    pub(super) plane: Dataplane,
    /// The router's interfaces by slot.
    pub(super) attached: Vec<Attached>,
    /// What `upkeep` has found and done.
    pub(super) upkeep: Vec<Record>,
    /// Whether the router is being taken off, on purpose: nothing is set again any more.
    pub(super) stood_down: bool,
    pub(super) names: Names,
    pub(super) target_health: TargetHealth,
    pub(super) next_hops: Vec<NextHopStatus>,
    /// This machine's addresses, as they were last read.
    pub(super) own_addresses: OwnAddresses,
    /// The networks of the router's interfaces.
    pub(super) own_networks: Vec<Ipv4Net>,
    /// Next hops that change their MAC addresses.
    pub(super) rivals: Rivals,
    /// What is doubtful about this machine's routes.
    pub(super) routing: Vec<String>,
    pub(super) sessions: SessionCounts,
    /// When what the kernel says of routes and neighbours was last read.
    pub(super) refreshed: Instant,
    pub(super) own: Own,
    /// `true` while the rules in force are not what they should be: the kernel has refused them, which may pass.
    pub(super) rules_are_old: bool,
    crowding: Crowding,
    damage: Damage,
}

/// What the daemon's parts share.
///
/// What changes is behind one lock: with several, whoever needs two of them can wait for ever for somebody who has the other and needs the first. A
/// guard is held for moments: nobody asks the kernel for more than maps and programs with it, writes to the log, or awaits (which would not compile in a task).
/// Methods here that want the lock take it themselves, so none
/// is called by who has it; a function that is called with the lock held takes the [`State`].
pub(super) struct Shared {
    pub(super) config_path: PathBuf,
    pub(super) config: Config,
    pub(super) started: Instant,
    /// The ports that new sessions get.
    ports: PortRange,
    /// For reading sessions at length, without the lock.
    pub(super) flows: FlowTable,
    /// What became of the packets that the data plane has given to the daemon.
    pub(super) punts: Tally,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(
        config_path: PathBuf,
        config: Config,
        own: Own,
        plane: Dataplane,
        attached: Vec<Attached>,
        names: Names,
    ) -> Self {
        Self {
            config_path,
            config,
            started: Instant::now(),
            ports: own.snat,
            flows: plane.flows.clone(),
            punts: Tally::default(),
            state: Mutex::new(State {
                plane,
                attached,
                upkeep: Vec::new(),
                stood_down: false,
                names,
                target_health: TargetHealth::default(),
                next_hops: Vec::new(),
                own_addresses: OwnAddresses::default(),
                own_networks: Vec::new(),
                rivals: Rivals::default(),
                routing: Vec::new(),
                sessions: SessionCounts::default(),
                refreshed: Instant::now(),
                own,
                rules_are_old: false,
                crowding: Crowding::default(),
                damage: Damage::default(),
            }),
        }
    }

    /// The state, for a moment.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns `true` of an address by which this machine speaks to itself.
    pub(super) fn is_own_address(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => address.is_loopback() || self.state().own_addresses.own.contains(&address),
            IpAddr::V6(address) => address.is_loopback(),
        }
    }

    /// The ports that new sessions get, for each address and target.
    pub(super) fn snat_ports(&self) -> PortRange {
        self.ports
    }

    /// How long sessions may be idle, by the number of their rule.
    pub(super) fn rule_timeouts(&self) -> RuleTimeouts {
        let State { plane, .. } = &*self.state();
        let mut by_rule = vec![None; router_common::MAX_RULES];
        let forwards = self.config.forwards.iter().map(|rule| (&rule.name, &rule.timeouts));
        let masquerades = self.config.masquerades.iter().map(|rule| (&rule.name, &rule.timeouts));
        for (name, timeouts) in forwards.chain(masquerades) {
            if let Some(place) =
                plane.rules.number(name).and_then(|number| by_rule.get_mut(usize::from(number)))
            {
                *place = Some(timeouts.clone());
            }
        }
        RuleTimeouts { others: self.config.timeouts.clone(), by_rule }
    }

    /// Puts the rules in force with names, addresses and targets' health as they are now.
    pub(super) fn apply_rules(&self) -> Result<()> {
        let State { plane, names, target_health, own, rules_are_old, .. } = &mut *self.state();
        let spec = rule_set::build(&self.config, names, target_health, own);
        let applied = plane.apply_rules(&spec);
        *rules_are_old = applied.is_err();
        applied
    }

    /// The router's interfaces, as they were last attached to.
    pub(super) fn attached(&self) -> Vec<Attached> {
        self.state().attached.clone()
    }

    /// The indexes of the router's interfaces by slot, as they are now; the last one of an interface that is gone, so that
    /// there still are two where there were two.
    pub(super) fn interface_indexes(&self) -> Vec<u32> {
        let index =
            |Attached { attachment, .. }: &Attached| attachment.place().index().unwrap_or(attachment.index);
        self.attached().iter().map(index).collect()
    }

    /// Why this router does not forward, or should get no new connections; empty when all is well. Looks at the kernel now,
    /// not at what it was when the daemon started.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let state = self.state();
        if state.stood_down {
            problems.push(
                "taken off by `pls-router detach --force`; fix: systemctl restart pls-router".to_owned(),
            );
        }
        let is_known = |name: &str| state.upkeep.iter().any(|record| record.knows(name));
        for Attached { attachment, .. } in &state.attached {
            if let Some(loss) = attachment.loss().filter(|_| !is_known(&attachment.interface)) {
                problems.push(upkeep::lost(attachment, loss));
            }
        }
        match route_lookups_are_on() {
            Ok(false) if !is_known(ROUTE_LOOKUPS) => {
                problems.push(format!("route lookups are off; fix: sysctl {ROUTE_LOOKUPS}=1"));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("{error:#}")),
        }
        let age = state.refreshed.elapsed();
        if age > STALE {
            problems.push(format!("the kernel's routes have not been read for {} s", age.as_secs()));
        }
        if state.plane.settings.version() == 0 {
            problems.push("no rules are loaded".to_owned());
        }
        problems.extend(self.ways(&state).problems);
        problems.extend(state.upkeep.iter().filter_map(Record::problem));
        problems
    }

    /// What does not work of a router that forwards all the same.
    pub(super) fn degraded(&self) -> Vec<String> {
        let state = &mut *self.state();
        let mut degraded = self.ways(state).degraded;
        degraded.extend(state.routing.iter().cloned());
        degraded.extend(state.rivals.conditions());
        degraded.extend(state.upkeep.iter().flat_map(Record::degraded));
        degraded.extend(state.own.problems());
        let usage = Usage {
            sessions: self.flows.sessions(),
            capacity: self.flows.capacity(),
            taken: &state.sessions.ports,
            ports: self.ports,
        };
        degraded.extend(state.crowding.look(usage));
        if let Ok(stats) = state.plane.counters.read() {
            let packets = |reason: Reason| stats.reasons[reason as usize].packets;
            let opened = packets(Reason::Opened) + packets(Reason::OpenedInPlace);
            let counts = Counts { damaged: packets(Reason::BadChecksum), opened };
            degraded.extend(state.damage.look(counts, Instant::now()));
        }
        degraded.extend(self.punts.problem().map(|problem| format!("packets are lost: {problem}")));
        degraded
    }

    fn ways(&self, state: &State) -> Ways {
        ways::judge(&self.config, &state.names, &state.target_health, &state.next_hops)
    }
}

/// A panic in another thread does not make plain data wrong.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
