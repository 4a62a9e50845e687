//! What the daemon's parts have in common.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::Result;
use ipnet::Ipv4Net;
use router_common::{ports::PortRange, reason::Reason};

use crate::{
    config::Config,
    daemon::{
        control::rule_set,
        kernel::{netlink::OwnAddresses, own_traffic::Own},
        names::Names,
        observe::{
            bad_checksums::{Counts, Damage},
            capacity::{Crowding, Taken, Usage},
            contested::Rivals,
            reachability,
            target_health::TargetHealth,
        },
        punts::Tally,
        sessions::sweep::RuleTimeouts,
        sync::lock,
        upkeep::{loss::lost, record::Record},
    },
    dataplane::{Attachment, Dataplane, FlowTable, ROUTE_LOOKUPS, route_lookups_are_on},
    health::{Conditions, History, Id, Severity},
    model::NextHopStatus,
};

/// How old what we know of the kernel may be: it is read every other second.
const STALE: Duration = Duration::from_secs(15);

/// An interface that the program is attached to.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) attachment: Attachment,
    pub(crate) roles: Vec<String>,
}

/// Sessions, as of the last sweep.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionCounts {
    pub(crate) total: u64,
    /// By rule number.
    pub(crate) by_rule: HashMap<u16, u64>,
    /// Their SNAT ports.
    pub(crate) ports: Taken,
    /// How long that sweep took.
    pub(crate) took: Duration,
}

/// What changes while the daemon runs.
pub(crate) struct State {
    pub(crate) plane: Dataplane,
    /// The router's interfaces by slot.
    pub(crate) attached: Vec<Attached>,
    /// What `upkeep` has found and done.
    pub(crate) upkeep: Vec<Record>,
    /// Whether the router is being taken off, on purpose: nothing is set again any more.
    pub(crate) stood_down: bool,
    pub(crate) names: Names,
    pub(crate) target_health: TargetHealth,
    pub(crate) next_hops: Vec<NextHopStatus>,
    /// This machine's addresses, as they were last read.
    pub(crate) own_addresses: OwnAddresses,
    /// The networks of the router's interfaces.
    pub(crate) own_networks: Vec<Ipv4Net>,
    /// Next hops that change their MAC addresses.
    pub(crate) rivals: Rivals,
    /// Conditions of this machine's routes, with their subjects and details.
    pub(crate) routing: Vec<(Id, String, String)>,
    pub(crate) sessions: SessionCounts,
    /// When what the kernel says of routes and neighbours was last read.
    pub(crate) refreshed: Instant,
    pub(crate) own: Own,
    /// `true` while the rules in force are not what they should be: the kernel has refused them,
    /// which may pass.
    pub(crate) rules_are_old: bool,
    crowding: Crowding,
    damage: Damage,
    history: History,
}

/// What the daemon's parts share.
///
/// What changes is behind one lock: with several, whoever needs two of them can wait for ever for
/// somebody who has the other and needs the first. A guard is held for moments: nobody asks the
/// kernel for more than maps and programs with it, writes to the log, or awaits (which would not
/// compile in a task). Methods here that want the lock take it themselves, so none
/// is called by who has it; a function that is called with the lock held takes the [`State`].
pub(crate) struct Shared {
    pub(crate) config_path: PathBuf,
    pub(crate) config: Config,
    pub(crate) started: Instant,
    /// The ports that new sessions get.
    ports: PortRange,
    /// For reading sessions at length, without the lock.
    pub(crate) flows: FlowTable,
    /// What became of the packets that the data plane has given to the daemon.
    pub(crate) punts: Tally,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(
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
                history: History::default(),
            }),
        }
    }

    /// The state, for a moment.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns `true` of an address by which this machine speaks to itself.
    pub(crate) fn is_own_address(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => address.is_loopback() || self.state().own_addresses.own.contains(&address),
            IpAddr::V6(address) => address.is_loopback(),
        }
    }

    /// The ports that new sessions get, for each address and target.
    pub(crate) fn snat_ports(&self) -> PortRange {
        self.ports
    }

    /// How long sessions may be idle, by the number of their rule.
    pub(crate) fn rule_timeouts(&self) -> RuleTimeouts {
        let State { plane, .. } = &*self.state();
        let mut by_rule = vec![None; router_common::limits::MAX_RULES];
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
    pub(crate) fn apply_rules(&self) -> Result<()> {
        let State { plane, names, target_health, own, rules_are_old, .. } = &mut *self.state();
        let spec = rule_set::build(&self.config, names, target_health, own);
        let applied = plane.apply_rules(&spec);
        *rules_are_old = applied.is_err();
        applied
    }

    /// The router's interfaces, as they were last attached to.
    pub(crate) fn attached(&self) -> Vec<Attached> {
        self.state().attached.clone()
    }

    /// The indexes of the router's interfaces by slot, as they are now; the last one of an
    /// interface that is gone, so that there still are two where there were two.
    pub(crate) fn interface_indexes(&self) -> Vec<u32> {
        let index =
            |Attached { attachment, .. }: &Attached| attachment.place().index().unwrap_or(attachment.index);
        self.attached().iter().map(index).collect()
    }

    /// Returns why this router does not forward, or should get no new connections: for the probe,
    /// which asks often, so nothing is looked at that could not be a reason.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut conditions = Conditions::at(Instant::now());
        self.look_at_forwarding(&self.state(), &mut conditions);
        conditions.details(Severity::Down)
    }

    /// Returns all that is wrong now.
    pub(crate) fn conditions(&self) -> Conditions {
        let now = Instant::now();
        let mut conditions = Conditions::at(now);
        let state = &mut *self.state();
        self.look_at_forwarding(state, &mut conditions);
        let usage = Usage {
            sessions: self.flows.sessions(),
            capacity: self.flows.capacity(),
            taken: &state.sessions.ports,
            ports: self.ports,
        };
        state.crowding.look(usage, &mut conditions);
        let mut degraded = |id, detail: &str| conditions.add(Severity::Degraded, id, "", detail);
        if let Ok(stats) = state.plane.counters.read() {
            let packets = |reason: Reason| stats.reasons[reason as usize].packets;
            let opened = packets(Reason::Opened) + packets(Reason::OpenedInPlace);
            let counts = Counts { damaged: packets(Reason::BadChecksum), opened };
            if let Some(detail) = state.damage.look(counts, now) {
                degraded(Id::ChecksumsBad, detail);
            }
        }
        if let Some(problem) = self.punts.problem() {
            degraded(Id::PuntsLost, &format!("packets are lost: {problem}"));
        }
        state.history.follow(&mut conditions);
        conditions
    }

    /// Adds what keeps this router, or one of its rules, from forwarding. Looks at the kernel as it
    /// is now, and not as it was when the daemon started.
    fn look_at_forwarding(&self, state: &State, conditions: &mut Conditions) {
        let mut down =
            |id, subject: &str, detail: String| conditions.add(Severity::Down, id, subject, detail);
        if state.stood_down {
            let detail = "taken off by `pls-router detach --force`; fix: systemctl restart pls-router";
            down(Id::Detached, "", detail.to_owned());
        }
        let is_known = |name: &str| state.upkeep.iter().any(|record| record.knows(name));
        for Attached { attachment, .. } in &state.attached {
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
        let age = state.refreshed.elapsed();
        if age > STALE {
            let detail = format!("the kernel's routes have not been read for {} s", age.as_secs());
            down(Id::RoutesStale, "", detail);
        }
        if state.plane.settings.version() == 0 {
            down(Id::NoRules, "", "no rules are loaded".to_owned());
        }
        reachability::judge(conditions, &self.config, &state.names, &state.target_health, &state.next_hops);
        for (id, subject, detail) in &state.routing {
            conditions.add(Severity::Degraded, *id, subject, detail);
        }
        state.rivals.add_to(conditions);
        state.upkeep.iter().for_each(|record| record.add_to(conditions));
        state.own.add_to(conditions);
    }
}
