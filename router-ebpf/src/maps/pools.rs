//! Pools of SNAT ports, see [`router_common::ports`].

use core::cell::Cell;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    cty::c_void,
    helpers::generated::bpf_loop,
    macros::map,
    maps::{Array, HashMap},
};
use router_common::{
    ports::{Pool, PoolKey},
    time::Ticks,
};

use crate::maps::{flows, scratch::Scratch};

/// The pool of each target. The programs insert a target whose ports are crowded, and the daemon
/// removes one with few taken ports. Sized by the daemon: only targets with many sessions have
/// pools, so there cannot be many.
#[map]
static POOLS: HashMap<PoolKey, u32> = HashMap::with_max_entries(16, 0);

/// The pools, as many as keys. The daemon maps this memory.
#[map]
static POOL_BITS: Array<Pool> = Array::with_max_entries(16, BPF_F_MMAPABLE);

/// A search for an unused pool.
struct Search {
    /// The pool that was found, or [`NONE`].
    found: Cell<u32>,
    /// The number of pools that the last search without success went through, and when.
    without_success: Cell<u32>,
    at: Cell<Ticks>,
}

/// Per-CPU scratch: the search that is going on.
#[map]
// SAFETY: numbers.
static POOL_SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// No pool.
const NONE: u32 = u32::MAX;

/// More than the number of pools.
pub(crate) const ALL: u32 = 1 << 16;

/// Returns the pool of this number.
#[inline(always)]
pub(crate) fn pool(index: u32) -> Option<&'static Pool> {
    POOL_BITS.get(index)
}

/// Returns the number of a target's pool.
#[inline(always)]
pub(crate) fn find(key: &PoolKey) -> Option<u32> {
    // SAFETY: the value is a number that does not change.
    unsafe { POOLS.get(key) }.copied()
}

/// Returns the number of a target's pool. If it has none, takes an unused one among the first
/// `among`; `None` if all of those are in use.
#[inline(always)]
pub(crate) fn find_or_make(key: &PoolKey, among: u32) -> Option<u32> {
    if let Some(index) = find(key) {
        return Some(index);
    }
    let search = POOL_SEARCH.get()?;
    let now = flows::now();
    // A search takes a while, and only the daemon frees pools.
    if search.without_success.get() >= among && search.at.get() == now {
        return None;
    }
    search.found.set(NONE);
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(among, claim as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    let index = search.found.get();
    if index == NONE {
        search.without_success.set(among);
        search.at.set(now);
        return None;
    }
    search.without_success.set(0);
    match POOLS.insert(key, index, u64::from(BPF_NOEXIST)) {
        Ok(()) => Some(index),
        // Another CPU has inserted one at the same time.
        Err(_) => {
            pool(index)?.unclaim();
            find(key)
        }
    }
}

/// A step of the search for an unused pool. A callback of `bpf_loop`; returns 1 to end it.
unsafe extern "C" fn claim(index: u32, _context: *mut c_void) -> i64 {
    let (Some(pool), Some(search)) = (pool(index), POOL_SEARCH.get()) else { return 1 };
    // Most pools are in use; a look does not take the cache line from other CPUs.
    if !pool.is_used() && pool.claim() {
        search.found.set(index);
        return 1;
    }
    0
}
