//! Keeps next hops true: the data plane's, and what `status` and the probe say of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use ipnet::Ipv4Net;
use router_common::{
    MAX_INTERFACES,
    address::Port,
    flow::Protocol,
    punt::Neighbour,
    route::{Answer, InterfaceAddresses, Query},
    settings::Interface,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, info, warn};

use super::{
    kernel::{Addresses, Change, Kernel, NeighbourEntry, Routes, Watch},
    rule_set,
    shared::{Shared, State},
};
use crate::{
    model::NextHopStatus,
    policy_rules::{self, PolicyRule, not_followed},
};

/// How often every next hop is confirmed: forwarded packets do not tell the kernel that a neighbour is still there.
const CONFIRM: Duration = Duration::from_secs(2);
/// How long changes are gathered before they are acted on: one `ip route` command makes several.
const SETTLE: Duration = Duration::from_millis(10);

/// Follows the kernel's changes for ever. What fails is tried again at the next change, or two seconds later; if it goes on
/// failing, the probe says so.
pub(super) async fn follow(
    shared: Arc<Shared>,
    kernel: Kernel,
    mut changes: Watch,
    mut topology: Topology,
) -> Result<()> {
    let mut known = Known::default();
    // Whether what is known may lack something, and whether next hops have yet to be looked up again: what fails is tried again.
    let (mut missed, mut moved) = (true, false);
    let mut confirm = interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { bail!("the netlink connection has ended") };
                let mut gathered = vec![change];
                let settled = Instant::now() + SETTLE;
                while let Ok(Some(change)) = timeout_at(settled, changes.next()).await {
                    gathered.push(change);
                }
                missed |= gathered.contains(&Change::Missed);
                learn(&kernel, &mut known, &mut missed).await;
                moved |= gathered.iter().filter(|change| known.note(change)).count() > 0;
                let has_moved = moved;
                invalidate(&shared, &mut moved);
                topology.is_old |= gathered.iter().any(|change| !matches!(change, Change::Neighbour(..)));
                if has_moved || gathered.iter().any(|change| matches!(change, Change::Neighbour(..))) {
                    retry_later(refresh(&shared, &kernel, &mut topology).await);
                }
            }
            _ = confirm.tick() => {
                learn(&kernel, &mut known, &mut missed).await;
                invalidate(&shared, &mut moved);
                retry_later(refresh(&shared, &kernel, &mut topology).await);
                confirm_neighbours(&shared, &kernel, &topology).await;
            }
        }
    }
}

/// What changes seldom and may be long: routes, and the rules by which they are looked up.
#[derive(Default)]
pub(super) struct Topology {
    routes: Routes,
    rules: Vec<PolicyRule>,
    /// Whether it may have changed since it was read.
    is_old: bool,
}

impl Topology {
    /// The topology as it is now.
    pub(super) async fn read(kernel: &Kernel) -> Result<Self> {
        Ok(Self { routes: kernel.routes().await?, rules: kernel.policy_rules().await?, is_old: false })
    }
}

/// Reads all neighbours, if something of them was missed.
async fn learn(kernel: &Kernel, known: &mut Known, missed: &mut bool) {
    if !*missed {
        return;
    }
    match kernel.neighbours().await {
        Ok(neighbours) => {
            known.learn(neighbours);
            *missed = false;
        }
        Err(error) => warn!("{error:#}"),
    }
}

/// Has sessions look their next hops up again, if some have moved.
fn invalidate(shared: &Shared, moved: &mut bool) {
    if !*moved {
        return;
    }
    let invalidated = shared.state().plane.settings.invalidate_next_hops();
    match invalidated {
        Ok(()) => *moved = false,
        Err(error) => warn!("{error:#}"),
    }
}

fn retry_later(result: Result<()>) {
    if let Err(error) = result {
        warn!("cannot follow the kernel's routes: {error:#}");
    }
}

/// The neighbours, as far as they decide where packets leave.
#[derive(Default)]
struct Known {
    /// Whether it can be used now, and the last MAC address that it had.
    neighbours: HashMap<Neighbour, (bool, Option<[u8; 6]>)>,
}

impl Known {
    /// Starts over from what the kernel knows.
    fn learn(&mut self, neighbours: HashMap<Neighbour, NeighbourEntry>) {
        let entry =
            |(neighbour, entry): (Neighbour, NeighbourEntry)| (neighbour, (entry.mac.is_some(), entry.mac));
        self.neighbours = neighbours.into_iter().map(entry).collect();
    }

    /// Whether a change is one of where packets of known sessions leave. Neighbours change state all the time; what counts is that
    /// one has gone, or has another MAC address. A new one concerns nobody: whoever waits for it asks again by itself.
    fn note(&mut self, change: &Change) -> bool {
        let Change::Neighbour(neighbour, NeighbourEntry { mac, .. }) = change else { return true };
        let (usable, last) = self.neighbours.get(neighbour).copied().unwrap_or_default();
        match mac {
            Some(mac) => {
                self.neighbours.insert(*neighbour, (true, Some(*mac)));
                last.is_some_and(|last| last != *mac)
            }
            None => {
                if let Some(entry) = self.neighbours.get_mut(neighbour) {
                    entry.0 = false;
                }
                usable
            }
        }
    }
}

/// Looks at this machine's addresses and at the way to every target again.
pub(super) async fn refresh(shared: &Shared, kernel: &Kernel, topology: &mut Topology) -> Result<()> {
    if topology.is_old {
        *topology = Topology::read(kernel).await?;
    }
    let addresses = kernel.addresses().await?;
    // Interfaces may be removed and made again, and a virtual function comes and goes while its interface stays (host servicing on Azure).
    let indexes = shared.interface_indexes();
    let interfaces = interfaces(&indexes, kernel, &addresses).await?;
    {
        let plane = &mut shared.state().plane;
        plane.local_addresses.set(&addresses.own(), &addresses.broadcast())?;
        plane.interface_addresses.set(sources(&indexes, &addresses))?;
        plane.settings.set_interfaces(interfaces)?;
    }
    let mut view = View {
        addresses,
        neighbours: kernel.neighbours().await?,
        names: kernel.interface_names().await?,
        interfaces: indexes,
        tells_sources: None,
    };
    let mut next_hops = Vec::new();
    for (target, needs) in targets(shared) {
        next_hops.push(view.next_hop(shared, kernel, target, needs).await);
    }
    let conditions = view.conditions(topology);
    let before = {
        let state = &mut *shared.state();
        state.refreshed = Instant::now().into_std();
        state.routing = conditions;
        state.own_addresses = view.addresses.local();
        state.own_networks =
            view.interfaces.iter().flat_map(|index| view.addresses.networks_of(*index)).collect();
        std::mem::replace(&mut state.next_hops, next_hops.clone())
    };
    report(&before, &next_hops);
    Ok(())
}

/// The addresses that sessions may come from which leave by the interfaces with these indexes, by slot.
pub(super) fn sources(indexes: &[u32], addresses: &Addresses) -> [InterfaceAddresses; MAX_INTERFACES] {
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
    /// Whether the kernel tells the preferred sources of routes, as far as is known.
    tells_sources: Option<bool>,
}

/// `BPF_FIB_LKUP_RET_*`, include/uapi/linux/bpf.h.
mod code {
    pub(super) const SUCCESS: i32 = 0;
    pub(super) const BLACKHOLE: i32 = 1;
    pub(super) const UNREACHABLE: i32 = 2;
    pub(super) const PROHIBIT: i32 = 3;
    pub(super) const NOT_FORWARDED: i32 = 4;
    pub(super) const FORWARDING_DISABLED: i32 = 5;
    pub(super) const UNSUPPORTED_TUNNEL: i32 = 6;
    pub(super) const NO_NEIGHBOUR: i32 = 7;
}

/// Why the kernel names no next hop; `None` if it does.
fn refusal(answer: &Answer) -> Option<String> {
    match answer.code {
        code::SUCCESS | code::NO_NEIGHBOUR => None,
        code::BLACKHOLE => Some("no route: the one to it is a blackhole".to_owned()),
        code::UNREACHABLE => Some("no route: the one to it says unreachable".to_owned()),
        code::PROHIBIT => Some("no route: the one to it says prohibit".to_owned()),
        code::NOT_FORWARDED => {
            Some("no route: network is unreachable, or the address is this machine's".to_owned())
        }
        code::FORWARDING_DISABLED => Some("no route: route lookups are off".to_owned()),
        code::UNSUPPORTED_TUNNEL => Some("the route to it leads into a tunnel (encap)".to_owned()),
        other => Some(format!("no route: the kernel answers {other}")),
    }
}

impl View {
    /// The way to a target, for every kind of session that needs it.
    async fn next_hop(
        &mut self,
        shared: &Shared,
        kernel: &Kernel,
        target: Ipv4Addr,
        needs: Needs,
    ) -> NextHopStatus {
        let mut next_hop = NextHopStatus {
            rules: needs.rules,
            target: target.into(),
            via: None,
            interface: None,
            mac: None,
            source: None,
            resolved: false,
            problem: String::new(),
        };
        for query in &needs.queries {
            let answer = shared.state().plane.route(query);
            let problem = match answer {
                Ok(answer) => self.judge(shared, kernel, &mut next_hop, &answer, needs.any_of_network).await,
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(problem) = problem {
                next_hop.problem = problem;
                return next_hop;
            }
        }
        next_hop.resolved = true;
        next_hop
    }

    /// What is wrong with an answer, which is entered into `next_hop`.
    async fn judge(
        &mut self,
        shared: &Shared,
        kernel: &Kernel,
        next_hop: &mut NextHopStatus,
        answer: &Answer,
        any_of_network: bool,
    ) -> Option<String> {
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
            return Some(format!("the route leads out of {name}, which is not an interface of the router"));
        }
        let given = &shared.config.snat.addresses;
        if given.is_empty() {
            let source = Ipv4Addr::from(answer.source);
            if source.is_unspecified() {
                return Some(format!(
                    "{name} has no IPv4 address for new sessions to come from: give it one, or set snat.addresses"
                ));
            }
            next_hop.source = Some(source.into());
            self.tells_sources = Some(answer.source_is_told);
        } else if let Some(foreign) = given.iter().find(|address| !self.addresses.own().contains(address)) {
            return Some(format!(
                "new sessions would come from {foreign}, which is no address of this machine"
            ));
        }
        // The one address that stands for a network on the link need not be there.
        let on_link = via == next_hop.target;
        if entry.mac.is_none() && !(on_link && any_of_network) {
            if let Err(error) = kernel.probe(&neighbour).await {
                debug!("{error:#}");
            }
            return Some(format!("{via} does not answer {} on {name}", asked_by(via)));
        }
        None
    }

    /// What is doubtful about the routes of this machine, in words for the operator.
    fn conditions(&self, topology: &Topology) -> Vec<String> {
        let of_router = self.interfaces.iter().filter_map(|index| self.names.get(index));
        let interfaces: Vec<&str> = of_router.map(String::as_str).collect();
        let mut conditions: Vec<String> = not_followed(&topology.rules, &interfaces)
            .into_iter()
            .map(|text| format!("{text}; fix: {}", policy_rules::FIX))
            .collect();
        conditions.extend(self.dead_gateways(topology));
        conditions.extend(self.untold_sources(topology));
        conditions
    }

    /// Gateways of routes with several that do not answer.
    fn dead_gateways(&self, topology: &Topology) -> Vec<String> {
        let is_dead = |gateway: &Neighbour| {
            self.interfaces.contains(&gateway.interface)
                && self.neighbours.get(gateway).is_some_and(|entry| entry.mac.is_none())
        };
        let gateways = topology.routes.gateways.iter();
        let mut dead: Vec<String> = gateways
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
                format!(
                    "gateway {address} of a route with several does not answer {} on {name}: {sessions}",
                    asked_by(address)
                )
            })
            .collect();
        dead.sort_unstable();
        dead
    }

    /// Sources that routes name and that this kernel does not tell the data plane.
    fn untold_sources(&self, topology: &Topology) -> Vec<String> {
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
                format!(
                    "the route to {} names the source {}, which kernels before Linux 6.7 do not tell: sessions come from \
                     {chosen}; fix: set snat.addresses",
                    route.destination, route.source
                )
            })
        });
        untold.collect()
    }
}

/// How a neighbour is asked for its MAC address.
const fn asked_by(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ARP",
        IpAddr::V6(_) => "neighbour solicitation",
    }
}

/// Whether the kernel leaves out gateways that do not answer where a route has others.
fn avoids_dead_gateways() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/fib_multipath_use_neigh")
        .is_ok_and(|value| value.trim() == "1")
}

/// The router's interfaces by slot, from their indexes.
pub(super) async fn interfaces(
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

/// Logs what has changed.
fn report(before: &[NextHopStatus], now: &[NextHopStatus]) {
    for next_hop in now {
        let old = before.iter().find(|old| old.target == next_hop.target);
        if old.is_some_and(|old| {
            old.problem == next_hop.problem && old.mac == next_hop.mac && old.source == next_hop.source
        }) {
            continue;
        }
        let (target, rules) = (next_hop.target, next_hop.rules.join(", "));
        if next_hop.resolved {
            let via = next_hop.via.unwrap_or(target);
            let mac = next_hop.mac.as_deref().unwrap_or_default();
            // Where sources are given, it does not depend on the way.
            let source = next_hop.source.map(|source| source.to_string()).unwrap_or_default();
            info!(%target, rules, %via, mac, source, "next hop resolved");
        } else {
            warn!(%target, rules, problem = next_hop.problem, "next hop not resolved");
        }
    }
}

/// Has the kernel confirm the neighbours in use, so that one that is gone is found out, and one that is there stays known. Every gateway may be in use:
/// which of several a session takes, only the session knows.
async fn confirm_neighbours(shared: &Shared, kernel: &Kernel, topology: &Topology) {
    let (Ok(names), Ok(neighbours)) = (kernel.interface_names().await, kernel.neighbours().await) else {
        return;
    };
    let used: HashSet<(String, IpAddr)> = shared
        .state()
        .next_hops
        .iter()
        .filter(|next_hop| next_hop.mac.is_some())
        .filter_map(|next_hop| Some((next_hop.interface.clone()?, next_hop.via?)))
        .collect();
    let interfaces = shared.interface_indexes();
    let gateways = &topology.routes.gateways;
    for (neighbour, entry) in &neighbours {
        let name = names.get(&neighbour.interface).cloned().unwrap_or_default();
        let is_gateway = interfaces.contains(&neighbour.interface) && gateways.contains_key(neighbour);
        let is_used = used.contains(&(name, neighbour.ip())) || (is_gateway && entry.mac.is_some());
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

/// What is needed of a target.
#[derive(Default)]
struct Needs {
    /// By these rules.
    rules: Vec<String>,
    /// The target only stands for a network.
    any_of_network: bool,
    /// How sessions ask for the way to it.
    queries: Vec<Query>,
}

/// The port that a client may have had, where a query wants one.
const A_CLIENTS_PORT: u16 = 50_000;
/// The service that stands for all that a masquerade may lead to.
const A_SERVICE: (Protocol, u16) = (Protocol::Tcp, 443);
/// As many of a rule's sources are asked for, so that a rule with many does not keep the daemon busy.
const SOURCES_ASKED: usize = 8;

/// The addresses that rules lead to. For a masquerade, one address of each destination network stands for all of it; for sources, likewise.
fn targets(shared: &Shared) -> BTreeMap<Ipv4Addr, Needs> {
    let State { names, .. } = &*shared.state();
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
    for forward in &shared.config.forwards {
        for target in rule_set::targets(forward, names) {
            let (address, port, protocol) = rule_set::endpoint(forward, &target);
            // One that keeps the client's port has the rule's ports.
            let port = if port == 0 { *forward.listen.ports.start() } else { port };
            add(address, &forward.name, false, &forward.sources, (protocol, port));
        }
    }
    for masquerade in &shared.config.masquerades {
        for destination in &masquerade.destinations {
            add(representative(destination), &masquerade.name, true, &masquerade.sources, A_SERVICE);
        }
    }
    targets
}

/// An address of the network that a packet can be sent to. For the whole Internet, one that is reserved for documentation
/// (RFC 5737): the default route's.
fn representative(network: &Ipv4Net) -> Ipv4Addr {
    if network.prefix_len() == 0 {
        return Ipv4Addr::new(192, 0, 2, 1);
    }
    network.hosts().next().unwrap_or_else(|| network.network())
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_neighbour_that_goes_or_changes_moves_packets() {
        let neighbour = Neighbour::new(2, Ipv4Addr::new(10, 0, 2, 1).into());
        let seen = |mac| Change::Neighbour(neighbour, NeighbourEntry { mac, ..NeighbourEntry::default() });
        let (one, other) = (Some([1; 6]), Some([2; 6]));
        let mut known = Known::default();
        let story = [
            (seen(None), false, "asked for"),
            (seen(one), false, "new"),
            (seen(one), false, "confirmed"),
            (seen(None), true, "gone"),
            (seen(None), false, "still gone"),
            (seen(one), false, "back as it was"),
            (seen(other), true, "another"),
            (seen(None), true, "gone again"),
            (seen(one), true, "back as another"),
            (Change::Topology, true, "a route"),
            (Change::Missed, true, "anything"),
        ];
        for (change, moved, what) in story {
            assert_eq!(known.note(&change), moved, "{what}");
        }
    }
}
