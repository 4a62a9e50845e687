//! Handing packets to the daemon.

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

/// What stands before the packet in a [`Record`].
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

/// Puts the first `length` bytes of a frame's IP packet into a record with room for `ROOM`.
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

/// The interface that a frame came in on, as the daemon is told.
#[inline(always)]
fn ingress(work: &Work) -> u32 {
    work.settings.index(work.ingress)
}

/// Gives a packet, which must be as it was received, to the daemon, until the neighbour that
/// [`next_hop::resolve`] has just found to be without a MAC address has answered; the reason the
/// packet leaves this program by.
#[inline(always)]
pub(crate) fn wait(work: &Work, ip_length: u16) -> Reason {
    match put_waiting(work.frame.context().ctx, ip_length.into(), ingress(work)) {
        WAITS => Reason::Resolving,
        UNRESOLVED => Reason::NeighbourUnresolved,
        _ => Reason::Internal,
    }
}

// What `put_waiting` answers.
const WAITS: u32 = 0;
const UNRESOLVED: u32 = 1;
const FAILED: u32 = 2;

/// As [`wait`]. A global function: the verifier looks at it once, and not together with every way
/// that leads to it.
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

/// Gives a translated packet to the daemon, since it is larger than its next hop takes; the reason
/// the packet leaves this program by.
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

/// Gives a copy of a fragment to the daemon, to be held until it can be told whose it is; whether
/// it was.
#[inline(always)]
pub(crate) fn to_be_held(work: &Work, ip_length: u16) -> bool {
    // Anybody can send these, as many as they like: half of the room is for packets that have been
    // judged.
    PUNTS.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(SIZE / 2)
        && put::<CAPACITY>(&work.frame, ip_length, &Head::new(Kind::EarlyFragment, ingress(work))).is_ok()
}

/// Tells the daemon that fragments of the same datagram as this one need not be held any longer.
#[inline(always)]
pub(crate) fn release(frame: &XdpFrame) {
    // Without room those that are held are lost, as packets are.
    let _ = put::<IPV4_LENGTH>(frame, IPV4_LENGTH as u16, &Head::new(Kind::FirstFragment, 0));
}
