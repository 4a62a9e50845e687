//! The program `fragment` (RFC 791 3.2, RFC 4787 REQ-14).
//!
//! The first fragment of a datagram has ports and is processed like any other packet: it matches a
//! session or opens one. It records its datagram ([`datagrams`]), by which later fragments find
//! their flow. An early fragment, one that arrives before the first, is queued with the daemon,
//! which hands it to this program again when the first one has arrived.

use router_common::{
    fragment::Fragment,
    maps::stages::Stage,
    packet,
    policy::{disposition::Departure, lookup::is_closed_out},
    reason::Reason,
    wire::Frame as _,
};

use crate::{
    kernel::{next_hop, punt},
    maps::{addresses, flows, peers, rules},
    session::{
        datagrams,
        departure::{self, dispose, end_without_next_hop},
        existing,
        lookup::InForce,
        rewrite::{address_frame, record_packet},
    },
    work::{Exit, Outcome, Transmit, Work},
};

/// Forwards a fragment.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let fragment = match Fragment::parse(&work.frame) {
        Ok(fragment) => fragment,
        Err(Reason::UnsupportedProtocol | Reason::Truncated | Reason::Malformed) => {
            return Err(Exit::To(Stage::Local));
        }
        Err(reason) => return Err(reason.into()),
    };
    if fragment.is_first() { first(work, &fragment) } else { later(work, &fragment) }
}

#[inline(always)]
fn first(work: &mut Work, fragment: &Fragment) -> Outcome {
    let packet = match packet::parse_leading(&work.frame) {
        Ok(packet) => packet,
        // ICMP errors are not fragmented: they have 576 bytes at most (RFC 1812 4.3.2.3).
        Err(Reason::IcmpOther | Reason::Truncated | Reason::Malformed) => {
            return Err(Exit::To(Stage::Local));
        }
        Err(reason) => return Err(reason.into()),
    };
    // If it opens a session, the fragment comes back here afterwards. If not,
    // [`datagrams::note_reason`] records the reason.
    let slot = existing::find(work, &packet)?;
    datagrams::begin(work, fragment, &packet.key, Reason::Forwarded)?;
    let outcome = existing::forward(work, &packet, slot);
    if let Err(Exit::Verdict(Reason::Resolving)) = outcome {
        datagrams::forget(&fragment.key);
    }
    outcome
}

#[inline(always)]
fn later(work: &mut Work, fragment: &Fragment) -> Outcome {
    let Some(datagram) = datagrams::find(&fragment.key) else { return early(work, fragment) };
    let (flow, verdict) = (datagram.flow(), datagram.verdict());
    if verdict != Reason::Forwarded as u32 {
        datagrams::cover(fragment)?;
        return Err(Reason::from_number(verdict).unwrap_or(Reason::Internal).into());
    }
    // The session may have ended this moment.
    let slot = flows::find(&flow, work.settings).ok_or(Reason::FragmentBad)?;
    if !slot.tag().may_come_in_by(work.ingress) {
        return Err(Reason::WrongInterface.into());
    }
    let rewrite = slot.entry.rewrite();
    let ip_length = fragment.ip_length();
    let departing = Departure::of_later_fragment(ip_length, fragment.dont_fragment);
    // Before the fragment is entered into its datagram: one that waits for its neighbour comes here
    // again.
    let next_hop = if slot.entry.next_hop().is_current(work.settings.next_hop_generation()) {
        slot.entry.next_hop()
    } else {
        departure::find_next_hop(work, &next_hop::query(work, &flow, &rewrite))
            .map_err(|reason| end_without_next_hop(work, ip_length, reason, &departing))?
    };
    datagrams::cover(fragment)?;
    if fragment.ttl <= 1 {
        return Err(Reason::TtlExpired.into());
    }
    // The first fragment was not sent. If this one were the flow's first packet, a real reply could
    // not end the opening of the session any more.
    if slot.entry.packets() == 0 {
        return Err(Reason::FragmentBad.into());
    }
    let next_hop = dispose(work, ip_length, next_hop, &departing)?;
    let now = work.stats.now();
    record_packet(&slot.entry, work.frame.length(), now);
    let tag = slot.tag();
    slot.entry.translate_header(work.frame.bytes_mut(0).ok_or(Reason::Internal)?);
    work.stats.translated(tag, work.frame.length());
    if departing.is_too_big(next_hop.mtu) {
        return Err(punt::split(work, ip_length, &next_hop).into());
    }
    address_frame(work, &next_hop)?;
    Ok(Transmit { reason: Reason::Forwarded, slot: u32::from(next_hop.slot) })
}

/// Ends an early fragment, or one of a datagram whose first fragment never arrives.
#[inline(always)]
fn early(work: &Work, fragment: &Fragment) -> Outcome {
    if work.settings.daemon_is_there(flows::now()) && may_match_session(work, fragment) {
        datagrams::queue_early(work, fragment);
    }
    // The kernel gets fragments that may be for this machine, and reassembles the datagram if it
    // gets the first one. Otherwise it discards them silently (RFC 1122 3.3.2: no error without the
    // first fragment).
    Err(if may_be_for_the_kernel(work, fragment) { Reason::Fragment } else { Reason::FragmentEarly }.into())
}

/// Returns `true` if an unmatched fragment may belong to a session or open one: it is from a source
/// that a rule names, or from the target of a session, and to an address of this machine.
#[inline(always)]
fn may_match_session(work: &Work, fragment: &Fragment) -> bool {
    let (version, key) = (work.settings.version(), &fragment.key);
    rules::is_rule_source(version, key.source)
        || (peers::is_target(work.settings, key.source)
            && (addresses::is_local(key.destination) || rules::has_snat_address(version, key.destination)))
}

/// Returns `true` if an unmatched fragment may be for this machine itself. Not from a closed-out
/// source: fragments of a datagram for an allowed service are lost if they arrive out of order.
#[inline(always)]
fn may_be_for_the_kernel(work: &Work, fragment: &Fragment) -> bool {
    let destination = fragment.key.destination;
    (addresses::is_local(destination) || !destination.is_unicast())
        && !InForce::new(work).is_some_and(|in_force| is_closed_out(&in_force, fragment.key.source))
}
