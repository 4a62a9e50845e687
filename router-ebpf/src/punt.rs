//! Handing packets to the daemon.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_RB_AVAIL_DATA, helpers::generated::bpf_xdp_load_bytes, macros::map,
    maps::RingBuf,
};
use router_common::{
    bounds,
    flow::NextHop,
    packet::{ETHERNET_LENGTH, IPV4_LENGTH},
    punt::{CAPACITY, Kind, Record},
    reason::Reason,
};

use crate::frame::XdpFrame;

/// Packets for the daemon, which reads them: room for nearly 300.
#[map]
static PUNTS: RingBuf = RingBuf::with_byte_size(SIZE, 0);

const SIZE: u32 = 1 << 20;

/// Why a packet could not be handed over.
enum Failure {
    TooLong,
    NoRoom,
    Internal,
}

/// Puts the first `length` bytes of a frame's IP packet into a record with room for `ROOM`.
#[inline(always)]
fn put<const ROOM: usize>(frame: &XdpFrame, length: u16, kind: Kind, detail: u32) -> Result<(), Failure> {
    let to_load = bounds::length::<ROOM>(u32::from(length)).ok_or(Failure::TooLong)?;
    let Some(mut record) = PUNTS.reserve::<Record<ROOM>>(0) else { return Err(Failure::NoRoom) };
    let punt = record.as_mut_ptr();
    // SAFETY: `punt` points to a whole reserved record, and at most its packet's room is written. Bytes that are not
    // written are not read: the daemon goes by the length.
    let loaded = unsafe {
        (&raw mut (*punt).kind).write(kind as u32);
        (&raw mut (*punt).detail).write(detail);
        (&raw mut (*punt).length).write(u32::from(length));
        bpf_xdp_load_bytes(
            frame.context().as_ptr().cast(),
            ETHERNET_LENGTH as u32,
            (&raw mut (*punt).packet).cast(),
            to_load,
        )
    };
    if loaded == 0 {
        record.submit(0);
        Ok(())
    } else {
        record.discard(0);
        Err(Failure::Internal)
    }
}

/// Gives a translated packet to the daemon, since the MAC address of its next hop is not known yet, or since it is larger than that takes;
/// the reason the packet leaves this program by.
#[inline(always)]
pub(crate) fn to_daemon(frame: &XdpFrame, ip_length: u16, next_hop: &NextHop) -> Reason {
    let unresolved = next_hop.pending != 0;
    let kind = if unresolved { Kind::Send } else { Kind::Split };
    match put::<CAPACITY>(frame, ip_length, kind, u32::from(next_hop.mtu)) {
        Ok(()) if unresolved => Reason::Resolving,
        Ok(()) => Reason::Fragmenting,
        Err(Failure::NoRoom) if unresolved => Reason::NeighbourUnresolved,
        Err(Failure::NoRoom | Failure::TooLong) => Reason::TooBig,
        Err(Failure::Internal) => Reason::Internal,
    }
}

/// Gives a copy of a fragment to the daemon, to be held until it can be told whose it is; whether it was.
#[inline(always)]
pub(crate) fn to_be_held(frame: &XdpFrame, ip_length: u16) -> bool {
    // Anybody can send these, as many as they like: half of the room is for packets that have been judged.
    PUNTS.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(SIZE / 2)
        && put::<CAPACITY>(frame, ip_length, Kind::Hold, frame.ingress_index()).is_ok()
}

/// Tells the daemon that fragments of the same datagram as this one need not be held any longer.
#[inline(always)]
pub(crate) fn release(frame: &XdpFrame) {
    // Without room those that are held are lost, as packets are.
    let _ = put::<IPV4_LENGTH>(frame, IPV4_LENGTH as u16, Kind::Release, 0);
}
