//! Punting: packets that are handed to the daemon.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_RB_AVAIL_DATA, xdp_md},
    helpers::generated::bpf_xdp_load_bytes,
    macros::map,
    maps::RingBuf,
    programs::XdpContext,
};
use router_common::{
    address::Mac,
    bounds,
    entry::NextHop,
    maps::punt::{CAPACITY, Kind, Neighbour, Record},
    reason::Reason,
    wire::{ETHERNET_LENGTH, IPV4_LENGTH},
};

use crate::{
    kernel::{frame::XdpFrame, next_hop},
    work::Work,
};

/// Punted packets, read by the daemon: room for nearly 300.
#[map]
static PUNTS: RingBuf = RingBuf::with_byte_size(SIZE, 0);

const SIZE: u32 = 1 << 20;

/// The reason why a packet was not handed over.
enum Failure {
    TooLong,
    NoRoom,
    Internal,
}

/// The part of a [`Record`] before the packet.
struct Head {
    kind: Kind,
    interface: u32,
    mtu: u32,
    neighbour: Neighbour,
    mac: Mac,
}

impl Head {
    #[inline(always)]
    const fn new(kind: Kind, interface: u32) -> Self {
        Self { kind, interface, mtu: 0, neighbour: Neighbour::NONE, mac: Mac::new([0; 6]) }
    }
}

/// Submits the first `length` bytes of a frame's IP packet in a record with room for `ROOM`.
#[inline(always)]
fn put<const ROOM: usize>(frame: &XdpFrame, length: u16, head: &Head) -> Result<(), Failure> {
    let to_load = bounds::length::<ROOM>(u32::from(length)).ok_or(Failure::TooLong)?;
    let Some(mut record) = PUNTS.reserve::<Record<ROOM>>(0) else { return Err(Failure::NoRoom) };
    let punt = record.as_mut_ptr();
    // SAFETY: `punt` points to a whole reserved record, and at most its packet's room is written.
    // Bytes that are not written are not read: the daemon goes by the length.
    let loaded = unsafe {
        (&raw mut (*punt).kind).write(head.kind as u32);
        (&raw mut (*punt).interface).write(head.interface);
        (&raw mut (*punt).mtu).write(head.mtu);
        (&raw mut (*punt).length).write(u32::from(length));
        (&raw mut (*punt).neighbour).write(head.neighbour);
        (&raw mut (*punt).mac).write(head.mac);
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

/// Returns the kernel's index of the interface that the packet came in on.
#[inline(always)]
fn ingress(work: &Work) -> u32 {
    work.settings.index(work.ingress)
}

/// Hands a packet, as it was received, to the daemon, until the neighbour of the last look-up
/// ([`next_hop::resolve`]) has answered. Returns the reason that the packet ends for.
#[inline(always)]
pub(crate) fn wait(work: &Work, ip_length: u16) -> Reason {
    match put_waiting(work.frame.context().ctx, ip_length.into(), ingress(work)) {
        WAITS => Reason::Resolving,
        UNRESOLVED => Reason::NeighbourUnresolved,
        _ => Reason::Internal,
    }
}

// Results of `put_waiting`.
const WAITS: u32 = 0;
const UNRESOLVED: u32 = 1;
const FAILED: u32 = 2;

/// As [`wait`]. A global function: the verifier looks at it once, and not on every path that leads
/// to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put_waiting(context: *mut xdp_md, ip_length: u32, ingress: u32) -> u32 {
    let Some(neighbour) = next_hop::neighbour() else { return FAILED };
    let frame = XdpFrame::new(XdpContext::new(context));
    let head = Head { neighbour, ..Head::new(Kind::Wait, ingress) };
    match put::<CAPACITY>(&frame, ip_length as u16, &head) {
        Ok(()) => WAITS,
        Err(Failure::NoRoom | Failure::TooLong) => UNRESOLVED,
        Err(Failure::Internal) => FAILED,
    }
}

/// Hands a translated packet that is larger than its next hop's MTU to the daemon, which splits it.
/// Returns the reason that the packet ends for.
#[inline(always)]
pub(crate) fn split(work: &Work, ip_length: u16, next_hop: &NextHop) -> Reason {
    let egress = work.settings.index(u32::from(next_hop.slot));
    let head = Head {
        mtu: u32::from(next_hop.mtu),
        mac: next_hop.destination_mac,
        ..Head::new(Kind::Split, egress)
    };
    match put::<CAPACITY>(&work.frame, ip_length, &head) {
        Ok(()) => Reason::Fragmenting,
        Err(Failure::NoRoom | Failure::TooLong) => Reason::TooBig,
        Err(Failure::Internal) => Reason::Internal,
    }
}

/// Hands a copy of an early fragment to the daemon, which queues it until the first fragment
/// arrives. Returns `true` if the ring had room.
#[inline(always)]
pub(crate) fn queue_early_fragment(work: &Work, ip_length: u16) -> bool {
    // Any host can send these at any rate: half of the room is reserved for packets that rules or
    // sessions have admitted.
    PUNTS.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(SIZE / 2)
        && put::<CAPACITY>(&work.frame, ip_length, &Head::new(Kind::EarlyFragment, ingress(work))).is_ok()
}

/// Tells the daemon to release the queued fragments of this one's datagram.
#[inline(always)]
pub(crate) fn release_early_fragments(frame: &XdpFrame) {
    // If the ring has no room, the queued fragments are lost, as packets may be.
    let _ = put::<IPV4_LENGTH>(frame, IPV4_LENGTH as u16, &Head::new(Kind::FirstFragment, 0));
}
