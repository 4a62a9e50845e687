//! IPv6, which is not translated: what of it this machine gets, see [`router_common::ipv6`].

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop, macros::map, maps::Array};
use router_common::{
    address::{Ipv6, Port},
    ipv6::{self, Packet},
    local::{Allow, Judgement, MAX_LOCAL_ALLOW, allow_index},
    own::dhcpv6_answer,
    reason::Reason,
    rules::{Ipv6Network, RuleSet},
};

use crate::{Outcome, Work, ethernet, own, rules, sockets};

/// Entries of `local.allow` for IPv6 networks, by bank and position. Written by the daemon, see
/// `router_common::rules`.
#[map]
static LOCAL_ALLOW_IPV6: Array<Allow<Ipv6Network>> = Array::with_max_entries(2 * MAX_LOCAL_ALLOW as u32, 0);

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn decide(work: &mut Work) -> Outcome {
    let version = work.settings.version;
    let rule_set = match rules::rule_set(version) {
        Some(rule_set) if version != 0 => rule_set,
        _ => return Err(Reason::NotConfigured.into()),
    };
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
    let is_answer = match packet.judge(health_port) {
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
    is_answer || is_allowed(work.settings.version, rule_set, packet)
}

#[inline(always)]
fn is_allowed(version: u32, rule_set: &RuleSet, packet: &Packet) -> bool {
    let Some((protocol, port)) = packet.service() else { return false };
    if packet.source.is_unspecified() {
        return false;
    }
    let mut scan = Scan { protocol, port: port.number(), source: packet.source, version, found: false };
    // SAFETY: the callback is a BPF subprogram of the kernel's `bpf_loop` signature, and gets the
    // context that it expects.
    unsafe {
        bpf_loop(
            rule_set.local_allow_ipv6_count.min(MAX_LOCAL_ALLOW as u32),
            covers as *const () as *mut c_void,
            (&raw mut scan).cast(),
            0,
        );
    }
    scan.found
}

/// A search for an entry that covers a packet.
struct Scan {
    protocol: u8,
    /// The destination port; 0 for a protocol without ports.
    port: u16,
    source: Ipv6,
    version: u32,
    found: bool,
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once; 1 ends
/// it.
///
/// # Safety
/// `scan` points to a [`Scan`] that nothing else uses meanwhile.
unsafe extern "C" fn covers(position: u32, scan: *mut Scan) -> i64 {
    // SAFETY: the caller's promise.
    let scan = unsafe { &mut *scan };
    match LOCAL_ALLOW_IPV6.get(allow_index(scan.version, position)) {
        Some(entry) if entry.covers(scan.protocol, scan.port, scan.source) => {
            scan.found = true;
            1
        }
        Some(_) => 0,
        None => 1,
    }
}
