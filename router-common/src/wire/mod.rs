//! Bytes of packets: where the fields of headers are, and how they are read and written.
//!
//! There is one module for each header: [`ethernet`], [`ipv4`], [`ipv6`], [`tcp`], [`udp`],
//! [`icmp`]. Its offsets count from the start of that header, and come from the structures of the
//! crate [`network_types`]. [`ip`] and [`l4`] turn them into offsets in a frame:
//!
//! ```
//! use router_common::wire::{ip, ipv4, l4, tcp};
//!
//! assert_eq!((ip(ipv4::TTL), l4(tcp::FLAGS)), (22, 47));
//! ```
//!
//! The structures themselves are not laid over packets. Their fields are byte arrays, since headers
//! are misaligned in a frame, and the compiler's BPF target loads a byte array byte by byte, which
//! costs the fast path several instructions for each field. So fields are loaded and stored by the
//! functions of `number`, several at once where they are next to each other. And a structure
//! would need the whole header within the bounds that the verifier has seen, where the programs
//! check less: a [`Frame`] is read by any number of bytes.

use network_types::{
    eth::EthHdr,
    icmp::Icmpv4Hdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

pub mod ethernet;
mod frame;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub(crate) mod number;
pub mod tcp;
pub mod udp;

pub use frame::Frame;
pub(crate) use frame::{field, field_mut};

/// The length of an untagged Ethernet header.
pub const ETHERNET_LENGTH: usize = EthHdr::LEN;
/// The length of a VLAN tag: its EtherType, and two bytes with priority and VLAN (IEEE 802.1Q 9.3).
pub const TAG_LENGTH: usize = VlanHdr::LEN;
/// The length of an IPv4 header without options.
pub const IPV4_LENGTH: usize = Ipv4Hdr::LEN;
/// The length of an IPv6 header without extension headers.
pub const IPV6_LENGTH: usize = Ipv6Hdr::LEN;
/// The length of a TCP header without options.
pub const TCP_LENGTH: usize = TcpHdr::LEN;
/// The length of a UDP header.
pub const UDP_LENGTH: usize = UdpHdr::LEN;
/// The length of an ICMP header, of an echo or an error.
pub const ICMP_LENGTH: usize = Icmpv4Hdr::LEN;

/// The offset in an untagged frame of the transport header of an IPv4 packet without options.
pub const L4: usize = ETHERNET_LENGTH + IPV4_LENGTH;
/// The length of the headers up to the end of a TCP header without options.
pub const TCP_HEADERS: usize = L4 + TCP_LENGTH;
/// The length of the headers up to the end of a UDP header.
pub const UDP_HEADERS: usize = L4 + UDP_LENGTH;
/// The length of the headers up to the end of an ICMP echo header.
pub const ICMP_HEADERS: usize = L4 + ICMP_LENGTH;

/// Returns where a field of the IP header, of either version, is in an untagged frame.
#[inline(always)]
pub const fn ip(field: usize) -> usize {
    ETHERNET_LENGTH + field
}

/// Returns where a field of the transport header of an IPv4 packet without options is in an
/// untagged frame.
#[inline(always)]
pub const fn l4(field: usize) -> usize {
    L4 + field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792 and IEEE 802.3.
    #[test]
    fn fields_are_where_the_standards_have_them() {
        assert_eq!([ethernet::DESTINATION, ethernet::SOURCE, ethernet::TYPE], [0, 6, 12]);
        assert_eq!([ipv4::TOS, ipv4::TOTAL_LENGTH, ipv4::IDENTIFICATION, ipv4::FRAGMENT], [1, 2, 4, 6]);
        assert_eq!([ipv4::TTL, ipv4::PROTOCOL, ipv4::CHECKSUM], [8, 9, 10]);
        assert_eq!([ipv4::SOURCE, ipv4::DESTINATION, IPV4_LENGTH], [12, 16, 20]);
        assert_eq!([ipv6::PAYLOAD_LENGTH, ipv6::NEXT_HEADER, ipv6::HOP_LIMIT], [4, 6, 7]);
        assert_eq!([ipv6::SOURCE, ipv6::DESTINATION, IPV6_LENGTH], [8, 24, 40]);
        assert_eq!([tcp::SOURCE_PORT, tcp::DESTINATION_PORT, tcp::SEQUENCE], [0, 2, 4]);
        assert_eq!([tcp::ACKNOWLEDGEMENT, tcp::DATA_OFFSET, tcp::FLAGS, tcp::CHECKSUM], [8, 12, 13, 16]);
        assert_eq!([udp::SOURCE_PORT, udp::DESTINATION_PORT, udp::TOTAL_LENGTH, udp::CHECKSUM], [0, 2, 4, 6]);
        assert_eq!([icmp::TYPE, icmp::CODE, icmp::CHECKSUM, icmp::IDENTIFIER, icmp::MTU], [0, 1, 2, 4, 6]);
        assert_eq!([ETHERNET_LENGTH, TAG_LENGTH, TCP_LENGTH, UDP_LENGTH, ICMP_LENGTH], [14, 4, 20, 8, 8]);
    }
}
