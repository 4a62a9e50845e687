//! The flow table.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns, macros::map, maps::HashMap,
};
use router_common::{
    address::Ipv4,
    flow::{Direction, FlowEntry, FlowKey},
    packet::{Frame as _, Packet},
    session::Ticks,
    stats::CpuStats,
};

use crate::{frame::XdpFrame, stats};

/// The kernel's answers to an insertion that concern us (include/uapi/asm-generic/errno-base.h).
const EEXIST: i32 = -17;

/// Every session's two flows. Not an LRU: nothing but the daemon's sweep, or the roll-back of a half-made session, removes an
/// entry. Inserted by this program with `BPF_NOEXIST`, so that of two CPUs one wins. Sized by the daemon: two entries a
/// session (`limits.flows`), about 128 bytes each.
#[map]
static FLOWS: HashMap<FlowKey<Ipv4>, FlowEntry<Ipv4>> = HashMap::with_max_entries(1 << 16, 0);

/// Why an entry was not inserted.
pub(crate) enum InsertError {
    /// The key is taken.
    Exists,
    /// No room.
    Full,
}

/// The time, in ticks.
#[inline(always)]
pub(crate) fn now() -> Ticks {
    // SAFETY: takes nothing and always answers.
    Ticks::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The entry of a flow.
#[inline(always)]
pub(crate) fn get(key: &FlowKey<Ipv4>) -> Option<&'static mut FlowEntry<Ipv4>> {
    // SAFETY: the memory is the table's own and stays mapped. It is shared: other CPUs may write the same entry, and an entry
    // that is removed at this very moment may become another session's while this packet is handled, which can then leave
    // with the other's rewrite. Every field is a plain integer or byte for which any value is good.
    FLOWS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Inserts an entry whose key is not there yet.
#[inline(always)]
pub(crate) fn insert(key: &FlowKey<Ipv4>, entry: &FlowEntry<Ipv4>) -> Result<(), InsertError> {
    FLOWS.insert(key, entry, u64::from(BPF_NOEXIST)).map_err(|error| match error {
        EEXIST => InsertError::Exists,
        _ => InsertError::Full,
    })
}

/// Takes back an insertion.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey<Ipv4>) {
    // It can only be gone already.
    let _ = FLOWS.remove(key);
}

/// Records a packet in its flow's entry and in its rule's counters.
#[inline(always)]
pub(crate) fn record(
    entry: &mut FlowEntry<Ipv4>,
    packet: &Packet,
    frame: &XdpFrame,
    counters: &mut CpuStats,
) {
    let bytes = frame.length() as u64;
    let now = now();
    // Written once a tick at most: a write would take the cache line from other CPUs for nothing.
    if entry.last_seen != now {
        entry.last_seen = now;
    }
    if packet.tcp_flags & router_common::session::Seen::FLAGS != 0 {
        entry.seen = entry.seen.after(packet.tcp_flags);
    }
    entry.packets += 1;
    entry.bytes += bytes;
    let rule = stats::rule(counters, entry.rule);
    match entry.direction() {
        Direction::Forward => rule.forward.count(bytes),
        Direction::Reply => rule.reply.count(bytes),
    }
}
