//! Parsing a frame: what the router can translate, and its tuple.

use crate::{
    address::{Ipv4, Mac, Port},
    bounds,
    checksum::Sum,
    reason::Reason,
    tcp,
    tuple::{FlowKey, Protocol},
    wire::{
        self, ETHERNET_LENGTH, Frame, ICMP_LENGTH, IPV4_LENGTH, L4, TCP_HEADERS, TCP_LENGTH, UDP_HEADERS,
        UDP_LENGTH, ethernet, field, icmp, ip, ipv4, l4,
        number::{load16, load32, load64},
        udp,
    },
};

/// Returns the frame's destination address, if the frame is long enough for an Ethernet header.
#[inline(always)]
pub fn destination_mac(frame: &(impl Frame + ?Sized)) -> Option<Mac> {
    let header: &[u8; ETHERNET_LENGTH] = frame.bytes(0)?;
    let (low, high) =
        (load32::<{ ethernet::DESTINATION }, _>(header), load16::<{ ethernet::DESTINATION + 4 }, _>(header));
    Some(Mac::from_number(u64::from(low) | u64::from(high) << u32::BITS))
}

/// Returns `true` if the frame's destination is this Ethernet address.
#[inline(always)]
pub fn is_for(frame: &(impl Frame + ?Sized), mac: Mac) -> bool {
    // With the first bytes of the source's address, which are above: one load, and they are shifted
    // out.
    frame.bytes::<ETHERNET_LENGTH>(0).is_some_and(|header| {
        bounds::opaque_word(load64::<{ ethernet::DESTINATION }, _>(header) ^ mac.number()) << 16 == 0
    })
}

/// Returns source and destination of any IPv4 packet, if the frame is long enough for them.
#[inline(always)]
pub fn addresses(frame: &(impl Frame + ?Sized)) -> Option<(Ipv4, Ipv4)> {
    let bytes: &[u8; 8] = frame.bytes(ip(ipv4::SOURCE))?;
    let [a, b, c, d, e, f, g, h] = *bytes;
    Some((Ipv4([a, b, c, d]), Ipv4([e, f, g, h])))
}

/// Returns the tuple of a TCP or UDP packet with IP options, if the frame is long enough for it.
#[inline(always)]
pub fn key_after_options(frame: &(impl Frame + ?Sized)) -> Option<FlowKey> {
    let (source, destination) = addresses(frame)?;
    let [first] = *frame.bytes::<1>(ip(ipv4::VERSION))?;
    let protocol = match Protocol::from_number(frame.bytes::<1>(ip(ipv4::PROTOCOL))?[0])? {
        Protocol::Icmp => return None,
        protocol @ (Protocol::Tcp | Protocol::Udp) => protocol,
    };
    let [a, b, c, d] = *frame.bytes::<4>(ETHERNET_LENGTH + usize::from(first & 0x0f) * 4)?;
    Some(FlowKey::new(protocol, source, Port([a, b]), destination, Port([c, d])))
}

/// Returns the protocol of an IPv4 packet, whole or not, with or without options, if the router
/// does not translate that protocol.
#[inline(always)]
pub fn other_protocol(frame: &(impl Frame + ?Sized)) -> Option<u8> {
    let [number] = *frame.bytes::<1>(ip(ipv4::PROTOCOL))?;
    Protocol::from_number(number).is_none().then_some(number)
}

/// Returns `true` if an ICMP packet without IP options is an error message to the sender of the
/// packet that it quotes.
#[inline(always)]
pub fn is_icmp_error(frame: &(impl Frame + ?Sized)) -> bool {
    frame.bytes::<1>(l4(icmp::TYPE)).is_some_and(|[kind]| icmp::is_end_to_end_error(*kind))
}

/// Returns the tuple of the TCP or UDP packet that an ICMP packet without IP options says could not
/// be delivered, as its quote has it. Returns `None` if the quote has options, or no ports.
#[inline(always)]
pub fn undelivered(frame: &(impl Frame + ?Sized)) -> Option<FlowKey> {
    const PORTS: usize = 4;
    let quote: &[u8; IPV4_LENGTH + PORTS] = frame.bytes(l4(ICMP_LENGTH))?;
    let [kind] = *frame.bytes::<1>(l4(icmp::TYPE))?;
    let fragment = u16::from_be_bytes(field::<{ ipv4::FRAGMENT }, 2, _>(quote));
    if kind != icmp::UNREACHABLE
        || quote[ipv4::VERSION] != ipv4::NO_OPTIONS
        || fragment & ipv4::FRAGMENT_OFFSET != 0
    {
        return None;
    }
    let protocol = match Protocol::from_number(quote[ipv4::PROTOCOL])? {
        Protocol::Icmp => return None,
        protocol @ (Protocol::Tcp | Protocol::Udp) => protocol,
    };
    let addresses = load64::<{ ipv4::SOURCE }, _>(quote);
    Some(FlowKey::from_words(addresses, load32::<IPV4_LENGTH, _>(quote), protocol as u8))
}

/// A parsed packet that the router can translate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Its tuple.
    pub key: FlowKey,
    /// Its protocol. The key has it too; this one can be matched on.
    pub protocol: Protocol,
    /// The IP packet's length in bytes, from its header.
    pub ip_length: u16,
    /// Its time to live.
    pub ttl: u8,
    /// Its TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Its TCP sequence number; 0 for other protocols.
    pub sequence: u32,
    /// Its TCP acknowledgement number, which is valid if the flags say so; 0 for other protocols.
    pub acknowledgement: u32,
    /// `true` if data follows its TCP header; `false` for other protocols.
    pub carries_data: bool,
    /// `true` if its sender asked not to fragment it.
    pub dont_fragment: bool,
    /// `true` if it is the first fragment of a datagram, and not the whole. Only [`parse_leading`]
    /// returns one.
    pub is_fragment: bool,
}

impl Packet {
    /// Returns `true` if it may open a session: any UDP packet, an ICMP echo request, or a TCP SYN
    /// that acknowledges nothing.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self.protocol {
            Protocol::Tcp => self.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN,
            Protocol::Udp => true,
            // In a reply, the destination port is the identifier, which is not 0.
            Protocol::Icmp => self.key.destination_port.number() == 0,
        }
    }
}

/// Returns `true` if the transport checksum of a packet that opens a connection is right. Checks
/// only SYNs without data: a SYN with data is rare, and long.
///
/// Otherwise that checksum is the business of the ends (it stays as right or wrong as it was). But
/// a SYN that its target will discard must not occupy a port for minutes, nor make the target look
/// dead.
#[inline(always)]
pub fn syn_checksum_is_valid(frame: &(impl Frame + ?Sized), packet: &Packet) -> bool {
    const WORDS: usize = 15;
    let length = usize::from(packet.ip_length).wrapping_sub(IPV4_LENGTH);
    let is_bare = !packet.is_fragment && length <= WORDS * 4 && length & 3 == 0;
    if !matches!(packet.protocol, Protocol::Tcp) || !is_bare {
        return true;
    }
    let mut sum = pseudo_header(packet.key.source, packet.key.destination, Protocol::Tcp, length as u16);
    let mut word = 0;
    while word < WORDS {
        if word * 4 < length {
            let Some([a, b, c, d]) = frame.bytes::<4>(L4 + word * 4) else { return false };
            sum = sum.add([*a, *b]).add([*c, *d]);
        }
        word += 1;
    }
    sum.is_valid()
}

/// Returns the sum of the pseudo header that a TCP or UDP checksum covers (RFC 9293 3.1, RFC 768);
/// `length` is that of the transport header and its data.
#[inline(always)]
pub fn pseudo_header(source: Ipv4, destination: Ipv4, protocol: Protocol, length: u16) -> Sum {
    source.sum().plus(destination.sum()).add([0, protocol as u8]).add(length.to_be_bytes())
}

/// Returns `true` if a packet's TCP or UDP checksum field holds only the sum of the pseudo header,
/// as a stack leaves it for hardware to finish (`CHECKSUM_PARTIAL`, include/linux/skbuff.h).
#[inline(always)]
pub fn has_partial_checksum(frame: &(impl Frame + ?Sized), packet: &Packet) -> bool {
    let checksum: Option<&[u8; 2]> = match packet.protocol {
        Protocol::Tcp => frame.bytes(l4(wire::tcp::CHECKSUM)),
        Protocol::Udp => frame.bytes(l4(udp::CHECKSUM)),
        Protocol::Icmp => None,
    };
    let length = packet.ip_length.wrapping_sub(IPV4_LENGTH as u16);
    let sum = pseudo_header(packet.key.source, packet.key.destination, packet.protocol, length);
    checksum.is_some_and(|checksum| *checksum == sum.partial())
}

/// Writes the sum of a packet's present pseudo header into its TCP or UDP checksum field, for
/// hardware or the kernel to finish. Returns `None` if the frame has become shorter.
#[inline(always)]
pub fn write_partial_checksum(frame: &mut (impl Frame + ?Sized), packet: &Packet) -> Option<()> {
    let (source, destination) = addresses(frame)?;
    let length = packet.ip_length.wrapping_sub(IPV4_LENGTH as u16);
    let sum = pseudo_header(source, destination, packet.protocol, length).partial();
    match packet.protocol {
        Protocol::Tcp => *frame.bytes_mut(l4(wire::tcp::CHECKSUM))? = sum,
        Protocol::Udp => *frame.bytes_mut(l4(udp::CHECKSUM))? = sum,
        Protocol::Icmp => {}
    }
    Some(())
}

/// Parses a frame.
///
/// # Errors
/// Returns the reason why the router does not translate the packet. All of these are reasons to
/// pass the packet on untouched: nothing has been written yet, and this machine's own stack knows
/// best what to do with it.
#[inline(always)]
pub fn parse(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, false)
}

/// Parses a frame that may be the first fragment of a datagram. A first fragment has ports like a
/// whole packet, and its checksum changes like a whole packet's.
///
/// # Errors
/// As [`parse`]. A first fragment that ends before the minimum transport header does is to be
/// dropped (RFC 1858).
#[inline(always)]
pub fn parse_leading(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, true)
}

/// The part of a TCP header beyond the length of a UDP header.
struct TcpRest<'a>(&'a [u8; TCP_HEADERS - UDP_HEADERS]);

impl<'a> TcpRest<'a> {
    #[inline(always)]
    fn of(frame: &'a (impl Frame + ?Sized)) -> Option<Self> {
        frame.bytes(UDP_HEADERS).map(Self)
    }

    #[inline(always)]
    fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(load32::<{ wire::tcp::ACKNOWLEDGEMENT - UDP_LENGTH }, _>(self.0).to_le_bytes())
    }

    /// Returns the header length in bytes.
    #[inline(always)]
    const fn header_length(&self) -> u16 {
        (self.0[wire::tcp::DATA_OFFSET - UDP_LENGTH] >> 4) as u16 * 4
    }

    #[inline(always)]
    const fn flags(&self) -> u8 {
        self.0[wire::tcp::FLAGS - UDP_LENGTH]
    }
}

/// Returns the TCP flags of a packet whose TCP header [`parse`] has found whole.
#[inline(always)]
pub fn tcp_flags(frame: &(impl Frame + ?Sized)) -> Option<u8> {
    Some(TcpRest::of(frame)?.flags())
}

/// Returns the sequence number and the acknowledgement number of such a packet.
#[inline(always)]
pub fn tcp_numbers(frame: &(impl Frame + ?Sized)) -> Option<(u32, u32)> {
    // One load and one byte swap for both.
    let numbers = load64::<{ l4(wire::tcp::SEQUENCE) }, _>(frame.bytes::<TCP_HEADERS>(0)?).swap_bytes();
    Some(((numbers >> u32::BITS) as u32, numbers as u32))
}

/// Returns `true` if the frame's EtherType is not IPv4.
#[inline(always)]
pub fn is_not_ipv4(frame: &(impl Frame + ?Sized)) -> bool {
    frame
        .bytes::<ETHERNET_LENGTH>(0)
        .is_some_and(|header| load16::<{ ethernet::TYPE }, _>(header).to_le_bytes() != ethernet::IPV4)
}

/// Returns the length of the IP packet in bytes, as its header says.
#[inline(always)]
const fn ip_length(headers: &[u8; L4]) -> u16 {
    u16::from_be_bytes(field::<{ ip(ipv4::TOTAL_LENGTH) }, 2, _>(headers))
}

/// Returns the reason for a frame that is too short for a transport header.
#[inline(always)]
fn short(frame: &(impl Frame + ?Sized)) -> Reason {
    if is_not_ipv4(frame) {
        return Reason::NotIpv4;
    }
    match frame.bytes::<L4>(0) {
        // A protocol without ports that the router knows.
        Some(headers)
            if headers[ip(ipv4::VERSION)] >> 4 == 4
                && Protocol::from_number(headers[ip(ipv4::PROTOCOL)]).is_none()
                && usize::from(ip_length(headers)) <= frame.length() - ETHERNET_LENGTH =>
        {
            Reason::UnsupportedProtocol
        }
        // The end of a datagram.
        Some(headers)
            if headers[ip(ipv4::VERSION)] == ipv4::NO_OPTIONS
                && usize::from(ip_length(headers)) <= frame.length() - ETHERNET_LENGTH
                && u16::from_be_bytes(field::<{ ip(ipv4::FRAGMENT) }, 2, _>(headers)) & ipv4::IS_FRAGMENT
                    != 0 =>
        {
            Reason::Fragment
        }
        _ => Reason::Truncated,
    }
}

#[inline(always)]
fn read(frame: &(impl Frame + ?Sized), leading: bool) -> Result<Packet, Reason> {
    // No IP packet with a transport header is shorter than this.
    let Some(headers) = frame.bytes::<UDP_HEADERS>(0) else { return Err(short(frame)) };
    if load16::<{ ethernet::TYPE }, _>(headers).to_le_bytes() != ethernet::IPV4 {
        return Err(Reason::NotIpv4);
    }
    // The header in as few numbers as there can be: what it says is taken from them, and its
    // checksum is of them.
    let start = load32::<{ ip(ipv4::VERSION) }, _>(headers);
    let [first, _, length @ ..] = start.to_le_bytes();
    if first != ipv4::NO_OPTIONS {
        return Err(if first >> 4 == 4 && first & 0x0f > 5 { Reason::IpOptions } else { Reason::Malformed });
    }
    let ip_length = u16::from_be_bytes(length);
    if usize::from(ip_length) > frame.length() - ETHERNET_LENGTH {
        return Err(Reason::Truncated);
    }
    let middle = load32::<{ ip(ipv4::IDENTIFICATION) }, _>(headers);
    let end = load32::<{ ip(ipv4::TTL) }, _>(headers);
    let addresses = load64::<{ ip(ipv4::SOURCE) }, _>(headers);
    // RFC 1812 5.2.2: a router verifies this one. The transport's checksum is its ends' business.
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    let words = [start, middle, end, source, destination];
    if !words.iter().fold(Sum::ZERO, |sum, pair| sum.add_pair(pair.to_le_bytes())).is_valid() {
        return Err(Reason::BadChecksum);
    }
    let [_, _, fragment @ ..] = middle.to_le_bytes();
    let fragment = u16::from_be_bytes(fragment);
    let is_fragment = fragment & ipv4::IS_FRAGMENT != 0;
    if is_fragment && !(leading && fragment & ipv4::IS_FRAGMENT == ipv4::MORE_FRAGMENTS) {
        return Err(Reason::Fragment);
    }
    let [ttl, protocol, ..] = end.to_le_bytes();
    let protocol = Protocol::from_number(protocol).ok_or(Reason::UnsupportedProtocol)?;
    // A transport header that does not end where it may.
    let misfit = if is_fragment { Reason::FragmentBad } else { Reason::Malformed };
    // In 32 bits, which cannot overflow.
    let payload_ends_before = |length: u16| u32::from(ip_length) < IPV4_LENGTH as u32 + u32::from(length);
    let (mut tcp_flags, mut sequence, mut acknowledgement, mut carries_data) = (0, 0, 0, false);
    // Those of TCP and UDP.
    let mut ports = load32::<{ l4(wire::tcp::SOURCE_PORT) }, _>(headers);
    match protocol {
        Protocol::Tcp => {
            const LENGTH: u16 = TCP_LENGTH as u16;
            let Some(rest) = TcpRest::of(frame) else {
                return Err(if payload_ends_before(LENGTH) { misfit } else { Reason::Truncated });
            };
            sequence = u32::from_be_bytes(load32::<{ l4(wire::tcp::SEQUENCE) }, _>(headers).to_le_bytes());
            (tcp_flags, acknowledgement) = (rest.flags(), rest.acknowledgement());
            let header_length = rest.header_length();
            carries_data = ip_length > IPV4_LENGTH as u16 + header_length;
            if header_length < LENGTH || payload_ends_before(header_length) {
                return Err(misfit);
            }
        }
        Protocol::Udp => {
            let length = u16::from_be_bytes(load16::<{ l4(udp::TOTAL_LENGTH) }, _>(headers).to_le_bytes());
            const LENGTH: u16 = UDP_LENGTH as u16;
            // A first fragment says how long the whole is.
            if is_fragment && payload_ends_before(LENGTH) {
                return Err(misfit);
            }
            if length < LENGTH || (!is_fragment && payload_ends_before(length)) {
                return Err(Reason::Malformed);
            }
        }
        Protocol::Icmp => {
            if payload_ends_before(ICMP_LENGTH as u16) {
                return Err(misfit);
            }
            // Type, code and checksum stand where others have their ports.
            let [kind, code, ..] = ports.to_le_bytes();
            let identifier = u32::from(load16::<{ l4(icmp::IDENTIFIER) }, _>(headers));
            ports = match [kind, code] {
                [icmp::ECHO_REQUEST, 0] => identifier,
                // A reply to us carries an identifier that we chose, and we never choose 0: with
                // it, it would look like a request.
                [icmp::ECHO_REPLY, 0] if identifier != 0 => identifier << 16,
                _ => return Err(Reason::IcmpOther),
            };
        }
    }
    Ok(Packet {
        key: FlowKey::from_words(addresses, ports, protocol as u8),
        protocol,
        ip_length,
        ttl,
        tcp_flags,
        sequence,
        acknowledgement,
        carries_data,
        dont_fragment: fragment & ipv4::DONT_FRAGMENT != 0,
        is_fragment,
    })
}
