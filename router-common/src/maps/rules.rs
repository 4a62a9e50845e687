//! Rules as the program reads them.
//!
//! A *rule set* is everything that a configuration says about new sessions. Two fit side by side:
//! the daemon writes the next one while the program still reads the one in force, and then changes
//! the version in [`Settings`](crate::maps::settings::Settings), which switches every rule at once.
//! Indexes and keys carry the version, see [`bank`].

use core::mem::size_of;

use crate::{
    address::{Ipv4, Ipv6, Port},
    limits::{MAX_MASQUERADES, MAX_RULES, MAX_SNAT_ADDRESSES, MAX_TARGETS},
    ports::PortRange,
    tuple::Protocol,
};

/// Returns the bank of a rule set of this version: versions alternate between the two.
#[inline(always)]
pub const fn bank(version: u32) -> u32 {
    version & 1
}

/// Returns the index of a rule in the array of rules.
#[inline(always)]
pub const fn rule_index(version: u32, rule: u16) -> u32 {
    bank(version) * MAX_RULES as u32 + rule as u32
}

/// Returns the index of a masquerade pair in the array of them.
#[inline(always)]
pub const fn masquerade_index(version: u32, position: u32) -> u32 {
    bank(version) * MAX_MASQUERADES as u32 + position
}

/// The parts of a rule set besides its rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleSet {
    /// The addresses that new sessions get as their source.
    pub snat: [Ipv4; MAX_SNAT_ADDRESSES],
    /// The number of these addresses; if 0, a session gets the preferred source of its route.
    pub snat_count: u32,
    /// The ports that new sessions get as their source port.
    pub ports: PortRange,
    /// The number of masquerade pairs.
    pub masquerade_count: u32,
    /// The number of entries of `local.allow` for IPv4,
    pub local_allow_count: u32,
    /// and for IPv6.
    pub local_allow_ipv6_count: u32,
    /// 1 if sources that no rule names may not reach this machine either.
    pub others_are_closed: u32,
    /// The port of the health probe.
    pub health_port: u32,
    /// The port of the health probe by IPv6; 0 if IPv6 does not serve it.
    pub health_port_ipv6: u32,
    /// The ports at which datagrams for an unconnected socket are taken for answers: those that the
    /// kernel gives to sockets that ask for none. Empty if the router sees what this machine sends,
    /// see [`sees_own_traffic`](Self::sees_own_traffic).
    pub ephemeral: PortRange,
    /// 1 if clients are told that no port is free for a session (`snat.exhausted`).
    pub reject_exhausted: u32,
    /// 1 if clients are told that their packets cannot be forwarded (`answers.unreachable`).
    pub reject_unreachable: u32,
}

const _: () = assert!(size_of::<RuleSet>() == 108);

impl RuleSet {
    /// Returns `true` if the router sees what this machine sends, on all of the router's
    /// interfaces, and knows answers by that.
    #[inline(always)]
    pub const fn sees_own_traffic(&self) -> bool {
        self.ephemeral.first > self.ephemeral.last
    }

    /// Picks an SNAT address for a new session; `None` if the route chooses it.
    #[inline(always)]
    pub const fn snat_address(&self, random: u32) -> Option<Ipv4> {
        match pick(random, self.snat_count, MAX_SNAT_ADDRESSES) {
            Some(at) => Some(self.snat[at]),
            None => None,
        }
    }

    /// Returns `true` if new sessions may get this SNAT address.
    #[inline(always)]
    pub fn has_snat_address(&self, address: Ipv4) -> bool {
        (0..MAX_SNAT_ADDRESSES).any(|at| (at as u32) < self.snat_count && self.snat[at] == address)
    }

    /// Returns the next SNAT address after this one, around the list.
    #[inline(always)]
    pub fn snat_address_after(&self, address: Ipv4) -> Option<Ipv4> {
        let mut found = false;
        for (at, known) in self.snat.iter().enumerate() {
            if at as u32 >= self.snat_count {
                break;
            }
            if found {
                return Some(*known);
            }
            found = *known == address;
        }
        if found { Some(self.snat[0]) } else { None }
    }
}

/// Picks evenly from `0..count` by 32 random bits. Returns `None` if there is nothing to pick, and
/// never `room` or more.
#[inline(always)]
const fn pick(random: u32, count: u32, room: usize) -> Option<usize> {
    let at = ((random as u64 * count as u64) >> 32) as usize;
    if count == 0 || at >= room { None } else { Some(at) }
}

/// A target of a forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Target {
    /// The address.
    pub address: Ipv4,
    /// The port; 0 keeps the port that the client used.
    pub port: Port,
    zero: [u8; 2],
}

impl Target {
    /// Creates a target; no port keeps the client's.
    pub const fn new(address: Ipv4, port: Option<u16>) -> Self {
        let port = match port {
            Some(port) => Port::new(port),
            None => Port([0, 0]),
        };
        Self { address, port, zero: [0; 2] }
    }

    /// Returns the port that a packet to `listen` goes to.
    #[inline(always)]
    pub const fn port_for(&self, listen: Port) -> Port {
        if self.port.number() == 0 { listen } else { self.port }
    }
}

/// The maximum length of a rule's name, in bytes.
pub const NAME_LENGTH: usize = 32;

/// A rule by its number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Its name, padded with zeros, so that tools which read the maps without the daemon can name
    /// the rule of a session.
    pub name: [u8; NAME_LENGTH],
    /// The targets of a forward.
    pub targets: [Target; MAX_TARGETS],
    /// The number of targets.
    pub target_count: u16,
    /// The largest TCP segment that the two ends may announce to each other; 0 leaves it to them.
    pub mss: u16,
}

const _: () = assert!(size_of::<Rule>() == 292);

impl Rule {
    /// A rule with no targets.
    pub const EMPTY: Self = Self {
        name: [0; NAME_LENGTH],
        targets: [Target { address: Ipv4([0; 4]), port: Port([0; 2]), zero: [0; 2] }; MAX_TARGETS],
        target_count: 0,
        mss: 0,
    };

    /// The value of [`mss`](Self::mss) for the largest segment that fits the routes of both
    /// directions. It is larger than any packet has room for.
    pub const MSS_OF_ROUTES: u16 = u16::MAX;

    /// Picks a target for a new session; `None` if there is none.
    #[inline(always)]
    pub const fn target(&self, random: u32) -> Option<&Target> {
        match pick(random, self.target_count as u32, MAX_TARGETS) {
            Some(at) => Some(&self.targets[at]),
            None => None,
        }
    }

    /// Returns `true` if new sessions of this rule that come to the port `listen` may be sent to
    /// this address and port.
    #[inline(always)]
    pub fn leads_to(&self, address: Ipv4, port: Port, listen: Port) -> bool {
        (0..MAX_TARGETS).any(|at| {
            let target = &self.targets[at];
            (at as u16) < self.target_count && target.address == address && target.port_for(listen) == port
        })
    }
}

/// The data of a key in the trie that finds a forward by its listening port: a port range is a
/// handful of prefixes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ListenKey {
    bank: u8,
    protocol: u8,
    address: Ipv4,
    port: Port,
}

const _: () = assert!(size_of::<ListenKey>() == 8);

impl ListenKey {
    /// The prefix length of everything before the port.
    const BEFORE_PORT: u32 = 48;
    /// The prefix length of a full key, as lookups use it.
    pub const FULL: u32 = 64;

    /// Returns the key of one port. Without an address, it stands for every address of this
    /// machine.
    #[inline(always)]
    pub const fn new(version: u32, protocol: Protocol, address: Option<Ipv4>, port: Port) -> Self {
        let address = match address {
            Some(address) => address,
            None => Ipv4([0; 4]),
        };
        Self { bank: bank(version) as u8, protocol: protocol as u8, address, port }
    }

    /// Returns the key's bank.
    pub const fn bank(&self) -> u32 {
        self.bank as u32
    }
}

/// Returns the keys, with their prefix lengths, that together cover a range of ports and nothing
/// else.
pub fn listen_prefixes(
    version: u32,
    protocol: Protocol,
    address: Option<Ipv4>,
    ports: PortRange,
) -> impl Iterator<Item = (u32, ListenKey)> {
    let mut next = u32::from(ports.first);
    let end = u32::from(ports.last) + 1;
    core::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        // The largest aligned power of two that starts here and does not reach beyond the end.
        let aligned = if next == 0 { 1 << 16 } else { 1 << next.trailing_zeros() };
        let mut block: u32 = aligned;
        while block > end - next {
            block >>= 1;
        }
        let key = ListenKey::new(version, protocol, address, Port::new(next as u16));
        next += block;
        Some((ListenKey::BEFORE_PORT + 16 - block.trailing_zeros(), key))
    })
}

/// The data of a key in the trie of the sources that may use a forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SourceKey {
    bank: u8,
    zero: u8,
    rule: [u8; 2],
    address: Ipv4,
}

const _: () = assert!(size_of::<SourceKey>() == 8);

impl SourceKey {
    /// The prefix length of everything before the address.
    const BEFORE_ADDRESS: u32 = 32;
    /// The prefix length of a full key, as lookups use it.
    pub const FULL: u32 = 64;

    /// Returns the key of a source address.
    #[inline(always)]
    pub const fn new(version: u32, rule: u16, address: Ipv4) -> Self {
        Self { bank: bank(version) as u8, zero: 0, rule: rule.to_be_bytes(), address }
    }

    /// Returns the prefix length of a key for a network with this prefix length.
    pub const fn prefix(network: u8) -> u32 {
        Self::BEFORE_ADDRESS + network as u32
    }

    /// Returns the key's bank.
    pub const fn bank(&self) -> u32 {
        self.bank as u32
    }

    /// The rule number for the sources of all rules together.
    pub const ANY_RULE: u16 = u16::MAX;
}

/// An IPv4 network, as an address and a mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Network {
    address: [u8; 4],
    mask: [u8; 4],
}

impl Network {
    /// Returns the network with this prefix length (at most 32) around an address.
    pub const fn new(address: Ipv4, prefix: u8) -> Self {
        let mask = if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) };
        Self { address: (u32::from_be_bytes(address.0) & mask).to_be_bytes(), mask: mask.to_be_bytes() }
    }

    /// Returns `true` if the address is in the network.
    #[inline(always)]
    pub const fn contains(&self, address: Ipv4) -> bool {
        u32::from_ne_bytes(address.0) & u32::from_ne_bytes(self.mask) == u32::from_ne_bytes(self.address)
    }
}

/// An IPv6 network, as an address and a mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ipv6Network {
    address: [u8; 16],
    mask: [u8; 16],
}

impl Ipv6Network {
    /// Returns the network with this prefix length (at most 128) around an address.
    pub const fn new(address: Ipv6, prefix: u8) -> Self {
        let mask = if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
        Self { address: (u128::from_be_bytes(address.0) & mask).to_be_bytes(), mask: mask.to_be_bytes() }
    }
}

/// A network of either address family.
pub trait Contains {
    /// An address of its family.
    type Address;

    /// Returns `true` if the address is in the network.
    fn contains(&self, address: Self::Address) -> bool;
}

impl Contains for Network {
    type Address = Ipv4;

    #[inline(always)]
    fn contains(&self, address: Ipv4) -> bool {
        Self::contains(self, address)
    }
}

impl Contains for Ipv6Network {
    type Address = Ipv6;

    #[inline(always)]
    fn contains(&self, address: Ipv6) -> bool {
        u128::from_ne_bytes(address.0) & u128::from_ne_bytes(self.mask) == u128::from_ne_bytes(self.address)
    }
}

/// One source and destination pair of a `[[masquerade]]` rule. Pairs are tried in the order of the
/// configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Masquerade {
    /// The source prefix.
    pub source: Network,
    /// The destination prefix.
    pub destination: Network,
    /// The number of the rule.
    pub rule: u32,
}

const _: () = assert!(size_of::<Masquerade>() == 20);

impl Masquerade {
    /// Returns `true` if it covers a packet.
    #[inline(always)]
    pub const fn matches(&self, source: Ipv4, destination: Ipv4) -> bool {
        self.source.contains(source) && self.destination.contains(destination)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covered(prefixes: &[(u32, ListenKey)], port: u16) -> usize {
        prefixes
            .iter()
            .filter(|(length, key)| {
                let bits = length - ListenKey::BEFORE_PORT;
                bits == 0 || (key.port.number() ^ port).leading_zeros() >= bits
            })
            .count()
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn listen_prefixes_cover_the_range_once(first in 0..=u16::MAX, length in 0..=u16::MAX, port in any::<u16>()) {
            let range = PortRange { first, last: first.saturating_add(length) };
            let prefixes: Vec<_> = listen_prefixes(1, Protocol::Tcp, None, range).collect();
            prop_assert!(prefixes.len() <= 30);
            for port in [port, range.first, range.last, range.first.wrapping_sub(1), range.last.wrapping_add(1)] {
                prop_assert_eq!(covered(&prefixes, port), usize::from(range.contains(port)));
            }
        }

        #[test]
        fn networks_contain_what_their_prefix_says(address in any::<[u8; 4]>(), prefix in 0..=32_u8, other in any::<[u8; 4]>()) {
            let network = Network::new(Ipv4(address), prefix);
            let same = (u32::from_be_bytes(address) ^ u32::from_be_bytes(other)).leading_zeros() >= u32::from(prefix);
            prop_assert_eq!(network.contains(Ipv4(other)), same);
            prop_assert!(network.contains(Ipv4(address)));
        }

        #[test]
        fn ipv6_networks_contain_what_their_prefix_says(address in any::<[u8; 16]>(), prefix in 0..=128_u8, other in any::<[u8; 16]>(), at in 0..16_usize) {
            let network = Ipv6Network::new(Ipv6(address), prefix);
            // As random addresses have few bits in common.
            let mut near = address;
            near[at] = other[at];
            for other in [other, near] {
                let same = (u128::from_be_bytes(address) ^ u128::from_be_bytes(other)).leading_zeros() >= u32::from(prefix);
                prop_assert_eq!(network.contains(Ipv6(other)), same);
            }
            prop_assert!(network.contains(Ipv6(address)));
        }

        #[test]
        fn picks_are_within_the_range(random in any::<u32>(), count in 0..=MAX_TARGETS as u32) {
            match pick(random, count, MAX_TARGETS) {
                Some(at) => prop_assert!(at < count as usize),
                None => prop_assert_eq!(count, 0),
            }
        }
    }

    #[test]
    fn a_single_port_is_one_full_key() {
        let range = PortRange { first: 443, last: 443 };
        let prefixes: Vec<_> = listen_prefixes(1, Protocol::Tcp, None, range).collect();
        assert_eq!(prefixes, [(ListenKey::FULL, ListenKey::new(1, Protocol::Tcp, None, Port::new(443)))]);
    }

    #[test]
    fn picks_reach_every_target() {
        let hits: std::collections::HashSet<_> = (0..64).map(|n| pick(n << 26, 4, MAX_TARGETS)).collect();
        assert_eq!(hits.len(), 4);
    }
}
