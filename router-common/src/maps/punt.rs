//! Punts: packets that the programs hand to the daemon.

use core::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    address::{Ipv4, Mac},
    wire::IPV4_LENGTH,
};

/// The longest IP packet that can be handed over: longer than a single-page XDP buffer.
pub const CAPACITY: usize = 3520;

/// The daemon's treatment of a punt.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The packet as it was received; the MAC address of its next hop is not known. The daemon
    /// gives it back to the programs when the neighbour has answered, or has failed to.
    Wait = 0,
    /// The translated packet, which is larger than the next hop's MTU. The daemon sends it in
    /// fragments.
    Split = 1,
    /// An early fragment, as it was received. The daemon queues it for a moment.
    EarlyFragment = 2,
    /// The IP header of a first fragment whose datagram has early fragments. The daemon gives these
    /// back to the programs.
    FirstFragment = 3,
}

impl Kind {
    const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Wait),
            1 => Some(Self::Split),
            2 => Some(Self::EarlyFragment),
            3 => Some(Self::FirstFragment),
            _ => None,
        }
    }
}

/// A neighbour of this machine: a next hop. A route to an IPv4 network may lead to an IPv6
/// neighbour.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Neighbour {
    /// The index of the interface that the neighbour is reached by.
    pub interface: u32,
    /// Its address; an IPv4 address is mapped (RFC 4291 2.5.5.2).
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<Neighbour>() == 20);

impl Neighbour {
    /// No neighbour.
    pub const NONE: Self = Self { interface: 0, address: [0; 16] };

    /// Returns the IPv4-mapped IPv6 address of an IPv4 address.
    #[inline(always)]
    pub const fn mapped(Ipv4([a, b, c, d]): Ipv4) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    /// Returns the neighbour with this address.
    pub const fn new(interface: u32, address: IpAddr) -> Self {
        let address = match address {
            IpAddr::V4(address) => Self::mapped(Ipv4(address.octets())),
            IpAddr::V6(address) => address.octets(),
        };
        Self { interface, address }
    }

    /// Returns the neighbour's address.
    pub const fn ip(&self) -> IpAddr {
        Ipv6Addr::from_octets(self.address).to_canonical()
    }
}

/// A record in the ring: an IP packet of at most `ROOM` bytes.
#[repr(C)]
pub struct Record<const ROOM: usize> {
    /// [`Kind::Split`]: the next hop's MAC address; else zero.
    pub mac: Mac,
    /// A [`Kind`], as its number.
    pub kind: u32,
    /// The index of one of the router's interfaces, never of a virtual function: where the packet
    /// leaves ([`Kind::Split`]) or came in ([`Kind::Wait`], [`Kind::EarlyFragment`]).
    pub interface: u32,
    /// [`Kind::Split`]: the next hop's MTU, in bytes; else 0.
    pub mtu: u32,
    /// The packet's length in bytes.
    pub length: u32,
    /// [`Kind::Wait`]: the neighbour that the packet waits for; else none.
    pub neighbour: Neighbour,
    /// The packet, from its IP header on; after its length comes old memory.
    pub packet: [u8; ROOM],
}

/// The length of a record before the packet.
const HEAD: usize = 44;

/// A record for a whole packet.
pub type Punt = Record<CAPACITY>;
/// A record for [`Kind::FirstFragment`].
pub type Notice = Record<IPV4_LENGTH>;

const _: () = assert!(offset_of!(Punt, packet) == HEAD && offset_of!(Notice, packet) == HEAD);

/// A record as it comes out of the ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Punted<'a> {
    /// The treatment of the packet.
    pub kind: Kind,
    /// See [`Record::interface`].
    pub interface: u32,
    /// See [`Record::mtu`].
    pub mtu: u32,
    /// See [`Record::neighbour`].
    pub neighbour: Neighbour,
    /// See [`Record::mac`].
    pub mac: [u8; 6],
    /// The packet, from its IP header on.
    pub packet: &'a [u8],
}

impl<'a> Punted<'a> {
    /// Reads a record; `None` if it is not one of the router's.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let (head, packet) = record.split_first_chunk::<HEAD>()?;
        let (mac, rest) = head.split_first_chunk::<{ size_of::<Mac>() }>()?;
        let (numbers, address) = rest.split_first_chunk::<20>()?;
        let (numbers, _) = numbers.as_chunks::<4>();
        let [kind, interface, mtu, length, neighbour] = *numbers else { return None };
        let length = usize::try_from(u32::from_ne_bytes(length)).ok()?;
        Some(Self {
            kind: Kind::from_number(u32::from_ne_bytes(kind))?,
            interface: u32::from_ne_bytes(interface),
            mtu: u32::from_ne_bytes(mtu),
            neighbour: Neighbour {
                interface: u32::from_ne_bytes(neighbour),
                address: *address.first_chunk()?,
            },
            mac: *mac.first_chunk()?,
            packet: packet.get(..length)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, length: u32, packet: &[u8]) -> Vec<u8> {
        let numbers = [kind, 9, 1400, length, 4].map(u32::to_ne_bytes).concat();
        let address = Neighbour::mapped(Ipv4([10, 0, 2, 1]));
        [&[2, 0, 0, 0, 0, 7, 0, 0], &numbers[..], &address, packet].concat()
    }

    #[test]
    fn whole_records_are_parsed() {
        let bytes = record(2, 2, &[7, 8, 6]);
        let neighbour = Neighbour { interface: 4, address: Neighbour::mapped(Ipv4([10, 0, 2, 1])) };
        let wanted = Punted {
            kind: Kind::EarlyFragment,
            interface: 9,
            mtu: 1400,
            neighbour,
            mac: [2, 0, 0, 0, 0, 7],
            packet: &[7, 8],
        };
        assert_eq!(Punted::parse(&bytes), Some(wanted));
        assert_eq!(Punted::parse(&bytes[..HEAD + 1]), None, "shorter than it says");
        assert_eq!(Punted::parse(&bytes[..HEAD - 1]), None, "no whole head");
        assert_eq!(Punted::parse(&record(4, 0, &[])), None, "no such kind");
    }

    #[test]
    fn neighbours_have_addresses_of_either_family() {
        let neighbour = |address| Neighbour { interface: 1, address };
        assert_eq!(neighbour(Neighbour::mapped(Ipv4([10, 0, 2, 1]))).ip().to_string(), "10.0.2.1");
        let link_local: Ipv6Addr = "fe80::1".parse().expect("an address");
        assert_eq!(neighbour(link_local.octets()).ip(), link_local);
    }
}
