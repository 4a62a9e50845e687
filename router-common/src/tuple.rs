//! Tuples: the 5-tuple that a flow is found by, and the protocols and directions that there are.
//!
//! A *session* is what a client opened. It is two *flows*, one for each direction, and each flow
//! has an entry under the tuple that its packets arrive with: the client's tuple, and the tuple of
//! the target's replies.

use core::mem::size_of;

use crate::address::{Ipv4, Ipv6, Port};

/// The transport protocols that the router translates, by their IP protocol numbers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// ICMP echo (RFC 792): the identifier stands for the client's port, the other port is zero.
    Icmp = 1,
    /// TCP (RFC 9293).
    Tcp = 6,
    /// UDP (RFC 768).
    Udp = 17,
}

impl Protocol {
    /// Returns the protocol with this IP protocol number, if the router translates it.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `icmp`, `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One of a session's two directions, and so one of its two flows.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the target.
    Forward = 0,
    /// From the target back to the client.
    Reply = 1,
}

/// The key of the flow table: the IPv4 tuple that a flow's packets arrive with.
///
/// Aligned to 8 bytes, so that the compiler's BPF target copies and compares it by words and not
/// byte by byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowKey {
    /// The source address.
    pub source: Ipv4,
    /// The destination address.
    pub destination: Ipv4,
    /// TCP or UDP source port; the identifier of an ICMP echo request, zero in a reply.
    pub source_port: Port,
    /// TCP or UDP destination port; the identifier of an ICMP echo reply, zero in a request.
    pub destination_port: Port,
    /// The IP protocol number, see [`Protocol`]. A whole word, so that there is no padding.
    protocol: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 16);

impl FlowKey {
    /// Builds the key of one direction.
    #[inline(always)]
    pub const fn new(
        protocol: Protocol,
        source: Ipv4,
        source_port: Port,
        destination: Ipv4,
        destination_port: Port,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: protocol as u32 }
    }

    /// Returns both addresses in one number, as they stand in a packet: the first byte is the
    /// lowest.
    #[inline(always)]
    pub const fn addresses(&self) -> u64 {
        self.source.then(self.destination)
    }

    /// Builds a key from the results of [`addresses`](Self::addresses) and [`ports`](Self::ports),
    /// and a protocol number.
    #[inline(always)]
    pub(crate) const fn from_words(addresses: u64, ports: u32, protocol: u8) -> Self {
        Self {
            source: Ipv4((addresses as u32).to_le_bytes()),
            destination: Ipv4(((addresses >> 32) as u32).to_le_bytes()),
            source_port: Port::from_word(ports as u16),
            destination_port: Port::from_word((ports >> 16) as u16),
            protocol: protocol as u32,
        }
    }

    /// Returns the protocol; `None` only for memory that never held a key.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol_number())
    }

    /// Returns the IP protocol number.
    #[inline(always)]
    pub const fn protocol_number(&self) -> u8 {
        self.protocol as u8
    }

    /// Returns both ports in one number, as they stand in a packet: the first byte is the lowest.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.source_port.then(self.destination_port)
    }

    /// Returns the ports and, above them, the protocol number.
    #[inline(always)]
    pub(crate) const fn ports_and_protocol(&self) -> u64 {
        self.ports() as u64 | (self.protocol as u64) << u32::BITS
    }

    /// Returns the key of packets of the same protocol between two other ends.
    #[inline(always)]
    pub const fn between(
        &self,
        source: Ipv4,
        source_port: Port,
        destination: Ipv4,
        destination_port: Port,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: self.protocol }
    }

    /// Returns the key of packets in the opposite direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        self.between(self.destination, self.destination_port, self.source, self.source_port)
    }
}

/// An IPv6 tuple. The router does not translate IPv6; this is the key under which it remembers what
/// this machine has sent itself, so that it knows the answers.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ipv6Key {
    /// The source address.
    pub source: Ipv6,
    /// The destination address.
    pub destination: Ipv6,
    /// The TCP or UDP source port.
    pub source_port: Port,
    /// The TCP or UDP destination port.
    pub destination_port: Port,
    /// The IP protocol number. A whole word, so that there is no padding.
    protocol: u32,
}

const _: () = assert!(size_of::<Ipv6Key>() == 40);

impl Ipv6Key {
    /// Builds the tuple of one direction.
    #[inline(always)]
    pub const fn new(
        protocol: Protocol,
        source: Ipv6,
        source_port: Port,
        destination: Ipv6,
        destination_port: Port,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: protocol as u32 }
    }

    /// Returns the protocol; `None` only for memory that never held a tuple.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol as u8)
    }
}
