//! Packets of existing sessions beyond the fast path: their next hop has to be resolved again, they
//! change the session's state, or they cannot be forwarded.

use aya_log_ebpf::debug;
use router_common::{
    packet::Packet,
    policy::disposition::Departure,
    reason::Reason,
    session::Connection,
    table::Slot,
    tcp,
    tuple::{Direction, Protocol},
    wire::Frame as _,
};

use crate::{
    kernel::{generic_mode, next_hop, punt, sockets},
    maps::flows,
    session::{
        answer_request,
        departure::{dispose, find_and_dispose},
        mss, opening,
        rewrite::{record_packet, translate, translate_and_send},
        tracking,
    },
    work::{Exit, Outcome, Work},
};

/// Finds the flow that a packet matches.
///
/// # Errors
/// Returns the stage that continues if the packet matches no session, or opens another connection
/// of a session that is over: the current rules decide about it, as about any first packet. Returns
/// an error if it is a client's packet that came in on the firewall's side.
#[inline(always)]
pub(crate) fn find(work: &Work, packet: &Packet) -> Result<&'static Slot, Exit> {
    // The first packet comes here again when its session is open.
    let slot = match opening::slot_of(&packet.key) {
        Some(slot) => slot,
        None => match flows::find_or_vacancy(&packet.key, work.settings) {
            Ok(slot) => slot,
            Err(vacancy) => return Err(opening::request_opening(vacancy)),
        },
    };
    if !slot.tag().may_come_in_by(work.ingress) {
        return Err(Reason::WrongInterface.into());
    }
    if packet.protocol == Protocol::Tcp
        && packet.opens()
        && matches!(slot.tag().direction(), Direction::Forward)
        && let Some(is_certain) = has_ended(work, slot)
    {
        return Err(opening::request_reopening(slot, is_certain));
    }
    Ok(slot)
}

/// Returns `true` if the connection of a client's flow has ended for certain, `false` if it may
/// have, and `None` if it has not.
#[inline(always)]
fn has_ended(work: &Work, forward: &Slot) -> Option<bool> {
    let Some(reply) = flows::find(&forward.key().twin(&forward.entry.rewrite()), work.settings) else {
        return Some(true);
    };
    let connection = Connection { forward: forward.tag().seen(), reply: reply.tag().seen(), opening: false };
    connection.is_over().then(|| connection.is_certainly_over())
}

/// Forwards a packet of an existing session.
#[inline(always)]
pub(crate) fn forward(work: &mut Work, packet: &Packet, slot: &Slot) -> Outcome {
    if packet.ttl <= 1 {
        return Err(answer_request::time_exceeded());
    }
    if is_taken_by_a_connection(work, packet, slot) {
        return Err(Reason::NotMatched.into());
    }
    let rewrite = slot.entry.rewrite();
    let tag = slot.tag();
    let length = generic_mode::length_on_wire(work, packet);
    let first = slot.entry.packets() == 0 && matches!(tag.direction(), Direction::Forward);
    let known = slot.entry.next_hop();
    let departing = Departure::of_packet(length, packet.dont_fragment);
    let next_hop = match opening::next_hop_of(&packet.key) {
        Some(next_hop) if first => dispose(work, packet.ip_length, next_hop, &departing),
        // Frames that are too short for the fast path all come here, and need no look-up each time.
        // A handshake does, since its segment size has to be right, and so does a packet that seems
        // too big.
        _ if packet.tcp_flags & tcp::SYN == 0
            && known.is_current(work.settings.next_hop_generation())
            && length <= known.mtu =>
        {
            Ok(known)
        }
        _ => {
            let query = next_hop::query(work, &packet.key, &rewrite);
            find_and_dispose(work, packet.ip_length, &query, &departing)
        }
    }?;
    let fast = tracking::follow(slot, packet);
    let now = work.stats.now();
    record_packet(&slot.entry, work.frame.length(), now);
    let mut reason = Reason::Forwarded;
    if first {
        work.stats.opened(tag.rule());
        reason = opening::opened_as(&packet.key);
        debug!(
            work.frame.context(),
            "opened {:i}:{} as {:i}:{} to {:i}:{}",
            packet.key.source.0,
            packet.key.source_port.number(),
            rewrite.source.0,
            rewrite.source_port.number(),
            rewrite.destination.0,
            rewrite.destination_port.number()
        );
    }
    if fast {
        slot.entry.set_next_hop(&next_hop);
    } else {
        slot.entry.forget_next_hop();
    }
    mss::clamp(work, packet, &rewrite, tag, next_hop.mtu);
    if departing.is_too_big(next_hop.mtu) {
        translate(work, packet, &slot.entry)?;
        work.stats.translated(tag, work.frame.length());
        return Err(punt::split(work, packet.ip_length, &next_hop).into());
    }
    translate_and_send(work, packet, &slot.entry, &next_hop, tag, reason)
}

/// Returns `true` if a reply belongs to a connection that this machine itself has opened since,
/// from the session's port to the session's target. Two such connections cannot both be alive, so
/// the session is then marked as reset, and its later packets take the slow path.
#[inline(always)]
fn is_taken_by_a_connection(work: &Work, packet: &Packet, slot: &Slot) -> bool {
    let tag = slot.tag();
    let starts = packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
    if !matches!(tag.direction(), Direction::Reply)
        || packet.protocol != Protocol::Tcp
        || !(starts || tag.seen().any(tcp::RST))
        || !sockets::has_connection(work.frame.context().ctx, &packet.key)
    {
        return false;
    }
    slot.note_seen(tag.seen(), tag.seen().with_reset());
    true
}
