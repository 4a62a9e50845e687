//! This machine's own traffic, whose answers are for this machine, whatever rules say.
//!
//! The kernel knows connections and connected sockets. It does not know the destinations of
//! unconnected sockets, nor of echo requests: [`stages::own_traffic`](crate::stages::own_traffic)
//! notes those here.

use aya_ebpf::{bindings::xdp_md, macros::map, maps::LruHashMap, programs::XdpContext};
use router_common::{
    maps::own::is_remembered,
    packet,
    ports::PortRange,
    shared::Shared,
    time::Ticks,
    tuple::{FlowKey, Ipv6Key, Protocol},
};

use crate::{
    kernel::{frame::XdpFrame, sockets},
    maps::flows,
    work::Work,
};

/// The tick in which this machine last sent something by UDP or as an echo request, by the tuple of
/// the answer. Written by [`stages::own_traffic`](crate::stages::own_traffic) and read where
/// sessions are opened; 5 MiB. LRU: beyond its size the oldest are forgotten, and their answers are
/// not recognised.
#[map]
static OWN: LruHashMap<FlowKey, Shared<u32>> = LruHashMap::with_max_entries(1 << 16, 0);

/// The same as [`OWN`] for IPv6, which only this machine itself uses: 2 MiB.
#[map]
static OWN_IPV6: LruHashMap<Ipv6Key, Shared<u32>> = LruHashMap::with_max_entries(1 << 14, 0);

/// Notes that this machine has sent something that packets with this tuple answer. Returns `true`
/// once a tick for each tuple, for work that need not be done each time.
#[inline(always)]
pub(crate) fn note(answer: &FlowKey) -> bool {
    note_in(&OWN, answer)
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn note_ipv6(answer: &Ipv6Key) {
    note_in(&OWN_IPV6, answer);
}

#[inline(always)]
fn note_in<K>(own: &LruHashMap<K, Shared<u32>>, answer: &K) -> bool {
    let now = flows::now();
    // SAFETY: a number that others write, too. If the entry has become another tuple's meanwhile,
    // that has been sent now as well.
    match unsafe { own.get(answer) } {
        Some(sent) => {
            let is_new = sent.get() != now.0;
            sent.set(now.0);
            is_new
        }
        None => {
            // If the map has no room, the answer is not recognised.
            let _ = own.insert(answer, Shared::new(now.0), 0);
            true
        }
    }
}

/// Returns `true` if this machine has lately sent something that a packet with this tuple answers.
#[inline(always)]
pub(crate) fn has_sent(answer: &FlowKey) -> bool {
    is_in(&OWN, answer, answer.protocol())
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn has_sent_ipv6(answer: &Ipv6Key) -> bool {
    is_in(&OWN_IPV6, answer, answer.protocol())
}

#[inline(always)]
fn is_in<K>(own: &LruHashMap<K, Shared<u32>>, answer: &K, protocol: Option<Protocol>) -> bool {
    let Some(protocol) = protocol else { return false };
    // SAFETY: as above.
    match unsafe { own.get(answer) } {
        Some(sent) => is_remembered(protocol, Ticks(sent.get()), flows::now()),
        None => false,
    }
}

/// Returns `true` if the packet answers this machine's own traffic.
#[inline(always)]
pub(crate) fn is_answer(work: &Work, ephemeral: PortRange) -> bool {
    let ephemeral = u32::from(ephemeral.first) | u32::from(ephemeral.last) << 16;
    answers_own_traffic(work.frame.context().ctx, ephemeral) != 0
}

/// As [`is_answer`]. A global function: the verifier looks at it once, and not wherever it is
/// called. It parses the packet again, since a caller may not have its tuple.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answers_own_traffic(context: *mut xdp_md, ephemeral: u32) -> u32 {
    let Ok(packet) = packet::parse_leading(&XdpFrame::new(XdpContext::new(context))) else { return 0 };
    let ephemeral = PortRange { first: ephemeral as u16, last: (ephemeral >> 16) as u16 };
    u32::from(has_sent(&packet.key) || sockets::is_connected(context, &packet.key, ephemeral))
}
