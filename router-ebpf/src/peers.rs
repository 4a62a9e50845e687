//! The addresses that sessions lead to.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use router_common::{
    PEER_PATIENCE, PEER_SLOTS, address::Ipv4, peer_slot, session::Ticks, settings::Settings,
};

use crate::flows;

/// The tick in which a session was last known to lead to an address, by a keyed hash of that. Written when a session opens, and by the daemon's sweep while
/// there is one: any of both is right, and the last one stays.
#[map]
static PEERS: Array<Ticks> = Array::with_max_entries(PEER_SLOTS, BPF_F_MMAPABLE);

/// Notes that a session leads to an address.
#[inline(always)]
pub(crate) fn note(settings: &Settings, address: Ipv4) {
    if let Some(place) = PEERS.get_ptr_mut(peer_slot(&settings.seeds, address)) {
        // SAFETY: a number in memory that stays mapped, whole in one store; any value is good.
        unsafe { place.write_volatile(flows::now()) };
    }
}

/// Returns `true` if a session leads to an address, or has done so moments ago. Others with the same hash count as well.
#[inline(always)]
pub(crate) fn is_one(settings: &Settings, address: Ipv4) -> bool {
    let place = PEERS.get(peer_slot(&settings.seeds, address));
    // SAFETY: as above.
    let last = place.map(|place| unsafe { core::ptr::read_volatile(place) });
    last.is_some_and(|last| last.0 != 0 && flows::now().0.wrapping_sub(last.0) <= PEER_PATIENCE)
}
