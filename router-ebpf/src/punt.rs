//! Handing packets to the daemon.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_load_bytes, macros::map, maps::RingBuf};
use router_common::{
    packet::ETHERNET_LENGTH,
    punt::{CAPACITY, Punt},
    reason::Reason,
};

use crate::frame::XdpFrame;

/// Translated packets that wait for a neighbour: room for nearly 300. Read by the daemon.
#[map]
static PUNTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Gives a translated packet to the daemon; the reason the packet leaves this program by.
#[inline(always)]
pub(crate) fn to_daemon(frame: &XdpFrame, ip_length: u16) -> Reason {
    let length = usize::from(ip_length);
    if length == 0 || length > CAPACITY {
        return Reason::TooBig;
    }
    let Some(mut record) = PUNTS.reserve::<Punt>(0) else {
        return Reason::NeighbourUnresolved;
    };
    let punt = record.as_mut_ptr();
    // SAFETY: `punt` points to a whole reserved record, and at most its packet's capacity is written. Bytes that are not
    // written are not read: the daemon goes by the length.
    let loaded = unsafe {
        (&raw mut (*punt).length).write(length as u32);
        bpf_xdp_load_bytes(
            frame.context().as_ptr().cast(),
            ETHERNET_LENGTH as u32,
            (&raw mut (*punt).packet).cast(),
            length as u32,
        )
    };
    if loaded == 0 {
        record.submit(0);
        Reason::Resolving
    } else {
        record.discard(0);
        Reason::Internal
    }
}
