//! Fragmented datagrams, and early fragments.

use core::cell::Cell;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, LruHashMap},
};
use router_common::{
    fragment::{
        Coverage, DATAGRAMS_PER_SOURCE, Datagram, EARLY_RATE, EARLY_SLOTS, Fragment, FragmentKey, PROBES,
        SOURCE_SLOTS, SharedKey, slot_of,
    },
    packet::Packet,
    rate::TokenBucket,
    reason::Reason,
    shared::AtomicU32,
    table::source_hash,
    tuple::FlowKey,
};

use crate::{
    kernel::punt,
    maps::{scratch::Scratch, settings},
    work::Work,
};

/// The number of datagrams that can be in flight. Beyond it the oldest are forgotten, and their
/// later fragments are dropped.
const CAPACITY: u32 = 2048;
/// The same for datagrams that match no session.
const OTHERS_CAPACITY: u32 = 512;

/// Datagrams of sessions, from their first fragment until all have arrived: about 2 MiB. Any CPU
/// with a fragment may change its datagram, see [`Datagram`]. The kernel may reuse an entry that a
/// program still reads (`BPF_MAP_TYPE_LRU_HASH`), therefore a datagram's flow counts only if it has
/// the fragment's addresses.
#[map]
static DATAGRAMS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(CAPACITY, 0);

/// Datagrams that match no session: all their fragments end for the same reason as the first. A map
/// by itself, so that they cannot evict datagrams of sessions.
#[map]
static OTHER_DATAGRAMS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(OTHERS_CAPACITY, 0);

/// Datagrams with early fragments in the daemon's queue. The value means nothing.
#[map]
static AWAITED: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(CAPACITY, 0);

/// The last datagrams of each source in [`DATAGRAMS`], by [`slot_of`]. A CPU writes a slot only
/// after it has taken the slot's number.
#[map]
static LAST_DATAGRAMS: Array<SharedKey> = Array::with_max_entries(SOURCE_SLOTS * DATAGRAMS_PER_SOURCE, 0);
/// The number of datagrams so far, by source slot. Added to atomically.
#[map]
static LAST_DATAGRAMS_COUNT: Array<AtomicU32> = Array::with_max_entries(SOURCE_SLOTS, 0);

/// The last datagrams of each source in [`AWAITED`], like [`LAST_DATAGRAMS`].
#[map]
static LAST_AWAITED: Array<SharedKey> = Array::with_max_entries(SOURCE_SLOTS * DATAGRAMS_PER_SOURCE, 0);
/// The number of datagrams so far in [`LAST_AWAITED`], by source slot. Added to atomically.
#[map]
static LAST_AWAITED_COUNT: Array<AtomicU32> = Array::with_max_entries(SOURCE_SLOTS, 0);

/// The early fragments that the daemon may still queue, by a keyed hash of their source. Taken from
/// atomically.
#[map]
static EARLY_BUCKETS: Array<TokenBucket> = Array::with_max_entries(EARLY_SLOTS, 0);

/// Per-CPU scratch: a new datagram, which is too large for the stack.
#[map]
// SAFETY: numbers.
static BLANK_DATAGRAM: Scratch<Datagram> = unsafe { Scratch::new() };

/// Per-CPU scratch: the fragment that [`datagram_cover`] records.
#[map]
// SAFETY: numbers, bytes and flags.
static FRAGMENT: Scratch<Cell<Fragment>> = unsafe { Scratch::new() };

/// Returns the time in milliseconds.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: takes nothing and always answers.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000) as u32
}

/// Returns the datagram of a fragment, if its first fragment has arrived.
#[inline(always)]
pub(crate) fn find(key: &FragmentKey) -> Option<&'static Datagram> {
    lookup(key).filter(|datagram| !datagram.is_stale(now()) && key.matches(&datagram.flow()))
}

#[inline(always)]
fn lookup(key: &FragmentKey) -> Option<&'static Datagram> {
    // SAFETY: see the maps for what that may turn out to be.
    match unsafe { DATAGRAMS.get(key) } {
        Some(datagram) => Some(datagram),
        // SAFETY: as above.
        None => unsafe { OTHER_DATAGRAMS.get(key) },
    }
}

/// Records a source's datagram in the slot of its oldest one. The oldest moves to one of the next
/// slots whose datagram is complete or stale. Returns it if there is none, for the caller to
/// remove.
#[inline(always)]
fn record_last(
    (last, count): (&Array<SharedKey>, &Array<AtomicU32>),
    hash: u32,
    key: &FragmentKey,
    is_gone: impl Fn(&FragmentKey) -> bool,
) -> Option<FragmentKey> {
    let number = count.get(hash % SOURCE_SLOTS)?.add(1);
    let place = last.get(slot_of(hash, number))?;
    let oldest = place.get();
    place.set(key);
    if oldest == *key || is_gone(&oldest) {
        return None;
    }
    for ahead in 1..=PROBES {
        let place = last.get(slot_of(hash, number.wrapping_add(ahead)))?;
        if is_gone(&place.get()) {
            place.set(&oldest);
            return None;
        }
    }
    Some(oldest)
}

/// Records a datagram by its first fragment, a packet of `flow` that ends for the reason `verdict`.
///
/// # Errors
/// Returns an error if another datagram has the same identification: they overlap.
#[inline(always)]
pub(crate) fn begin(work: &Work, fragment: &Fragment, flow: &FlowKey, verdict: Reason) -> Result<(), Reason> {
    BLANK_DATAGRAM.get().ok_or(Reason::Internal)?.start(flow, verdict, now());
    FRAGMENT.get().ok_or(Reason::Internal)?.set(*fragment);
    match datagram_begin() {
        BEGUN => Ok(()),
        AWAITED_BEGUN => {
            punt::release_early_fragments(&work.frame);
            Ok(())
        }
        _ => Err(Reason::FragmentBad),
    }
}

// Results of `datagram_begin`.
const BAD: u32 = 0;
const BEGUN: u32 = 1;
/// The datagram is recorded, and the daemon has early fragments of it.
const AWAITED_BEGUN: u32 = 2;

/// Records the datagram in `BLANK_DATAGRAM` with the fragment in `FRAGMENT`. A global function: the
/// verifier looks at it once, and not wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn datagram_begin() -> u32 {
    let (Some(settings), Some(fragment), Some(blank)) =
        (settings::get(), FRAGMENT.get(), BLANK_DATAGRAM.get())
    else {
        return BAD;
    };
    let key = &fragment.get().key;
    if find(key).is_some() {
        return BAD;
    }
    // The remains of an older one. It fails if there is none.
    let _ = DATAGRAMS.remove(key);
    let _ = OTHER_DATAGRAMS.remove(key);
    // It exists only if another CPU has inserted it at this moment.
    let inserted = if blank.verdict() == Reason::Forwarded as u32 {
        // A source has only its share of datagrams, so a flood cannot evict those of others.
        let hash = source_hash(&settings.seeds(), key.source);
        let now = now();
        // SAFETY: see the map for what that may turn out to be.
        let is_gone = |key: &FragmentKey| unsafe { DATAGRAMS.get(key) }.is_none_or(|old| old.is_stale(now));
        if let Some(oldest) = record_last((&LAST_DATAGRAMS, &LAST_DATAGRAMS_COUNT), hash, key, is_gone) {
            let _ = DATAGRAMS.remove(oldest);
        }
        DATAGRAMS.insert(key, blank, u64::from(BPF_NOEXIST))
    } else {
        OTHER_DATAGRAMS.insert(key, blank, u64::from(BPF_NOEXIST))
    };
    if inserted.is_err() || datagram_cover() == Coverage::Bad as u32 {
        return BAD;
    }
    // An early fragment looks for its datagram after it has inserted itself into `AWAITED`, so one
    // of the two finds the other. SAFETY: only the presence of the entry matters.
    if unsafe { AWAITED.get(key) }.is_none() {
        return BEGUN;
    }
    let _ = AWAITED.remove(key);
    AWAITED_BEGUN
}

/// Removes a datagram whose first fragment waits for its neighbour: it is recorded when that
/// fragment comes again. Later fragments are early until then.
#[inline(always)]
pub(crate) fn forget(key: &FragmentKey) {
    // It fails if it has been removed already.
    let _ = DATAGRAMS.remove(key);
}

/// Queues an early fragment with the daemon. Returns `false` if it was not accepted.
#[inline(always)]
pub(crate) fn queue_early(work: &Work, fragment: &Fragment) -> bool {
    let (key, hash) = (&fragment.key, source_hash(&work.settings.seeds(), fragment.key.source));
    let Some(bucket) = EARLY_BUCKETS.get(hash % EARLY_SLOTS) else { return false };
    // SAFETY: takes nothing and always answers.
    let now = unsafe { bpf_ktime_get_ns() };
    if !bucket.take(now, EARLY_RATE) || !punt::queue_early_fragment(work, fragment.ip_length()) {
        return false;
    }
    // SAFETY: only whether it is there matters.
    if unsafe { AWAITED.get(key) }.is_none() {
        // SAFETY: as above.
        let is_gone = |key: &FragmentKey| unsafe { AWAITED.get(key) }.is_none();
        if let Some(oldest) = record_last((&LAST_AWAITED, &LAST_AWAITED_COUNT), hash, key, is_gone) {
            let _ = AWAITED.remove(oldest);
        }
        // Without an entry, the fragment is not released and is lost.
        let _ = AWAITED.insert(key, 0, 0);
    }
    if find(&fragment.key).is_some() {
        punt::release_early_fragments(&work.frame);
    }
    true
}

/// Records a fragment of its datagram, which is removed with the last one.
///
/// # Errors
/// Returns an error if it overlaps another one.
#[inline(always)]
pub(crate) fn cover(fragment: &Fragment) -> Result<(), Reason> {
    FRAGMENT.get().ok_or(Reason::Internal)?.set(*fragment);
    let coverage = datagram_cover();
    if coverage == Coverage::Bad as u32 {
        return Err(Reason::FragmentBad);
    }
    if coverage == Coverage::Complete as u32 {
        // It is in one of the two maps.
        let _ = DATAGRAMS.remove(fragment.key);
        let _ = OTHER_DATAGRAMS.remove(fragment.key);
    }
    Ok(())
}

/// Records the fragment in `FRAGMENT`. A global function: the verifier looks at it once, and not
/// wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn datagram_cover() -> u32 {
    let Some(fragment) = FRAGMENT.get().map(Cell::get) else { return Coverage::Bad as u32 };
    match lookup(&fragment.key) {
        Some(datagram) => datagram.cover(&fragment, now()) as u32,
        // Removed at this moment.
        None => Coverage::Bad as u32,
    }
}

/// Records a datagram that opens no session: its later fragments end for the same reason as the
/// first. Returns the reason for this one.
#[inline(always)]
pub(crate) fn note_reason(work: &Work, packet: &Packet, reason: Reason) -> Reason {
    match Fragment::parse(&work.frame) {
        Ok(fragment) => match begin(work, &fragment, &packet.key, reason) {
            Ok(()) => reason,
            Err(bad) => bad,
        },
        // It has been parsed before.
        Err(reason) => reason,
    }
}

/// Returns `true` if the first fragment of this later one's datagram was passed to this machine's
/// own stack.
///
/// # Errors
/// Returns an error if the fragment overlaps another one.
#[inline(always)]
pub(crate) fn first_fragment_passed(work: &Work) -> Result<bool, Reason> {
    let fragment = Fragment::parse(&work.frame)?;
    let Some(datagram) = find(&fragment.key) else { return Ok(false) };
    let verdict = datagram.verdict();
    cover(&fragment)?;
    Ok(verdict == Reason::NotMatched as u32)
}
