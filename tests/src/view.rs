//! Reading packets, including damaged ones.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::packet::{
    ECHO_REPLY, ECHO_REQUEST, ICMP, IP_HEADER, PARAMETER_PROBLEM, TCP, TIME_EXCEEDED, UDP, UNREACHABLE,
};

/// The two ends of a packet. The identifier of an ICMP echo stands for the port of the side that
/// asked. Without ports, the port is 0.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
}

impl Tuple {
    pub(crate) const fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }

    pub(crate) const fn without_ports(self) -> Self {
        let Self { protocol, source, destination } = self;
        Self {
            protocol,
            source: SocketAddrV4::new(*source.ip(), 0),
            destination: SocketAddrV4::new(*destination.ip(), 0),
        }
    }
}

/// A packet with a whole IPv4 header, whose lengths may be wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    pub(crate) fn new(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let length = usize::from(first & 0x0f) * 4;
        (first >> 4 == 4 && length >= IP_HEADER && packet.len() >= length).then_some(Self(packet))
    }

    fn word(self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub(crate) fn header_length(self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    pub(crate) fn header(self) -> &'a [u8] {
        &self.0[..self.header_length()]
    }

    pub(crate) fn tos(self) -> u8 {
        self.0[1]
    }

    pub(crate) fn total_length(self) -> usize {
        usize::from(self.word(2))
    }

    pub(crate) fn id(self) -> u16 {
        self.word(4)
    }

    pub(crate) fn dont_fragment(self) -> bool {
        self.word(6) & 0x4000 != 0
    }

    pub(crate) fn more_fragments(self) -> bool {
        self.word(6) & 0x2000 != 0
    }

    /// The fragment's place in its datagram.
    pub(crate) fn offset(self) -> usize {
        usize::from(self.word(6) & 0x1fff) * 8
    }

    pub(crate) fn is_fragment(self) -> bool {
        self.more_fragments() || self.offset() > 0
    }

    pub(crate) fn ttl(self) -> u8 {
        self.0[8]
    }

    pub(crate) fn protocol(self) -> u8 {
        self.0[9]
    }

    pub(crate) fn source(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    pub(crate) fn destination(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    /// Returns the payload of the header, up to the end that the header states.
    pub(crate) fn payload(self) -> &'a [u8] {
        let end = self.total_length().clamp(self.header_length(), self.0.len());
        &self.0[self.header_length()..end]
    }

    /// Returns `true` if the packet is as long as its header states.
    pub(crate) fn is_whole(self) -> bool {
        (self.header_length()..=self.0.len()).contains(&self.total_length())
    }

    /// The packet that an ICMP error tells of, as far as it quotes it.
    pub(crate) fn quoted(self) -> Option<&'a [u8]> {
        let payload = self.payload();
        let error = self.protocol() == ICMP
            && self.offset() == 0
            && matches!(payload.first()?, &(UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM | 4 | 5));
        if error { payload.get(8..) } else { None }
    }

    /// The offsets of the source and the destination port in the payload, if it has them.
    pub(crate) fn port_offsets(self) -> (Option<usize>, Option<usize>) {
        let payload = self.payload();
        if self.offset() > 0 {
            return (None, None);
        }
        match (self.protocol(), payload) {
            (TCP | UDP, [_, _, _, _, ..]) => (Some(0), Some(2)),
            (ICMP, [ECHO_REQUEST, _, _, _, _, _, ..]) => (Some(4), None),
            (ICMP, [ECHO_REPLY, _, _, _, _, _, ..]) => (None, Some(4)),
            _ => (None, None),
        }
    }

    pub(crate) fn tuple(self) -> Tuple {
        let port = |at: Option<usize>| match at.map(|at| &self.payload()[at..]) {
            Some([a, b, ..]) => u16::from_be_bytes([*a, *b]),
            _ => 0,
        };
        let (source, destination) = self.port_offsets();
        Tuple {
            protocol: self.protocol(),
            source: SocketAddrV4::new(self.source(), port(source)),
            destination: SocketAddrV4::new(self.destination(), port(destination)),
        }
    }

    /// The offset of the transport header's checksum in the payload.
    pub(crate) fn l4_checksum_offset(self) -> Option<usize> {
        let at = match self.protocol() {
            TCP => 16,
            UDP => 6,
            ICMP => 2,
            _ => return None,
        };
        (self.offset() == 0 && self.payload().len() >= at + 2).then_some(at)
    }
}
