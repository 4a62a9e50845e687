//! Counters.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use router_common::{
    MAX_INTERFACES, MAX_RULES,
    packet::Frame as _,
    reason::{REASON_SLOTS, Reason},
    stats::CpuStats,
};

use crate::frame::XdpFrame;

/// One block a CPU (26 KiB each): a packet finds all its counters with one look-up, which the kernel inlines. Only the CPU
/// that a block belongs to writes it; the daemon reads.
#[map]
static STATS: PerCpuArray<CpuStats> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's block; `None` never happens, but the verifier cannot know.
#[inline(always)]
pub(crate) fn block() -> Option<&'static mut CpuStats> {
    // SAFETY: the block is this CPU's own, and an XDP program is not interrupted by another one on the same CPU. Each
    // program takes it once.
    STATS.get_ptr_mut(0).map(|block| unsafe { &mut *block })
}

/// Counts a frame that came in.
#[inline(always)]
pub(crate) fn received(stats: &mut CpuStats, slot: u32, frame: &XdpFrame) {
    stats.interfaces[slot as usize & (MAX_INTERFACES - 1)].received.count(frame.length() as u64);
}

/// Counts a frame that goes out.
#[inline(always)]
pub(crate) fn transmitted(stats: &mut CpuStats, slot: u32, reason: Reason, frame: &XdpFrame) {
    stats.interfaces[slot as usize & (MAX_INTERFACES - 1)].transmitted.count(frame.length() as u64);
    left(stats, reason, frame);
}

/// Counts the reason why a frame leaves the program.
#[inline(always)]
pub(crate) fn left(stats: &mut CpuStats, reason: Reason, frame: &XdpFrame) {
    stats.reasons[reason as usize & (REASON_SLOTS - 1)].count(frame.length() as u64);
}

/// The counters of a rule.
#[inline(always)]
pub(crate) fn rule(stats: &mut CpuStats, rule: u16) -> &mut router_common::stats::RuleStats {
    &mut stats.rules[rule as usize & (MAX_RULES - 1)]
}
