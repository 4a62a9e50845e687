//! From the configuration to what the data plane is to do.

use std::net::Ipv4Addr;

use router_common::{flow, ports::PortRange, rules::Rule};

use super::Names;
use crate::{
    config::{Config, Exhausted, Forward, Host, Mss, Protocol, Target},
    dataplane::{ForwardSpec, MasqueradeSpec, RuleSetSpec},
};

/// The rule set of a configuration, with names as they are resolved now.
pub(super) fn build(config: &Config, names: &Names, snat: &[Ipv4Addr]) -> RuleSetSpec {
    RuleSetSpec {
        forwards: config
            .forwards
            .iter()
            .map(|forward| ForwardSpec {
                name: forward.name.clone(),
                protocol: match forward.protocol {
                    Protocol::Tcp => flow::Protocol::Tcp,
                    Protocol::Udp => flow::Protocol::Udp,
                },
                address: forward.listen.address,
                ports: PortRange { first: *forward.listen.ports.start(), last: *forward.listen.ports.end() },
                targets: targets(forward, names),
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
        snat: snat.to_vec(),
        ports: PortRange { first: *config.snat.ports.start(), last: *config.snat.ports.end() },
        reject_exhausted: config.snat.exhausted == Exhausted::Reject,
    }
}

/// A rule's segment size, in the data plane's words.
fn mss(mss: Option<Mss>) -> u16 {
    match mss {
        None => 0,
        Some(Mss::PathMtu) => Rule::MSS_OF_ROUTES,
        Some(Mss::Bytes(bytes)) => bytes,
    }
}

/// Where a forward leads now: every address of every target.
pub(super) fn targets(forward: &Forward, names: &Names) -> Vec<(Ipv4Addr, Option<u16>)> {
    let addresses = |target: &Target| match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => names.get(name).map(|resolved| resolved.addresses.clone()).unwrap_or_default(),
    };
    forward
        .targets
        .iter()
        .flat_map(|target| addresses(target).into_iter().map(|address| (address, target.port)))
        .collect()
}
