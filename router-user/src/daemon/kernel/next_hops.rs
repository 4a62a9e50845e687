//! Keeps next hops true: the data plane's, and what `status` and the probe say of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use ipnet::Ipv4Net;
use router_common::{
    address::{Mac, Port},
    limits::MAX_INTERFACES,
    maps::{
        punt::Neighbour,
        route::{Answer, InUse, InterfaceAddresses, Query},
        settings::Interface,
    },
    tuple::Protocol,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    daemon::{
        control::desired,
        kernel::netlink::{Addresses, Change, Kernel, NeighbourEntry, Routes, Watch},
        kernel::next_hop::{NextHop, Problem, asked_by},
        logging::text,
        names::resolved::Names,
        observe::contested::{ContestedNextHops, format_mac},
        rate::pace::Pace,
        state::{Attachments, RouteCondition, Routing, indexes},
        sync::Locked,
    },
    dataplane::{Dataplane, interface_name},
    health::Id,
    policy_rules::{self, PolicyRule, not_followed},
};

/// The period in which every next hop is confirmed: forwarded packets do not tell the kernel that a
/// neighbour is still there.
const CONFIRM: Duration = Duration::from_secs(2);
/// The time for which a resolved next hop stays in use while the kernel asks it again by broadcast.
/// Some switches and virtual gateways do not answer unicast requests. The kernel then loses their
/// entry every few seconds, and has it back after one round trip.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time for which changes are gathered before they are handled: one `ip route` command makes
/// several.
const SETTLE: Duration = Duration::from_millis(10);

/// Times in a row that all sessions ask for their next hops again because neighbours have changed,
/// and how often from then on: each costs every session a way through the slow path.
const INVALIDATIONS: (u32, Duration) = (4, Duration::from_secs(1));
/// Times in a row that the next hops of all targets are looked at again because neighbours have
/// changed, and how often from then on.
const REFRESHES: (u32, Duration) = (4, Duration::from_millis(500));
/// The most queries in one look at the next hops of all targets; the other targets have their turn
/// at the next one.
const QUERIES_AT_ONCE: usize = 2048;
/// The most neighbours that are asked for in one such look.
const PROBES_AT_ONCE: usize = 64;
/// The most next hops that only sessions have and that are confirmed in one round while the
/// kernel's table of neighbours is filling up.
const CONFIRMED_AT_ONCE: usize = 512;

/// The parts of the daemon that this has access to.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) config: Locked<Arc<Config>>,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) names: Locked<Names>,
    pub(crate) routing: Locked<Routing>,
    pub(crate) plane: Locked<Dataplane>,
}

/// Follows the kernel's changes. What fails is tried again at the next change, or two
/// seconds later; if it goes on failing, the probe says so.
pub(crate) async fn follow(
    access: Access,
    kernel: Kernel,
    mut changes: Watch,
    mut topology: Topology,
) -> Result<()> {
    let mut follower = Follower::default();
    let mut confirm = interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut is_round = false;
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { bail!("the netlink connection has ended") };
                let mut gathered = vec![change];
                let settled = Instant::now() + SETTLE;
                while let Ok(Some(change)) = timeout_at(settled, changes.next()).await {
                    gathered.push(change);
                }
                topology.is_old |= gathered.contains(&Change::Topology);
                follower.note(&access, &gathered);
            }
            () = follower.due() => {}
            _ = confirm.tick() => is_round = true,
        }
        let now = Instant::now().into_std();
        follower.invalidate(&access.plane, now);
        let is_due = follower.refreshes.take(now);
        if std::mem::take(&mut follower.is_outdated) || is_due || is_round {
            match refresh(&access, &kernel, &mut topology).await {
                Ok(Looked { used_neighbours, has_moved }) => follower.has_looked(used_neighbours, has_moved),
                Err(error) => warn!("cannot follow the kernel's routes: {error:#}"),
            }
        }
        if is_round {
            confirm_neighbours(&access, &kernel, &topology).await;
        }
    }
}

/// Work that changes have caused. Hosts on the link can make as many changes of
/// neighbours as the link carries, so only those of next hops that are in use have anything done,
/// and that within a budget.
struct Follower {
    /// The neighbours that targets' routes lead to, with their MAC addresses as far as they are
    /// known.
    used_neighbours: UsedNeighbours,
    /// A route, a rule, a link or an address has changed.
    topology_has_moved: bool,
    /// The next hops of targets have to be looked at again: what is known of them is not true any
    /// more.
    is_outdated: bool,
    invalidations: Pace,
    refreshes: Pace,
}

/// The next hops of targets, each with the name of its interface and the MAC address that
/// it had last.
type UsedNeighbours = HashMap<Neighbour, (String, Option<[u8; 6]>)>;

impl Default for Follower {
    fn default() -> Self {
        Self {
            used_neighbours: UsedNeighbours::new(),
            topology_has_moved: false,
            is_outdated: false,
            invalidations: Pace::new(INVALIDATIONS.0, INVALIDATIONS.1),
            refreshes: Pace::new(REFRESHES.0, REFRESHES.1),
        }
    }
}

impl Follower {
    /// Takes in what has changed.
    fn note(&mut self, access: &Access, changes: &[Change]) {
        let mut failure = None;
        {
            let contested = &mut access.routing.lock().contested;
            let plane = &mut *access.plane.lock();
            for change in changes {
                match change {
                    Change::Topology => {
                        self.topology_has_moved = true;
                        self.is_outdated = true;
                    }
                    // A look at all of them shows the change.
                    Change::MissedNeighbours => self.refreshes.ask(),
                    Change::Neighbour(neighbour, NeighbourEntry { mac, .. }) => {
                        failure = self.note_neighbour(plane, contested, neighbour, *mac).err().or(failure);
                    }
                }
            }
        }
        if let Some(error) = failure {
            // Then it may have been any.
            self.invalidations.ask();
            warn!("{error:#}");
        }
    }

    fn note_neighbour(
        &mut self,
        plane: &mut Dataplane,
        contested: &mut ContestedNextHops,
        neighbour: &Neighbour,
        mac: Option<[u8; 6]>,
    ) -> Result<()> {
        let in_use = plane.next_hops_in_use.get(neighbour)?;
        let used = self.used_neighbours.get_mut(neighbour);
        if in_use.is_none() && used.is_none() && !contested.watches(neighbour) {
            return Ok(());
        }
        let last = used.as_ref().and_then(|(_, mac)| *mac);
        if let Some(mac) = mac {
            let before = in_use.and_then(InUse::mac).map(Mac::bytes).or(last);
            let interface = match &used {
                Some((name, _)) => name.clone(),
                None => interface_name(neighbour.interface).unwrap_or_default(),
            };
            contested.note(*neighbour, &interface, before, mac, Instant::now().into_std());
        }
        if in_use.is_some_and(|in_use| in_use.is_outdated(mac.map(Mac::new))) {
            // First, since a session that asks again notes it again.
            plane.next_hops_in_use.forget(neighbour)?;
            self.invalidations.ask();
        }
        if let Some((_, known)) = used
            && *known != mac
        {
            // To come and to go takes a neighbour seconds. To have another address takes it a
            // frame, of whomever.
            if known.is_some() && mac.is_some() {
                self.refreshes.ask();
            } else {
                self.is_outdated = true;
            }
            *known = mac;
        }
        Ok(())
    }

    /// Has all sessions ask for their next hops again, if that is due. A failure is tried again.
    fn invalidate(&mut self, plane: &Locked<Dataplane>, now: std::time::Instant) {
        let is_due = self.invalidations.take(now);
        let has_moved = std::mem::take(&mut self.topology_has_moved);
        if !is_due && !has_moved {
            return;
        }
        let invalidated = invalidate(&mut plane.lock());
        if let Err(error) = invalidated {
            self.invalidations.ask();
            warn!("cannot invalidate next hops; retrying: {error:#}");
        }
    }

    /// Takes in what a look at all next hops has shown.
    fn has_looked(&mut self, used_neighbours: UsedNeighbours, has_moved: bool) {
        self.used_neighbours = used_neighbours;
        if has_moved {
            self.invalidations.ask();
        }
    }

    /// Waits until something is due that no change announces.
    async fn due(&self) {
        let now = Instant::now().into_std();
        match [self.invalidations.due(now), self.refreshes.due(now)].into_iter().flatten().min() {
            Some(due) => sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// Data that changes seldom and may be long: routes, and the rules by which they are looked up.
#[derive(Default)]
pub(crate) struct Topology {
    routes: Routes,
    rules: Vec<PolicyRule>,
    /// The interfaces that are down or have no carrier.
    down: HashSet<u32>,
    /// `true` if it may have changed since it was read.
    is_old: bool,
    /// The target that was looked at last, if not all are looked at each time.
    turn: Option<Ipv4Addr>,
    /// Since when next hops that were there are asked once more.
    overdue: HashMap<Neighbour, Instant>,
}

impl Topology {
    /// The topology as it is now.
    pub(crate) async fn read(kernel: &Kernel) -> Result<Self> {
        Ok(Self {
            routes: kernel.routes().await?,
            rules: kernel.policy_rules().await?,
            down: kernel.interfaces_down().await?,
            is_old: false,
            turn: None,
            overdue: HashMap::new(),
        })
    }
}

/// Has all sessions ask for their next hops again.
fn invalidate(plane: &mut Dataplane) -> Result<()> {
    // First, since a session that asks notes the next hop that it finds.
    if !plane.next_hops_in_use.has_room()? {
        plane.next_hops_in_use.forget_all()?;
    }
    plane.settings.invalidate_next_hops()
}

/// The outcome of a look at all next hops.
pub(crate) struct Looked {
    used_neighbours: UsedNeighbours,
    /// `true` if sessions have a next hop that has gone or changed, and no message has said so.
    has_moved: bool,
}

/// Looks at this machine's addresses, at the next hop of every target, and at the next hops in use
/// again.
pub(crate) async fn refresh(access: &Access, kernel: &Kernel, topology: &mut Topology) -> Result<Looked> {
    let mut came_up = HashSet::new();
    if topology.is_old {
        let now = Topology::read(kernel).await?;
        let before = std::mem::replace(topology, now);
        came_up = before.down.difference(&topology.down).copied().collect();
        (topology.turn, topology.overdue) = (before.turn, before.overdue);
    }
    let addresses = kernel.addresses().await?;
    // Interfaces may be removed and made again, and a virtual function comes and goes while its
    // interface stays (host servicing on Azure).
    let indexes = indexes(&access.attachments);
    let interfaces = interfaces(&indexes, kernel, &addresses).await?;
    {
        let plane = &mut *access.plane.lock();
        plane.local_addresses.set(&addresses.own(), &addresses.broadcast())?;
        plane.local_addresses.set_ipv6(&addresses.own_ipv6())?;
        plane.interface_addresses.set(sources(&indexes, &addresses))?;
        plane.settings.set_interfaces(interfaces)?;
    }
    let mut view = View {
        addresses,
        neighbours: kernel.neighbours().await?,
        names: kernel.interface_names().await?,
        interfaces: indexes,
        tells_sources: None,
        looked_for: HashSet::new(),
        before: access.routing.lock().next_hops.iter().map(|known| (known.target, known.clone())).collect(),
        overdue: std::mem::take(&mut topology.overdue),
    };
    view.ask_again(kernel, &came_up).await;
    let config = access.config.get();
    let targets = targets(&config, &access.names.lock());
    let turn = in_turn(&targets, topology.turn, QUERIES_AT_ONCE);
    topology.turn = turn.last().copied();
    let turn: HashSet<Ipv4Addr> = turn.into_iter().collect();
    let mut next_hops = Vec::new();
    for (target, needs) in targets {
        if turn.contains(&target) {
            next_hops.push(view.next_hop((&config, &access.plane), kernel, target, needs).await);
        } else if let Some(known) = view.before.get(&target.into()) {
            // As it was when it had its turn. One that has never had one yet is not known to be
            // lost.
            next_hops.push(NextHop { rules: needs.rules, ..known.clone() });
        }
    }
    topology.overdue = view.still_overdue();
    let used_neighbours = view.used_neighbours(&next_hops, topology);
    let route_conditions = view.route_conditions(topology);
    {
        let state = &mut *access.routing.lock();
        state.refreshed = Instant::now().into_std();
        state.contested.pass_time(state.refreshed);
        state.conditions = route_conditions;
        state.own_addresses = view.addresses.local();
        state.own_networks =
            view.interfaces.iter().flat_map(|index| view.addresses.networks_of(*index)).collect();
        // Of a contested one, the condition says enough.
        let is_contested = |hop: &NextHop| state.contested.is_contested(hop.interface.as_deref(), hop.via);
        for next_hop in next_hops.iter().filter(|next_hop| is_contested(next_hop)) {
            view.before.insert(next_hop.target, next_hop.clone());
        }
        state.next_hops.clone_from(&next_hops);
    }
    let has_moved = forget_overtaken(&mut access.plane.lock(), &view.neighbours)?;
    report(&view.before, &next_hops);
    Ok(Looked { used_neighbours, has_moved })
}

/// Forgets the next hops in use that are others by now, by what the kernel says of all neighbours.
/// Returns `true` if there are any. Most are told of by changes; but those can be lost, and a
/// session may note what was true a moment ago.
fn forget_overtaken(plane: &mut Dataplane, neighbours: &HashMap<Neighbour, NeighbourEntry>) -> Result<bool> {
    let in_use = &mut plane.next_hops_in_use;
    let mut has_moved = false;
    for (neighbour, noted) in in_use.all()? {
        let mac = neighbours.get(&neighbour).and_then(|entry| entry.mac);
        if noted.is_outdated(mac.map(Mac::new)) {
            in_use.forget(&neighbour)?;
            has_moved = true;
        }
    }
    Ok(has_moved)
}

/// Chooses the targets that are looked at now, up to a number of queries: those after the one that
/// was last, and round again.
fn in_turn(targets: &BTreeMap<Ipv4Addr, Needs>, last: Option<Ipv4Addr>, most: usize) -> Vec<Ipv4Addr> {
    let last = last.unwrap_or(Ipv4Addr::BROADCAST);
    let after = targets.range((Bound::Excluded(last), Bound::Unbounded));
    let mut left = most;
    after
        .chain(targets.range(..=last))
        .take_while(|(_, Needs { queries, .. })| {
            let fits = left > 0;
            left = left.saturating_sub(queries.len());
            fits
        })
        .map(|(target, _)| *target)
        .collect()
}

/// The addresses that sessions may come from which leave by the interfaces with these indexes, by
/// slot.
pub(crate) fn sources(indexes: &[u32], addresses: &Addresses) -> [InterfaceAddresses; MAX_INTERFACES] {
    let mut sources = [InterfaceAddresses::default(); MAX_INTERFACES];
    for (slot, index) in sources.iter_mut().zip(indexes) {
        *slot = addresses.sources_of(*index);
    }
    sources
}

/// The kernel at one moment.
struct View {
    addresses: Addresses,
    neighbours: HashMap<Neighbour, NeighbourEntry>,
    /// The names of all interfaces.
    names: HashMap<u32, String>,
    /// The router's, by slot.
    interfaces: Vec<u32>,
    /// `true` if the kernel tells the preferred sources of routes; `None` if that is not known.
    tells_sources: Option<bool>,
    /// The neighbours that the kernel has been asked to look for.
    looked_for: HashSet<Neighbour>,
    /// The next hops of the last look, by target.
    before: HashMap<IpAddr, NextHop>,
    /// As in [`Topology`].
    overdue: HashMap<Neighbour, Instant>,
}

/// `BPF_FIB_LKUP_RET_*`, include/uapi/linux/bpf.h.
mod code {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const BLACKHOLE: i32 = 1;
    pub(crate) const UNREACHABLE: i32 = 2;
    pub(crate) const PROHIBIT: i32 = 3;
    pub(crate) const NOT_FORWARDED: i32 = 4;
    pub(crate) const FORWARDING_DISABLED: i32 = 5;
    pub(crate) const UNSUPPORTED_TUNNEL: i32 = 6;
    pub(crate) const NO_NEIGHBOUR: i32 = 7;
}

/// Returns why the kernel names no next hop; `None` if it does.
const fn refusal(answer: &Answer) -> Option<Problem> {
    Some(match answer.code {
        code::SUCCESS | code::NO_NEIGHBOUR => return None,
        code::BLACKHOLE => Problem::Blackhole,
        code::UNREACHABLE => Problem::Unreachable,
        code::PROHIBIT => Problem::Prohibited,
        code::NOT_FORWARDED => Problem::NoRoute,
        code::FORWARDING_DISABLED => Problem::LookupsOff,
        code::UNSUPPORTED_TUNNEL => Problem::Tunnel,
        other => Problem::Refused(other),
    })
}

impl View {
    /// Has the kernel ask the neighbours again that have not answered, on the router's interfaces
    /// that have come up. By itself it gives up first, and is asked again in the next look.
    async fn ask_again(&self, kernel: &Kernel, came_up: &HashSet<u32>) {
        let unanswered = self.neighbours.iter().filter(|(neighbour, entry)| {
            entry.mac.is_none()
                && !entry.fixed
                && came_up.contains(&neighbour.interface)
                && self.interfaces.contains(&neighbour.interface)
        });
        for (neighbour, _) in unanswered.take(PROBES_AT_ONCE) {
            if let Err(error) = kernel.probe_anew(neighbour).await {
                debug!("{error:#}");
            }
        }
    }

    /// The next hop of a target, for every kind of session that needs it.
    async fn next_hop(
        &mut self,
        (config, plane): (&Config, &Locked<Dataplane>),
        kernel: &Kernel,
        target: Ipv4Addr,
        needs: Needs,
    ) -> NextHop {
        let mut next_hop = NextHop {
            rules: needs.rules,
            target: target.into(),
            via: None,
            interface: None,
            mac: None,
            source: None,
            problem: None,
        };
        for query in &needs.queries {
            let answer = plane.lock().route(query);
            let problem = match answer {
                Ok(answer) => self.judge(config, kernel, &mut next_hop, &answer, needs.any_of_network).await,
                Err(error) => Some(Problem::NotAsked(format!("{error:#}"))),
            };
            if problem.is_some() {
                next_hop.problem = problem;
                break;
            }
        }
        next_hop
    }

    /// Returns the problem with an answer, which is entered into `next_hop`.
    async fn judge(
        &mut self,
        config: &Config,
        kernel: &Kernel,
        next_hop: &mut NextHop,
        answer: &Answer,
        any_of_network: bool,
    ) -> Option<Problem> {
        let refusal = refusal(answer);
        if refusal.is_some() {
            return refusal;
        }
        let (neighbour, via) = (answer.neighbour, answer.neighbour.ip());
        let name = self.names.get(&neighbour.interface).cloned().unwrap_or_default();
        let entry = self.neighbours.get(&neighbour).copied().unwrap_or_default();
        next_hop.via = Some(via);
        next_hop.mac = entry.mac.map(format_mac);
        next_hop.interface = Some(name.clone());
        if !self.interfaces.contains(&neighbour.interface) {
            return Some(Problem::OtherInterface(name));
        }
        let given = &config.snat.addresses;
        if given.is_empty() {
            let source = Ipv4Addr::from(answer.source);
            if source.is_unspecified() {
                return Some(Problem::NoSource(name));
            }
            next_hop.source = Some(source.into());
            self.tells_sources = Some(answer.kernel_gave_source);
        } else if let Some(foreign) = given.iter().find(|address| !self.addresses.own().contains(address)) {
            return Some(Problem::ForeignSource(*foreign));
        }
        // The one address that stands for a network on the link need not be there.
        let on_link = via == next_hop.target;
        if entry.mac.is_none() && !(on_link && any_of_network) {
            if self.looked_for.len() < PROBES_AT_ONCE
                && self.looked_for.insert(neighbour)
                && let Err(error) = kernel.probe(&neighbour).await
            {
                debug!("{error:#}");
            }
            if let Some(known) = self.known_until_now(&neighbour, next_hop.target) {
                next_hop.mac = Some(known);
                return None;
            }
            return Some(Problem::NoAnswer { via, interface: name });
        }
        None
    }

    /// Returns the MAC address of a neighbour that was the next hop to a target until now, while it
    /// is asked once more.
    fn known_until_now(&mut self, neighbour: &Neighbour, target: IpAddr) -> Option<String> {
        let known = self.before.get(&target).filter(|known| known.is_resolved())?;
        let mac = known.mac.clone().filter(|_| known.via == Some(neighbour.ip()))?;
        let since = *self.overdue.entry(*neighbour).or_insert_with(Instant::now);
        (since.elapsed() < PATIENCE).then_some(mac)
    }

    /// Returns the neighbours that are still asked once more, since when.
    fn still_overdue(&mut self) -> HashMap<Neighbour, Instant> {
        let mut overdue = std::mem::take(&mut self.overdue);
        let is_there =
            |neighbour: &Neighbour| self.neighbours.get(neighbour).is_some_and(|entry| entry.mac.is_some());
        overdue.retain(|neighbour, since| !is_there(neighbour) && since.elapsed() < 2 * PATIENCE);
        overdue
    }

    /// The next hops of targets, and the gateways of all routes.
    fn used_neighbours(&self, next_hops: &[NextHop], topology: &Topology) -> UsedNeighbours {
        let indexes: HashMap<&str, u32> =
            self.names.iter().map(|(index, name)| (name.as_str(), *index)).collect();
        let of_targets = next_hops.iter().filter_map(|next_hop| {
            Some(Neighbour::new(*indexes.get(next_hop.interface.as_deref()?)?, next_hop.via?))
        });
        let gateways = topology.routes.gateways.keys().copied();
        let used_neighbours =
            of_targets.chain(gateways).filter(|used| self.interfaces.contains(&used.interface));
        let known = |used: Neighbour| {
            let name = self.names.get(&used.interface).cloned().unwrap_or_default();
            (used, (name, self.neighbours.get(&used).and_then(|entry| entry.mac)))
        };
        used_neighbours.map(known).collect()
    }

    /// Returns the conditions of the routes of this machine: what each is about, and the words
    /// for the operator.
    fn route_conditions(&self, topology: &Topology) -> Vec<RouteCondition> {
        let of_router = self.interfaces.iter().filter_map(|index| self.names.get(index));
        let interfaces: Vec<&str> = of_router.map(String::as_str).collect();
        let ignored = not_followed(&topology.rules, &interfaces).into_iter().map(|text| {
            let detail = format!("{text}; fix: {}", policy_rules::FIX);
            RouteCondition { id: Id::PolicyRuleIgnored, subject: text, detail }
        });
        let mut route_conditions: Vec<_> = ignored.collect();
        route_conditions.extend(self.dead_gateways(topology));
        route_conditions.extend(self.untold_sources(topology));
        route_conditions
    }

    /// Gateways of routes with several that do not answer.
    fn dead_gateways(&self, topology: &Topology) -> Vec<RouteCondition> {
        let is_dead = |gateway: &Neighbour| {
            self.interfaces.contains(&gateway.interface)
                && self.neighbours.get(gateway).is_some_and(|entry| entry.mac.is_none())
        };
        let gateways = topology.routes.gateways.iter();
        let mut dead: Vec<_> = gateways
            .filter(|(gateway, is_one_of_many)| **is_one_of_many && is_dead(gateway))
            .map(|(gateway, _)| {
                let name = self.names.get(&gateway.interface).map(String::as_str).unwrap_or_default();
                let (address, sessions) = (
                    gateway.ip(),
                    if avoids_dead_gateways() {
                        "sessions take the others"
                    } else {
                        "its share of the sessions is lost; fix: sysctl net.ipv4.fib_multipath_use_neigh=1"
                    },
                );
                let detail = format!(
                    "one gateway of a multipath route, {address}, does not answer {} on {name}: {sessions}",
                    asked_by(address)
                );
                RouteCondition { id: Id::GatewayDead, subject: address.to_string(), detail }
            })
            .collect();
        dead.sort_unstable();
        dead
    }

    /// Sources that routes name and that this kernel does not tell the data plane.
    fn untold_sources(&self, topology: &Topology) -> Vec<RouteCondition> {
        if self.tells_sources != Some(false) {
            return Vec::new();
        }
        let untold = topology.routes.sources.iter().filter_map(|route| {
            if !self.interfaces.contains(&route.interface) {
                return None;
            }
            let gateway = route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let chosen = self.addresses.sources_of(route.interface).select(gateway.into(), route.gateway.is_some())?;
            let chosen = Ipv4Addr::from(chosen);
            (chosen != route.source).then(|| {
                let detail = format!(
                    "the route to {} has the source {}, which kernels before Linux 6.7 do not report: sessions come from \
                     {chosen}; fix: set snat.addresses",
                    route.destination, route.source
                );
                RouteCondition { id: Id::SourceUntold, subject: route.destination.clone(), detail }
            })
        });
        untold.collect()
    }
}

/// Returns `true` if the kernel leaves out gateways that do not answer where a route has others.
fn avoids_dead_gateways() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/fib_multipath_use_neigh")
        .is_ok_and(|value| value.trim() == "1")
}

/// The router's interfaces by slot, from their indexes.
pub(crate) async fn interfaces(
    indexes: &[u32],
    kernel: &Kernel,
    addresses: &Addresses,
) -> Result<[Interface; MAX_INTERFACES]> {
    let mut interfaces = [Interface::default(); MAX_INTERFACES];
    for (slot, interface) in interfaces.iter_mut().zip(kernel.interfaces(indexes).await?) {
        let address = addresses.first_of(interface.primary).map(Into::into).unwrap_or_default();
        *slot = Interface { address, ..interface };
    }
    Ok(interfaces)
}

/// Logs changes: one line for all targets with the same change, such as those with one gateway.
fn report(before: &HashMap<IpAddr, NextHop>, now: &[NextHop]) {
    let mut news: BTreeMap<_, Vec<&NextHop>> = BTreeMap::new();
    for next_hop in now {
        let old = before.get(&next_hop.target);
        let same = |old: &NextHop| {
            old.problem == next_hop.problem && old.mac == next_hop.mac && old.source == next_hop.source
        };
        if !old.is_some_and(same) {
            let NextHop { via, mac, source, problem, .. } = next_hop;
            // A target on the link is its own next hop.
            let via = via.filter(|via| *via != next_hop.target);
            news.entry((via, mac, source, problem)).or_default().push(next_hop);
        }
    }
    for ((via, mac, source, problem), of_these) in news {
        let rules: BTreeSet<&str> = of_these.iter().flat_map(|one| &one.rules).map(String::as_str).collect();
        let rules = listed(rules.iter().map(|rule| (*rule).to_owned()));
        let target = listed(of_these.iter().map(|one| one.target.to_string()));
        if let Some(problem) = problem {
            let problem = problem.to_string();
            warn!(target, rules, problem, "next hop not resolved");
        } else {
            let via = via.map_or_else(|| target.clone(), |via| via.to_string());
            let mac = mac.as_deref().unwrap_or_default();
            // Given sources do not depend on the next hop.
            let source = source.map(|source| source.to_string()).unwrap_or_default();
            info!(target, rules, via, mac, source, "next hop resolved");
        }
    }
}

/// A few of many, and how many more there are.
fn listed(all: impl ExactSizeIterator<Item = String>) -> String {
    text::first(all, 4, |more| format!("{more} more")).join(", ")
}

/// Has the kernel confirm the neighbours in use, so that one that is gone is found out, and one
/// that is there stays known. Every gateway may be in use: which of several a session takes, only
/// the session knows.
async fn confirm_neighbours(access: &Access, kernel: &Kernel, topology: &Topology) {
    let (Ok(names), Ok(neighbours)) = (kernel.interface_names().await, kernel.neighbours().await) else {
        return;
    };
    let used: HashSet<(String, IpAddr)> = access
        .routing
        .lock()
        .next_hops
        .iter()
        .filter(|next_hop| next_hop.mac.is_some())
        .filter_map(|next_hop| Some((next_hop.interface.clone()?, next_hop.via?)))
        .collect();
    let interfaces = indexes(&access.attachments);
    let gateways = &topology.routes.gateways;
    let others =
        if is_filling_up(&neighbours) { next_hops_of_sessions(&access.plane) } else { HashSet::new() };
    for (neighbour, entry) in &neighbours {
        let name = names.get(&neighbour.interface).cloned().unwrap_or_default();
        let is_gateway = interfaces.contains(&neighbour.interface) && gateways.contains_key(neighbour);
        let is_used = used.contains(&(name, neighbour.ip()))
            || ((is_gateway || others.contains(neighbour)) && entry.mac.is_some());
        // One that was set by hand is not asked: the question would make it one that was learnt.
        if !entry.fixed
            && is_used
            && let Err(error) = kernel.confirm(neighbour).await
        {
            debug!("{error:#}");
        }
    }
    // One of several that is dead is not chosen by the kernel, and would never be asked again.
    for (gateway, is_one_of_many) in gateways {
        let is_known = neighbours.get(gateway).is_some_and(|entry| entry.mac.is_some() || entry.fixed);
        if *is_one_of_many
            && !is_known
            && interfaces.contains(&gateway.interface)
            && let Err(error) = kernel.probe(gateway).await
        {
            debug!("{error:#}");
        }
    }
}

/// Returns `true` if the kernel may soon throw neighbours out to make room: it does so from
/// `gc_thresh2` on, whatever they are used for, unless they have been heard of in the last five
/// seconds (`neigh_forced_gc`, net/core/neighbour.c).
fn is_filling_up(neighbours: &HashMap<Neighbour, NeighbourEntry>) -> bool {
    const THRESHOLD: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh2";
    // The kernel's default, and in a network namespace other than the first there is no file.
    const DEFAULT: usize = 512;
    let threshold = std::fs::read_to_string(THRESHOLD).ok().and_then(|text| text.trim().parse().ok());
    neighbours.len() > threshold.unwrap_or(DEFAULT) / 2
}

/// The next hops that sessions have, as many as are confirmed in one round.
fn next_hops_of_sessions(plane: &Locked<Dataplane>) -> HashSet<Neighbour> {
    match plane.lock().next_hops_in_use.all() {
        Ok(all) => all.into_iter().map(|(neighbour, _)| neighbour).take(CONFIRMED_AT_ONCE).collect(),
        Err(error) => {
            debug!("{error:#}");
            HashSet::new()
        }
    }
}

/// The needs of sessions to a target.
#[derive(Default)]
struct Needs {
    /// By these rules.
    rules: Vec<String>,
    /// The target only stands for a network.
    any_of_network: bool,
    /// The queries by which sessions ask for its next hop.
    queries: Vec<Query>,
}

/// The port that a client may have had, where a query wants one.
const A_CLIENTS_PORT: u16 = 50_000;
/// The service that stands for all that a masquerade may lead to.
const A_SERVICE: (Protocol, u16) = (Protocol::Tcp, 443);
/// The most sources of a rule that are asked for, so that a rule with many does not keep the daemon
/// busy.
const SOURCES_ASKED: usize = 8;

/// The addresses that rules lead to. For a masquerade, one address of each destination network
/// stands for all of it; for sources, likewise.
fn targets(config: &Config, names: &Names) -> BTreeMap<Ipv4Addr, Needs> {
    let mut targets: BTreeMap<Ipv4Addr, Needs> = BTreeMap::new();
    let mut add =
        |address: Ipv4Addr, rule: &String, any_of_network, sources: &[Ipv4Net], (protocol, port)| {
            let needs = targets.entry(address).or_insert(Needs { any_of_network, ..Needs::default() });
            needs.any_of_network &= any_of_network;
            if !needs.rules.contains(rule) {
                needs.rules.push(rule.clone());
            }
            for source in sources.iter().take(SOURCES_ASKED) {
                let source = (representative(source).into(), Port::new(A_CLIENTS_PORT));
                let query = Query::new(protocol as u8, 0, source, (address.into(), Port::new(port)));
                if !needs.queries.contains(&query) {
                    needs.queries.push(query);
                }
            }
        };
    for forward in &config.forwards {
        for target in desired::targets(forward, names) {
            let (address, port, protocol) = desired::endpoint(forward, &target);
            // One that keeps the client's port has the rule's ports.
            let port = if port == 0 { *forward.listen.ports.start() } else { port };
            add(address, &forward.name, false, &forward.sources, (protocol, port));
        }
    }
    for masquerade in &config.masquerades {
        for destination in &masquerade.destinations {
            add(representative(destination), &masquerade.name, true, &masquerade.sources, A_SERVICE);
        }
    }
    targets
}

/// An address of the network that a packet can be sent to. For the whole Internet, one that is
/// reserved for documentation (RFC 5737): the default route's.
fn representative(network: &Ipv4Net) -> Ipv4Addr {
    if network.prefix_len() == 0 {
        return Ipv4Addr::new(192, 0, 2, 1);
    }
    network.hosts().next().unwrap_or_else(|| network.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_targets_take_turns() {
        let end = |port| (Ipv4Addr::LOCALHOST.into(), Port::new(port));
        let needs = || Needs { queries: vec![Query::new(6, 0, end(1), end(2)); 3], ..Needs::default() };
        let targets: BTreeMap<Ipv4Addr, Needs> =
            (0..10_u8).map(|last| (Ipv4Addr::new(10, 0, 0, last), needs())).collect();
        let all: Vec<Ipv4Addr> = targets.keys().copied().collect();
        assert_eq!(in_turn(&targets, None, 30), all);
        let mut rounds = Vec::new();
        let mut last = None;
        for _ in 0..5 {
            let turn = in_turn(&targets, last, 10);
            assert_eq!(turn.len(), 4);
            last = turn.last().copied();
            rounds.extend(turn);
        }
        assert_eq!(rounds, [all.clone(), all].concat());
        assert!(in_turn(&BTreeMap::new(), last, 10).is_empty());
        // The last one may be gone.
        let first = Ipv4Addr::new(10, 0, 0, 0);
        assert_eq!(in_turn(&targets, Some(Ipv4Addr::new(10, 0, 0, 200)), 1), [first]);
    }
}
