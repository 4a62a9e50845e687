//! The flow table, see [`router_common::table`].

use core::cell::Cell;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    cty::c_void,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop},
    macros::map,
    maps::Array,
};
use router_common::{
    address::Ipv4,
    bounds,
    entry::FlowEntry,
    maps::{
        half_open::{HALF_OPEN_SLOTS, HalfOpen, half_open_slot},
        settings::Live,
    },
    table::{BUCKET, Bucket, InsertError, NO_SLOT, Occupancy, REACH, Search, Slot, SlotState, Tag, Vacancy},
    time::Ticks,
    tuple::FlowKey,
};

use crate::maps::{scratch::Scratch, settings};

/// The two flows of every session. The programs insert, and the daemon's sweep removes what has
/// expired; both follow `router_common::table`. Sized by the daemon (`limits.flows`), which maps
/// this memory.
#[map]
static FLOWS: Array<Bucket> = Array::with_max_entries(1 << 15, BPF_F_MMAPABLE);

/// One record: the number of sessions. The programs add to it, the daemon subtracts, both
/// atomically.
#[map]
static OCCUPANCY: Array<Occupancy> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Counters of half-open sessions by a keyed hash of their source: sources with the same hash share
/// their limit. The programs add to them, and subtract when a session is established; the daemon
/// subtracts for one that was removed before. All atomically.
#[map]
static HALF_OPEN: Array<HalfOpen> = Array::with_max_entries(HALF_OPEN_SLOTS, BPF_F_MMAPABLE);

/// Per-CPU scratch: a walk along a chain. The verifier does not follow the values in it.
#[map]
// SAFETY: numbers.
static SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// Returns the time in ticks.
#[inline(always)]
pub(crate) fn now() -> Ticks {
    // SAFETY: takes nothing and always answers.
    Ticks::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Returns a bucket of the table, in shared memory: see `router_common::table` for the rules of
/// access.
#[inline(always)]
fn bucket(number: u32) -> Option<&'static Bucket> {
    FLOWS.get(number)
}

#[inline(always)]
fn slot(index: u32) -> Option<&'static Slot> {
    let Bucket(slots) = bucket(index / BUCKET)?;
    Some(&slots[(index % BUCKET) as usize])
}

/// Returns the live flow of a key, if it is near the start of its chain. For the fast path, which
/// leaves flows further on to the slow path.
#[inline(always)]
pub(crate) fn find_near(key: &FlowKey, settings: &Live) -> Option<&'static Slot> {
    let hash = settings.seeds().hash(key);
    if let Some(slot) = probe(key, settings.regions().near_home(hash)) {
        return Some(slot);
    }
    match settings.regions().far_home(hash) {
        NO_SLOT => None,
        far => probe(key, far),
    }
}

#[inline(always)]
fn probe(key: &FlowKey, home: u32) -> Option<&'static Slot> {
    const LAST: u32 = REACH / BUCKET - 1;
    for step in 0..=LAST {
        let bucket = bucket(home / BUCKET + step)?;
        let slot = &bucket.0[bucket.candidate(key)];
        if slot.is_flow(key) {
            return Some(slot);
        }
        if step < LAST && bucket.ends_chains() {
            break;
        }
    }
    None
}

/// Returns the live flow of a key.
#[inline(always)]
pub(crate) fn find(key: &FlowKey, settings: &Live) -> Option<&'static Slot> {
    find_or_vacancy(key, settings).ok()
}

/// Returns the live flow of a key, or the vacancy for one.
#[inline(always)]
pub(crate) fn find_or_vacancy(key: &FlowKey, settings: &Live) -> Result<&'static Slot, Vacancy> {
    let search = walk(key, settings, NO_SLOT).ok_or(Vacancy::UNKNOWN)?;
    match slot(search.found()) {
        Some(slot) if slot.is_flow(key) => Ok(slot),
        Some(slot) if matches!(slot.tag().state(), SlotState::Held) => Err(Vacancy::HELD),
        _ => Err(search.vacancy().unwrap_or(Vacancy::UNKNOWN)),
    }
}

/// Returns the flow in this slot, if it is the live one of a key.
#[inline(always)]
pub(crate) fn at(index: u32, key: &FlowKey) -> Option<&'static Slot> {
    slot(index).filter(|slot| slot.is_flow(key))
}

/// Returns the slot at this index, in any state.
#[inline(always)]
pub(crate) fn at_index(index: u32) -> Option<&'static Slot> {
    slot(index)
}

/// Returns the index of a key's live flow, or [`NO_SLOT`].
#[inline(always)]
pub(crate) fn index_of(key: &FlowKey, settings: &Live) -> u32 {
    walk(key, settings, NO_SLOT).map_or(NO_SLOT, Search::found)
}

/// Returns `true` if a key is taken: it has a live flow, or it is held.
#[inline(always)]
pub(crate) fn is_taken(key: &FlowKey) -> bool {
    settings::get().is_some_and(|settings| match find_or_vacancy(key, settings) {
        Ok(_) => true,
        Err(vacancy) => vacancy.is_held(),
    })
}

/// Returns `true` if a key has a live flow.
#[inline(always)]
pub(crate) fn has_flow(key: &FlowKey) -> bool {
    settings::get().is_some_and(|settings| find(key, settings).is_some())
}

/// Inserts a flow with a new key and makes it live: packets with `key` become `to`. Returns the
/// slot's index.
///
/// `vacancy` is what this packet's look-up of the key has found, or [`Vacancy::UNKNOWN`].
#[inline(always)]
pub(crate) fn insert(key: &FlowKey, to: &FlowKey, tag: Tag, vacancy: Vacancy) -> Result<u32, InsertError> {
    let insertion = INSERTION.get().ok_or(InsertError::Full)?;
    insertion.key.set(*key);
    insertion.entry.start(key, to, now());
    match flow_table_insert(tag.0, vacancy.index, vacancy.tag.0) {
        CONTENDED => Err(InsertError::Contended),
        EXISTS => Err(InsertError::Exists),
        FULL => Err(InsertError::Full),
        index => Ok(index),
    }
}

/// A flow that is being inserted.
struct Insertion {
    key: Cell<FlowKey>,
    entry: FlowEntry,
}

/// Per-CPU scratch: the flow that [`flow_table_insert`] inserts.
#[map]
// SAFETY: numbers and bytes.
static INSERTION: Scratch<Insertion> = unsafe { Scratch::new() };

// Results of `flow_table_insert` besides a slot's index.
const EXISTS: u32 = u32::MAX;
const CONTENDED: u32 = u32::MAX - 1;
const FULL: u32 = u32::MAX - 2;

/// The attempts to insert while the slots are contended. Each insertion of another CPU takes a few
/// loads and stores, so the second attempt nearly always succeeds.
const ATTEMPTS: u32 = 4;

/// Inserts the flow in `INSERTION` with this tag, in the slot `index` if its tag is still `seen`.
/// Returns the slot's index, or the reason why not.
///
/// A global function: the verifier looks at it once, and not wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_insert(tag: u32, index: u32, seen: u32) -> u32 {
    let mut index = index;
    for _ in 0..ATTEMPTS {
        let result = flow_table_attempt(tag, index, seen);
        if result != CONTENDED {
            return result;
        }
        // The next attempt looks for a vacancy itself.
        index = NO_SLOT;
    }
    CONTENDED
}

/// A single attempt of `flow_table_insert`. A global function, see there.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_attempt(tag: u32, index: u32, seen: u32) -> u32 {
    let (Some(settings), Some(insertion)) = (settings::get(), INSERTION.get()) else { return FULL };
    let (tag, key) = (Tag(tag), insertion.key.get());
    let vacancy = if index == NO_SLOT {
        let Some(search) = walk(&key, settings, NO_SLOT) else { return FULL };
        search.vacancy()
    } else {
        Ok(Vacancy { index, tag: Tag(seen) })
    };
    let vacancy = match vacancy {
        Ok(vacancy) => vacancy,
        Err(error) => return code(error),
    };
    let Some(slot) = slot(vacancy.index) else { return FULL };
    let walk = |mine| walk(&key, settings, mine);
    match slot.insert(vacancy, (&key, tag, &insertion.entry), walk, now) {
        Ok(()) => vacancy.index,
        Err(error) => code(error),
    }
}

#[inline(always)]
const fn code(error: InsertError) -> u32 {
    match error {
        InsertError::Exists => EXISTS,
        InsertError::Contended => CONTENDED,
        InsertError::Full | InsertError::NoPort => FULL,
    }
}

/// Walks along a key's chains. `None` never happens.
#[inline(always)]
fn walk(key: &FlowKey, settings: &Live, mine: u32) -> Option<&'static Search> {
    // In place, since a new one would be built on the stack first.
    let (search, regions) = (SEARCH.get()?, settings.regions());
    search.start(key, &regions, settings.seeds().homes(key, &regions), mine);
    flow_table_walk();
    Some(search)
}

/// Walks as `SEARCH` says. A global function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_walk() -> u32 {
    let Some(search) = SEARCH.get() else { return 0 };
    // Both chains are loaded before the first is walked, to wait for memory once and not twice.
    if let Some(slot) = slot(search.next()) {
        slot.tag();
    }
    for _ in 0..2 {
        // Every chain is at least as long as this.
        let is_over = (0..REACH / BUCKET).any(|step| flow_table_look(step) != 0);
        if !is_over && search.length() > REACH {
            // Few walks are as long as this, and none along a near region. SAFETY: the callback is
            // a BPF subprogram of `bpf_loop`'s signature, and wants no context.
            unsafe {
                bpf_loop(
                    (search.length() - REACH) / BUCKET,
                    walk_on as *const () as *mut c_void,
                    core::ptr::null_mut(),
                    0,
                )
            };
        }
        if !search.next_chain() {
            return 0;
        }
    }
    0
}

/// A later step of a walk. A callback of `bpf_loop`, so that the verifier looks at it once.
unsafe extern "C" fn walk_on(step: u32, _context: *mut c_void) -> i64 {
    let is_over = flow_table_look((REACH / BUCKET).wrapping_add(step));
    // It is 0 or 1, but not as far as the verifier sees.
    i64::from(bounds::opaque(is_over) & 1)
}

/// A step of a walk, which looks at one bucket. Returns 1 if the walk is over. A global function,
/// see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_look(step: u32) -> u32 {
    let Some(search) = SEARCH.get() else { return 1 };
    let first = search.home().wrapping_add(step * BUCKET);
    u32::from(bucket(first / BUCKET).is_none_or(|bucket| search.look(first, bucket)))
}

/// Returns the number of sessions in the table.
#[inline(always)]
pub(crate) fn occupancy() -> Option<&'static Occupancy> {
    OCCUPANCY.get(0)
}

/// Returns the counter of a source's half-open sessions.
#[inline(always)]
pub(crate) fn half_open(settings: &Live, source: Ipv4) -> Option<&'static HalfOpen> {
    HALF_OPEN.get(half_open_slot(&settings.seeds(), source))
}
