//! This machine's own addresses.

use aya_ebpf::{macros::map, maps::HashMap};
use router_common::address::{Ipv4, Ipv6};

/// This machine's own addresses, and the broadcast addresses of its networks. Kept up to date by
/// the daemon.
#[map]
static LOCAL_ADDRESSES: HashMap<Ipv4, u32> = HashMap::with_max_entries(4096, 0);

/// The IPv6 counterpart of [`LOCAL_ADDRESSES`]. Kept up to date by the daemon.
#[map]
static LOCAL_ADDRESSES_IPV6: HashMap<Ipv6, u32> = HashMap::with_max_entries(4096, 0);

/// Returns `true` if this is an address of this machine, or a broadcast address of its networks.
#[inline(always)]
pub(crate) fn is_local(address: Ipv4) -> bool {
    local_address(address).is_some()
}

#[inline(always)]
pub(crate) fn local_address(address: Ipv4) -> Option<u32> {
    // SAFETY: a number that is written whole.
    unsafe { LOCAL_ADDRESSES.get(address) }.copied()
}

/// Returns `true` if this is one of this machine's own addresses.
#[inline(always)]
pub(crate) fn is_local_ipv6(address: Ipv6) -> bool {
    // SAFETY: a number that is written whole.
    unsafe { LOCAL_ADDRESSES_IPV6.get(address) }.is_some()
}
