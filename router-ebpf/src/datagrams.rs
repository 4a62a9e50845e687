//! Datagrams that come in fragments.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use router_common::{
    address::Ipv4,
    flow::FlowKey,
    fragment::{Coverage, Datagram, Fragment, FragmentKey},
    reason::Reason,
};

use crate::{Work, punt};

/// How many datagrams can be on their way at once. Beyond, the oldest are forgotten, and what comes of them later is dropped.
const CAPACITY: u32 = 2048;

/// Datagrams whose first fragment has come, until all have: about 2 MiB. Whoever has a fragment may change its datagram, see
/// [`Datagram`]. The kernel may use an entry again that somebody is looking at (`BPF_MAP_TYPE_LRU_HASH`), therefore a datagram's flow
/// counts only if it has the fragment's ends.
#[map]
static DATAGRAMS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(CAPACITY, 0);

/// Datagrams of which the daemon holds fragments, since their first has not come. The value says nothing.
#[map]
static AWAITED: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(CAPACITY, 0);

/// One a CPU: a new datagram, too large for the stack.
#[map]
static BLANK_DATAGRAM: PerCpuArray<Datagram> = PerCpuArray::with_max_entries(1, 0);

/// One a CPU: the fragment that [`datagram_cover`] enters.
#[map]
static FRAGMENT: PerCpuArray<Fragment> = PerCpuArray::with_max_entries(1, 0);

/// The time in milliseconds.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: takes nothing and always answers.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000) as u32
}

/// The datagram of a fragment, if its first has come.
#[inline(always)]
pub(crate) fn find(key: &FragmentKey) -> Option<&'static Datagram> {
    // SAFETY: see the map for what that may turn out to be.
    unsafe { DATAGRAMS.get(key) }.filter(|datagram| !datagram.is_stale(now()) && key.is_of(&datagram.flow))
}

/// Notes what becomes of a datagram, by its first fragment: a packet of `flow`, which leaves for the reason `verdict`.
///
/// # Errors
/// When there is a datagram with the same identification already: they overlap.
#[inline(always)]
pub(crate) fn begin(
    work: &Work,
    fragment: &Fragment,
    flow: &FlowKey<Ipv4>,
    verdict: Reason,
) -> Result<(), Reason> {
    let key = &fragment.key;
    if find(key).is_some() {
        return Err(Reason::FragmentBad);
    }
    // What is left of an older one. It fails if there is none.
    let _ = DATAGRAMS.remove(key);
    let blank = BLANK_DATAGRAM.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own, and nobody else has it now.
    let blank = unsafe { &mut *blank };
    blank.start(flow, verdict, now());
    // It is there only if another CPU has put it there this moment.
    DATAGRAMS.insert(key, &*blank, u64::from(BPF_NOEXIST)).map_err(|_| Reason::FragmentBad)?;
    cover(fragment)?;
    // Those that were early look for the datagram after they have said that they are there, and so one of the two finds the other.
    // SAFETY: only whether it is there matters.
    if unsafe { AWAITED.get(key) }.is_some() {
        let _ = AWAITED.remove(key);
        punt::release(&work.frame);
    }
    Ok(())
}

/// Forgets a datagram whose first fragment has not left: it begins when that comes again, and what comes until then is early.
#[inline(always)]
pub(crate) fn forget(key: &FragmentKey) {
    // It fails if it has been forgotten already.
    let _ = DATAGRAMS.remove(key);
}

/// Has the daemon hold a fragment whose datagram has not begun; whether it does.
#[inline(always)]
pub(crate) fn hold(work: &Work, fragment: &Fragment) -> bool {
    if !punt::to_be_held(work, fragment.ip_length()) {
        return false;
    }
    // Without a place it is not released, and lost.
    let _ = AWAITED.insert(fragment.key, 0, 0);
    if find(&fragment.key).is_some() {
        punt::release(&work.frame);
    }
    true
}

/// Enters a fragment into its datagram, which is forgotten when that was the last.
///
/// # Errors
/// When it overlaps another.
#[inline(always)]
pub(crate) fn cover(fragment: &Fragment) -> Result<(), Reason> {
    let place = FRAGMENT.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own; `datagram_cover` lets go of it before another takes it.
    unsafe { *place = *fragment };
    let coverage = datagram_cover();
    if coverage == Coverage::Bad as u32 {
        return Err(Reason::FragmentBad);
    }
    if coverage == Coverage::Complete as u32 {
        let _ = DATAGRAMS.remove(fragment.key);
    }
    Ok(())
}

/// Enters the fragment that is in `FRAGMENT` into its datagram. A global function: the verifier looks at it once, and not wherever it is
/// called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn datagram_cover() -> u32 {
    let Some(fragment) = FRAGMENT.get(0) else { return Coverage::Bad as u32 };
    // SAFETY: as above.
    match unsafe { DATAGRAMS.get(fragment.key) } {
        Some(datagram) => datagram.cover(fragment, now()) as u32,
        // Forgotten this moment.
        None => Coverage::Bad as u32,
    }
}
