//! The code that the data plane and the daemon share: the packet logic as pure functions, and the
//! types that live in BPF maps.
//!
//! Everything here compiles for the BPF target and for the host, allocates nothing and never
//! panics. So the code that decides about a packet in the kernel is the code that the host's unit,
//! property and fuzz tests run.
//!
//! The modules come in layers, and each module uses only modules of its own layer and of those
//! above it: vocabulary, then packets, then sessions, then map types, then decisions. Decisions
//! come last because the rules that they follow are map types.
//!
//! Two conventions hold everywhere. **Wire bytes stay bytes**: addresses and ports are big-endian
//! byte arrays, as they stand in the packet, and become numbers only for arithmetic. **Map types
//! have no padding**: each is `#[repr(C)]`, and its size is asserted beside it.
#![cfg_attr(not(any(test, model)), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    expect(internal_features, reason = "see `shared`")
)]

// Vocabulary: what an address, a tuple, a tick, a drop reason or a shared number is.
pub mod address;
pub mod bounds;
pub mod checksum;
#[cfg(test)]
mod effort;
pub mod limits;
pub mod rate;
pub mod reason;
pub mod shared;
pub mod tcp;
pub mod time;
pub mod tuple;

// Packets: where header fields are, parsing, rewriting, and the router's own answers.
pub mod answer;
pub mod ethernet;
pub mod icmp;
pub mod mss;
pub mod packet;
pub mod rewrite;
pub mod wire;

// Sessions: the flow table, its entries, TCP state, SNAT ports, fragments.
pub mod entry;
pub mod fragment;
pub mod ports;
pub mod session;
pub mod table;

// Map types: what the daemon and the programs say to each other.
pub mod maps;

// Decisions: what happens to a packet that no session matches.
pub mod ipv6;
pub mod local;
#[cfg(feature = "user")]
mod pod;
pub mod policy;
