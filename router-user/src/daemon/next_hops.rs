//! Keeps next hops true: the data plane's, and what `status` and the probe say of them.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use router_common::{MAX_INTERFACES, settings::InterfaceIndexes};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, info, warn};

use super::{
    kernel::{Change, Kernel, Neighbour, Watch},
    shared::Shared,
};
use crate::{
    config::{Config, Host},
    model::NextHopStatus,
};

/// How often every next hop is confirmed: forwarded packets do not tell the kernel that a neighbour is still there.
const CONFIRM: Duration = Duration::from_secs(5);
/// How long changes are gathered before they are acted on: one `ip route` command makes several.
const SETTLE: Duration = Duration::from_millis(10);

/// Follows the kernel's changes for ever.
pub(super) async fn follow(shared: Arc<Shared>, kernel: Kernel, mut watch: Watch) -> Result<()> {
    let mut known = kernel.neighbours().await?;
    let mut confirm = interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = watch.next() => {
                let Some(change) = change else { bail!("the netlink connection has ended") };
                let mut moved = note(&mut known, &change);
                let settled = Instant::now() + SETTLE;
                while let Ok(Some(change)) = timeout_at(settled, watch.next()).await {
                    moved |= note(&mut known, &change);
                }
                if !moved {
                    continue;
                }
                shared.plane().settings.invalidate_next_hops()?;
                refresh(&shared, &kernel).await?;
            }
            _ = confirm.tick() => {
                refresh(&shared, &kernel).await?;
                confirm_neighbours(&shared, &kernel).await;
            }
        }
    }
}

/// Whether a change is one of where packets leave. Neighbours change state all the time; what counts is the MAC address.
fn note(known: &mut HashMap<Neighbour, Option<[u8; 6]>>, change: &Change) -> bool {
    match change {
        Change::Topology => true,
        Change::Neighbour(neighbour, mac) => known.insert(*neighbour, *mac).flatten() != *mac,
    }
}

/// Looks at this machine's addresses and at the way to every target again.
pub(super) async fn refresh(shared: &Shared, kernel: &Kernel) -> Result<()> {
    let addresses = kernel.addresses().await?;
    shared.plane().local_addresses.set(&addresses.own())?;
    if let Ok(indexes) = interface_indexes(&shared.config, kernel).await {
        // A virtual function comes and goes while its interface stays (host servicing on Azure).
        shared.plane().settings.set_interfaces(indexes)?;
    }
    let neighbours = kernel.neighbours().await?;
    let interfaces = kernel.interface_names().await?;
    let mut next_hops = Vec::new();
    for (target, rules) in targets(shared) {
        let mut next_hop = NextHopStatus {
            rules,
            target: target.into(),
            via: None,
            interface: None,
            mac: None,
            resolved: false,
            problem: String::new(),
        };
        match kernel.route(target).await {
            Err(problem) => next_hop.problem = problem,
            Ok(route) => {
                let name = interfaces.get(&route.interface).cloned().unwrap_or_default();
                let mac = neighbours.get(&(route.interface, route.via)).copied().flatten();
                next_hop.via = Some(route.via.into());
                next_hop.mac = mac.map(format_mac);
                if !shared.config.interfaces.names().any(|interface| interface == name) {
                    next_hop.problem =
                        format!("the route leads out of {name}, which is not an interface of the router");
                } else if mac.is_none() {
                    next_hop.problem = format!("{} does not answer ARP on {name}", route.via);
                    if let Err(error) = kernel.probe((route.interface, route.via)).await {
                        debug!("{error:#}");
                    }
                } else {
                    next_hop.resolved = true;
                }
                next_hop.interface = Some(name);
            }
        }
        next_hops.push(next_hop);
    }
    report(&shared.next_hops(), &next_hops);
    *shared.next_hops() = next_hops;
    Ok(())
}

/// The router's interfaces by slot.
///
/// # Errors
/// When one of them is not there.
pub(super) async fn interface_indexes(
    config: &Config,
    kernel: &Kernel,
) -> Result<[InterfaceIndexes; MAX_INTERFACES]> {
    let mut indexes = [InterfaceIndexes::default(); MAX_INTERFACES];
    for (slot, name) in indexes.iter_mut().zip(config.interfaces.names()) {
        *slot = kernel.interface(name).await?;
    }
    Ok(indexes)
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
    let Ok(interfaces) = kernel.interface_names().await else { return };
    let neighbours: std::collections::HashSet<Neighbour> = shared
        .next_hops()
        .iter()
        .filter_map(|next_hop| {
            let name = next_hop.interface.as_ref()?;
            let index = interfaces.iter().find(|(_, known)| *known == name).map(|(index, _)| *index)?;
            match next_hop.via? {
                std::net::IpAddr::V4(via) => Some((index, via)),
                std::net::IpAddr::V6(_) => None,
            }
        })
        .collect();
    for neighbour in neighbours {
        if let Err(error) = kernel.probe(neighbour).await {
            debug!("{error:#}");
        }
    }
}

/// The addresses that rules lead to, with the rules. For a masquerade, the first address of each destination network stands
/// for all of it.
fn targets(shared: &Shared) -> BTreeMap<Ipv4Addr, Vec<String>> {
    let names = shared.names();
    let mut targets: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
    let mut add = |address: Ipv4Addr, rule: &String| {
        let rules = targets.entry(address).or_default();
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    };
    for forward in &shared.config.forwards {
        for target in &forward.targets {
            match &target.host {
                Host::Address(address) => add(*address, &forward.name),
                Host::Name(name) => {
                    for address in names.get(name).into_iter().flat_map(|resolved| &resolved.addresses) {
                        add(*address, &forward.name);
                    }
                }
            }
        }
    }
    for masquerade in &shared.config.masquerades {
        for destination in &masquerade.destinations {
            add(representative(destination), &masquerade.name);
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
