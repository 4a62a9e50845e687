//! What a flow's packets become, and making it so.

use core::mem::size_of;

use crate::{
    address::{Address, Ipv4, Port},
    checksum::Sum,
    flow::{FlowKey, Protocol},
    packet::{
        ETHERNET_LENGTH, ICMP_HEADERS, IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_SOURCE, IPV4_TTL, L4,
        TCP_HEADERS, UDP_HEADERS, field,
    },
};

/// The tuple that a flow's packets leave with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewrite<A> {
    /// The new source address.
    pub source: A,
    /// The new destination address.
    pub destination: A,
    /// The new source port, or echo identifier of a request.
    pub source_port: Port,
    /// The new destination port, or echo identifier of a reply.
    pub destination_port: Port,
}

const _: () = assert!(size_of::<Rewrite<Ipv4>>() == 12);

/// What a rewrite adds to the checksums of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Change {
    /// To the IPv4 header checksum, for the two addresses (the TTL is another matter: it differs from packet to packet).
    pub ip: Sum,
    /// To the TCP or UDP checksum (addresses in the pseudo header, and ports), or to the ICMP one (identifier only).
    pub l4: Sum,
}

impl<A: Address> Rewrite<A> {
    /// What makes packets have the tuple `to`.
    #[inline(always)]
    pub const fn to(to: &FlowKey<A>) -> Self {
        Self {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
        }
    }

    /// What turning a packet with the tuple `from` into this one adds to its checksums.
    #[inline(always)]
    pub fn change(&self, from: &FlowKey<A>) -> Change {
        let ip = from
            .source
            .negative_sum()
            .plus(from.destination.negative_sum())
            .plus(self.source.sum())
            .plus(self.destination.sum());
        let ports = Sum::ZERO
            .remove_pair(from.source_port.then(from.destination_port))
            .add_pair(self.source_port.then(self.destination_port));
        // ICMP has no pseudo header (RFC 792); of an echo's two "ports" one is zero before and after.
        let l4 = match from.protocol() {
            Some(Protocol::Icmp) => ports,
            Some(Protocol::Tcp | Protocol::Udp) | None => ports.plus(ip),
        };
        Change { ip, l4 }
    }
}

impl Rewrite<Ipv4> {
    /// Rewrites a TCP packet with the tuple `from`: addresses, ports, both checksums, and the TTL one less.
    #[inline(always)]
    pub fn apply_tcp(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; TCP_HEADERS]) {
        let change = self.change(from);
        self.apply_ports(headers);
        *field::<{ L4 + 16 }, 2, _>(headers) = change.l4.delta().apply(*field::<{ L4 + 16 }, 2, _>(headers));
        self.apply_ip(change.ip, headers);
    }

    /// Rewrites a UDP packet: addresses, ports, both checksums (one that is "none" stays so), and the TTL one less.
    #[inline(always)]
    pub fn apply_udp(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; UDP_HEADERS]) {
        let change = self.change(from);
        self.apply_ports(headers);
        *field::<{ L4 + 6 }, 2, _>(headers) =
            change.l4.delta().apply_udp(*field::<{ L4 + 6 }, 2, _>(headers));
        self.apply_ip(change.ip, headers);
    }

    /// Rewrites an ICMP echo: addresses, identifier, both checksums, and the TTL one less.
    #[inline(always)]
    pub fn apply_icmp_echo(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; ICMP_HEADERS]) {
        let change = self.change(from);
        // The identifier is the source port of a request and the destination port of a reply; the other one is zero.
        let [a, b] = self.source_port.0;
        let [c, d] = self.destination_port.0;
        *field::<{ L4 + 4 }, 2, _>(headers) = [a | c, b | d];
        *field::<{ L4 + 2 }, 2, _>(headers) = change.l4.delta().apply(*field::<{ L4 + 2 }, 2, _>(headers));
        self.apply_ip(change.ip, headers);
    }

    /// Rewrites the IP header only, of a packet with the tuple `from`: addresses, checksum, and the TTL one less.
    #[inline(always)]
    pub fn apply_addresses(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; L4]) {
        self.apply_ip(self.change(from).ip, headers);
    }

    #[inline(always)]
    fn apply_ports<const N: usize>(&self, headers: &mut [u8; N]) {
        *field::<L4, 2, _>(headers) = self.source_port.0;
        *field::<{ L4 + 2 }, 2, _>(headers) = self.destination_port.0;
    }

    /// The caller has made sure that the TTL is above 1 (RFC 1812 5.3.1).
    #[inline(always)]
    fn apply_ip<const N: usize>(&self, change: Sum, headers: &mut [u8; N]) {
        let [ttl, protocol] = *field::<IPV4_TTL, 2, _>(headers);
        let lower = ttl.wrapping_sub(1);
        let delta = change.remove([ttl, protocol]).add([lower, protocol]).delta();
        field::<IPV4_TTL, 1, _>(headers)[0] = lower;
        *field::<IPV4_CHECKSUM, 2, _>(headers) = delta.apply(*field::<IPV4_CHECKSUM, 2, _>(headers));
        *field::<IPV4_SOURCE, 4, _>(headers) = self.source.0;
        *field::<IPV4_DESTINATION, 4, _>(headers) = self.destination.0;
    }
}

/// Sets the Ethernet addresses.
#[inline(always)]
pub fn apply_ethernet(header: &mut [u8; ETHERNET_LENGTH], destination: [u8; 6], source: [u8; 6]) {
    *field::<0, 6, _>(header) = destination;
    *field::<6, 6, _>(header) = source;
}
