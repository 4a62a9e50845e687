//! Packets of known sessions that need more than a rewrite: their next hop is not known any more, they change the session's state, or
//! something about them stops them.

use aya_log_ebpf::debug;
use router_common::{
    flow::{Direction, NextHop, Protocol},
    packet::{Packet, tcp},
    reason::Reason,
    session::{Connection, Segment, reset_is_in_window},
    table::Slot,
};

use crate::{
    Exit, Outcome, Work, answer, claim,
    established::{count_for_rule, record, send, translate},
    flows, half_open, mss, next_hop, punt, stats,
};

/// Forwards a packet of a known session.
#[inline(always)]
pub(crate) fn forward(work: &mut Work, packet: &Packet, slot: &mut Slot) -> Outcome {
    if packet.ttl <= 1 {
        return Err(answer::time_exceeded());
    }
    let rewrite = slot.entry.rewrite;
    let tag = slot.tag();
    let first = slot.entry.packets() == 0 && matches!(tag.direction(), Direction::Forward);
    let next_hop = match claim::next_hop_of(&packet.key) {
        Some(next_hop) if first => next_hop,
        _ => next_hop::resolve(work, packet.protocol, rewrite.source, rewrite.destination)?,
    };
    let fast = follow(work, packet, slot);
    record(&mut slot.entry, packet, work);
    let mut reason = Reason::Forwarded;
    if first {
        stats::rule(work.stats, tag.rule()).opened += 1;
        reason = Reason::Opened;
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
    let unresolved = next_hop.pending != 0;
    if unresolved {
        if !work.settings.daemon_is_there(flows::now()) {
            return Err(Reason::NeighbourUnresolved.into());
        }
    } else {
        may_leave(work, packet, &next_hop)?;
        if fast {
            slot.entry.set_next_hop(&next_hop);
        } else {
            slot.entry.forget_next_hop();
        }
    }
    mss::clamp(work, packet, &rewrite, tag, next_hop.mtu);
    if unresolved || packet.ip_length > next_hop.mtu {
        translate(work, packet, &rewrite)?;
        count_for_rule(work, tag);
        return Err(punt::to_daemon(&work.frame, packet.ip_length, &next_hop).into());
    }
    send(work, packet, &rewrite, &next_hop, tag, reason)
}

/// Whether the next hop takes a packet, or somebody can split it.
///
/// # Errors
/// Why not.
#[inline(always)]
pub(crate) fn may_leave(work: &Work, packet: &Packet, next_hop: &NextHop) -> Result<(), Exit> {
    if packet.ip_length <= next_hop.mtu {
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
    let twin_key = slot.key().twin(&slot.entry.rewrite);
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
    let direction = tag.direction();
    let (forward, reply) = match direction {
        Direction::Forward => (slot.entry.seen, twin.entry.seen),
        Direction::Reply => (twin.entry.seen, slot.entry.seen),
    };
    let (opening, client) = match direction {
        Direction::Forward => (tag.is_opening(), packet.key.source),
        Direction::Reply => (twin.tag().is_opening(), twin_key.source),
    };
    let before = Connection { forward, reply, opening };
    let segment = Segment {
        direction,
        flags: packet.tcp_flags,
        in_window: reset_is_in_window(packet.sequence, twin.entry.last_acknowledged),
    };
    let after = before.after(segment);
    let forward_seen = after.forward.beside(after.reply);
    let (this, other) = match direction {
        Direction::Forward => (forward_seen, after.reply),
        Direction::Reply => (after.reply, forward_seen),
    };
    slot.entry.seen = this;
    if twin.entry.seen != other {
        twin.entry.seen = other;
    }
    if before.opening && !after.opening {
        // Only the forward flow is marked, and only a packet of its own ends its opening.
        if slot.end_opening() {
            half_open::leave(work.settings, client);
        }
    }
    // Until the handshake is over, and after a reset, every packet may change the state.
    (!after.opening || matches!(direction, Direction::Reply)) && !this.any(tcp::RST)
}
