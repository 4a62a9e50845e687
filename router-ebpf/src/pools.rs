//! Pools of SNAT ports, see [`router_common::ports`].

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    cty::c_void,
    helpers::generated::bpf_loop,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use router_common::{
    ports::{Pool, PoolKey},
    session::Ticks,
};

use crate::flows;

/// Which pool belongs to which target. Inserted by the programs where ports are tried in vain, removed by the daemon where few are taken. Sized
/// by the daemon: that needs many sessions with a target, so there cannot be many.
#[map]
static POOLS: HashMap<PoolKey, u32> = HashMap::with_max_entries(16, 0);

/// The pools. As many as there are keys; the daemon has them in its memory.
#[map]
static POOL_BITS: Array<Pool> = Array::with_max_entries(16, BPF_F_MMAPABLE);

/// The search for a pool that is not in use.
struct Search {
    /// The pool, or [`NONE`].
    found: u32,
    /// How many were searched in vain, and when, the last time that it was so.
    in_vain: u32,
    at: Ticks,
}

/// One a CPU.
#[map]
static POOL_SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(1, 0);

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

/// The number of a target's pool, which is made if there is none, of the first so many. `None` if these are in use.
#[inline(always)]
pub(crate) fn find_or_make(key: &PoolKey, among: u32) -> Option<u32> {
    if let Some(index) = find(key) {
        return Some(index);
    }
    let search = scratch()?;
    let now = flows::now();
    // That takes a while, and only the daemon gives pools back.
    if search.in_vain >= among && search.at == now {
        return None;
    }
    search.found = NONE;
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(among, claim as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    let search = scratch()?;
    let index = search.found;
    if index == NONE {
        (search.in_vain, search.at) = (among, now);
        return None;
    }
    search.in_vain = 0;
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
    let (Some(pool), Some(search)) = (pool(index), scratch()) else { return 1 };
    // Most are another's, and whoever only looks does not take their memory from other CPUs.
    if !pool.is_used() && pool.claim() {
        search.found = index;
        return 1;
    }
    0
}

#[inline(always)]
fn scratch() -> Option<&'static mut Search> {
    // SAFETY: this CPU's own; whoever takes it lets go of it before another takes it. Memory of a map starts as zero, which is a value of
    // every field.
    POOL_SEARCH.get_ptr_mut(0).map(|search| unsafe { &mut *search })
}
