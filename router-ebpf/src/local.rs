//! Packets that are no session's and no rule's: this machine's own traffic, or nobody's business.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop, macros::map, maps::Array};
use router_common::{
    address::{AZURE_PLATFORM, Ipv4, Port},
    limits::MAX_LOCAL_ALLOW,
    local::{Allow, Judgement, Place, Search, Service, is_link_control, judge, may_be_for_the_stack},
    maps::{
        own::{dhcp_answer, dhcp_transaction},
        rules::Network,
    },
    packet::{self, Packet},
    reason::Reason,
};

use crate::{Outcome, Work, flows, fragment, own, rules};

/// Entries of `local.allow` by bank and position. Written by the daemon, see
/// `router_common::maps::rules`.
#[map]
static LOCAL_ALLOW: Array<Allow<Network>> = Array::with_max_entries(2 * MAX_LOCAL_ALLOW as u32, 0);

/// Passes a packet to this machine's own stack, or drops it.
#[inline(always)]
pub(crate) fn decide(work: &mut Work) -> Outcome {
    let parsed = packet::parse_leading(&work.frame);
    // Keeps it in memory: in registers, the compiler would move what an error does not have, and
    // the verifier refuse that.
    core::hint::black_box(&parsed);
    // Why it passes, if it does.
    let reason = match &parsed {
        Ok(_) => Reason::NotMatched,
        Err(reason) => *reason,
    };
    let Some((source, destination)) = packet::addresses(&work.frame) else { return Err(reason.into()) };
    let version = work.settings.version();
    let rule_set = rules::in_force(version).ok_or(Reason::NotConfigured)?;
    if source == AZURE_PLATFORM || destination == AZURE_PLATFORM {
        return Err(Reason::Platform.into());
    }
    if reason as u32 == Reason::IpOptions as u32
        && packet::key_after_options(&work.frame).is_some_and(|key| flows::is_there(&key))
    {
        return Err(Reason::SessionOptions.into());
    }
    if !is_closed_out(version, source) {
        return Err(noted(work, &parsed, reason).into());
    }
    let is_local = rules::is_local(destination);
    let is_allowed = |service| {
        may_be_for_the_stack(destination, is_local)
            && an_entry_covers(Search::new(version, service, source), rule_set.local_allow_count, step)
    };
    let allowed = match &parsed {
        Ok(packet) => {
            let place = Place { health_port: Some(Port::new(rule_set.health_port as u16)), is_local };
            match judge(packet, &place) {
                Judgement::Harmless => true,
                Judgement::IfConnected if own::is_answer(work, rule_set.ephemeral) => true,
                Judgement::IfAskedFor if !rule_set.sees_own_traffic() || answers_dhcp(work) => true,
                Judgement::Forbidden => false,
                Judgement::IfConnected | Judgement::IfAskedFor | Judgement::Closed => {
                    Service::of(packet).is_some_and(is_allowed)
                }
            }
        }
        // An ICMP error about something that is not ours: the kernel finds out whose it is.
        Err(Reason::IcmpOther) => {
            may_be_for_the_stack(destination, is_local) && packet::is_icmp_error(&work.frame)
        }
        // IGMP has options, and large packets of any protocol come in fragments.
        Err(Reason::UnsupportedProtocol | Reason::IpOptions | Reason::Fragment) => {
            match packet::other_protocol(&work.frame) {
                Some(protocol) => {
                    is_link_control(protocol, destination) || is_allowed(Service::without_ports(protocol))
                }
                // Of a datagram to a group: what is sent to this machine alone is the program
                // `fragment`'s.
                None if reason as u32 == Reason::Fragment as u32 => fragment::first_has_passed(work)?,
                None => false,
            }
        }
        Err(_) => false,
    };
    Err(noted(work, &parsed, if allowed { reason } else { Reason::LocalDenied }).into())
}

/// Returns `true` if a DHCP message has the transaction of one that this machine has sent.
#[inline(always)]
fn answers_dhcp(work: &Work) -> bool {
    dhcp_transaction(&work.frame).is_some_and(|transaction| own::has_sent(&dhcp_answer(transaction)))
}

/// Whether a source is held to what is allowed by name.
#[inline(always)]
pub(crate) fn is_closed_out(version: u32, source: Ipv4) -> bool {
    rules::in_force(version)
        .is_some_and(|rule_set| rule_set.others_are_closed != 0 || rules::is_a_rules_source(version, source))
}

/// What a packet leaves for; the later fragments of one that is the first of several do, too.
#[inline(always)]
fn noted(work: &Work, parsed: &Result<Packet, Reason>, reason: Reason) -> Reason {
    match parsed {
        Ok(packet) if packet.is_fragment => fragment::left(work, packet, reason),
        _ => reason,
    }
}

/// Searches the first `count` entries of `local.allow`, by steps of the address's family.
#[inline(always)]
pub(crate) fn an_entry_covers<A: Copy>(
    mut search: Search<A>,
    count: u32,
    step: unsafe extern "C" fn(u32, *mut Search<A>) -> i64,
) -> bool {
    // SAFETY: the callback is a BPF subprogram of the kernel's `bpf_loop` signature, and gets the
    // context that it expects.
    unsafe {
        bpf_loop(
            count.min(MAX_LOCAL_ALLOW as u32),
            step as *const () as *mut c_void,
            (&raw mut search).cast(),
            0,
        );
    }
    search.has_found()
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once.
///
/// # Safety
/// `search` points to a [`Search`] that nothing else uses meanwhile.
unsafe extern "C" fn step(position: u32, search: *mut Search<Ipv4>) -> i64 {
    // SAFETY: the caller's promise.
    let search = unsafe { &mut *search };
    search.look_at(LOCAL_ALLOW.get(search.index(position)))
}
