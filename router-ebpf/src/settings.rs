//! The daemon's settings.

use aya_ebpf::{macros::map, maps::Array};
use router_common::settings::Settings;

/// One record, read by every packet, written by the daemon.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// The settings; `None` never happens, but the verifier cannot know.
#[inline(always)]
pub(crate) fn get() -> Option<&'static Settings> {
    SETTINGS.get(0)
}
