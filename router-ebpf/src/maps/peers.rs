//! The targets of sessions, by which early fragments are judged.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use router_common::{
    address::Ipv4,
    maps::{
        peers::{PEER_SLOTS, Peer, peer_slot},
        settings::Live,
    },
};

use crate::maps::flows;

/// The targets of sessions, by a keyed hash.
#[map]
static PEERS: Array<Peer> = Array::with_max_entries(PEER_SLOTS, BPF_F_MMAPABLE);

/// Notes that a session has this target.
#[inline(always)]
pub(crate) fn note(settings: &Live, address: Ipv4) {
    if let Some(peer) = PEERS.get(peer_slot(&settings.seeds(), address)) {
        peer.note(flows::now());
    }
}

/// Returns `true` if a session has this target, or had it moments ago. Addresses with the same hash
/// count as well.
#[inline(always)]
pub(crate) fn is_target(settings: &Live, address: Ipv4) -> bool {
    PEERS.get(peer_slot(&settings.seeds(), address)).is_some_and(|peer| peer.is_recent(flows::now()))
}
