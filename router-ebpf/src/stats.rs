//! Counters.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::map, maps::PerCpuArray};
use router_common::{
    MAX_INTERFACES, MAX_RULES, bounds,
    packet::Frame as _,
    reason::{REASON_SLOTS, Reason},
    session::Ticks,
    stats::{CpuStats, Decisions},
    table::Tag,
};

use crate::{flows, frame::XdpFrame};

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

/// The time, as [`flows::now`] has it, mostly without a call.
#[inline(always)]
pub(crate) fn now(stats: &mut CpuStats) -> Ticks {
    // SAFETY: takes nothing and always answers. The kernel makes it a load.
    stats.clock.now(unsafe { bpf_jiffies64() }, flows::now)
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

/// Counts a frame of a known session, which came in and goes out: all that [`received`] and [`transmitted`] count of it.
#[inline(always)]
pub(crate) fn passed_on(stats: &mut CpuStats, ingress: u32, egress: u32, frame: &XdpFrame) {
    const MASK: usize = MAX_INTERFACES - 1;
    stats.passed_on[ingress as usize & MASK][egress as usize & MASK].count(frame.length() as u64);
}

/// Counts the reason why a frame leaves the program.
#[inline(always)]
pub(crate) fn left(stats: &mut CpuStats, reason: Reason, frame: &XdpFrame) {
    // Of a reason, the compiler would leave the mask out.
    stats.reasons[bounds::opaque(reason as u32) as usize & (REASON_SLOTS - 1)].count(frame.length() as u64);
}

/// Counts a frame that leaves for the rule that opened its session.
#[inline(always)]
pub(crate) fn translated(stats: &mut CpuStats, tag: Tag, length: usize) {
    stats.translated[tag.counter() & (2 * MAX_RULES - 1)].count(length as u64);
}

/// What is counted of a rule's decisions.
#[inline(always)]
pub(crate) fn decisions(stats: &mut CpuStats, rule: u16) -> &mut Decisions {
    &mut stats.decisions[rule as usize & (MAX_RULES - 1)]
}
