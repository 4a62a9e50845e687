//! What the data plane and the daemon share: the packet logic as pure functions, and the types that
//! live in BPF maps.
//!
//! Everything here compiles for the BPF target and for the host, allocates nothing and never
//! panics, so that the code which decides about a packet in the kernel is the code that the host's
//! unit, property and fuzz tests run.
//!
//! Two conventions hold everywhere. **Wire bytes stay bytes**: addresses and ports are big-endian
//! byte arrays, as they stand in the packet, and turn into numbers only where one is computed with.
//! **Map types have no padding**: each is `#[repr(C)]`, and its size is asserted beside it.
#![cfg_attr(not(any(test, model)), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    expect(internal_features, reason = "see `shared`")
)]

pub mod address;
pub mod answer;
pub mod bounds;
pub mod checksum;
#[cfg(test)]
mod effort;
pub mod ethernet;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod ipv6;
pub mod local;
pub mod mss;
pub mod openings;
pub mod own;
pub mod packet;
pub mod ports;
pub mod punt;
pub mod reason;
pub mod rewrite;
pub mod route;
pub mod rules;
pub mod session;
pub mod settings;
pub mod shared;
pub mod stats;
pub mod table;
mod wire;

#[cfg(feature = "user")]
mod pod;

/// The version of everything that is pinned: maps, their keys and values, and the meaning of the
/// program slots.
///
/// It is part of the pin directory's name (`/sys/fs/bpf/pls-router/v<LAYOUT>`), so that two daemons
/// which disagree about the bytes in a map never open the same one. Raise it with every change to a
/// type in a map, and to where in the flow table a flow may be (the hash, the sizes of the regions,
/// the lengths of chains): a flow that is looked for elsewhere is lost, and its port given away.
pub const LAYOUT: u32 = 9;

/// The interfaces that one router works on, at most: the PLS-facing and the firewall-facing one.
pub const MAX_INTERFACES: usize = 2;
/// Rules of both kinds in one configuration, at most. [`stats::CpuStats`] has to fit the kernel's
/// per-CPU unit of 32 KiB.
pub const MAX_RULES: usize = 512;
/// Source and destination pairs of all `[[masquerade]]` rules together, at most: they are matched
/// in order.
pub const MAX_MASQUERADES: usize = 256;
/// Addresses that new sessions of one `[[forward]]` are spread over, at most.
pub const MAX_TARGETS: usize = 32;
/// Addresses in the SNAT pool, at most.
pub const MAX_SNAT_ADDRESSES: usize = 16;

/// Azure's platform address: probe source, DNS, DHCP and WireServer. Its packets always go to the
/// VM's own stack, on every port (<https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16>).
pub const AZURE_PLATFORM: address::Ipv4 = address::Ipv4([168, 63, 129, 16]);

/// The programs behind the fast path, by their slot in the array of them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Packets of sessions that need more than a rewrite; finds whose every other packet is.
    Slow = 0,
    /// ICMP errors about known sessions.
    Related = 1,
    /// Fragments.
    Fragment = 2,
    /// Answers of the router's own: ICMP errors and resets.
    Answer = 3,
    /// Whether and how a packet opens a session.
    Open = 4,
    /// Puts a new session into the table.
    Claim = 5,
    /// Packets that are no session's and no rule's.
    Local = 6,
    /// Frames that are no untagged IPv4.
    Ethernet = 7,
    /// IPv6, which is this machine's own or nobody's business.
    Ipv6 = 8,
}

impl Stage {
    /// Each with the name of its program.
    pub const ALL: [(Self, &str); STAGES as usize] = [
        (Self::Slow, "slow"),
        (Self::Related, "related"),
        (Self::Fragment, "fragment"),
        (Self::Answer, "answer"),
        (Self::Open, "open"),
        (Self::Claim, "claim"),
        (Self::Local, "local"),
        (Self::Ethernet, "ethernet"),
        (Self::Ipv6, "ipv6"),
    ];
}

/// How many there are.
pub const STAGES: u32 = 9;

/// Counters of half-open sessions, see [`half_open_slot`].
pub const HALF_OPEN_SLOTS: u32 = 1 << 16;

/// Places for when a session was last known to lead to an address, see [`peer_slot`].
pub const PEER_SLOTS: u32 = 1 << 16;
/// For how long an address counts as one that sessions lead to, in ticks: the sweep renews it every
/// two seconds while one does.
pub const PEER_PATIENCE: u32 = 10;

/// The place of an address in the list of those that sessions lead to.
#[inline(always)]
pub const fn peer_slot(seeds: &table::HashSeeds, address: address::Ipv4) -> u32 {
    source_hash(seeds, address) & (PEER_SLOTS - 1)
}

/// A counter of half-open sessions, in memory that the programs and the daemon share.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct HalfOpen(shared::AtomicU32);

impl HalfOpen {
    /// Counts one more; `false` if that is too many, and nothing was counted.
    #[inline(always)]
    pub fn enter(&self, limit: u32) -> bool {
        if self.0.add(1) < limit {
            return true;
        }
        self.leave();
        false
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.load()
    }

    /// Counts one less.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.add(1_u32.wrapping_neg());
    }
}

/// A place of the list of addresses that sessions lead to, see [`peer_slot`]: the tick in which one
/// was last known to.
///
/// Written when a session opens, and by the daemon's sweep while there is one: any of both is
/// right, and the last one stays.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Peer(shared::Shared<u32>);

impl Peer {
    /// Notes that a session leads there now.
    #[inline(always)]
    pub fn note(&self, now: session::Ticks) {
        self.0.set(now.0);
    }

    /// Forgets what was noted.
    pub fn forget(&self) {
        self.0.set(0);
    }

    /// Returns `true` if a session leads there, or has done so moments ago.
    #[inline(always)]
    pub fn is_one(&self, now: session::Ticks) -> bool {
        let last = self.0.get();
        last != 0 && now.0.wrapping_sub(last) <= PEER_PATIENCE
    }
}

/// Which counter is a source's.
#[inline(always)]
pub const fn half_open_slot(seeds: &table::HashSeeds, source: address::Ipv4) -> u32 {
    source_hash(seeds, source) & (HALF_OPEN_SLOTS - 1)
}

/// 32 bits for a source, of which nobody else can foresee what other source has the same.
#[inline(always)]
pub const fn source_hash(seeds: &table::HashSeeds, source: address::Ipv4) -> u32 {
    let nobody = address::Ipv4([0; 4]);
    let no_port = address::Port([0; 2]);
    let key = flow::FlowKey::new(flow::Protocol::Icmp, source, no_port, nobody, no_port);
    seeds.hash(&key)
}
