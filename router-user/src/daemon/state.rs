//! The state of the daemon: plain data, without the logic of the parts that write or read it.
//!
//! Each piece has its own lock and is written by one part of the daemon. A guard is held for
//! moments: its holder writes no rules, logs nothing and does not await (which would not compile in
//! a task). Few functions need two at once; they lock them in the order in which [`State`] lists
//! them, and the data plane last.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;

use crate::{
    config::Config,
    daemon::{
        drain::Draining,
        kernel::{interfaces::Attached, netlink::OwnAddresses, next_hop::NextHop, own_traffic::OwnTraffic},
        names::resolved::Names,
        observe::{capacity::Taken, contested::ContestedNextHops, target_health::TargetHealth},
        self_test::results::SelfTest,
        sessions::timeouts::RemovedTimeouts,
        sync::Locked,
        upkeep::record::Record,
    },
    dataplane::RuleSetSpec,
    health::Id,
};

/// The pieces. A clone has the same ones.
#[derive(Clone)]
pub(crate) struct State {
    /// The configuration in force.
    pub(crate) config: Locked<Arc<Config>>,
    /// The drain that is under way, if one is.
    pub(crate) draining: Locked<Option<Draining>>,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) own_traffic: Locked<OwnTraffic>,
    /// Targets that are given by name.
    pub(crate) names: Locked<Names>,
    pub(crate) target_health: Locked<TargetHealth>,
    /// The timeouts of sessions whose rules are gone.
    pub(crate) removed_timeouts: Locked<RemovedTimeouts>,
    pub(crate) routing: Locked<Routing>,
    pub(crate) sessions: Locked<SessionCounts>,
    /// The version of the rule set in force; 0 is none.
    pub(crate) rules_version: Locked<u32>,
    /// The rule set in force, as this daemon has written it. `None` before it has written one.
    pub(crate) rules_in_force: Locked<Option<Arc<RuleSetSpec>>>,
    /// The reason why the wanted rules are not in force, if they are not.
    pub(crate) rules_error: Locked<Option<String>>,
    pub(crate) self_test: Locked<SelfTest>,
}

impl State {
    /// The state when everything is attached, and nothing else is known yet.
    pub(crate) fn new(config: Config, attached: Vec<Attached>, own: OwnTraffic, names: Names) -> Self {
        Self {
            config: Locked::new(Arc::new(config)),
            draining: Locked::default(),
            attachments: Locked::new(Attachments { attached, upkeep: Vec::new(), is_being_detached: false }),
            own_traffic: Locked::new(own),
            names: Locked::new(names),
            target_health: Locked::default(),
            removed_timeouts: Locked::default(),
            routing: Locked::new(Routing::new()),
            sessions: Locked::default(),
            rules_version: Locked::default(),
            rules_in_force: Locked::default(),
            rules_error: Locked::default(),
            self_test: Locked::default(),
        }
    }
}

/// The attachments, and what `upkeep` has found of them.
pub(crate) struct Attachments {
    /// The router's interfaces by slot.
    pub(crate) attached: Vec<Attached>,
    /// One record for each thing that `upkeep` looks after.
    pub(crate) upkeep: Vec<Record>,
    /// `true` once a stop or `detach --force` detaches the programs: nothing is repaired any more.
    pub(crate) is_being_detached: bool,
}

/// Returns the indexes of the router's interfaces by slot, as they are now. Asks the kernel, and so
/// not while the attachments are locked.
pub(crate) fn indexes(attachments: &Locked<Attachments>) -> Vec<u32> {
    let attached = attachments.lock().attached.clone();
    attached.iter().map(Attached::index).collect()
}

/// Addresses, routes and next hops, as they were last read from the kernel.
pub(crate) struct Routing {
    pub(crate) next_hops: Vec<NextHop>,
    /// This machine's addresses.
    pub(crate) own_addresses: OwnAddresses,
    /// The networks of the router's interfaces.
    pub(crate) own_networks: Vec<Ipv4Net>,
    /// Next hops that change their MAC addresses.
    pub(crate) contested: ContestedNextHops,
    /// Conditions of this machine's routes.
    pub(crate) conditions: Vec<RouteCondition>,
    /// The time of the last reading.
    pub(crate) refreshed: Instant,
}

/// A condition of this machine's routes.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct RouteCondition {
    pub(crate) id: Id,
    /// The route, rule or gateway.
    pub(crate) subject: String,
    /// The words for the operator.
    pub(crate) detail: String,
}

impl Routing {
    fn new() -> Self {
        Self {
            next_hops: Vec::new(),
            own_addresses: OwnAddresses::default(),
            own_networks: Vec::new(),
            contested: ContestedNextHops::default(),
            conditions: Vec::new(),
            refreshed: Instant::now(),
        }
    }

    /// Returns `true` if this machine speaks to itself by this address.
    pub(crate) fn is_own_address(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => address.is_loopback() || self.own_addresses.own.contains(&address),
            IpAddr::V6(address) => address.is_loopback(),
        }
    }
}

/// Sessions, as of the last sweep.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionCounts {
    pub(crate) total: u64,
    /// By rule number.
    pub(crate) by_rule: HashMap<u16, u64>,
    /// Their SNAT ports.
    pub(crate) ports: Taken,
    /// The duration of that sweep.
    pub(crate) took: Duration,
}
