//! Counters.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::map, maps::PerCpuArray};
use router_common::{
    bounds,
    limits::{MAX_INTERFACES, MAX_RULES},
    maps::stats::CpuStats,
    reason::{REASON_SLOTS, Reason},
    table::Tag,
    time::Ticks,
    wire::Frame as _,
};

use crate::{kernel::frame::XdpFrame, maps::flows};

/// A block for each CPU (26 KiB): a packet finds all its counters with one look-up, which the
/// kernel inlines. Only its own CPU writes a block; the daemon reads.
#[map]
static STATS: PerCpuArray<CpuStats> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's block. Not a reference: each counter is reached for by itself, so that several
/// functions may have the block at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Stats(*mut CpuStats);

/// A place in this CPU's block, for one statement.
macro_rules! place {
    ($stats:ident, $($place:tt)+) => {
        // SAFETY: the block is this CPU's own and stays mapped, and a program is not interrupted by
        // another one on the same CPU. The reference is gone before another one is made.
        unsafe { &mut (*$stats.0).$($place)+ }
    };
}

/// Returns this CPU's block. `None` never happens, but the verifier cannot know.
#[inline(always)]
pub(crate) fn block() -> Option<Stats> {
    STATS.get_ptr_mut(0).map(Stats)
}

impl Stats {
    /// Returns the time, as [`flows::now`] does, mostly without a call.
    #[inline(always)]
    pub(crate) fn now(self) -> Ticks {
        // SAFETY: takes nothing and always answers. The kernel makes it a load.
        place!(self, clock).now(unsafe { bpf_jiffies64() }, flows::now)
    }

    /// Counts a frame that was received.
    #[inline(always)]
    pub(crate) fn received(self, slot: u32, frame: &XdpFrame) {
        place!(self, interfaces[slot as usize & (MAX_INTERFACES - 1)].received).count(frame.length() as u64);
    }

    /// Counts a frame that is transmitted.
    #[inline(always)]
    pub(crate) fn transmitted(self, slot: u32, reason: Reason, frame: &XdpFrame) {
        place!(self, interfaces[slot as usize & (MAX_INTERFACES - 1)].transmitted)
            .count(frame.length() as u64);
        self.ended(reason, frame);
    }

    /// Counts a frame of an established session that the fast path forwards: all that
    /// [`received`](Self::received) and [`transmitted`](Self::transmitted) count.
    #[inline(always)]
    pub(crate) fn passed_on(self, ingress: u32, egress: u32, frame: &XdpFrame) {
        const MASK: usize = MAX_INTERFACES - 1;
        place!(self, passed_on[ingress as usize & MASK][egress as usize & MASK]).count(frame.length() as u64);
    }

    /// Counts a frame under the reason that it ends for.
    #[inline(always)]
    pub(crate) fn ended(self, reason: Reason, frame: &XdpFrame) {
        // Of a reason, the compiler would leave the mask out.
        let number = bounds::opaque(reason as u32) as usize;
        place!(self, reasons[number & (REASON_SLOTS - 1)]).count(frame.length() as u64);
    }

    /// Counts a translated frame for its session's rule.
    #[inline(always)]
    pub(crate) fn translated(self, tag: Tag, length: usize) {
        place!(self, translated[tag.counter() & (2 * MAX_RULES - 1)]).count(length as u64);
    }

    /// Counts a session that a rule has opened.
    #[inline(always)]
    pub(crate) fn opened(self, rule: u16) {
        place!(self, decisions[rule as usize & (MAX_RULES - 1)]).opened += 1;
    }

    /// Counts a packet that a rule has refused.
    #[inline(always)]
    pub(crate) fn denied(self, rule: u16) {
        place!(self, decisions[rule as usize & (MAX_RULES - 1)]).denied += 1;
    }

    /// Counts an answer of this machine's own stack that is withheld.
    #[inline(always)]
    pub(crate) fn answer_withheld(self, length: usize) {
        place!(self, reasons[Reason::AnswerWithheld as usize]).count(length as u64);
    }

    /// Counts a session that has given way to this machine's own traffic.
    #[inline(always)]
    pub(crate) fn session_ended(self) {
        place!(self, own).sessions_ended += 1;
    }

    /// Counts a connection of this machine that was refused.
    #[inline(always)]
    pub(crate) fn connection_refused(self) {
        place!(self, own).connections_refused += 1;
    }
}
