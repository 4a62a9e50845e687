//! Fragments (RFC 791 3.2, RFC 4787 REQ-14).
//!
//! The first fragment of a datagram has ports, and is a packet of its flow like any other: it opens
//! a session, or belongs to one. It leaves a note ([`datagrams`]), by which later ones find their
//! flow. One that comes before the first is held by the daemon, which gives it to this program
//! again when the first has come.

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
        rewrite::{address, touch},
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
        // An ICMP error about a session is never that long (RFC 1812 4.3.2.3).
        Err(Reason::IcmpOther | Reason::Truncated | Reason::Malformed) => {
            return Err(Exit::To(Stage::Local));
        }
        Err(reason) => return Err(reason.into()),
    };
    // If that opens a session, the fragment comes back here. If not, [`datagrams::note_reason`]
    // notes it.
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
    // Before it is entered into its datagram: one that has to wait comes here again.
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
    // The first did not go out. As the flow's first packet, this one would keep a real one from
    // ending the session's opening.
    if slot.entry.packets() == 0 {
        return Err(Reason::FragmentBad.into());
    }
    let next_hop = dispose(work, ip_length, next_hop, &departing)?;
    let now = work.stats.now();
    touch(&slot.entry, work.frame.length(), now);
    let tag = slot.tag();
    slot.entry.translate_header(work.frame.bytes_mut(0).ok_or(Reason::Internal)?);
    work.stats.translated(tag, work.frame.length());
    if departing.is_too_big(next_hop.mtu) {
        return Err(punt::split(work, ip_length, &next_hop).into());
    }
    address(work, &next_hop)?;
    Ok(Transmit { reason: Reason::Forwarded, slot: u32::from(next_hop.slot) })
}

/// A fragment that comes before its first, or whose first never comes.
#[inline(always)]
fn early(work: &Work, fragment: &Fragment) -> Outcome {
    if work.settings.daemon_is_there(flows::now()) && may_be_a_sessions(work, fragment) {
        datagrams::hold(work, fragment);
    }
    // The kernel gets what may be its own, too, and puts it together with the first if it gets
    // that. If it does not, it forgets about it without a word (RFC 1122 3.3.2: no error without
    // the first fragment).
    Err(if may_be_for_the_kernel(work, fragment) { Reason::Fragment } else { Reason::FragmentEarly }.into())
}

/// Returns `true` if a fragment of which is not known whose it is may be of a session, or open one:
/// it is from a rule's source, or from whom a session leads to, and to an address of this
/// machine's.
#[inline(always)]
fn may_be_a_sessions(work: &Work, fragment: &Fragment) -> bool {
    let (version, key) = (work.settings.version(), &fragment.key);
    rules::is_rule_source(version, key.source)
        || (peers::is_one(work.settings, key.source)
            && (addresses::is_local(key.destination) || rules::has_snat_address(version, key.destination)))
}

/// Whether a fragment of which is not known whose it is may be for this machine itself. Not from a
/// source that may not reach everything here: what is then for a service that it is allowed is lost
/// if it comes in the wrong order.
#[inline(always)]
fn may_be_for_the_kernel(work: &Work, fragment: &Fragment) -> bool {
    let destination = fragment.key.destination;
    (addresses::is_local(destination) || !destination.is_unicast())
        && !InForce::new(work).is_some_and(|in_force| is_closed_out(&in_force, fragment.key.source))
}
