//! The look-ups that decisions need.

#[cfg(doc)]
use crate::local;
use crate::{
    address::{Ipv4, Port},
    local::Service,
    maps::{
        rules::{RuleSet, Target},
        settings::Side,
    },
    packet::Packet,
    tuple::{FlowKey, Protocol},
};

/// The rule set in force, this machine's addresses, and its own traffic, for one packet.
///
/// A decision asks only for what matters: each of these may cost a look-up in a map.
pub trait Lookup {
    /// Returns what the rule set says beside its rules.
    fn rule_set(&self) -> &RuleSet;

    /// Returns the side of the router that the packet came in on.
    fn side(&self) -> Side;

    /// Returns [`local::OWN_ADDRESS`] for an address of this machine, [`local::BROADCAST_ADDRESS`]
    /// for a broadcast address of its networks, and `None` for all others.
    fn local_address(&self, address: Ipv4) -> Option<u32>;

    /// Returns the forward that listens on an address and port, or on every address of this machine
    /// if there is no `address`.
    fn listener(&self, protocol: Protocol, address: Option<Ipv4>, port: Port) -> Option<u16>;

    /// Returns `true` if a source may use a forward.
    fn is_allowed(&self, rule: u16, source: Ipv4) -> bool;

    /// Returns `true` if any rule names this source.
    fn is_rule_source(&self, source: Ipv4) -> bool;

    /// Returns the rule of the first masquerade pair that covers a packet.
    fn masquerade(&self, source: Ipv4, destination: Ipv4) -> Option<u16>;

    /// Picks one of a forward's targets by random bits.
    fn target(&self, rule: u16, random: u32) -> Option<Target>;

    /// Returns `true` if a forward's targets include this address and port, for packets to the port
    /// `listen`.
    fn has_target(&self, rule: u16, address: Ipv4, port: Port, listen: Port) -> bool;

    /// Returns `true` if an entry of `local.allow` covers packets to a service from this source.
    fn is_service_allowed(&self, service: Service, source: Ipv4) -> bool;

    /// Returns `true` if the packet answers what this machine itself has sent, or belongs to a
    /// connection of its own.
    fn answers_own_traffic(&self, packet: &Packet) -> bool;

    /// Returns `true` if this machine has lately sent something that packets with this tuple
    /// answer.
    fn has_sent(&self, answer: &FlowKey) -> bool;

    /// Returns `true` if a session has this tuple.
    fn has_session(&self, key: &FlowKey) -> bool;
}

/// Returns `true` if this is an address of this machine, or a broadcast address of its networks.
#[inline(always)]
pub fn is_local(lookup: &impl Lookup, address: Ipv4) -> bool {
    lookup.local_address(address).is_some()
}

/// Returns `true` if a source reaches only what `local.allow` names of this machine: with
/// `local.others = "closed"`, every source; else those that a rule names.
#[inline(always)]
pub fn is_closed_out(lookup: &impl Lookup, source: Ipv4) -> bool {
    lookup.rule_set().others_are_closed != 0 || lookup.is_rule_source(source)
}

/// Returns `true` if this machine is closed to frames without an IPv4 source address on the
/// interface that the packet came in on: where clients come in, and everywhere with
/// `local.others = "closed"`.
#[inline(always)]
pub fn is_closed_side(lookup: &impl Lookup) -> bool {
    lookup.rule_set().others_are_closed != 0 || !matches!(lookup.side(), Side::Firewall)
}

#[cfg(all(test, not(model)))]
pub(super) mod snapshot {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::{
        limits::MAX_SNAT_ADDRESSES,
        local::Allow,
        maps::rules::{Masquerade, Network, Rule},
        ports::PortRange,
    };

    /// A rule set and this machine's state as plain values.
    pub(in crate::policy) struct Snapshot {
        pub(in crate::policy) rule_set: RuleSet,
        pub(in crate::policy) side: Side,
        pub(in crate::policy) local: HashMap<Ipv4, u32>,
        pub(in crate::policy) listeners: HashMap<(u8, Option<Ipv4>, u16), u16>,
        pub(in crate::policy) sources: HashMap<u16, Vec<Network>>,
        pub(in crate::policy) rules: HashMap<u16, Rule>,
        pub(in crate::policy) masquerades: Vec<Masquerade>,
        pub(in crate::policy) allow: Vec<Allow<Network>>,
        pub(in crate::policy) own_traffic: HashSet<FlowKey>,
        pub(in crate::policy) sessions: HashSet<FlowKey>,
    }

    impl Default for Snapshot {
        fn default() -> Self {
            let none = PortRange { first: 1, last: 0 };
            Self {
                rule_set: RuleSet {
                    snat: [Ipv4::default(); MAX_SNAT_ADDRESSES],
                    snat_count: 0,
                    ports: PortRange { first: 1024, last: 65535 },
                    masquerade_count: 0,
                    local_allow_count: 0,
                    local_allow_ipv6_count: 0,
                    others_are_closed: 0,
                    health_port: 8082,
                    health_port_ipv6: 0,
                    ephemeral: none,
                    reject_exhausted: 0,
                    reject_unreachable: 0,
                },
                side: Side::Clients,
                local: HashMap::new(),
                listeners: HashMap::new(),
                sources: HashMap::new(),
                rules: HashMap::new(),
                masquerades: Vec::new(),
                allow: Vec::new(),
                own_traffic: HashSet::new(),
                sessions: HashSet::new(),
            }
        }
    }

    impl Lookup for Snapshot {
        fn rule_set(&self) -> &RuleSet {
            &self.rule_set
        }

        fn side(&self) -> Side {
            self.side
        }

        fn local_address(&self, address: Ipv4) -> Option<u32> {
            self.local.get(&address).copied()
        }

        fn listener(&self, protocol: Protocol, address: Option<Ipv4>, port: Port) -> Option<u16> {
            self.listeners.get(&(protocol as u8, address, port.number())).copied()
        }

        fn is_allowed(&self, rule: u16, source: Ipv4) -> bool {
            self.sources.get(&rule).is_some_and(|all| all.iter().any(|network| network.contains(source)))
        }

        fn is_rule_source(&self, source: Ipv4) -> bool {
            self.sources.values().flatten().any(|network| network.contains(source))
        }

        fn masquerade(&self, source: Ipv4, destination: Ipv4) -> Option<u16> {
            let pair = self.masquerades.iter().find(|pair| pair.matches(source, destination))?;
            Some(pair.rule as u16)
        }

        fn target(&self, rule: u16, random: u32) -> Option<Target> {
            self.rules.get(&rule)?.target(random).copied()
        }

        fn has_target(&self, rule: u16, address: Ipv4, port: Port, listen: Port) -> bool {
            self.rules.get(&rule).is_some_and(|rule| rule.leads_to(address, port, listen))
        }

        fn is_service_allowed(&self, service: Service, source: Ipv4) -> bool {
            self.allow.iter().any(|entry| entry.covers(service, source))
        }

        fn answers_own_traffic(&self, packet: &Packet) -> bool {
            self.own_traffic.contains(&packet.key)
        }

        fn has_sent(&self, answer: &FlowKey) -> bool {
            self.own_traffic.contains(answer)
        }

        fn has_session(&self, key: &FlowKey) -> bool {
            self.sessions.contains(key)
        }
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::{snapshot::Snapshot, *};
    use crate::maps::rules::Network;

    #[test]
    fn sources_of_rules_are_closed_out_and_all_others_where_they_are_closed() {
        let (named, other) = (Ipv4([10, 0, 2, 69]), Ipv4([10, 0, 3, 1]));
        let mut all = Snapshot::default();
        all.sources.insert(1, vec![Network::new(Ipv4([10, 0, 2, 0]), 24)]);
        assert!(is_closed_out(&all, named) && !is_closed_out(&all, other));
        all.rule_set.others_are_closed = 1;
        assert!(is_closed_out(&all, named) && is_closed_out(&all, other));
    }

    #[test]
    fn only_the_side_of_the_firewall_is_open_unless_all_others_are_closed() {
        for (side, is_closed) in [(Side::Clients, true), (Side::Firewall, false), (Side::Unknown, true)] {
            let mut all = Snapshot { side, ..Snapshot::default() };
            assert_eq!(is_closed_side(&all), is_closed);
            all.rule_set.others_are_closed = 1;
            assert!(is_closed_side(&all));
        }
    }
}
