//! The daemon's settings.

use aya_ebpf::{macros::map, maps::Array};
use router_common::maps::settings::Live;

/// One record, read by every packet, written by the daemon.
#[map]
static SETTINGS: Array<Live> = Array::with_max_entries(1, 0);

/// Returns the settings. `None` never happens, but the verifier cannot know.
#[inline(always)]
pub(crate) fn get() -> Option<&'static Live> {
    SETTINGS.get(0)
}

/// Set to 1 where the programs are attached in generic mode, and frozen when they are loaded, so
/// that otherwise the verifier removes the code for it.
#[unsafe(no_mangle)]
static GENERIC_MODE: u8 = 0;

/// Returns `true` in generic mode, where XDP runs after the driver and GRO.
#[inline(always)]
pub(crate) fn in_generic_mode() -> bool {
    // SAFETY: a static of this program. Volatile, since it is not what it was compiled as.
    unsafe { core::ptr::read_volatile(&raw const GENERIC_MODE) != 0 }
}
