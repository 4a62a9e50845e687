//! Look-ups that decisions make, in maps and of the kernel, see [`router_common::policy`].

use router_common::{
    address::{Ipv4, Port},
    local::Service,
    maps::{
        rules::{RuleSet, Target},
        settings::Side,
    },
    packet::Packet,
    policy::Lookup,
    tuple::{FlowKey, Protocol},
};

use crate::{
    kernel::own_traffic,
    maps::{addresses, flows, local_allow, rules},
    work::Work,
};

/// The rules that are in force for the packet that is being processed. Their version is read once,
/// so that all of a decision is by one rule set.
pub(crate) struct InForce<'a> {
    work: &'a Work,
    pub(crate) version: u32,
    pub(crate) rule_set: &'static RuleSet,
}

impl<'a> InForce<'a> {
    /// Returns the rules in force; `None` before the first rule set.
    #[inline(always)]
    pub(crate) fn new(work: &'a Work) -> Option<Self> {
        let version = work.settings.version();
        Some(Self::with(work, version, rules::in_force(version)?))
    }

    /// Returns the rules of this version.
    #[inline(always)]
    pub(crate) const fn with(work: &'a Work, version: u32, rule_set: &'static RuleSet) -> Self {
        Self { work, version, rule_set }
    }
}

impl Lookup for InForce<'_> {
    #[inline(always)]
    fn rule_set(&self) -> &RuleSet {
        self.rule_set
    }

    #[inline(always)]
    fn side(&self) -> Side {
        self.work.side()
    }

    #[inline(always)]
    fn local_address(&self, address: Ipv4) -> Option<u32> {
        addresses::local_address(address)
    }

    #[inline(always)]
    fn listener(&self, protocol: Protocol, address: Option<Ipv4>, port: Port) -> Option<u16> {
        rules::listener(self.version, protocol, address, port)
    }

    #[inline(always)]
    fn is_allowed(&self, rule: u16, source: Ipv4) -> bool {
        rules::is_allowed(self.version, rule, source)
    }

    #[inline(always)]
    fn is_rule_source(&self, source: Ipv4) -> bool {
        rules::is_rule_source(self.version, source)
    }

    #[inline(always)]
    fn masquerade(&self, source: Ipv4, destination: Ipv4) -> Option<u16> {
        rules::masquerade(self.version, self.rule_set, source, destination)
    }

    #[inline(always)]
    fn target(&self, rule: u16, random: u32) -> Option<Target> {
        rules::target(self.version, rule, random)
    }

    #[inline(always)]
    fn has_target(&self, rule: u16, address: Ipv4, port: Port, listen: Port) -> bool {
        rules::has_target(self.version, rule, address, port, listen)
    }

    #[inline(always)]
    fn is_service_allowed(&self, service: Service, source: Ipv4) -> bool {
        local_allow::covers(self.version, self.rule_set, service, source)
    }

    /// Asks about the packet that is being processed, which is the only one here.
    #[inline(always)]
    fn answers_own_traffic(&self, _packet: &Packet) -> bool {
        own_traffic::is_answer(self.work, self.rule_set.ephemeral)
    }

    #[inline(always)]
    fn has_sent(&self, answer: &FlowKey) -> bool {
        own_traffic::has_sent(answer)
    }

    #[inline(always)]
    fn has_session(&self, key: &FlowKey) -> bool {
        flows::has_flow(key)
    }
}
