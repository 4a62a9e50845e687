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

/// Which pool belongs to which target. Inserted by the programs where ports are tried in vain,
/// removed by the daemon where few are taken. Sized by the daemon: that needs many sessions with a
/// target, so there cannot be many.
#[map]
static POOLS: HashMap<PoolKey, u32> = HashMap::with_max_entries(16, 0);

/// The pools. As many as there are keys; the daemon has them in its memory.
#[map]
static POOL_BITS: Array<Pool> = Array::with_max_entries(16, BPF_F_MMAPABLE);

/// The search for a pool that is not in use.
struct Search {
    /// The pool, or [`NONE`].
    found: Cell<u32>,
    /// How many were searched in vain, and when, the last time that it was so.
    in_vain: Cell<u32>,
    at: Cell<Ticks>,
}

/// The search that a CPU makes.
#[map]
// SAFETY: numbers.
static POOL_SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// No pool.
const NONE: u32 = u32::MAX;

/// More than there can be.
pub(crate) const ALL: u32 = 1 << 16;

/// The pool of this number.
#[inline(always)]
pub(crate) fn pool(index: u32) -> Option<&'static Pool> {
    POOL_BITS.get(index)
}

/// The number of a target's pool, if it has one.
#[inline(always)]
pub(crate) fn find(key: &PoolKey) -> Option<u32> {
    // SAFETY: the value is a number that does not change.
    unsafe { POOLS.get(key) }.copied()
}

/// The number of a target's pool, which is made if there is none, of the first so many. `None` if
/// these are in use.
#[inline(always)]
pub(crate) fn find_or_make(key: &PoolKey, among: u32) -> Option<u32> {
    if let Some(index) = find(key) {
        return Some(index);
    }
    let search = POOL_SEARCH.get()?;
    let now = flows::now();
    // That takes a while, and only the daemon gives pools back.
    if search.in_vain.get() >= among && search.at.get() == now {
        return None;
    }
    search.found.set(NONE);
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(among, claim as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    let index = search.found.get();
    if index == NONE {
        search.in_vain.set(among);
        search.at.set(now);
        return None;
    }
    search.in_vain.set(0);
    match POOLS.insert(key, index, u64::from(BPF_NOEXIST)) {
        Ok(()) => Some(index),
        // Another CPU has made one at the same time.
        Err(_) => {
            pool(index)?.unclaim();
            find(key)
        }
    }
}

/// One step of the search for a pool that is not in use. A callback of `bpf_loop`; 1 ends it.
unsafe extern "C" fn claim(index: u32, _context: *mut c_void) -> i64 {
    let (Some(pool), Some(search)) = (pool(index), POOL_SEARCH.get()) else { return 1 };
    // Most are another's, and whoever only looks does not take their memory from other CPUs.
    if !pool.is_used() && pool.claim() {
        search.found.set(index);
        return 1;
    }
    0
}
