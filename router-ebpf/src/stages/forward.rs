//! The fast path: a packet of a known session that needs nothing but its rewrite.

use router_common::{
    packet,
    session::{End, Seen},
    tcp,
    time::Ticks,
    tuple::Protocol,
    wire::{Frame as _, TCP_HEADERS},
};

use crate::{
    maps::flows,
    session::rewrite::{link, touch},
    work::Work,
};

/// Makes a packet of a known session what it becomes, and answers with the egress interface's slot.
/// `None` if there is more to it, for whatever reason: to tell them apart here would cost those
/// packets that have none.
#[inline(always)]
pub(crate) fn run(work: &mut Work, now: Ticks) -> Option<u32> {
    let length = work.frame.length();
    // As many bytes as TCP has, also where it is not TCP: so where the frame ends is looked at
    // once. Only UDP and echoes of less than 12 bytes end before that, where nobody has padded the
    // frame, and are the slow path's.
    let mut headers = work.frame.headers::<TCP_HEADERS>()?;
    // A frame that the link brings here, but for another machine, is not to be sent on a second
    // time.
    if !packet::is_for(&headers, work.settings.mac(work.ingress)) {
        return None;
    }
    let packet = packet::parse(&headers).ok()?;
    let slot = flows::find_near(&packet.key, work.settings)?;
    let tag = slot.tag();
    let entry = &slot.entry;
    let next_hop = entry.next_hop();
    if !next_hop.is_current(work.settings.next_hop_generation())
        || packet.ttl <= 1
        || packet.ip_length > next_hop.mtu
        || !tag.may_come_in_by(work.ingress)
    {
        return None;
    }
    if packet.protocol == Protocol::Tcp {
        // Read anew and not taken from the packet, or these would be kept for packets that have
        // none, too. Within a connection, all have the one flag and few any of the others.
        if packet::tcp_flags(&headers)? & (Seen::FLAGS | tcp::ACK) != tcp::ACK {
            return None;
        }
        let (sequence, acknowledgement) = packet::tcp_numbers(&headers)?;
        if !End::continues(entry.expects(), entry.sent(), sequence, acknowledgement) {
            return None;
        }
        entry.set_expects(acknowledgement);
        entry.set_sent((sequence >> 16) as u16);
    }
    touch(entry, length, now);
    let link = link(work.settings, &next_hop);
    entry.translate(&packet, Some(&link), &mut headers)?;
    work.stats.translated(slot.tag(), length);
    Some(u32::from(next_hop.slot))
}
