//! The program `ipv6`: IPv6 is not translated, so it is for this machine or dropped, see
//! [`router_common::ipv6`].

use router_common::{
    address::Port,
    ipv6::{self, Packet},
    local::{Judgement, Place},
    maps::{own::dhcpv6_answer, rules::RuleSet},
    policy::lookup::is_closed_side,
    reason::Reason,
};

use crate::{
    kernel::{own_traffic, sockets},
    maps::{addresses, local_allow},
    session::lookup::InForce,
    work::{Outcome, Work},
};

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let in_force = InForce::new(work).ok_or(Reason::NotConfigured)?;
    let is_admitted = !is_closed_side(&in_force)
        || match ipv6::read(&work.frame) {
            Some(packet) => is_admitted(work, &in_force, &packet),
            None => false,
        };
    Err(if is_admitted { Reason::NotIpv4 } else { Reason::Ipv6Denied }.into())
}

#[inline(always)]
fn is_admitted(work: &Work, in_force: &InForce<'_>, packet: &Packet) -> bool {
    let rule_set = in_force.rule_set;
    let health_port = match rule_set.health_port_ipv6 {
        0 => None,
        port => Some(Port::new(port as u16)),
    };
    let is_local = addresses::is_local_ipv6(packet.destination);
    let is_answer = match packet.judge(&Place { health_port, is_local }) {
        Judgement::Harmless => true,
        Judgement::IfConnected => packet.key().is_some_and(|key| {
            own_traffic::has_sent_ipv6(&key)
                || sockets::is_connected_ipv6(work.frame.context().ctx, &key, rule_set.ephemeral)
        }),
        Judgement::IfAskedFor => {
            !rule_set.sees_own_traffic()
                || ipv6::dhcp_transaction(&work.frame)
                    .is_some_and(|transaction| own_traffic::has_sent_ipv6(&dhcpv6_answer(transaction)))
        }
        Judgement::Closed => false,
        Judgement::Forbidden => return false,
    };
    is_answer || packet.may_be_for_the_stack(is_local) && is_allowed(in_force.version, rule_set, packet)
}

#[inline(always)]
fn is_allowed(version: u32, rule_set: &RuleSet, packet: &Packet) -> bool {
    let Some(service) = packet.service() else { return false };
    if packet.source.is_unspecified() {
        return false;
    }
    local_allow::covers_ipv6(version, rule_set, service, packet.source)
}
