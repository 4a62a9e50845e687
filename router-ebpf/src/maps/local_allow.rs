//! The entries of `local.allow`: services of this machine that are open to closed-out sources.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop, macros::map, maps::Array};
use router_common::{
    address::{Ipv4, Ipv6},
    limits::MAX_LOCAL_ALLOW,
    local::{Allow, Search, Service},
    maps::rules::{Ipv6Network, Network, RuleSet},
};

/// Entries of `local.allow` by bank and position. Written by the daemon, see
/// `router_common::maps::rules`.
#[map]
static LOCAL_ALLOW: Array<Allow<Network>> = Array::with_max_entries(2 * MAX_LOCAL_ALLOW as u32, 0);

/// Entries of `local.allow` for IPv6 networks, by bank and position. Written by the daemon, see
/// `router_common::maps::rules`.
#[map]
static LOCAL_ALLOW_IPV6: Array<Allow<Ipv6Network>> = Array::with_max_entries(2 * MAX_LOCAL_ALLOW as u32, 0);

/// Returns `true` if an entry covers packets to a service from this source.
#[inline(always)]
pub(crate) fn covers(version: u32, rule_set: &RuleSet, service: Service, source: Ipv4) -> bool {
    search(Search::new(version, service, source), rule_set.local_allow_count, step)
}

/// As [`covers`], of IPv6.
#[inline(always)]
pub(crate) fn covers_ipv6(version: u32, rule_set: &RuleSet, service: Service, source: Ipv6) -> bool {
    search(Search::new(version, service, source), rule_set.local_allow_ipv6_count, step_ipv6)
}

/// Searches the first `count` entries of `local.allow`, by steps of the address's family.
#[inline(always)]
fn search<A: Copy>(
    mut search: Search<A>,
    count: u32,
    step: unsafe extern "C" fn(u32, *mut Search<A>) -> i64,
) -> bool {
    // SAFETY: the callback is a BPF subprogram of the kernel's `bpf_loop` signature, and gets the
    // context that it expects.
    unsafe {
        bpf_loop(
            count.min(MAX_LOCAL_ALLOW as u32),
            step as *const () as *mut c_void,
            (&raw mut search).cast(),
            0,
        );
    }
    search.has_found()
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once.
///
/// # Safety
/// `search` points to a [`Search`] that nothing else uses meanwhile.
unsafe extern "C" fn step(position: u32, search: *mut Search<Ipv4>) -> i64 {
    // SAFETY: the caller's promise.
    let search = unsafe { &mut *search };
    search.look_at(LOCAL_ALLOW.get(search.index(position)))
}

/// One step of the search. A callback of `bpf_loop`, so that the verifier looks at it once.
///
/// # Safety
/// `search` points to a [`Search`] that nothing else uses meanwhile.
unsafe extern "C" fn step_ipv6(position: u32, search: *mut Search<Ipv6>) -> i64 {
    // SAFETY: the caller's promise.
    let search = unsafe { &mut *search };
    search.look_at(LOCAL_ALLOW_IPV6.get(search.index(position)))
}
