//! IPv6, which is not translated: what of it this machine gets, see [`router_common::ipv6`].

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use router_common::{
    address::{Ipv6, Port},
    ipv6::{self, Packet},
    limits::MAX_LOCAL_ALLOW,
    local::{Allow, Judgement, Place, Search},
    maps::{
        own::dhcpv6_answer,
        rules::{Ipv6Network, RuleSet},
    },
    reason::Reason,
};

use crate::{Outcome, Work, ethernet, local, own, rules, sockets};

/// Entries of `local.allow` for IPv6 networks, by bank and position. Written by the daemon, see
/// `router_common::maps::rules`.
#[map]
static LOCAL_ALLOW_IPV6: Array<Allow<Ipv6Network>> = Array::with_max_entries(2 * MAX_LOCAL_ALLOW as u32, 0);

/// This machine's own addresses. Kept up to date by the daemon.
#[map]
static LOCAL_ADDRESSES_IPV6: HashMap<Ipv6, u32> = HashMap::with_max_entries(4096, 0);

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn decide(work: &mut Work) -> Outcome {
    let version = work.settings.version();
    let rule_set = rules::in_force(version).ok_or(Reason::NotConfigured)?;
    let is_let_in = !ethernet::is_closed(work, rule_set)
        || match ipv6::read(&work.frame) {
            Some(packet) => is_let_in(work, rule_set, &packet),
            None => false,
        };
    Err(if is_let_in { Reason::NotIpv4 } else { Reason::Ipv6Denied }.into())
}

#[inline(always)]
fn is_let_in(work: &Work, rule_set: &RuleSet, packet: &Packet) -> bool {
    let health_port = match rule_set.health_port_ipv6 {
        0 => None,
        port => Some(Port::new(port as u16)),
    };
    // SAFETY: a number that is written whole.
    let is_local = unsafe { LOCAL_ADDRESSES_IPV6.get(packet.destination) }.is_some();
    let is_answer = match packet.judge(&Place { health_port, is_local }) {
        Judgement::Harmless => true,
        Judgement::IfConnected => packet.key().is_some_and(|key| {
            own::has_sent_ipv6(&key)
                || sockets::is_connected_ipv6(work.frame.context().ctx, &key, rule_set.ephemeral)
        }),
        Judgement::IfAskedFor => {
            !rule_set.sees_own_traffic()
                || ipv6::dhcp_transaction(&work.frame)
                    .is_some_and(|transaction| own::has_sent_ipv6(&dhcpv6_answer(transaction)))
        }
        Judgement::Closed => false,
        Judgement::Forbidden => return false,
    };
    is_answer
        || packet.may_be_for_the_stack(is_local) && is_allowed(work.settings.version(), rule_set, packet)
}

#[inline(always)]
fn is_allowed(version: u32, rule_set: &RuleSet, packet: &Packet) -> bool {
    let Some(service) = packet.service() else { return false };
    if packet.source.is_unspecified() {
        return false;
    }
    let search = Search::new(version, service, packet.source);
    local::an_entry_covers(search, rule_set.local_allow_ipv6_count, step)
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once.
///
/// # Safety
/// `search` points to a [`Search`] that nothing else uses meanwhile.
unsafe extern "C" fn step(position: u32, search: *mut Search<Ipv6>) -> i64 {
    // SAFETY: the caller's promise.
    let search = unsafe { &mut *search };
    search.look_at(LOCAL_ALLOW_IPV6.get(search.index(position)))
}
