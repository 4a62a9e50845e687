//! Rewriting a session's packets, and addressing frames to their next hop.

use router_common::{
    entry::{FlowEntry, NextHop},
    maps::settings::Live,
    packet::{self, Packet},
    reason::Reason,
    rewrite::Link,
    table::Tag,
    time::Ticks,
    wire::{ETHERNET_LENGTH, Frame as _},
};

use crate::{
    kernel::generic_mode,
    work::{Outcome, Transmit, Work},
};

/// Records a packet in its flow's entry.
#[inline(always)]
pub(crate) fn record_packet(entry: &FlowEntry, length: usize, now: Ticks) {
    // Written at most once a tick: each write takes the cache line from other CPUs.
    if entry.last_seen() != now {
        entry.set_last_seen(now);
    }
    entry.count(length as u32);
}

/// Translates a packet, addresses it to its next hop and counts it for its rule.
#[inline(always)]
pub(crate) fn translate_and_send(
    work: &mut Work,
    packet: &Packet,
    entry: &FlowEntry,
    next_hop: &NextHop,
    tag: Tag,
    reason: Reason,
) -> Outcome {
    let link = link(work.settings, next_hop);
    // Parsing has ruled out that the frame is shorter than its headers.
    let is_partial = generic_mode::has_partial_checksum(work, packet);
    entry.translate(packet, Some(&link), &mut work.frame).ok_or(Reason::Internal)?;
    if is_partial {
        packet::write_partial_checksum(&mut work.frame, packet).ok_or(Reason::Internal)?;
    }
    work.stats.translated(tag, work.frame.length());
    Ok(Transmit { reason, slot: u32::from(next_hop.slot) })
}

/// Returns the Ethernet addresses of frames to a next hop.
#[inline(always)]
pub(crate) fn link(settings: &Live, next_hop: &NextHop) -> Link {
    let source = settings.mac(u32::from(next_hop.slot));
    Link { destination: next_hop.destination_mac, source }
}

/// Translates a packet from the IP header on.
#[inline(always)]
pub(crate) fn translate(work: &mut Work, packet: &Packet, entry: &FlowEntry) -> Result<(), Reason> {
    entry.translate(packet, None, &mut work.frame).ok_or(Reason::Internal)
}

/// Addresses a frame to its next hop.
#[inline(always)]
pub(crate) fn address_frame(work: &mut Work, next_hop: &NextHop) -> Result<(), Reason> {
    link(work.settings, next_hop).apply(work.frame.bytes_mut::<ETHERNET_LENGTH>(0).ok_or(Reason::Internal)?);
    Ok(())
}
