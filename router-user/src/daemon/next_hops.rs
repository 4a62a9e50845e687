//! Keeps next hops true: the data plane's, and what `status` and the probe say of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use router_common::{MAX_INTERFACES, settings::Interface};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, info, warn};

use super::{
    kernel::{Addresses, Change, Kernel, Neighbour, NeighbourEntry, Watch},
    rule_set,
    shared::{Shared, State},
};
use crate::model::NextHopStatus;

/// How often every next hop is confirmed: forwarded packets do not tell the kernel that a neighbour is still there.
const CONFIRM: Duration = Duration::from_secs(2);
/// How long changes are gathered before they are acted on: one `ip route` command makes several.
const SETTLE: Duration = Duration::from_millis(10);

/// Follows the kernel's changes for ever. What fails is tried again at the next change, or two seconds later; if it goes on
/// failing, the probe says so.
pub(super) async fn follow(shared: Arc<Shared>, kernel: Kernel, mut changes: Watch) -> Result<()> {
    let mut known = Known::default();
    known.learn(kernel.neighbours().await?);
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
                if gathered.contains(&Change::Missed) {
                    match kernel.neighbours().await {
                        Ok(neighbours) => known.learn(neighbours),
                        Err(error) => warn!("{error:#}"),
                    }
                }
                let moved = gathered.iter().filter(|change| known.note(change)).count() > 0;
                if moved {
                    shared.state().plane.settings.invalidate_next_hops()?;
                }
                if moved || gathered.iter().any(|change| matches!(change, Change::Neighbour(..))) {
                    retry_later(refresh(&shared, &kernel).await);
                }
            }
            _ = confirm.tick() => {
                retry_later(refresh(&shared, &kernel).await);
                confirm_neighbours(&shared, &kernel).await;
            }
        }
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
pub(super) async fn refresh(shared: &Shared, kernel: &Kernel) -> Result<()> {
    let addresses = kernel.addresses().await?;
    shared.state().plane.local_addresses.set(&addresses.own(), &addresses.broadcast())?;
    // Interfaces may be removed and made again, and a virtual function comes and goes while its interface stays (host servicing on Azure).
    let indexes = shared.interface_indexes();
    let interfaces = interfaces(&indexes, kernel, &addresses).await?;
    shared.state().plane.settings.set_interfaces(interfaces)?;
    follow_snat_address(shared, &addresses)?;
    let view = View {
        addresses,
        neighbours: kernel.neighbours().await?,
        names: kernel.interface_names().await?,
        interfaces: indexes,
        snat: shared.state().snat.clone(),
    };
    let mut next_hops = Vec::new();
    for (target, needs) in targets(shared) {
        next_hops.push(view.next_hop(kernel, target, needs).await);
    }
    let before = {
        let state = &mut *shared.state();
        state.refreshed = Instant::now().into_std();
        std::mem::replace(&mut state.next_hops, next_hops.clone())
    };
    report(&before, &next_hops);
    Ok(())
}

/// New sessions come from the firewall NIC's first address, unless addresses are configured; also when that address changes.
fn follow_snat_address(shared: &Shared, addresses: &Addresses) -> Result<()> {
    if !shared.config.snat.addresses.is_empty() {
        return Ok(());
    }
    let firewall = shared.firewall_index();
    let Some(first) = firewall.and_then(|index| addresses.first_of(index)) else { return Ok(()) };
    if shared.state().snat == [first] {
        return Ok(());
    }
    info!(address = %first, "new sessions come from another address now");
    shared.state().snat = vec![first];
    shared.apply_rules()
}

/// The kernel at one moment.
struct View {
    addresses: Addresses,
    neighbours: HashMap<Neighbour, NeighbourEntry>,
    /// The names of all interfaces.
    names: HashMap<u32, String>,
    /// The router's, by slot.
    interfaces: Vec<u32>,
    snat: Vec<Ipv4Addr>,
}

impl View {
    /// The way to a target, from every address that new sessions get.
    async fn next_hop(&self, kernel: &Kernel, target: Ipv4Addr, needs: Needs) -> NextHopStatus {
        let mut next_hop = NextHopStatus {
            rules: needs.rules,
            target: target.into(),
            via: None,
            interface: None,
            mac: None,
            resolved: false,
            problem: String::new(),
        };
        for source in &self.snat {
            if !self.addresses.own().contains(source) {
                next_hop.problem =
                    format!("new sessions would come from {source}, which is no address of this machine");
                return next_hop;
            }
            let route = match kernel.route(*source, target).await {
                Ok(route) => route,
                Err(problem) => {
                    next_hop.problem = problem;
                    return next_hop;
                }
            };
            let name = self.names.get(&route.interface).cloned().unwrap_or_default();
            let entry = self.neighbours.get(&(route.interface, route.via)).copied().unwrap_or_default();
            next_hop.via = Some(route.via.into());
            next_hop.mac = entry.mac.map(format_mac);
            next_hop.interface = Some(name.clone());
            if !self.interfaces.contains(&route.interface) {
                next_hop.problem =
                    format!("the route leads out of {name}, which is not an interface of the router");
                return next_hop;
            }
            // The one address that stands for a network on the link need not be there.
            if entry.mac.is_none() && !(route.on_link && needs.any_of_network) {
                next_hop.problem = format!("{} does not answer ARP on {name}", route.via);
                if let Err(error) = kernel.probe((route.interface, route.via)).await {
                    debug!("{error:#}");
                }
                return next_hop;
            }
        }
        next_hop.resolved = true;
        next_hop
    }
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
        if old.is_some_and(|old| old.problem == next_hop.problem && old.mac == next_hop.mac) {
            continue;
        }
        let (target, rules) = (next_hop.target, next_hop.rules.join(", "));
        if next_hop.resolved {
            let via = next_hop.via.unwrap_or(target);
            let mac = next_hop.mac.as_deref().unwrap_or_default();
            info!(%target, rules, %via, mac, "next hop resolved");
        } else {
            warn!(%target, rules, problem = next_hop.problem, "next hop not resolved");
        }
    }
}

/// Has the kernel confirm the neighbours in use, so that one that is gone is found out, and one that is there stays known.
async fn confirm_neighbours(shared: &Shared, kernel: &Kernel) {
    let (Ok(interfaces), Ok(neighbours)) = (kernel.interface_names().await, kernel.neighbours().await) else {
        return;
    };
    let used: HashSet<(String, IpAddr)> = shared
        .state()
        .next_hops
        .iter()
        .filter(|next_hop| next_hop.mac.is_some())
        .filter_map(|next_hop| Some((next_hop.interface.clone()?, next_hop.via?)))
        .collect();
    for (neighbour, entry) in neighbours {
        let name = interfaces.get(&neighbour.0).cloned().unwrap_or_default();
        // One that was set by hand is not asked: the question would make it one that was learnt.
        if !entry.fixed
            && used.contains(&(name, neighbour.1.into()))
            && let Err(error) = kernel.confirm(neighbour).await
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
}

/// The addresses that rules lead to. For a masquerade, one address of each destination network stands for all of it.
fn targets(shared: &Shared) -> BTreeMap<Ipv4Addr, Needs> {
    let State { names, .. } = &*shared.state();
    let mut targets: BTreeMap<Ipv4Addr, Needs> = BTreeMap::new();
    let mut add = |address: Ipv4Addr, rule: &String, any_of_network| {
        let needs = targets.entry(address).or_insert(Needs { any_of_network, ..Needs::default() });
        needs.any_of_network &= any_of_network;
        if !needs.rules.contains(rule) {
            needs.rules.push(rule.clone());
        }
    };
    for forward in &shared.config.forwards {
        for (address, _) in rule_set::targets(forward, names) {
            add(address, &forward.name, false);
        }
    }
    for masquerade in &shared.config.masquerades {
        for destination in &masquerade.destinations {
            add(representative(destination), &masquerade.name, true);
        }
    }
    targets
}

/// An address of the network that a packet can be sent to. For the whole Internet, one that is reserved for documentation
/// (RFC 5737): the default route's.
fn representative(network: &ipnet::Ipv4Net) -> Ipv4Addr {
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
        let neighbour = (2, Ipv4Addr::new(10, 0, 2, 1));
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
