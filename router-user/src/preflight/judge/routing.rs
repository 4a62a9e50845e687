//! Whether sessions go the way and come from where the kernel's own forwarding would have it.

use std::net::Ipv4Addr;

use super::{Findings, listed};
use crate::config::Config;
use crate::policy_rules::{FIX, not_followed};
use crate::preflight::facts::{Facts, FirewallChain, Hook, Interface, Way};

/// Looks at rules and routes, and at what the kernel does to packets that it forwards.
pub(super) fn routing(found: &mut Findings, config: &Config, facts: &Facts) {
    let known = facts.interfaces.as_deref().unwrap_or_default();
    let of_router = known.iter().filter(|interface| is_of_router(config, interface));
    let interfaces: Vec<&str> = of_router.map(|interface| interface.name.as_str()).collect();
    for text in not_followed(facts.policy_rules.as_deref().unwrap_or_default(), &interfaces) {
        found.warning(text, FIX);
    }
    for address in &config.snat.addresses {
        source(found, config, *address, known, &facts.ways);
    }
    ipsec(found, facts);
    firewall(found, &facts.firewall);
}

fn is_of_router(config: &Config, interface: &Interface) -> bool {
    config.interfaces.names().any(|name| interface.is_called(name))
}

const LEAVE_OUT: &str =
    "leave `addresses` of [snat] out: each session then comes from the address that its route says";

/// A source that is given must be one that replies come back to.
fn source(found: &mut Findings, config: &Config, address: Ipv4Addr, interfaces: &[Interface], ways: &[Way]) {
    let Some(owner) = interfaces.iter().find(|interface| interface.addresses.contains(&address)) else {
        return;
    };
    // An address of the loopback interface is routed here by others, whichever way.
    if owner.loopback {
        return;
    }
    let name = &owner.name;
    if !is_of_router(config, owner) {
        found.error(
            format!(
                "`addresses` of [snat] has {address}, an address of `{name}`, which the router does not work on: replies \
                 would come in there"
            ),
            LEAVE_OUT,
        );
        return;
    }
    for Way { target, interface, gateway } in ways {
        if interface != name {
            found.warning(
                format!(
                    "`addresses` of [snat] has {address}, an address of `{name}`, but {target} is reached by `{interface}`: \
                     its replies may not come back"
                ),
                LEAVE_OUT,
            );
        } else if let Some(gateway) = gateway
            && owner.networks.iter().any(|network| network.contains(gateway))
            && !owner.networks.iter().any(|network| network.addr() == address && network.contains(gateway))
        {
            found.warning(
                format!(
                    "`addresses` of [snat] has {address}, which is not in the network of {gateway}, by which {target} is \
                     reached: its replies may not come back"
                ),
                LEAVE_OUT,
            );
        }
    }
}

fn ipsec(found: &mut Findings, facts: &Facts) {
    if let Some(policies) = facts.ipsec.as_deref().filter(|policies| !policies.is_empty()) {
        found.warning(
            format!(
                "this machine has IPsec policies ({}): packets that this router forwards are neither encrypted nor checked by \
                 them",
                listed(policies)
            ),
            "lead what needs IPsec past this router, or have the firewall do it; ip xfrm policy shows them",
        );
    }
}

fn firewall(found: &mut Findings, chains: &[FirewallChain]) {
    for (hook, what) in [(Hook::Forward, "forwards"), (Hook::Output, "sends")] {
        let chains: Vec<_> = chains.iter().filter(|chain| chain.hook == hook).collect();
        if !chains.is_empty() {
            found.warning(
                format!(
                    "the host's firewall has rules for packets that the kernel {what}, {}: packets that this router forwards \
                     do not pass them",
                    listed(&chains)
                ),
                "say it by `sources` of the rules, or at the firewall behind this router; `nft list ruleset` shows them",
            );
        }
    }
}
