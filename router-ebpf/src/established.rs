//! The fast path: a packet of a known session that needs nothing but its rewrite.

use router_common::{
    Stage,
    address::Ipv4,
    flow::{Direction, FlowEntry, NextHop},
    packet::{self, ETHERNET_LENGTH, Frame as _, Packet},
    reason::Reason,
    rewrite::{Link, Rewrite},
    session::{Seen, Ticks},
    table::Tag,
};

use crate::{Exit, Outcome, Transmit, Work, flows, stats};

/// Makes a packet of a known session what it becomes, and answers with the egress interface's slot; everything else is the slow path's.
#[inline(always)]
pub(crate) fn forward(work: &mut Work) -> Result<u32, Exit> {
    // First, since it is a call: what is in registers then would have to be kept on the stack.
    let now = stats::now(work.stats);
    let packet = match packet::parse(&work.frame) {
        Ok(packet) => packet,
        // Not for this program at all.
        Err(Reason::NotIpv4) => return Err(Reason::NotIpv4.into()),
        Err(_) => return Err(Exit::To(Stage::Slow)),
    };
    let Some(slot) = flows::find_near(&packet.key, work.settings) else {
        return Err(Exit::To(Stage::Slow));
    };
    let entry = &mut slot.entry;
    let next_hop = entry.next_hop();
    if !next_hop.is_of(work.settings.next_hop_generation)
        || packet.ttl <= 1
        || packet.ip_length > next_hop.mtu
        || packet.tcp_flags & Seen::FLAGS != 0
    {
        return Err(Exit::To(Stage::Slow));
    }
    let rewrite = entry.rewrite();
    record(entry, &packet, work, now);
    make(work, &packet, &rewrite, &next_hop)?;
    count_for_rule(work, slot.tag());
    Ok(u32::from(next_hop.slot))
}

/// Records a packet in its flow's entry.
#[inline(always)]
pub(crate) fn record(entry: &mut FlowEntry<Ipv4>, packet: &Packet, work: &Work, now: Ticks) {
    if packet.tcp_flags & packet::tcp::ACK != 0 {
        entry.last_acknowledged = packet.acknowledgement;
    }
    touch(entry, work, now);
}

/// Records in a flow's entry that there was a packet.
#[inline(always)]
pub(crate) fn touch(entry: &mut FlowEntry<Ipv4>, work: &Work, now: Ticks) {
    // Written once a tick at most: a write would take the cache line from other CPUs for nothing.
    if entry.last_seen != now {
        entry.last_seen = now;
    }
    entry.count(work.frame.length() as u32);
}

/// Makes a packet what it becomes, addresses it to its next hop and counts it for its rule.
#[inline(always)]
pub(crate) fn send(
    work: &mut Work,
    packet: &Packet,
    rewrite: &Rewrite<Ipv4>,
    next_hop: &NextHop,
    tag: Tag,
    reason: Reason,
) -> Outcome {
    make(work, packet, rewrite, next_hop)?;
    count_for_rule(work, tag);
    Ok(Transmit { reason, slot: u32::from(next_hop.slot) })
}

/// Makes a packet what it becomes, and addresses it to its next hop.
#[inline(always)]
fn make(work: &mut Work, packet: &Packet, rewrite: &Rewrite<Ipv4>, next_hop: &NextHop) -> Result<(), Reason> {
    let link = link(work, next_hop);
    // Parsing has ruled out that the frame is shorter than its headers.
    rewrite.apply(packet, Some(&link), &mut work.frame).ok_or(Reason::Internal)
}

/// The Ethernet addresses of frames to a next hop.
#[inline(always)]
fn link(work: &Work, next_hop: &NextHop) -> Link {
    let source = work.settings.interface(u32::from(next_hop.slot)).mac;
    Link { destination: next_hop.destination_mac, source }
}

/// Makes a packet what it becomes, from the IP header on.
#[inline(always)]
pub(crate) fn translate(work: &mut Work, packet: &Packet, rewrite: &Rewrite<Ipv4>) -> Result<(), Reason> {
    rewrite.apply(packet, None, &mut work.frame).ok_or(Reason::Internal)
}

/// Addresses a frame to its next hop.
#[inline(always)]
pub(crate) fn address(work: &mut Work, next_hop: &NextHop) -> Result<(), Reason> {
    link(work, next_hop).apply(work.frame.bytes_mut::<ETHERNET_LENGTH>(0).ok_or(Reason::Internal)?);
    Ok(())
}

/// Counts a packet that leaves for the rule that opened its session.
#[inline(always)]
pub(crate) fn count_for_rule(work: &mut Work, tag: Tag) {
    let bytes = work.frame.length() as u64;
    let rule = stats::rule(work.stats, tag.rule());
    match tag.direction() {
        Direction::Forward => rule.forward.count(bytes),
        Direction::Reply => rule.reply.count(bytes),
    }
}
