//! Fixed sizes that both halves agree on, and the version of what is pinned.

/// The version of everything that is pinned: maps, their keys and values, and the meaning of the
/// program slots.
///
/// It is part of the pin directory's name (`/sys/fs/bpf/pls-router/v<LAYOUT>`), so that two daemons
/// which disagree about the bytes in a map never open the same one. Raise it with every change to a
/// type in a map, and to where in the flow table a flow may be (the hash, the sizes of the regions,
/// the lengths of chains): a flow that is looked up elsewhere is lost, and its port is given to
/// another session.
///
/// With another number, `router_user::dataplane::migration` gets a description of this layout, so
/// that the next version can take sessions out of a table of this one.
#[cfg(not(feature = "other-layout"))]
pub const LAYOUT: u32 = 9;
/// A layout that no release has: tests change from one layout to another with it.
#[cfg(feature = "other-layout")]
pub const LAYOUT: u32 = 1009;

/// The maximum number of interfaces of one router: the PLS-facing and the firewall-facing one.
pub const MAX_INTERFACES: usize = 2;
/// The maximum number of rules of both kinds in one configuration.
/// [`CpuStats`](crate::maps::stats::CpuStats) has to fit the kernel's per-CPU unit of 32 KiB.
pub const MAX_RULES: usize = 512;
/// The maximum number of source and destination pairs of all `[[masquerade]]` rules together: they
/// are matched in order.
pub const MAX_MASQUERADES: usize = 256;
/// The maximum number of addresses that new sessions of one `[[forward]]` are spread over.
pub const MAX_TARGETS: usize = 32;
/// The maximum number of addresses in the SNAT pool.
pub const MAX_SNAT_ADDRESSES: usize = 16;
/// The maximum number of entries of `local.allow`, for each version of IP.
pub const MAX_LOCAL_ALLOW: usize = 64;
