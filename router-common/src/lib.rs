//! What the data plane and the daemon share: the packet logic as pure functions, and the types that live in BPF maps.
//!
//! Everything here compiles for the BPF target and for the host, allocates nothing and never panics, so that the code
//! which decides about a packet in the kernel is the code that the host's unit, property and fuzz tests run.
//!
//! Two conventions hold everywhere. **Wire bytes stay bytes**: addresses and ports are big-endian byte arrays, as they
//! stand in the packet, and turn into numbers only where one is computed with. **Map types have no padding**: each is
//! `#[repr(C)]`, and its size is asserted beside it.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod checksum;
pub mod flow;
pub mod packet;
pub mod ports;
pub mod punt;
pub mod reason;
pub mod rewrite;
pub mod rules;
pub mod session;
pub mod settings;
pub mod stats;

#[cfg(feature = "user")]
mod pod;

/// The version of everything that is pinned: maps, their keys and values, and the meaning of the program slots.
///
/// It is part of the pin directory's name (`/sys/fs/bpf/pls-router/v<LAYOUT>`), so that two daemons which disagree about
/// the bytes in a map never open the same one. Raise it with every change to a type in a map.
pub const LAYOUT: u32 = 1;

/// The interfaces that one router works on, at most: the PLS-facing and the firewall-facing one.
pub const MAX_INTERFACES: usize = 2;
/// Rules of both kinds in one configuration, at most. [`stats::CpuStats`] has to fit the kernel's per-CPU unit of 32 KiB.
pub const MAX_RULES: usize = 512;
/// Source and destination pairs of all `[[masquerade]]` rules together, at most: they are matched in order.
pub const MAX_MASQUERADES: usize = 256;
/// Addresses that new sessions of one `[[forward]]` are spread over, at most.
pub const MAX_TARGETS: usize = 32;
/// Addresses in the SNAT pool, at most.
pub const MAX_SNAT_ADDRESSES: usize = 16;

/// Azure's platform address: probe source, DNS, DHCP and WireServer. Its packets always go to the VM's own stack, on
/// every port (<https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16>).
pub const AZURE_PLATFORM: address::Ipv4 = address::Ipv4([168, 63, 129, 16]);
