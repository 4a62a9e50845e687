//! Tracks the state of sessions, see [`router_common::session`].
//!
//! In two global functions: the verifier looks at each once, and not at each of its paths in
//! combination with those of the callers.

use router_common::{
    maps::settings::Live,
    packet::Packet,
    session::{End, Seen, Segment, Step, Track, Window},
    table::Slot,
    tuple::{Direction, Protocol},
};

use crate::maps::{flows, half_open, settings};

/// Updates a session's state by a packet of this flow. Returns `true` if the fast path takes the
/// flow's next packet.
#[inline(always)]
pub(crate) fn follow(slot: &Slot, packet: &Packet) -> bool {
    let flags = u32::from(packet.tcp_flags) | u32::from(packet.carries_data) << CARRIES_DATA_SHIFT;
    session_follow(slot, flags, packet.sequence, packet.acknowledgement) != 0
}

/// The bit in the flags of `session_follow`, above those of the segment, that says whether the
/// segment carries data.
const CARRIES_DATA_SHIFT: u32 = 8;

/// As [`follow`]; returns 1 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn session_follow(slot: *const Slot, flags: u32, sequence: u32, acknowledgement: u32) -> u32 {
    // SAFETY: `follow` has made it of a reference.
    let (Some(slot), Some(settings)) = (unsafe { slot.as_ref() }, settings::get()) else { return 0 };
    let tag = slot.tag();
    let is_fast = if tag.protocol_number() == Protocol::Tcp as u8 {
        let segment = Segment {
            direction: tag.direction(),
            flags: flags as u8,
            sequence,
            acknowledgement,
            carries_data: flags >> CARRIES_DATA_SHIFT & 1 != 0,
        };
        follow_segment(settings, slot, &segment)
    } else {
        follow_datagram(settings, slot);
        true
    };
    u32::from(is_fast)
}

/// Marks a UDP or ICMP session as established with its first reply.
#[inline(always)]
fn follow_datagram(settings: &Live, slot: &Slot) {
    if matches!(slot.tag().direction(), Direction::Forward) || slot.entry.packets() != 0 {
        return;
    }
    let forward_key = slot.key().twin(&slot.entry.rewrite());
    if let Some(forward) = flows::find(&forward_key, settings)
        && forward.end_opening()
    {
        half_open::leave(settings, forward_key.source);
    }
}

#[inline(always)]
fn follow_segment(settings: &Live, slot: &Slot, segment: &Segment) -> bool {
    let (key, twin_key) = (slot.key(), slot.key().twin(&slot.entry.rewrite()));
    let Some(twin) = flows::find(&twin_key, settings) else { return false };
    let is_reply = matches!(segment.direction, Direction::Reply);
    let (forward, reply, client) =
        if is_reply { (twin, slot, twin_key.source) } else { (slot, twin, key.source) };
    // In the reverse order of the writes, so that the forward flow's view of the reply flow is
    // never ahead of the reply flow itself.
    let forward_tag = forward.tag();
    let (forward_seen, reply_seen) = (forward_tag.seen(), reply.tag().seen());
    let before = u32::from(forward_seen.bits())
        | u32::from(reply_seen.bits()) << REPLY_SHIFT
        | u32::from(segment.flags) << FLAGS_SHIFT
        | u32::from(forward_tag.is_opening()) << OPENING_SHIFT
        | u32::from(is_reply) << DIRECTION_SHIFT
        | u32::from(segment.carries_data) << DATA_SHIFT
        | u32::from(slot.entry.is_out_of_window() && twin.entry.is_out_of_window()) << ANOTHER_SHIFT;
    let after = tcp_step(
        u64::from(before)
            | u64::from(slot.entry.sent()) << SENDER_SENT_SHIFT
            | u64::from(twin.entry.sent()) << RECEIVER_SENT_SHIFT,
        segment.sequence,
        segment.acknowledgement,
        slot.entry.expects(),
        twin.entry.expects(),
    );
    let (is_opening, is_over) = (after >> OPENING_SHIFT & 1 != 0, after & IS_OVER != 0);
    reply.note_seen(reply_seen, Seen::from_bits((after >> REPLY_SHIFT) as u8));
    forward.note_seen(forward_seen, Seen::from_bits(after as u8));
    // Only the forward flow is marked as opening.
    if forward_tag.is_opening() && !is_opening && forward.end_opening() {
        half_open::leave(settings, client);
    }
    if after & SENDER_EXPECTS != 0 {
        slot.entry.set_expects(segment.acknowledgement);
    }
    if after & SENDER_SENT != 0 {
        slot.entry.set_sent((segment.sequence >> 16) as u16);
    }
    if after & RECEIVER_EXPECTS != 0 {
        twin.entry.set_expects(segment.after_syn());
    }
    if after & RECEIVER_SENT != 0 {
        twin.entry.set_sent((segment.acknowledgement >> 16) as u16);
    }
    if after & INSIDE != 0 {
        slot.entry.forget_out_of_window();
        twin.entry.forget_out_of_window();
    }
    if after & OUTSIDE != 0 {
        slot.entry.note_out_of_window(flows::now());
    }
    if is_over || after & OUTSIDE != 0 {
        // The next packet of the other side shows whether the connection is over, or whether the
        // segment belongs to another one.
        twin.entry.forget_next_hop();
        return false;
    }
    // Until the handshake is over, every packet of the client may change the state. So may every
    // packet while a segment out of window is recorded: the record takes the place of the next hop,
    // and an answer clears it.
    let is_noted = slot.entry.has_been_out_of_window() || twin.entry.has_been_out_of_window();
    (!is_opening || is_reply) && !is_noted
}

// Argument of `tcp_step`: the TCP flags seen of the forward flow in the lowest bits, and from these
// bits on the rest.
const REPLY_SHIFT: u32 = 8;
const FLAGS_SHIFT: u32 = 16;
const OPENING_SHIFT: u32 = 24;
const DIRECTION_SHIFT: u32 = 25;
const DATA_SHIFT: u32 = 26;
/// Set if a segment out of window belongs to another connection.
const ANOTHER_SHIFT: u32 = 27;
const SENDER_SENT_SHIFT: u32 = 32;
const RECEIVER_SENT_SHIFT: u32 = 48;
// Result of `tcp_step`: the TCP flags seen of both flows and the opening mark, in the same places;
// the `Moves`; the segment's place relative to the window; and whether the connection is over.
const SENDER_EXPECTS: u32 = 1 << 16;
const SENDER_SENT: u32 = 1 << 17;
const RECEIVER_EXPECTS: u32 = 1 << 18;
const RECEIVER_SENT: u32 = 1 << 19;
const INSIDE: u32 = 1 << 20;
const OUTSIDE: u32 = 1 << 21;
const IS_OVER: u32 = 1 << 22;

/// Takes a step of [`Track`], with arguments and result packed into numbers.
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
    let segment = Segment {
        direction: if is_reply { Direction::Reply } else { Direction::Forward },
        flags: (packed >> FLAGS_SHIFT) as u8,
        sequence,
        acknowledgement,
        carries_data: bit(DATA_SHIFT),
    };
    let mut step = Track { client, target, opening: bit(OPENING_SHIFT) }.after(&segment);
    if matches!(step.window, Window::Outside) && bit(ANOTHER_SHIFT) {
        step = Step::into_new_connection();
    }
    let Step { track, moves, window } = step;
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    u32::from(track.client.seen.with_other(track.target.seen).bits())
        | u32::from(track.target.seen.bits()) << REPLY_SHIFT
        | u32::from(track.opening) << OPENING_SHIFT
        | flag(moves.sender_expects, SENDER_EXPECTS)
        | flag(moves.sender_sent, SENDER_SENT)
        | flag(moves.receiver_expects, RECEIVER_EXPECTS)
        | flag(moves.receiver_sent, RECEIVER_SENT)
        | flag(matches!(window, Window::Inside), INSIDE)
        | flag(matches!(window, Window::Outside), OUTSIDE)
        | flag(track.connection().is_over(), IS_OVER)
}
