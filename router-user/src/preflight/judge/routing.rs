//! Checks that sessions take the route, and get the source address, that the kernel's own
//! forwarding would give them.

use std::net::Ipv4Addr;

use crate::config::Config;
use crate::policy_rules::{FIX, not_followed};
use crate::preflight::facts::{Facts, FirewallChain, Hook, Interface, Way};
use crate::preflight::finding::{Findings, Id, listed};

/// Looks at rules and routes, and at what the kernel does to packets that it forwards.
pub(super) fn routing(found: &mut Findings, config: &Config, facts: &Facts) {
    let known = facts.interfaces.as_deref().unwrap_or_default();
    let of_router = known.iter().filter(|interface| is_of_router(config, interface));
    let interfaces: Vec<&str> = of_router.map(|interface| interface.name.as_str()).collect();
    for text in not_followed(facts.policy_rules.as_deref().unwrap_or_default(), &interfaces) {
        found.warning((Id::PolicyRuleIgnored, ""), text, FIX);
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
    "leave `addresses` of [snat] out: each session then gets the source address of its route";

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
        found.error((Id::SnatAddressUnroutable, &address.to_string()),
            format!(
                "`addresses` of [snat] has {address}, an address of `{name}`, which is not an interface of the router: replies would arrive there"
            ),
            LEAVE_OUT,
        );
        return;
    }
    for Way { target, interface, gateway } in ways {
        if interface != name {
            found.warning((Id::SnatAddressUnroutable, &address.to_string()),
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
            found.warning((Id::SnatAddressUnroutable, &address.to_string()),
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
        found.warning((Id::IpsecBypassed, ""),
            format!(
                "this machine has IPsec policies ({}): packets that this router forwards are neither encrypted nor checked by \
                 them",
                listed(policies)
            ),
            "route traffic that needs IPsec past this router, or let the firewall do it; ip xfrm policy shows them",
        );
    }
}

fn firewall(found: &mut Findings, chains: &[FirewallChain]) {
    for (hook, what) in [(Hook::Forward, "forwards"), (Hook::Output, "sends")] {
        let chains: Vec<_> = chains.iter().filter(|chain| chain.hook == hook).collect();
        if !chains.is_empty() {
            found.warning((Id::FirewallBypassed, what),
                format!(
                    "the host's firewall has rules for packets that the kernel {what}, {}: packets that this router forwards \
                     do not pass them",
                    listed(&chains)
                ),
                "restrict `sources` of the rules, or filter at the firewall after this router; `nft list ruleset` shows them",
            );
        }
    }
}
