//! What a flow's packets become, and making it so.

use core::mem::size_of;

use crate::{
    address::{Address, Ipv4, Mac, Port},
    checksum::Sum,
    flow::{FlowKey, Protocol},
    packet::{Frame, IPV4_SOURCE, IPV4_TTL, L4, Packet},
    wire::{load16, load32, store16, store32, store64},
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

/// The Ethernet addresses that a frame leaves with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// The next hop's.
    pub destination: Mac,
    /// The egress interface's.
    pub source: Mac,
}

impl Link {
    /// Addresses a frame.
    #[inline(always)]
    pub fn apply<const LENGTH: usize>(&self, header: &mut [u8; LENGTH]) {
        store64::<0, _>(header, self.destination.number() | self.source.number() << 48);
        store32::<8, _>(header, (self.source.number() >> 16) as u32);
    }
}

impl Rewrite<Ipv4> {
    /// Rewrites a packet that [`packet::parse`](crate::packet::parse) has read from this frame: addresses, ports or identifier, both
    /// checksums (of UDP, one that is "none" stays so), and the TTL one less, which the caller has made sure is above 1 (RFC 1812 5.3.1); and
    /// addresses the frame, if it is known to whom. `None`, with nothing changed, if the frame has become shorter.
    #[inline(always)]
    pub fn apply(
        &self,
        packet: &Packet,
        link: Option<&Link>,
        frame: &mut (impl Frame + ?Sized),
    ) -> Option<()> {
        let change = self.change(&packet.key);
        match packet.protocol {
            Protocol::Tcp => {
                let header = frame.bytes_mut::<18>(L4)?;
                store32::<0, _>(header, self.ports());
                let old = load16::<16, _>(header).to_le_bytes();
                store16::<16, _>(header, u16::from_le_bytes(change.l4.apply(old)));
            }
            Protocol::Udp => {
                let header = frame.bytes_mut::<8>(L4)?;
                store32::<0, _>(header, self.ports());
                let old = load16::<6, _>(header).to_le_bytes();
                store16::<6, _>(header, u16::from_le_bytes(change.l4.apply_udp(old)));
            }
            Protocol::Icmp => {
                let header = frame.bytes_mut::<8>(L4)?;
                // The identifier is the source port of a request and the destination port of a reply; the other one is zero.
                store16::<4, _>(header, self.source_port.word() | self.destination_port.word());
                let old = load16::<2, _>(header).to_le_bytes();
                store16::<2, _>(header, u16::from_le_bytes(change.l4.apply(old)));
            }
        }
        let headers = frame.bytes_mut(0)?;
        self.apply_ip(change.ip, headers);
        if let Some(link) = link {
            link.apply(headers);
        }
        Some(())
    }

    /// Rewrites the IP header only, of a packet with the tuple `from`: addresses, checksum, and the TTL one less.
    #[inline(always)]
    pub fn apply_addresses(&self, from: &FlowKey<Ipv4>, headers: &mut [u8; L4]) {
        self.apply_ip(self.change(from).ip, headers);
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        u32::from_le_bytes(self.source_port.then(self.destination_port))
    }

    #[inline(always)]
    fn apply_ip(&self, change: Sum, headers: &mut [u8; L4]) {
        let [ttl, protocol, checksum @ ..] = load32::<IPV4_TTL, _>(headers).to_le_bytes();
        // The TTL is the first byte of its word.
        let [a, b] = change.remove([1, 0]).apply(checksum);
        store32::<IPV4_TTL, _>(headers, u32::from_le_bytes([ttl.wrapping_sub(1), protocol, a, b]));
        store64::<IPV4_SOURCE, _>(headers, self.source.then(self.destination));
    }
}
