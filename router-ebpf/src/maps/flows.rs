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

/// Every session's two flows. The programs insert, the daemon's sweep removes what has expired;
/// both follow `router_common::table`. Sized by the daemon (`limits.flows`), which has it in its
/// memory.
#[map]
static FLOWS: Array<Bucket> = Array::with_max_entries(1 << 15, BPF_F_MMAPABLE);

/// One record: how many sessions there are. Added to by the programs, taken from by the daemon,
/// both atomically.
#[map]
static OCCUPANCY: Array<Occupancy> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One counter a source, by a keyed hash of its address: sources that share one share their limit.
/// Added to by the programs; taken from by the programs when a session is established, and by the
/// daemon when one goes without having been. All atomically.
#[map]
static HALF_OPEN: Array<HalfOpen> = Array::with_max_entries(HALF_OPEN_SLOTS, BPF_F_MMAPABLE);

/// A walk along a chain. In a map and not on the stack, so that the verifier need not follow what
/// it holds.
#[map]
// SAFETY: numbers.
static SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// The time, in ticks.
#[inline(always)]
pub(crate) fn now() -> Ticks {
    // SAFETY: takes nothing and always answers.
    Ticks::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
}

/// A bucket of the table, whose memory is shared: see `router_common::table` for who may write
/// what.
#[inline(always)]
fn bucket(number: u32) -> Option<&'static Bucket> {
    FLOWS.get(number)
}

#[inline(always)]
fn slot(index: u32) -> Option<&'static Slot> {
    let Bucket(slots) = bucket(index / BUCKET)?;
    Some(&slots[(index % BUCKET) as usize])
}

/// The live flow of a key, if it is near the start of its chain. For the fast path; a flow that is
/// further on is the slow path's.
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

/// The live flow of a key.
#[inline(always)]
pub(crate) fn find(key: &FlowKey, settings: &Live) -> Option<&'static Slot> {
    find_or_vacancy(key, settings).ok()
}

/// The live flow of a key, or else where it may be put.
#[inline(always)]
pub(crate) fn find_or_vacancy(key: &FlowKey, settings: &Live) -> Result<&'static Slot, Vacancy> {
    let search = walk(key, settings, NO_SLOT).ok_or(Vacancy::UNKNOWN)?;
    match slot(search.found()) {
        Some(slot) if slot.is_flow(key) => Ok(slot),
        Some(slot) if matches!(slot.tag().state(), SlotState::Held) => Err(Vacancy::HELD),
        _ => Err(search.vacancy().unwrap_or(Vacancy::UNKNOWN)),
    }
}

/// The flow in this slot, if it is the live one of a key.
#[inline(always)]
pub(crate) fn at(index: u32, key: &FlowKey) -> Option<&'static Slot> {
    slot(index).filter(|slot| slot.is_flow(key))
}

/// The slot at this index, whatever is in it.
#[inline(always)]
pub(crate) fn at_index(index: u32) -> Option<&'static Slot> {
    slot(index)
}

/// Returns the index of a key's live flow, or [`NO_SLOT`].
#[inline(always)]
pub(crate) fn index_of(key: &FlowKey, settings: &Live) -> u32 {
    walk(key, settings, NO_SLOT).map_or(NO_SLOT, Search::found)
}

/// Whether nobody else may have a key: there is a live flow of it, or it is held.
#[inline(always)]
pub(crate) fn is_taken(key: &FlowKey) -> bool {
    settings::get().is_some_and(|settings| match find_or_vacancy(key, settings) {
        Ok(_) => true,
        Err(vacancy) => vacancy.is_held(),
    })
}

/// Whether there is a live flow of a key.
#[inline(always)]
pub(crate) fn is_there(key: &FlowKey) -> bool {
    settings::get().is_some_and(|settings| find(key, settings).is_some())
}

/// Inserts a flow whose key is not there yet, and makes it live: packets with `key` become `to`.
/// The slot's index.
///
/// `vacancy`: where this packet's look for the key has found that it may be put, or
/// [`Vacancy::UNKNOWN`].
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

/// A flow on its way into the table.
struct Insertion {
    key: Cell<FlowKey>,
    entry: FlowEntry,
}

/// The flow that [`flow_table_insert`] inserts.
#[map]
// SAFETY: numbers and bytes.
static INSERTION: Scratch<Insertion> = unsafe { Scratch::new() };

// What `flow_table_insert` answers beside a slot's index.
const EXISTS: u32 = u32::MAX;
const CONTENDED: u32 = u32::MAX - 1;
const FULL: u32 = u32::MAX - 2;

/// How often an insertion is tried where another CPU is at work in the same place. Each of its
/// flows is in the way for the time of a few loads and stores, so the second attempt nearly always
/// does.
const ATTEMPTS: u32 = 4;

/// Inserts what is in `INSERTION` with this tag, in the slot `index` if it is as it was `seen`: the
/// slot's index, or why not.
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
        // The next one looks for a place itself.
        index = NO_SLOT;
    }
    CONTENDED
}

/// As `flow_table_insert`, once. A global function, see there.
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
    // In place: a whole one would be put together on the stack first.
    let (search, regions) = (SEARCH.get()?, settings.regions());
    search.start(key, &regions, settings.seeds().homes(key, &regions), mine);
    flow_table_walk();
    Some(search)
}

/// Does the walk that is in `SEARCH`. A global function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_walk() -> u32 {
    let Some(search) = SEARCH.get() else { return 0 };
    // Both chains are asked for before the first is walked: one wait for the memory and not two.
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
                    look_on as *const () as *mut c_void,
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

/// A step of a walk beyond its first ones. A callback of `bpf_loop`, so that the verifier looks at
/// it once.
unsafe extern "C" fn look_on(step: u32, _context: *mut c_void) -> i64 {
    let is_over = flow_table_look((REACH / BUCKET).wrapping_add(step));
    // It is 0 or 1, but not as far as the verifier sees.
    i64::from(bounds::opaque(is_over) & 1)
}

/// One step of a walk, of a bucket; whether that ends it. A global function, see above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_table_look(step: u32) -> u32 {
    let Some(search) = SEARCH.get() else { return 1 };
    let first = search.home().wrapping_add(step * BUCKET);
    u32::from(bucket(first / BUCKET).is_none_or(|bucket| search.look(first, bucket)))
}

/// How full the table is.
#[inline(always)]
pub(crate) fn occupancy() -> Option<&'static Occupancy> {
    OCCUPANCY.get(0)
}

/// How many sessions of a source are still opening.
#[inline(always)]
pub(crate) fn half_open(settings: &Live, source: Ipv4) -> Option<&'static HalfOpen> {
    HALF_OPEN.get(half_open_slot(&settings.seeds(), source))
}
