//! What a flow's packets become, and making it so.

use core::mem::size_of;

use crate::{
    address::{Address, Ipv4, Mac, Port, split},
    checksum::Sum,
    flow::{FlowKey, Protocol},
    packet::{
        ETHERNET_LENGTH, Frame, IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_SOURCE, IPV4_TTL, L4, Packet, field,
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
    /// Rewrites a packet that [`packet::parse`](crate::packet::parse) has read from this frame: addresses, ports or identifier, both
    /// checksums (of UDP, one that is "none" stays so), and the TTL one less. `None`, with nothing changed, if the frame has become shorter.
    #[inline(always)]
    pub fn apply(&self, packet: &Packet, frame: &mut (impl Frame + ?Sized)) -> Option<()> {
        let change = self.change(&packet.key);
        match packet.protocol {
            Protocol::Tcp => {
                let header = frame.bytes_mut::<18>(L4)?;
                self.apply_ports(header);
                let checksum = field::<16, 2, _>(header);
                *checksum = change.l4.apply(*checksum);
            }
            Protocol::Udp => {
                let header = frame.bytes_mut::<8>(L4)?;
                self.apply_ports(header);
                let checksum = field::<6, 2, _>(header);
                *checksum = change.l4.apply_udp(*checksum);
            }
            Protocol::Icmp => {
                let header = frame.bytes_mut::<8>(L4)?;
                // The identifier is the source port of a request and the destination port of a reply; the other one is zero.
                let [a, b] = self.source_port.0;
                let [c, d] = self.destination_port.0;
                *field::<4, 2, _>(header) = [a | c, b | d];
                let checksum = field::<2, 2, _>(header);
                *checksum = change.l4.apply(*checksum);
            }
        }
        self.apply_ip(change.ip, frame.bytes_mut(0)?);
        Some(())
    }

    /// Rewrites the IP header only, of a packet with the tuple `from`: addresses, checksum, and the TTL one less.
    #[inline(always)]
    pub fn apply_addresses(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; L4]) {
        self.apply_ip(self.change(from).ip, headers);
    }

    #[inline(always)]
    fn apply_ports<const N: usize>(&self, header: &mut [u8; N]) {
        *field::<0, 2, _>(header) = self.source_port.0;
        *field::<2, 2, _>(header) = self.destination_port.0;
    }

    /// The caller has made sure that the TTL is above 1 (RFC 1812 5.3.1).
    #[inline(always)]
    fn apply_ip(&self, change: Sum, headers: &mut [u8; L4]) {
        let [ttl, protocol] = *field::<IPV4_TTL, 2, _>(headers);
        *field::<IPV4_TTL, 2, _>(headers) = [ttl.wrapping_sub(1), protocol];
        // The TTL is the first byte of its word.
        let change = change.remove([1, 0]);
        *field::<IPV4_CHECKSUM, 2, _>(headers) = change.apply(*field::<IPV4_CHECKSUM, 2, _>(headers));
        let ([a, b], [c, d]) = (split(self.source.0), split(self.destination.0));
        *field::<IPV4_SOURCE, 2, _>(headers) = a;
        *field::<{ IPV4_SOURCE + 2 }, 2, _>(headers) = b;
        *field::<IPV4_DESTINATION, 2, _>(headers) = c;
        *field::<{ IPV4_DESTINATION + 2 }, 2, _>(headers) = d;
    }
}

/// Sets the Ethernet addresses.
#[inline(always)]
pub fn apply_ethernet(header: &mut [u8; ETHERNET_LENGTH], destination: Mac, source: Mac) {
    let [a, b, c] = destination.words();
    *field::<0, 2, _>(header) = a;
    *field::<2, 2, _>(header) = b;
    *field::<4, 2, _>(header) = c;
    let [a, b, c] = source.words();
    *field::<6, 2, _>(header) = a;
    *field::<8, 2, _>(header) = b;
    *field::<10, 2, _>(header) = c;
}
