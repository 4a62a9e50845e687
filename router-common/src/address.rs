//! Addresses and ports as they stand on the wire.

use crate::checksum::Sum;

/// An IPv4 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ipv4(pub [u8; 4]);

/// Azure's platform address: probe source, DNS, DHCP and WireServer. Its packets always go to the
/// VM's own stack, on every port. See
/// <https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16>.
pub const AZURE_PLATFORM: Ipv4 = Ipv4([168, 63, 129, 16]);

/// An IPv6 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ipv6(pub [u8; 16]);

/// A TCP or UDP port, or an ICMP echo identifier, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Port(pub [u8; 2]);

/// An Ethernet address in one number: its first byte is the lowest, and the upper 16 bits are zero.
/// So it is loaded and compared at once.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mac(u64);

impl Mac {
    /// Builds an address from its bytes, in the order of the wire.
    #[inline(always)]
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// Builds an address from the lower 48 bits of a number.
    #[inline(always)]
    pub(crate) const fn from_number(number: u64) -> Self {
        Self(number & 0xffff_ffff_ffff)
    }

    /// Returns the address as a number.
    #[inline(always)]
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// Returns the bytes, in the order of the wire.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Returns `true` for a multicast or broadcast address.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns `true` unless all bytes are zero, which stands for no address.
    #[inline(always)]
    pub const fn is_set(self) -> bool {
        self.0 != 0
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Ipv4 {
    /// Returns the one's-complement sum of the address's 16-bit words.
    #[inline(always)]
    pub const fn sum(self) -> Sum {
        Sum::ZERO.add_pair(self.0)
    }

    /// Returns the sum that takes the address's words out of another sum.
    #[inline(always)]
    pub const fn negative_sum(self) -> Sum {
        Sum::ZERO.remove_pair(self.0)
    }

    /// Returns this address and the next one in one number, as source and destination stand in a
    /// packet: the first byte is the lowest.
    #[inline(always)]
    pub(crate) const fn then(self, next: Self) -> u64 {
        (u32::from_le_bytes(next.0) as u64) << 32 | u32::from_le_bytes(self.0) as u64
    }

    /// Returns `true` if this address names a single host: not multicast, the limited broadcast,
    /// nor "this network" (RFC 1122 3.2.1.3). Addresses of class E (240.0.0.0/4, RFC 1112 section
    /// 4) are hosts, as in Linux: private networks use them.
    #[inline(always)]
    pub const fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first != 0 && (first < 224 || (first >= 240 && !self.is_limited_broadcast()))
    }

    /// Returns `true` for a loopback address (127.0.0.0/8).
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        self.0[0] == 127
    }

    /// Returns `true` if this address may be the source or destination of a packet between two
    /// machines: unicast, and not loopback.
    #[inline(always)]
    pub const fn is_host(self) -> bool {
        self.is_unicast() && !self.is_loopback()
    }

    /// Returns `true` for 0.0.0.0, the source of a machine that has no address yet.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        u32::from_ne_bytes(self.0) == 0
    }

    /// Returns `true` for 255.255.255.255.
    #[inline(always)]
    const fn is_limited_broadcast(self) -> bool {
        u32::from_ne_bytes(self.0) == u32::MAX
    }
}

impl Ipv6 {
    /// Returns `true` for a multicast address (ff00::/8, RFC 4291 2.7).
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0[0] == 0xff
    }

    /// Returns `true` for the multicast addresses that no router forwards to (ff02::/16).
    #[inline(always)]
    pub(crate) const fn is_of_the_link_alone(self) -> bool {
        matches!(self.0, [0xff, 0x02, ..])
    }

    /// Returns `true` for a link-local address (fe80::/10), which no router forwards from.
    #[inline(always)]
    pub(crate) const fn is_link_local(self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// Returns `true` for `::`, which stands for no address.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        u128::from_ne_bytes(self.0) == 0
    }

    /// Returns `true` for a source that no packet on a wire may have: a multicast address, the
    /// loopback address, or an IPv4-mapped address (RFC 4291 2.5.3, 2.7; `ip6_rcv_core`,
    /// net/ipv6/ip6_input.c).
    #[inline(always)]
    pub(crate) const fn is_martian(self) -> bool {
        const LOOPBACK: u128 = 1;
        let number = u128::from_be_bytes(self.0);
        self.is_multicast() || number == LOOPBACK || number >> 32 == 0xffff
    }
}

impl Port {
    /// Builds the port with this number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// Returns the port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// Returns this port and the next one in one number, as source and destination stand in a
    /// packet: the first byte is the lowest.
    #[inline(always)]
    pub const fn then(self, next: Self) -> u32 {
        (next.word() as u32) << 16 | self.word() as u32
    }

    /// Returns the bytes in one number, the first one the lowest: as it stands in a packet, and not
    /// the port's [`number`](Self::number).
    #[inline(always)]
    pub(crate) const fn word(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    /// Builds a port from the result of [`word`](Self::word).
    #[inline(always)]
    pub(crate) const fn from_word(word: u16) -> Self {
        Self(word.to_le_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unicast_addresses_are_single_hosts() {
        for (address, expected) in [
            ([0, 0, 0, 0], false),
            ([0, 0, 0, 1], false),
            ([1, 0, 0, 0], true),
            ([223, 255, 255, 255], true),
            ([224, 0, 0, 0], false),
            ([239, 255, 255, 255], false),
            ([240, 0, 0, 0], true),
            ([255, 255, 255, 254], true),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(Ipv4(address).is_unicast(), expected, "{address:?}");
        }
    }
}
