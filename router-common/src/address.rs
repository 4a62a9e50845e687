//! Addresses and ports as they stand on the wire.

use crate::checksum::Sum;

/// An address family's address: what keys and entries are generic over, so that IPv6 is a type parameter and not a copy.
pub trait Address: Copy + Eq {
    /// The one's-complement sum of the address's 16-bit words.
    fn sum(self) -> Sum;

    /// What takes its words out of a sum again.
    #[inline(always)]
    fn negative_sum(self) -> Sum {
        Sum::ZERO.minus(self.sum())
    }
}

/// An IPv4 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ipv4(pub [u8; 4]);

/// An IPv6 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ipv6(pub [u8; 16]);

/// A TCP or UDP port, or an ICMP echo identifier, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Port(pub [u8; 2]);

impl Address for Ipv4 {
    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.add_pair(self.0)
    }

    #[inline(always)]
    fn negative_sum(self) -> Sum {
        Sum::ZERO.remove_pair(self.0)
    }
}

impl Address for Ipv6 {
    #[inline(always)]
    fn sum(self) -> Sum {
        let mut sum = Sum::ZERO;
        let mut at = 0;
        while at < 16 {
            sum = sum.add([self.0[at], self.0[at + 1]]);
            at += 2;
        }
        sum
    }
}

impl Ipv4 {
    /// Whether this address names a single host: not multicast, the limited broadcast, nor "this network" (RFC 1122 3.2.1.3).
    #[inline(always)]
    pub const fn is_unicast(self) -> bool {
        self.0[0] != 0 && self.0[0] < 224
    }
}

impl Port {
    /// The port with this number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// This port and another behind it, as source and destination stand in a packet.
    #[inline(always)]
    pub const fn then(self, next: Self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.0, next.0);
        [a, b, c, d]
    }
}

impl core::fmt::Display for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl From<core::net::Ipv4Addr> for Ipv4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Ipv4> for core::net::Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        Self::from(address.0)
    }
}

impl core::fmt::Display for Ipv4 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::Ipv4Addr::from(*self).fmt(f)
    }
}
