//! How many sessions a source has that are still opening.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use router_common::{HALF_OPEN_SLOTS, HalfOpen, address::Ipv4, half_open_slot, settings::Settings};

/// One counter a source, by a keyed hash of its address: sources that share one share their limit. Added to by the programs; taken from by
/// the programs when a session is established, and by the daemon when one goes without having been. All atomically.
#[map]
static HALF_OPEN: Array<u32> = Array::with_max_entries(HALF_OPEN_SLOTS, BPF_F_MMAPABLE);

#[inline(always)]
fn counter(settings: &Settings, source: Ipv4) -> Option<HalfOpen<'static>> {
    HALF_OPEN.get(half_open_slot(&settings.seeds, source)).map(HalfOpen::new)
}

/// Counts one more; `false` if that is too many, and nothing was counted.
#[inline(always)]
pub(crate) fn enter(settings: &Settings, source: Ipv4) -> bool {
    counter(settings, source).is_some_and(|counter| counter.enter(settings.half_open_per_source))
}

/// Counts one less.
#[inline(always)]
pub(crate) fn leave(settings: &Settings, source: Ipv4) {
    if let Some(counter) = counter(settings, source) {
        counter.leave();
    }
}
