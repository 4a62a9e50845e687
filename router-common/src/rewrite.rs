//! Rewriting packets: the tuple that a flow's packets leave with, and what changes for it.

use core::mem::size_of;

use crate::{
    address::{Ipv4, Mac, Port},
    checksum::{Folded, Sum},
    packet::Packet,
    tuple::{FlowKey, Protocol},
    wire::{
        Frame, ICMP_LENGTH, L4, UDP_LENGTH, ethernet, icmp, ip, ipv4,
        number::{load16, load32, store16, store32, store64},
        tcp, udp,
    },
};

/// The tuple that a flow's packets leave with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewrite {
    /// The new source address.
    pub source: Ipv4,
    /// The new destination address.
    pub destination: Ipv4,
    /// The new source port, or echo identifier of a request.
    pub source_port: Port,
    /// The new destination port, or echo identifier of a reply.
    pub destination_port: Port,
}

const _: () = assert!(size_of::<Rewrite>() == 12);

/// The change that a rewrite makes to the checksums of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Change {
    /// To the IPv4 header checksum: for the two addresses, and a TTL that is one less.
    header: Folded,
    /// To the TCP or UDP checksum (addresses in the pseudo header, and ports), or to the ICMP one
    /// (identifier only).
    l4: Sum,
}

/// The change of the word whose first byte is the TTL, when the TTL becomes one less.
const ONE_TTL: [u8; 2] = [1, 0];

impl Rewrite {
    /// Returns the rewrite that gives packets the tuple `to`.
    #[inline(always)]
    pub const fn to(to: &FlowKey) -> Self {
        Self {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
        }
    }

    /// Returns what the rewrite of a packet with the tuple `from` adds to its IP header's checksum.
    #[inline(always)]
    pub(crate) fn header_change(&self, from: &FlowKey) -> Folded {
        from.source
            .negative_sum()
            .plus(from.destination.negative_sum())
            .plus(self.source.sum())
            .plus(self.destination.sum())
            .remove(ONE_TTL)
            .folded()
    }

    /// Returns what the rewrite adds to all checksums of a packet; `header` is the change of the IP
    /// header's.
    #[inline(always)]
    pub(crate) fn change(&self, header: Folded, from: &FlowKey) -> Change {
        let ports = Sum::ZERO
            .remove_pair(from.ports().to_le_bytes())
            .add_pair(self.source_port.then(self.destination_port).to_le_bytes());
        // ICMP has no pseudo header (RFC 792); of an echo's two "ports" one is zero before and
        // after.
        let l4 = match from.protocol() {
            Some(Protocol::Icmp) => ports,
            // No TTL is in the pseudo header.
            Some(Protocol::Tcp | Protocol::Udp) | None => ports.plus_folded(header).add(ONE_TTL),
        };
        Change { header, l4 }
    }
}

impl FlowKey {
    /// Returns the tuple that packets with this key leave with under `rewrite`.
    #[inline(always)]
    pub const fn translated(&self, rewrite: &Rewrite) -> Self {
        self.between(rewrite.source, rewrite.source_port, rewrite.destination, rewrite.destination_port)
    }

    /// Returns the key of the session's other flow, whose packets answer the translated packets of
    /// this one.
    #[inline(always)]
    pub const fn twin(&self, rewrite: &Rewrite) -> Self {
        self.translated(rewrite).reversed()
    }
}

/// The Ethernet addresses that a frame leaves with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// The next hop's address.
    pub destination: Mac,
    /// The egress interface's address.
    pub source: Mac,
}

impl Link {
    /// Writes the addresses into a frame's headers.
    #[inline(always)]
    pub fn apply<const LENGTH: usize>(&self, header: &mut [u8; LENGTH]) {
        store64::<{ ethernet::DESTINATION }, _>(
            header,
            self.destination.number() | self.source.number() << 48,
        );
        store32::<{ ethernet::SOURCE + 2 }, _>(header, self.source.number() >> 16);
    }
}

impl Rewrite {
    /// Builds a rewrite from addresses and ports in the form of [`FlowKey::addresses`] and
    /// [`FlowKey::ports`].
    #[inline(always)]
    pub(crate) const fn from_words(addresses: u64, ports: u32) -> Self {
        Self::to(&FlowKey::from_words(addresses, ports, 0))
    }

    /// Rewrites a packet, as [`FlowEntry::translate`](crate::entry::FlowEntry::translate). `change`
    /// is what that adds to the packet's checksums.
    #[inline(always)]
    pub(crate) fn apply(
        &self,
        change: &Change,
        packet: &Packet,
        link: Option<&Link>,
        frame: &mut (impl Frame + ?Sized),
    ) -> Option<()> {
        match packet.protocol {
            Protocol::Tcp => {
                let header = frame.bytes_mut::<{ tcp::CHECKSUM + 2 }>(L4)?;
                store32::<{ tcp::SOURCE_PORT }, _>(header, self.source_port.then(self.destination_port));
                let old = load16::<{ tcp::CHECKSUM }, _>(header).to_le_bytes();
                store16::<{ tcp::CHECKSUM }, _>(header, u16::from_le_bytes(change.l4.apply(old)));
            }
            Protocol::Udp => {
                let header = frame.bytes_mut::<UDP_LENGTH>(L4)?;
                store32::<{ udp::SOURCE_PORT }, _>(header, self.source_port.then(self.destination_port));
                let old = load16::<{ udp::CHECKSUM }, _>(header).to_le_bytes();
                store16::<{ udp::CHECKSUM }, _>(header, u16::from_le_bytes(change.l4.apply_udp(old)));
            }
            Protocol::Icmp => {
                let header = frame.bytes_mut::<ICMP_LENGTH>(L4)?;
                // The identifier is the source port of a request and the destination port of a
                // reply; the other one is zero.
                let ports = self.source_port.then(self.destination_port);
                store16::<{ icmp::IDENTIFIER }, _>(header, ports | ports >> u16::BITS);
                let old = load16::<{ icmp::CHECKSUM }, _>(header).to_le_bytes();
                store16::<{ icmp::CHECKSUM }, _>(header, u16::from_le_bytes(change.l4.apply(old)));
            }
        }
        let headers = frame.bytes_mut(0)?;
        self.apply_to_header(change.header, headers);
        if let Some(link) = link {
            link.apply(headers);
        }
        Some(())
    }

    /// Rewrites only the IP header of a packet with the tuple `from`: addresses, checksum, and the
    /// TTL, which becomes one less.
    #[inline(always)]
    pub fn apply_addresses(&self, from: &FlowKey, headers: &mut [u8; L4]) {
        self.apply_to_header(self.header_change(from), headers);
    }

    #[inline(always)]
    pub(crate) fn apply_to_header(&self, change: Folded, headers: &mut [u8; L4]) {
        // TTL and protocol in the lower half, the checksum in the upper one.
        let word = load32::<{ ip(ipv4::TTL) }, _>(headers);
        let [_, _, checksum @ ..] = word.to_le_bytes();
        let checksum = u16::from_le_bytes(change.apply(checksum));
        // The TTL is the lowest byte, and not 0.
        let ttl_and_protocol = word.wrapping_sub(1) & 0xffff;
        store32::<{ ip(ipv4::TTL) }, _>(headers, ttl_and_protocol | u32::from(checksum) << 16);
        store64::<{ ip(ipv4::SOURCE) }, _>(headers, self.source.then(self.destination));
    }
}
