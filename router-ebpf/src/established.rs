//! The fast path: a packet of a known session that needs nothing but its rewrite.

use router_common::{
    address::Ipv4,
    flow::{NextHop, Protocol},
    packet::{self, Frame as _, Packet},
    reason::Reason,
    rewrite::{Rewrite, apply_ethernet},
    settings::Settings,
    stats::CpuStats,
};

use crate::{Outcome, Transmit, flows, frame::XdpFrame};

/// Forwards a packet of a known session; `None` is "the slow path's".
#[inline(always)]
pub(crate) fn forward(frame: &mut XdpFrame, settings: &Settings, stats: &mut CpuStats) -> Option<Outcome> {
    let packet = match packet::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Some(Err(reason)),
    };
    let entry = flows::get(&packet.key)?;
    let next_hop = &entry.next_hop;
    if next_hop.generation != settings.next_hop_generation
        || packet.ttl <= 1
        || packet.ip_length > next_hop.mtu
    {
        return None;
    }
    flows::record(entry, &packet, frame, stats);
    Some(match send(frame, &packet, &entry.rewrite, &entry.next_hop) {
        Some(slot) => Ok(Transmit { reason: Reason::Forwarded, slot }),
        None => Err(Reason::Internal),
    })
}

/// Makes a packet what it becomes and addresses it to its next hop; the slot it leaves by. `None` if the frame is shorter than
/// its headers, which parsing has ruled out.
#[inline(always)]
pub(crate) fn send(
    frame: &mut XdpFrame,
    packet: &Packet,
    rewrite: &Rewrite<Ipv4>,
    next_hop: &NextHop,
) -> Option<u32> {
    translate(frame, packet, rewrite)?;
    apply_ethernet(frame.bytes_mut(0)?, next_hop.destination_mac, next_hop.source_mac);
    Some(u32::from(next_hop.slot))
}

/// Makes a packet what it becomes, from the IP header on.
#[inline(always)]
pub(crate) fn translate(frame: &mut XdpFrame, packet: &Packet, rewrite: &Rewrite<Ipv4>) -> Option<()> {
    match packet.protocol {
        Protocol::Tcp => rewrite.apply_tcp(frame.bytes_mut(0)?),
        Protocol::Udp => rewrite.apply_udp(frame.bytes_mut(0)?),
        Protocol::Icmp => rewrite.apply_icmp_echo(frame.bytes_mut(0)?),
    }
    Some(())
}
