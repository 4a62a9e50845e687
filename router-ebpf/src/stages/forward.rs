//! The program `forward`, the fast path: packets of established sessions that need only their
//! rewrite.

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
    session::rewrite::{link, record_packet},
    work::Work,
};

/// Translates a packet of an established session and returns the egress slot. `None` sends it to
/// the slow path, for any reason: telling them apart here would slow down the packets that have
/// none.
#[inline(always)]
pub(crate) fn run(work: &mut Work, now: Ticks) -> Option<u32> {
    let length = work.frame.length();
    // As many bytes as TCP needs, also for other protocols, so that the end of the frame is checked
    // once. Only unpadded UDP and echoes of less than 12 bytes are shorter, and are left to the
    // slow path.
    let mut headers = work.frame.headers::<TCP_HEADERS>()?;
    // A frame for another machine that the link brings here must not be forwarded a second time.
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
        // Read again and not taken from the packet: those fields would be kept for packets without
        // TCP, too. Within a connection, all segments have ACK and few have other flags.
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
    record_packet(entry, length, now);
    let link = link(work.settings, &next_hop);
    entry.translate(&packet, Some(&link), &mut headers)?;
    work.stats.translated(slot.tag(), length);
    Some(u32::from(next_hop.slot))
}
