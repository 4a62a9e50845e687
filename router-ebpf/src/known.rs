//! Packets of known sessions that need more than a rewrite: their next hop is not known any more, they change the session's state, or
//! something about them stops them.

use aya_log_ebpf::debug;
use router_common::{
    flow::{Direction, NextHop, Protocol},
    packet::{Frame as _, Packet, tcp},
    reason::Reason,
    session::{End, Seen, Segment, Track},
    table::Slot,
};

use crate::{
    Exit, Outcome, Work, answer, claim, departure,
    established::{send, touch, translate},
    flows, half_open, mss, next_hop, punt, sockets, stats, unfinished,
};

/// Finds the flow of a packet.
///
/// # Errors
/// It has none, or opens another connection of a session that is over: whether and how, the rules of now say, as they do of any first packet.
#[inline(always)]
pub(crate) fn find(work: &Work, packet: &Packet) -> Result<&'static mut Slot, Exit> {
    // A packet comes here again once its session is open.
    let slot = match claim::slot_of(&packet.key) {
        Some(slot) => slot,
        None => match flows::find_or_vacancy(&packet.key, work.settings) {
            Ok(slot) => slot,
            Err(vacancy) => return Err(claim::ask_to_open(vacancy)),
        },
    };
    if packet.protocol == Protocol::Tcp
        && packet.opens()
        && matches!(slot.tag().direction(), Direction::Forward)
        && is_over(work, slot)
    {
        return Err(claim::ask_to_open_again(slot));
    }
    Ok(slot)
}

/// Whether the connection of a client's flow has ended.
#[inline(always)]
fn is_over(work: &Work, forward: &Slot) -> bool {
    let seen = forward.tag().seen();
    let reply = flows::find(&forward.key().twin(&forward.entry.rewrite()), work.settings);
    // Of what the target has shown, the client's flow has marks; but not of what `is_taken_by_a_connection` has found.
    seen.is_over() || reply.is_none_or(|reply| reply.tag().seen().any(tcp::RST))
}

/// Forwards a packet of a known session.
#[inline(always)]
pub(crate) fn forward(work: &mut Work, packet: &Packet, slot: &mut Slot) -> Outcome {
    if packet.ttl <= 1 {
        return Err(answer::time_exceeded());
    }
    if is_taken_by_a_connection(work, packet, slot) {
        return Err(Reason::NotMatched.into());
    }
    let rewrite = slot.entry.rewrite();
    let tag = slot.tag();
    let length = unfinished::length_on_wire(work, packet);
    let first = slot.entry.packets() == 0 && matches!(tag.direction(), Direction::Forward);
    let known = slot.entry.next_hop();
    let next_hop = match claim::next_hop_of(&packet.key) {
        Some(next_hop) if first => next_hop,
        // Frames that are too short for the fast path come here one and all, and need not ask each time. A handshake does,
        // since what it says of sizes has to be right, and so does a packet that seems too big.
        _ if packet.tcp_flags & tcp::SYN == 0
            && known.is_of(work.settings.next_hop_generation)
            && length <= known.mtu =>
        {
            known
        }
        _ => departure::find_next_hop(work, packet.ip_length, &next_hop::query(work, &packet.key, &rewrite))?,
    };
    may_leave(work, packet, &next_hop)?;
    let fast = follow(work, packet, slot);
    let now = stats::now(work.stats);
    touch(&mut slot.entry, work.frame.length(), now);
    let mut reason = Reason::Forwarded;
    if first {
        stats::decisions(work.stats, tag.rule()).opened += 1;
        reason = claim::opened_as(&packet.key);
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
    if length > next_hop.mtu {
        translate(work, packet, &slot.entry)?;
        stats::translated(work.stats, tag, work.frame.length());
        return Err(punt::split(work, packet.ip_length, &next_hop).into());
    }
    send(work, packet, &slot.entry, &next_hop, tag, reason)
}

/// Whether an answer is to a connection that this machine itself has made since, from the session's port to the session's target. Two such
/// connections cannot both live, so then the session is over, and its later packets come here, too.
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
    slot.note_seen(tag.seen(), tag.seen().and_reset());
    true
}

/// Whether the next hop takes a packet, or somebody can split it.
///
/// # Errors
/// Why not.
#[inline(always)]
pub(crate) fn may_leave(work: &Work, packet: &Packet, next_hop: &NextHop) -> Result<(), Exit> {
    if unfinished::length_on_wire(work, packet) <= next_hop.mtu {
        Ok(())
    } else if packet.dont_fragment {
        Err(answer::too_big(next_hop.mtu))
    } else if work.settings.daemon_is_there(flows::now()) {
        Ok(())
    } else {
        Err(Reason::TooBig.into())
    }
}

/// Has the session's state follow a packet; whether the next packet of this flow is the fast path's.
#[inline(always)]
fn follow(work: &Work, packet: &Packet, slot: &mut Slot) -> bool {
    let tag = slot.tag();
    let twin_key = slot.key().twin(&slot.entry.rewrite());
    if packet.protocol != Protocol::Tcp {
        // The first reply ends the opening.
        if matches!(tag.direction(), Direction::Reply)
            && slot.entry.packets() == 0
            && let Some(forward) = flows::find(&twin_key, work.settings)
            && forward.end_opening()
        {
            half_open::leave(work.settings, twin_key.source);
        }
        return true;
    }
    let Some(twin) = flows::find(&twin_key, work.settings) else { return false };
    let sent = u64::from(slot.entry.sent()) << SENDER_SENT_SHIFT
        | u64::from(twin.entry.sent()) << RECEIVER_SENT_SHIFT;
    let expects = [slot.entry.expects, twin.entry.expects];
    let is_reply = matches!(tag.direction(), Direction::Reply);
    let (forward, reply, client) =
        if is_reply { (&*twin, &*slot, twin_key.source) } else { (&*slot, &*twin, packet.key.source) };
    // In this order, the other way round than they are written: what the forward flow says of the reply flow is then never ahead of what that
    // says itself.
    let forward_tag = forward.tag();
    let (forward_seen, reply_seen) = (forward_tag.seen(), reply.tag().seen());
    let before = u32::from(forward_seen.bits())
        | u32::from(reply_seen.bits()) << REPLY_SHIFT
        | u32::from(packet.tcp_flags) << FLAGS_SHIFT
        | u32::from(forward_tag.is_opening()) << OPENING_SHIFT
        | u32::from(is_reply) << DIRECTION_SHIFT
        | u32::from(packet.carries_data) << DATA_SHIFT;
    let [sender_expects, receiver_expects] = expects;
    let after = tcp_step(
        u64::from(before) | sent,
        packet.sequence,
        packet.acknowledgement,
        sender_expects,
        receiver_expects,
    );
    let is_opening = after >> OPENING_SHIFT & 1 != 0;
    let is_over = after & IS_OVER != 0;
    reply.note_seen(reply_seen, Seen::from_bits((after >> REPLY_SHIFT) as u8));
    forward.note_seen(forward_seen, Seen::from_bits(after as u8));
    // Only the forward flow is marked as opening.
    if forward_tag.is_opening() && !is_opening && forward.end_opening() {
        half_open::leave(work.settings, client);
    }
    if after & SENDER_EXPECTS != 0 {
        slot.entry.expects = packet.acknowledgement;
    }
    if after & SENDER_SENT != 0 {
        slot.entry.set_sent((packet.sequence >> 16) as u16);
    }
    if after & RECEIVER_EXPECTS != 0 {
        twin.entry.expects = segment(packet, tag.direction()).behind_syn();
    }
    if is_over {
        // What the other side sends tells if it is not.
        twin.forget_next_hop();
    }
    // Until the handshake is over, and when the connection is, every packet may change the state.
    !is_over && (!is_opening || is_reply)
}

#[inline(always)]
const fn segment(packet: &Packet, direction: Direction) -> Segment {
    Segment {
        direction,
        flags: packet.tcp_flags,
        sequence: packet.sequence,
        acknowledgement: packet.acknowledgement,
        carries_data: packet.carries_data,
    }
}

// What `tcp_step` takes: the forward flow's flags, and from these bits on
const REPLY_SHIFT: u32 = 8;
const FLAGS_SHIFT: u32 = 16;
const OPENING_SHIFT: u32 = 24;
const DIRECTION_SHIFT: u32 = 25;
const DATA_SHIFT: u32 = 26;
const SENDER_SENT_SHIFT: u32 = 32;
const RECEIVER_SENT_SHIFT: u32 = 48;
// What it gives besides flags and opening, in the same places: whether the connection is over, and the `Moves`.
const IS_OVER: u32 = 1 << 28;
const SENDER_EXPECTS: u32 = 1 << 29;
const SENDER_SENT: u32 = 1 << 30;
const RECEIVER_EXPECTS: u32 = 1 << 31;

/// A step of [`Track`], in numbers, as a global function: the verifier looks at its many ways once, and not at each of them together with
/// each way that leads here and on from here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcp_step(
    packed: u64,
    sequence: u32,
    acknowledgement: u32,
    sender_expects: u32,
    receiver_expects: u32,
) -> u32 {
    let bit = |shift: u32| packed >> shift & 1 != 0;
    let is_reply = bit(DIRECTION_SHIFT);
    let forward = Seen::from_bits(packed as u8);
    let reply = Seen::from_bits((packed >> REPLY_SHIFT) as u8);
    let (sender, receiver) = if is_reply { (reply, forward) } else { (forward, reply) };
    let sender = End { seen: sender, expects: sender_expects, sent: (packed >> SENDER_SENT_SHIFT) as u16 };
    let receiver =
        End { seen: receiver, expects: receiver_expects, sent: (packed >> RECEIVER_SENT_SHIFT) as u16 };
    let (client, target) = if is_reply { (receiver, sender) } else { (sender, receiver) };
    let track = Track { client, target, opening: bit(OPENING_SHIFT) };
    let (after, moves) = track.after(&Segment {
        direction: if is_reply { Direction::Reply } else { Direction::Forward },
        flags: (packed >> FLAGS_SHIFT) as u8,
        sequence,
        acknowledgement,
        carries_data: bit(DATA_SHIFT),
    });
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    u32::from(after.client.seen.beside(after.target.seen).bits())
        | u32::from(after.target.seen.bits()) << REPLY_SHIFT
        | u32::from(after.opening) << OPENING_SHIFT
        | flag(after.connection().is_over(), IS_OVER)
        | flag(moves.sender_expects, SENDER_EXPECTS)
        | flag(moves.sender_sent, SENDER_SENT)
        | flag(moves.receiver_expects, RECEIVER_EXPECTS)
}
