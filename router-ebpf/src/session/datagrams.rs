//! Datagrams that come in fragments.

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
        SOURCE_SLOTS, slot_of,
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

/// How many datagrams can be on their way at once. Beyond, the oldest are forgotten, and what comes
/// of them later is dropped.
const CAPACITY: u32 = 2048;
/// Room for those that are no session's.
const OTHERS_CAPACITY: u32 = 512;

/// Datagrams of sessions whose first fragment has come, until all have: about 2 MiB. Whoever has a
/// fragment may change its datagram, see [`Datagram`]. The kernel may use an entry again that
/// somebody is looking at (`BPF_MAP_TYPE_LRU_HASH`), therefore a datagram's flow counts only if it
/// has the fragment's ends.
#[map]
static DATAGRAMS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(CAPACITY, 0);

/// The same of datagrams that are no session's, whose fragments all leave for the reason that the
/// first has left for. Apart, so that they are in nobody's way.
#[map]
static OTHER_DATAGRAMS: LruHashMap<FragmentKey, Datagram> = LruHashMap::with_max_entries(OTHERS_CAPACITY, 0);

/// Datagrams of which the daemon holds fragments, since their first has not come. The value says
/// nothing.
#[map]
static AWAITED: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(CAPACITY, 0);

/// The last datagrams of each source that came into [`DATAGRAMS`], by [`slot_of`]. What is in a
/// place is the business of whoever has taken its number; a key that is half another's is in no
/// map.
#[map]
static LAST_DATAGRAMS: Array<FragmentKey> = Array::with_max_entries(SOURCE_SLOTS * DATAGRAMS_PER_SOURCE, 0);
/// Datagrams that there have been, by place. Added to atomically.
#[map]
static LAST_DATAGRAMS_COUNT: Array<AtomicU32> = Array::with_max_entries(SOURCE_SLOTS, 0);

/// As above, of those that came into [`AWAITED`].
#[map]
static LAST_AWAITED: Array<FragmentKey> = Array::with_max_entries(SOURCE_SLOTS * DATAGRAMS_PER_SOURCE, 0);
/// As above.
#[map]
static LAST_AWAITED_COUNT: Array<AtomicU32> = Array::with_max_entries(SOURCE_SLOTS, 0);

/// Fragments of a source that may still be held, by a keyed hash of its address. Taken from
/// atomically.
#[map]
static EARLY_BUCKETS: Array<TokenBucket> = Array::with_max_entries(EARLY_SLOTS, 0);

/// A new datagram, too large for the stack.
#[map]
// SAFETY: numbers.
static BLANK_DATAGRAM: Scratch<Datagram> = unsafe { Scratch::new() };

/// The fragment that [`datagram_cover`] enters.
#[map]
// SAFETY: numbers, bytes and flags.
static FRAGMENT: Scratch<Cell<Fragment>> = unsafe { Scratch::new() };

/// The time in milliseconds.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: takes nothing and always answers.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000) as u32
}

/// The datagram of a fragment, if its first has come.
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

/// Puts a source's datagram into the place of its oldest one. That moves to a place of the next
/// ones whose datagram has gone, complete or given up; where there is none, it comes back, to be
/// forgotten.
#[inline(always)]
fn take_place(
    (last, count): (&Array<FragmentKey>, &Array<AtomicU32>),
    hash: u32,
    key: &FragmentKey,
    has_gone: impl Fn(&FragmentKey) -> bool,
) -> Option<FragmentKey> {
    let number = count.get(hash % SOURCE_SLOTS)?.add(1);
    let place = last.get_ptr_mut(slot_of(hash, number))?;
    // SAFETY: memory of a map, which stays mapped; any bytes are a key.
    let oldest = unsafe { core::ptr::replace(place, *key) };
    if oldest == *key || has_gone(&oldest) {
        return None;
    }
    for ahead in 1..=PROBES {
        let place = last.get_ptr_mut(slot_of(hash, number.wrapping_add(ahead)))?;
        // SAFETY: as above.
        unsafe {
            if has_gone(&*place) {
                *place = oldest;
                return None;
            }
        }
    }
    Some(oldest)
}

/// Notes what becomes of a datagram, by its first fragment: a packet of `flow`, which leaves for
/// the reason `verdict`.
///
/// # Errors
/// When there is a datagram with the same identification already: they overlap.
#[inline(always)]
pub(crate) fn begin(work: &Work, fragment: &Fragment, flow: &FlowKey, verdict: Reason) -> Result<(), Reason> {
    BLANK_DATAGRAM.get().ok_or(Reason::Internal)?.start(flow, verdict, now());
    FRAGMENT.get().ok_or(Reason::Internal)?.set(*fragment);
    match datagram_begin() {
        BEGUN => Ok(()),
        AWAITED_BEGUN => {
            punt::release(&work.frame);
            Ok(())
        }
        _ => Err(Reason::FragmentBad),
    }
}

// What `datagram_begin` answers.
const BAD: u32 = 0;
const BEGUN: u32 = 1;
/// It has begun, and fragments of it are held.
const AWAITED_BEGUN: u32 = 2;

/// Begins the datagram that is in `BLANK_DATAGRAM` with the fragment that is in `FRAGMENT`. A
/// global function: the verifier looks at it once, and not wherever it is called.
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
    // What is left of an older one. It fails if there is none.
    let _ = DATAGRAMS.remove(key);
    let _ = OTHER_DATAGRAMS.remove(key);
    // It is there only if another CPU has put it there this moment.
    let inserted = if blank.verdict() == Reason::Forwarded as u32 {
        // None has more than its share, so that nobody's flood has others' forgotten.
        let hash = source_hash(&settings.seeds(), key.source);
        let now = now();
        // SAFETY: see the map for what that may turn out to be.
        let has_gone = |key: &FragmentKey| unsafe { DATAGRAMS.get(key) }.is_none_or(|old| old.is_stale(now));
        if let Some(oldest) = take_place((&LAST_DATAGRAMS, &LAST_DATAGRAMS_COUNT), hash, key, has_gone) {
            let _ = DATAGRAMS.remove(oldest);
        }
        DATAGRAMS.insert(key, blank, u64::from(BPF_NOEXIST))
    } else {
        OTHER_DATAGRAMS.insert(key, blank, u64::from(BPF_NOEXIST))
    };
    if inserted.is_err() || datagram_cover() == Coverage::Bad as u32 {
        return BAD;
    }
    // Those that were early look for the datagram after they have said that they are there, and so
    // one of the two finds the other. SAFETY: only whether it is there matters.
    if unsafe { AWAITED.get(key) }.is_none() {
        return BEGUN;
    }
    let _ = AWAITED.remove(key);
    AWAITED_BEGUN
}

/// Forgets a datagram whose first fragment has not left: it begins when that comes again, and what
/// comes until then is early.
#[inline(always)]
pub(crate) fn forget(key: &FragmentKey) {
    // It fails if it has been forgotten already.
    let _ = DATAGRAMS.remove(key);
}

/// Has the daemon hold a fragment whose datagram has not begun; whether it does.
#[inline(always)]
pub(crate) fn hold(work: &Work, fragment: &Fragment) -> bool {
    let (key, hash) = (&fragment.key, source_hash(&work.settings.seeds(), fragment.key.source));
    let Some(bucket) = EARLY_BUCKETS.get(hash % EARLY_SLOTS) else { return false };
    // SAFETY: takes nothing and always answers.
    let now = unsafe { bpf_ktime_get_ns() };
    if !bucket.take(now, EARLY_RATE) || !punt::to_be_held(work, fragment.ip_length()) {
        return false;
    }
    // SAFETY: only whether it is there matters.
    if unsafe { AWAITED.get(key) }.is_none() {
        // SAFETY: as above.
        let has_gone = |key: &FragmentKey| unsafe { AWAITED.get(key) }.is_none();
        if let Some(oldest) = take_place((&LAST_AWAITED, &LAST_AWAITED_COUNT), hash, key, has_gone) {
            let _ = AWAITED.remove(oldest);
        }
        // Without a place it is not released, and lost.
        let _ = AWAITED.insert(key, 0, 0);
    }
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
    FRAGMENT.get().ok_or(Reason::Internal)?.set(*fragment);
    let coverage = datagram_cover();
    if coverage == Coverage::Bad as u32 {
        return Err(Reason::FragmentBad);
    }
    if coverage == Coverage::Complete as u32 {
        // It is in one of them.
        let _ = DATAGRAMS.remove(fragment.key);
        let _ = OTHER_DATAGRAMS.remove(fragment.key);
    }
    Ok(())
}

/// Enters the fragment that is in `FRAGMENT` into its datagram. A global function: the verifier
/// looks at it once, and not wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn datagram_cover() -> u32 {
    let Some(fragment) = FRAGMENT.get().map(Cell::get) else { return Coverage::Bad as u32 };
    match lookup(&fragment.key) {
        Some(datagram) => datagram.cover(&fragment, now()) as u32,
        // Forgotten this moment.
        None => Coverage::Bad as u32,
    }
}

/// Has a datagram's later fragments leave for the same reason as the first, which opens no session.
#[inline(always)]
pub(crate) fn note_reason(work: &Work, packet: &Packet, reason: Reason) -> Reason {
    match Fragment::parse(&work.frame) {
        Ok(fragment) => match begin(work, &fragment, &packet.key, reason) {
            Ok(()) => reason,
            Err(bad) => bad,
        },
        // It has been read before.
        Err(reason) => reason,
    }
}

/// Returns `true` if the first fragment of this later one's datagram was passed to this machine's
/// own stack.
///
/// # Errors
/// It overlaps another.
#[inline(always)]
pub(crate) fn first_has_passed(work: &Work) -> Result<bool, Reason> {
    let fragment = Fragment::parse(&work.frame)?;
    let Some(datagram) = find(&fragment.key) else { return Ok(false) };
    let verdict = datagram.verdict();
    cover(&fragment)?;
    Ok(verdict == Reason::NotMatched as u32)
}
