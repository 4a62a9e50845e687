//! The program `open`: decides whether a packet opens a session, by which rule and where to.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_get_prandom_u32, programs::XdpContext};
use router_common::{
    maps::{route::Query, stages::Stage},
    packet::{self, Packet},
    policy::{disposition::Departure, matching},
    ports::SourcePorts,
    reason::Reason,
    table::source_hash,
    tuple::Protocol,
};

use crate::{
    kernel::{frame::XdpFrame, generic_mode, next_hop},
    maps::{addresses, rules},
    session::{
        answer_request, datagrams,
        departure::{self, find_and_dispose},
        lookup::InForce,
        opening,
    },
    work::{Exit, Outcome, Work},
};

/// Decides whether a packet opens a session. The stage `claim` does the rest, since the stack of
/// one program is too small for both.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let packet = packet::parse_leading(&work.frame)?;
    match decide_on(work, &packet) {
        // A packet that waits comes again, and its datagram is recorded then.
        Err(Exit::Verdict(reason)) if packet.is_fragment && reason as u32 != Reason::Resolving as u32 => {
            Err(datagrams::note_reason(work, &packet, reason).into())
        }
        outcome => outcome,
    }
}

#[inline(always)]
fn decide_on(work: &Work, packet: &Packet) -> Outcome {
    let in_force = InForce::new(work).ok_or(Reason::NotConfigured)?;
    let (is_kept, last) = opening::last_destination().ok_or(Reason::Internal)?;
    let last = is_kept.then_some(last);
    let keep = last.map(|last| (last.target, last.target_port));
    let found = matching::find(packet, random(), keep, &in_force).map_err(|refusal| {
        if let Some(rule) = refusal.denied_by {
            work.stats.denied(rule);
        }
        refusal.reason
    });
    let found = match found {
        Ok(found) => found,
        Err(Reason::NotMatched) => return Err(Exit::To(Stage::Local)),
        // The kernel answers packets to this machine itself.
        Err(Reason::NoSession)
            if packet.protocol != Protocol::Tcp || addresses::is_local(packet.key.destination) =>
        {
            return Err(Reason::NoSession.into());
        }
        Err(Reason::NoSession) if packet.ttl <= 1 => return Err(answer_request::time_exceeded()),
        Err(reason) => return Err(departure::refuse(work, reason)),
    };
    if syn_checksum_is_valid(work.frame.context().ctx) == 0
        && !generic_mode::has_partial_checksum(work, packet)
    {
        return Err(Reason::BadChecksum.into());
    }
    if packet.ttl <= 1 {
        return Err(answer_request::time_exceeded());
    }
    // Before anything is stored: a session that cannot leave is not opened.
    let query = Query::new(
        packet.protocol as u8,
        next_hop::tos(work),
        (packet.key.source, packet.key.source_port),
        (found.target, found.target_port),
    );
    let length = generic_mode::length_on_wire(work, packet);
    let departing = Departure::of_packet(length, packet.dont_fragment);
    let next_hop = find_and_dispose(work, packet.ip_length, &query, &departing)?;
    let again = last.map(|last| last.snat).filter(|snat| rules::has_snat_address(in_force.version, *snat));
    let snat = match again.or_else(|| in_force.rule_set.snat_address(random())) {
        Some(given) => given,
        None => next_hop::preferred_source(found.target).ok_or(Reason::NoSourceAddress)?,
    };
    let ports =
        SourcePorts::new(in_force.rule_set.ports, source_hash(&work.settings.seeds(), packet.key.source));
    opening::prepare(packet, &found, snat, ports, random(), next_hop).ok_or(Reason::Internal)?;
    Err(Exit::To(Stage::Claim))
}

/// Returns 0 if the checksum of a packet that opens a session is wrong, see
/// [`packet::syn_checksum_is_valid`]. A global function: the verifier looks at its loop once, and
/// not on every path that leads to it. It parses the packet again, at the cost of first packets
/// only.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn syn_checksum_is_valid(context: *mut xdp_md) -> u32 {
    let frame = XdpFrame::new(XdpContext::new(context));
    let packet = packet::parse_leading(&frame);
    u32::from(packet.is_ok_and(|packet| packet::syn_checksum_is_valid(&frame, &packet)))
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: takes nothing and always answers.
    unsafe { bpf_get_prandom_u32() }
}
