//! From the configuration to what the data plane is to do.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use router_common::{limits::MAX_TARGETS, maps::rules::Rule, ports::PortRange, tuple::Protocol};

use crate::{
    config::{Config, Forward, Host, Mss, Others, Refusal},
    daemon::{
        kernel::own_traffic::SessionPorts,
        names::resolved::Names,
        observe::target_health::{Endpoint, TargetHealth},
    },
    dataplane::{ForwardSpec, LocalAllowSpec, LocalSpec, MasqueradeSpec, RuleSetSpec},
};

/// An address that a forward leads to, and the port if it is not the client's.
pub(crate) type Target = (Ipv4Addr, Option<u16>);

/// The rule set of a configuration, with names as they are resolved now, without the targets that
/// are avoided now.
pub(crate) fn build(
    config: &Config,
    names: &Names,
    health: &TargetHealth,
    ports: SessionPorts,
) -> RuleSetSpec {
    RuleSetSpec {
        forwards: config
            .forwards
            .iter()
            .map(|forward| ForwardSpec {
                name: forward.name.clone(),
                protocol: forward.protocol,
                address: forward.listen.address,
                ports: PortRange { first: *forward.listen.ports.start(), last: *forward.listen.ports.end() },
                targets: in_use(forward, names, health),
                sources: forward.sources.clone(),
                mss: mss(forward.mss),
            })
            .collect(),
        masquerades: config
            .masquerades
            .iter()
            .map(|masquerade| MasqueradeSpec {
                name: masquerade.name.clone(),
                sources: masquerade.sources.clone(),
                destinations: masquerade.destinations.clone(),
                mss: mss(masquerade.mss),
            })
            .collect(),
        snat: config.snat.addresses.clone(),
        ports: ports.snat,
        reject_exhausted: config.snat.exhausted == Refusal::Reject,
        reject_unreachable: config.answers.unreachable == Refusal::Reject,
        local: local(config, ports.answered),
    }
}

fn local(config: &Config, answered: PortRange) -> LocalSpec {
    let allow = config.local.allow.iter().map(|allow| LocalAllowSpec {
        protocol: allow.protocol.0,
        ports: match &allow.ports {
            Some(ports) => PortRange { first: *ports.start(), last: *ports.end() },
            None => PortRange { first: 0, last: u16::MAX },
        },
        from: allow.from.unwrap_or_else(|| Ipv4Net::default().into()),
    });
    LocalSpec {
        allow: allow.collect(),
        others_are_closed: config.local.others == Others::Closed,
        health_port: config.health.listen.port(),
        health_by_ipv6: config.health.listen.is_ipv6(),
        ephemeral: answered,
    }
}

/// Returns the names among the targets of a configuration; one may come several times.
pub(crate) fn target_names(config: &Config) -> impl Iterator<Item = &String> {
    let targets = config.forwards.iter().flat_map(|forward| &forward.targets);
    targets.filter_map(|target| match &target.host {
        Host::Name(name) => Some(name),
        Host::Address(_) => None,
    })
}

/// A rule's segment size, in the data plane's words.
fn mss(mss: Option<Mss>) -> u16 {
    match mss {
        None => 0,
        Some(Mss::PathMtu) => Rule::MSS_OF_ROUTES,
        Some(Mss::Bytes(bytes)) => bytes,
    }
}

/// Returns the targets of a forward now: every address of every target.
pub(crate) fn targets(forward: &Forward, names: &Names) -> Vec<Target> {
    by_target(forward, names).flatten().collect()
}

/// The targets of a forward now, each with the host that the configuration has for it.
pub(crate) fn with_hosts<'a>(
    forward: &'a Forward,
    names: &'a Names,
) -> impl Iterator<Item = (&'a Host, Target)> {
    let hosts = forward.targets.iter().map(|target| &target.host);
    hosts
        .zip(by_target(forward, names))
        .flat_map(|(host, targets)| targets.into_iter().map(move |target| (host, target)))
}

/// The addresses that each of a forward's targets leads to now.
fn by_target<'a>(forward: &'a Forward, names: &'a Names) -> impl Iterator<Item = Vec<Target>> + 'a {
    forward.targets.iter().map(|target| {
        let addresses = match &target.host {
            Host::Address(address) => std::slice::from_ref(address),
            Host::Name(name) => names.get(name).map(|resolved| &*resolved.addresses).unwrap_or_default(),
        };
        addresses.iter().map(|address| (*address, target.port)).collect()
    })
}

/// Returns the targets of a forward that new sessions go to: those that answer sessions and checks,
/// as far as there is room. If none answers, all: a rule is never left without a target by what is
/// only a suspicion. Where there is no room for all, every target has its share of it, so that a
/// name of many addresses leaves the others theirs.
pub(crate) fn in_use(forward: &Forward, names: &Names, health: &TargetHealth) -> Vec<Target> {
    let good = |target: &Target| !health.is_avoided(&forward.name, endpoint(forward, target));
    let mut groups: Vec<Vec<Target>> = by_target(forward, names).collect();
    if groups.iter().flatten().any(good) {
        groups.iter_mut().for_each(|group| group.retain(good));
    }
    let mut room = MAX_TARGETS;
    let mut left = groups.iter().filter(|group| !group.is_empty()).count();
    // The smallest first: what they leave of their shares is the others'.
    let mut by_size: Vec<usize> = (0..groups.len()).filter(|place| !groups[*place].is_empty()).collect();
    by_size.sort_by_key(|place| groups[*place].len());
    for place in by_size {
        let share = room.div_ceil(left);
        groups[place].truncate(share);
        room -= groups[place].len();
        left -= 1;
    }
    groups.into_iter().flatten().collect()
}

/// Returns `true` if a forward has several targets whose passive health matters.
pub(crate) fn is_judged(forward: &Forward, names: &Names) -> bool {
    forward.protocol == Protocol::Tcp && targets(forward, names).len() > 1
}

/// A target as sessions see it.
pub(crate) fn endpoint(forward: &Forward, (address, port): &Target) -> Endpoint {
    let kept = if forward.listen.is_range() { 0 } else { *forward.listen.ports.start() };
    (*address, port.unwrap_or(kept), forward.protocol)
}

#[cfg(test)]
mod tests;
