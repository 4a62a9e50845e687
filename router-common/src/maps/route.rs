//! Route look-ups that the daemon makes by way of a program, and the source addresses of routes.

use core::mem::size_of;

use crate::{
    address::{Ipv4, Mac, Port},
    maps::{punt::Neighbour, rules::Network},
    rewrite::Rewrite,
    tuple::{FlowKey, Protocol},
};

/// A route look-up: the fields by which the kernel's forwarding looks a packet up, which are its
/// destination after the translation, and its source before.
///
/// The SNAT address and port are not among them. So all packets of a flow make the same query,
/// whatever port the session has, and if the kernel picks one of several gateways by a hash, it
/// stays the same gateway as long as that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Query {
    /// The source, before its translation.
    pub source: Ipv4,
    /// The destination, after its translation.
    pub destination: Ipv4,
    /// The source port; 0 if there is none.
    pub source_port: Port,
    /// The destination port; 0 if there is none.
    pub destination_port: Port,
    /// The IP protocol number.
    pub protocol: u8,
    /// The type of service, as it stands in the IP header.
    pub tos: u8,
}

impl Query {
    /// The length of an encoded query.
    pub const SIZE: usize = 14;

    /// Returns the query for a packet of this protocol. An echo has an identifier in place of a
    /// port, which routes do not know.
    #[inline(always)]
    pub const fn new(
        protocol: u8,
        tos: u8,
        (source, source_port): (Ipv4, Port),
        (destination, destination_port): (Ipv4, Port),
    ) -> Self {
        let nothing = Port([0; 2]);
        let has_ports = protocol != Protocol::Icmp as u8;
        Self {
            source,
            destination,
            source_port: if has_ports { source_port } else { nothing },
            destination_port: if has_ports { destination_port } else { nothing },
            protocol,
            tos,
        }
    }

    /// Returns the query for packets with this key and this rewrite.
    #[inline(always)]
    pub const fn of(key: &FlowKey, rewrite: &Rewrite, tos: u8) -> Self {
        Self::new(
            key.protocol_number(),
            tos,
            (key.source, key.source_port),
            (rewrite.destination, rewrite.destination_port),
        )
    }

    /// Returns the query for packets of the session's other direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            tos: self.tos,
        }
    }

    /// Encodes the query for the program.
    pub const fn to_bytes(&self) -> [u8; Self::SIZE] {
        let ([a, b, c, d], [e, f, g, h]) = (self.source.0, self.destination.0);
        let ([i, j], [k, l]) = (self.source_port.0, self.destination_port.0);
        [a, b, c, d, e, f, g, h, i, j, k, l, self.protocol, self.tos]
    }

    /// Decodes the result of [`to_bytes`](Self::to_bytes).
    #[inline(always)]
    pub const fn from_bytes([a, b, c, d, e, f, g, h, i, j, k, l, protocol, tos]: [u8; Self::SIZE]) -> Self {
        Self {
            source: Ipv4([a, b, c, d]),
            destination: Ipv4([e, f, g, h]),
            source_port: Port([i, j]),
            destination_port: Port([k, l]),
            protocol,
            tos,
        }
    }
}

/// The kernel's answer to a [`Query`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// `BPF_FIB_LKUP_RET_SUCCESS` and its siblings, or a negative error number.
    pub code: i32,
    /// The next hop.
    pub neighbour: Neighbour,
    /// The source address of sessions that have no SNAT address; 0.0.0.0 if there is none.
    pub source: Ipv4,
    /// `true` if the kernel has chosen `source`. Before Linux 6.7 it does not, and
    /// [`InterfaceAddresses`] are used.
    pub kernel_gave_source: bool,
    /// The neighbour's MAC address, if it is known.
    pub mac: Mac,
}

impl Answer {
    /// The length of an encoded answer.
    pub const SIZE: usize = 35;

    /// Encodes the answer for the daemon.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.neighbour.interface.to_ne_bytes());
        bytes[8..24].copy_from_slice(&self.neighbour.address);
        bytes[24..28].copy_from_slice(&self.source.0);
        bytes[28..34].copy_from_slice(&self.mac.bytes());
        bytes[34] = self.kernel_gave_source.into();
        bytes
    }

    /// Decodes the result of [`to_bytes`](Self::to_bytes). Returns `None` if it is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (code, bytes) = bytes.split_first_chunk()?;
        let (interface, bytes) = bytes.split_first_chunk()?;
        let (address, bytes) = bytes.split_first_chunk()?;
        let (source, bytes) = bytes.split_first_chunk()?;
        let (mac, bytes) = bytes.split_first_chunk()?;
        let kernel_gave_source = bytes.first()?;
        Some(Self {
            code: i32::from_ne_bytes(*code),
            neighbour: Neighbour { interface: u32::from_ne_bytes(*interface), address: *address },
            source: Ipv4(*source),
            kernel_gave_source: *kernel_gave_source != 0,
            mac: Mac::new(*mac),
        })
    }
}

/// The MAC address that sessions use for a next hop, as the programs note it for the daemon. A
/// change of a neighbour that is not noted needs no action.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InUse {
    mac: Mac,
}

const _: () = assert!(size_of::<InUse>() == 8);

impl InUse {
    /// Sessions use different addresses: the neighbour has changed its address, and the daemon does
    /// not know yet.
    pub const MIXED: Self = Self { mac: Mac::new([0; 6]) };

    /// The maximum number of next hops that are noted, including [`Neighbour::NONE`]. If there are
    /// more, every neighbour counts as used.
    pub const ROOM: u32 = 4096;

    /// The note of [`Neighbour::NONE`] while there is room; without any, it is
    /// [`MIXED`](Self::MIXED).
    pub const HAS_ROOM: Self = Self { mac: Mac::new([0xff; 6]) };

    /// Returns the note of one address that all sessions use.
    #[inline(always)]
    pub const fn new(mac: Mac) -> Self {
        Self { mac }
    }

    /// Returns the note in a number, as the map has it.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self { mac: Mac::from_number(number) }
    }

    /// Returns the number, as the map has it.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.mac.number()
    }

    /// Returns the note after another session has got the address `mac`.
    #[inline(always)]
    pub fn and(self, mac: Mac) -> Self {
        if self.mac == mac { self } else { Self::MIXED }
    }

    /// Returns the address, if all sessions use the same one.
    pub fn mac(self) -> Option<Mac> {
        (self != Self::MIXED).then_some(self.mac)
    }

    /// Returns `true` if sessions use another address than the neighbour's present one, which is
    /// `None` if the neighbour is gone.
    pub fn is_outdated(self, now: Option<Mac>) -> bool {
        now.is_none_or(|mac| self == Self::MIXED || self.mac != mac)
    }
}

/// An address of an interface, as far as the choice of a source needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: Ipv4,
    /// The network that it is in, or its peer's.
    pub network: Network,
    /// 1 if it must not be used beyond the link: of the scope `link`.
    pub link_only: u32,
}

const _: () = assert!(size_of::<InterfaceAddress>() == 16);

/// The addresses of one interface that sessions can come from, in the kernel's order. A kernel
/// before Linux 6.7 does not give them to a program (`BPF_FIB_LOOKUP_SRC`). Written by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceAddresses {
    /// The addresses, then zeros.
    pub addresses: [InterfaceAddress; Self::ROOM],
}

const _: () = assert!(size_of::<InterfaceAddresses>() == 128);

impl InterfaceAddresses {
    /// The maximum number of addresses.
    pub const ROOM: usize = 8;

    /// Chooses a source as the kernel does for a route without a preferred one (`inet_select_addr`,
    /// net/ipv4/devinet.c): the first address in whose network the gateway is, or else the first
    /// one. If there is a gateway, addresses of the scope `link` are left out.
    #[inline(always)]
    pub fn select(&self, neighbour: Ipv4, is_gateway: bool) -> Option<Ipv4> {
        let mut first = None;
        for known in &self.addresses {
            if known.address == Ipv4([0; 4]) || (is_gateway && known.link_only != 0) {
                continue;
            }
            if known.network.contains(neighbour) {
                return Some(known.address);
            }
            if first.is_none() {
                first = Some(known.address);
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::effort::cases())]

        #[test]
        fn queries_and_answers_are_read_as_written(bytes in any::<[u8; Query::SIZE]>(), mut answer in any::<[u8; Answer::SIZE]>()) {
            answer[34] &= 1;
            prop_assert_eq!(Query::from_bytes(bytes).to_bytes(), bytes);
            let read = Answer::from_bytes(&answer).expect("long enough");
            prop_assert_eq!(read.to_bytes(), answer);
            prop_assert_eq!(Answer::from_bytes(&answer[1..]), None);
        }
    }

    #[test]
    fn a_next_hop_is_outdated_when_it_goes_or_changes() {
        let [one, other] = [1, 2].map(|last| Mac::new([2, 0, 0, 0, 0, last]));
        let in_use = InUse::new(one);
        assert!(!in_use.is_outdated(Some(one)), "confirmed");
        assert!(in_use.is_outdated(Some(other)), "another");
        assert!(in_use.is_outdated(None), "gone");
        assert_eq!(in_use.and(one), in_use);
        // Whichever address the neighbour has in the end, some sessions have another.
        let several = in_use.and(other);
        assert_eq!((several, several.and(one)), (InUse::MIXED, InUse::MIXED));
        assert!([Some(one), Some(other), None].iter().all(|now| several.is_outdated(*now)));
    }

    #[test]
    fn an_echo_has_no_ports() {
        let end = |last| (Ipv4([10, 0, 0, last]), Port::new(7));
        let query = |protocol: Protocol| Query::new(protocol as u8, 0, end(1), end(2));
        assert_eq!(query(Protocol::Icmp).source_port, Port([0; 2]));
        assert_eq!(query(Protocol::Udp).destination_port, Port::new(7));
    }

    fn address(address: [u8; 4], prefix: u8, link_only: bool) -> InterfaceAddress {
        let address = Ipv4(address);
        InterfaceAddress { address, network: Network::new(address, prefix), link_only: link_only.into() }
    }

    fn interface(known: &[InterfaceAddress]) -> InterfaceAddresses {
        let mut interface = InterfaceAddresses::default();
        interface.addresses[..known.len()].copy_from_slice(known);
        interface
    }

    #[test]
    fn a_source_is_in_the_gateways_network_if_there_is_one() {
        let interface = interface(&[
            address([169, 254, 10, 1], 16, true),
            address([192, 168, 5, 2], 24, false),
            address([10, 77, 0, 2], 24, false),
        ]);
        let select = |neighbour, is_gateway| interface.select(Ipv4(neighbour), is_gateway);
        assert_eq!(select([10, 77, 0, 3], true), Some(Ipv4([10, 77, 0, 2])));
        assert_eq!(select([172, 16, 0, 1], true), Some(Ipv4([192, 168, 5, 2])), "an onlink gateway");
        assert_eq!(select([169, 254, 10, 9], true), Some(Ipv4([192, 168, 5, 2])), "a gateway on the link");
        assert_eq!(select([169, 254, 10, 9], false), Some(Ipv4([169, 254, 10, 1])));
        assert_eq!(select([172, 16, 0, 1], false), Some(Ipv4([169, 254, 10, 1])));
        assert_eq!(InterfaceAddresses::default().select(Ipv4([10, 77, 0, 3]), false), None);
    }
}
