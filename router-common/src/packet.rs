//! Reading an Ethernet frame: what the router can translate, and its tuple.

use crate::{
    address::{Ipv4, Mac, Port},
    bounds,
    checksum::Sum,
    reason::Reason,
    tcp,
    tuple::{FlowKey, Protocol},
    wire::{load16, load32, load64},
};

/// The length of an untagged Ethernet header.
pub const ETHERNET_LENGTH: usize = 14;
/// The length of an IPv4 header without options.
pub const IPV4_LENGTH: usize = 20;
/// Where the transport header of a packet without IP options starts in the frame.
pub const L4: usize = ETHERNET_LENGTH + IPV4_LENGTH;
/// The length of the headers up to the end of a TCP header without options.
pub const TCP_HEADERS: usize = L4 + 20;
/// The length of the headers up to the end of a UDP header.
pub const UDP_HEADERS: usize = L4 + 8;
/// The length of the headers up to the end of an ICMP echo header.
pub const ICMP_HEADERS: usize = L4 + 8;

pub(crate) const IPV4_TTL: usize = ETHERNET_LENGTH + 8;
pub(crate) const IPV4_SOURCE: usize = ETHERNET_LENGTH + 12;

pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// More-fragments flag and fragment offset: anything set, and the packet is a fragment (RFC 791
/// 3.1).
const FRAGMENT_MASK: u16 = 0x3fff;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;

/// A frame that can be read and written at an offset: the one door to packet bytes.
///
/// In the kernel this is the XDP context, where every access is a bounds check that the verifier
/// sees; on the host, a slice.
pub trait Frame {
    /// The frame's length in bytes.
    fn length(&self) -> usize;

    /// The `N` bytes at `offset`, if the frame is that long, or as much of it as can be seen here.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// The `N` bytes at `offset` to write, if the same is so.
    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
}

impl Frame for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }

    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.get_mut(offset..)?.first_chunk_mut()
    }
}

/// The `N` bytes at `OFFSET` of a header; the bounds are checked when this is compiled.
#[inline(always)]
pub(crate) const fn field<const OFFSET: usize, const N: usize, const LENGTH: usize>(
    header: &mut [u8; LENGTH],
) -> &mut [u8; N] {
    const { assert!(OFFSET + N <= LENGTH) };
    // SAFETY: OFFSET + N <= LENGTH, so the bytes lie in `header`, whose exclusive borrow the result
    // carries on; an array of bytes has no alignment.
    unsafe { &mut *header.as_mut_ptr().add(OFFSET).cast() }
}

/// The Ethernet address that a frame is for, if it is long enough for an Ethernet header.
#[inline(always)]
pub fn destination_mac(frame: &(impl Frame + ?Sized)) -> Option<Mac> {
    let ethernet: &[u8; ETHERNET_LENGTH] = frame.bytes(0)?;
    let (low, high) = (load32::<0, _>(ethernet), load16::<4, _>(ethernet));
    Some(Mac::from_number(u64::from(low) | u64::from(high) << u32::BITS))
}

/// Returns `true` if a frame is for this Ethernet address.
#[inline(always)]
pub fn is_for(frame: &(impl Frame + ?Sized), mac: Mac) -> bool {
    // With the first bytes of the source's address, which are above: one load, and they are shifted
    // out.
    frame
        .bytes::<ETHERNET_LENGTH>(0)
        .is_some_and(|ethernet| bounds::opaque_word(load64::<0, _>(ethernet) ^ mac.number()) << 16 == 0)
}

/// The source and destination of an IPv4 packet of whatever kind, if the frame is long enough for
/// them.
#[inline(always)]
pub fn addresses(frame: &(impl Frame + ?Sized)) -> Option<(Ipv4, Ipv4)> {
    let bytes: &[u8; 8] = frame.bytes(IPV4_SOURCE)?;
    let [a, b, c, d, e, f, g, h] = *bytes;
    Some((Ipv4([a, b, c, d]), Ipv4([e, f, g, h])))
}

/// The tuple of a TCP or UDP packet with IP options, if the frame is long enough for it.
#[inline(always)]
pub fn key_behind_options(frame: &(impl Frame + ?Sized)) -> Option<FlowKey> {
    let (source, destination) = addresses(frame)?;
    let [first] = *frame.bytes::<1>(ETHERNET_LENGTH)?;
    let protocol = match Protocol::from_number(frame.bytes::<1>(IPV4_TTL + 1)?[0])? {
        Protocol::Icmp => return None,
        protocol @ (Protocol::Tcp | Protocol::Udp) => protocol,
    };
    let [a, b, c, d] = *frame.bytes::<4>(ETHERNET_LENGTH + usize::from(first & 0x0f) * 4)?;
    Some(FlowKey::new(protocol, source, Port([a, b]), destination, Port([c, d])))
}

/// The protocol of an IPv4 packet, whole or not, with or without options, if it is none that the
/// router translates.
#[inline(always)]
pub fn other_protocol(frame: &(impl Frame + ?Sized)) -> Option<u8> {
    let [number] = *frame.bytes::<1>(IPV4_TTL + 1)?;
    Protocol::from_number(number).is_none().then_some(number)
}

/// Whether an ICMP packet without IP options is an error message (RFC 1122 3.2.2).
#[inline(always)]
pub fn is_icmp_error(frame: &(impl Frame + ?Sized)) -> bool {
    matches!(frame.bytes::<1>(L4), Some([3 | 4 | 11 | 12]))
}

/// What the router needs to know of a packet that it can translate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Its tuple.
    pub key: FlowKey,
    /// Its protocol (also in the key; here as what the code matches on).
    pub protocol: Protocol,
    /// The IP packet's length in bytes, from its header.
    pub ip_length: u16,
    /// Its time to live.
    pub ttl: u8,
    /// Its TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Its TCP sequence number; 0 for other protocols.
    pub sequence: u32,
    /// Its TCP acknowledgement number, which counts if the flags say so; 0 for other protocols.
    pub acknowledgement: u32,
    /// `true` if something is behind its TCP header; `false` for other protocols.
    pub carries_data: bool,
    /// Whether its sender asked not to fragment it.
    pub dont_fragment: bool,
    /// Whether it is the first fragment of a packet, and not all of it: only [`parse_leading`]
    /// reads such.
    pub is_fragment: bool,
}

impl Packet {
    /// Whether it may open a session: any UDP or ICMP echo request, and a TCP SYN that acknowledges
    /// nothing.
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

/// Whether the transport checksum of a packet that opens a connection is right. Only of a bare SYN:
/// what one carries is rare, and long.
///
/// Elsewhere that checksum is the ends' business (it stays as right or wrong as it was), but a SYN
/// that its target will not even look at is not to take a port for minutes, nor to make the target
/// look dead.
#[inline(always)]
pub fn opening_is_intact(frame: &(impl Frame + ?Sized), packet: &Packet) -> bool {
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
    sum.is_intact()
}

/// The sum of the pseudo header that a TCP or UDP checksum covers (RFC 9293 3.1, RFC 768), `length`
/// being what is behind the IP header.
#[inline(always)]
pub fn pseudo_header(source: Ipv4, destination: Ipv4, protocol: Protocol, length: u16) -> Sum {
    source.sum().plus(destination.sum()).add([0, protocol as u8]).add(length.to_be_bytes())
}

/// Where the checksum of TCP and UDP is in the frame.
const TCP_CHECKSUM: usize = L4 + 16;
const UDP_CHECKSUM: usize = L4 + 6;

/// Returns `true` if the place of a packet's TCP or UDP checksum holds the sum of its pseudo
/// header, as a stack leaves it there for hardware to finish (`CHECKSUM_PARTIAL`,
/// include/linux/skbuff.h).
#[inline(always)]
pub fn holds_pseudo_header_sum(frame: &(impl Frame + ?Sized), packet: &Packet) -> bool {
    let checksum: Option<&[u8; 2]> = match packet.protocol {
        Protocol::Tcp => frame.bytes(TCP_CHECKSUM),
        Protocol::Udp => frame.bytes(UDP_CHECKSUM),
        Protocol::Icmp => None,
    };
    let length = packet.ip_length.wrapping_sub(IPV4_LENGTH as u16);
    let sum = pseudo_header(packet.key.source, packet.key.destination, packet.protocol, length);
    checksum.is_some_and(|checksum| *checksum == sum.unfinished())
}

/// Puts the sum of the pseudo header that a packet has now where its TCP or UDP checksum is, for
/// hardware or the kernel to finish. `None` if the frame has become shorter.
#[inline(always)]
pub fn put_pseudo_header_sum(frame: &mut (impl Frame + ?Sized), packet: &Packet) -> Option<()> {
    let (source, destination) = addresses(frame)?;
    let length = packet.ip_length.wrapping_sub(IPV4_LENGTH as u16);
    let sum = pseudo_header(source, destination, packet.protocol, length).unfinished();
    match packet.protocol {
        Protocol::Tcp => *frame.bytes_mut(TCP_CHECKSUM)? = sum,
        Protocol::Udp => *frame.bytes_mut(UDP_CHECKSUM)? = sum,
        Protocol::Icmp => {}
    }
    Some(())
}

/// Reads a frame.
///
/// # Errors
/// The reason why the router does not translate the packet. All of these are reasons to pass it on
/// untouched: nothing has been written yet, and this machine's own stack knows best what to do with
/// it.
#[inline(always)]
pub fn parse(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, false)
}

/// Reads a frame that may be the first fragment of a packet. That has ports like a whole packet,
/// and its checksum changes like a whole packet's.
///
/// # Errors
/// As [`parse`]; and a first fragment that has not all of the least transport header is to be
/// dropped (RFC 1858).
#[inline(always)]
pub fn parse_leading(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, true)
}

/// What a TCP header has beyond the length of a UDP header.
struct TcpRest<'a>(&'a [u8; TCP_HEADERS - UDP_HEADERS]);

impl<'a> TcpRest<'a> {
    #[inline(always)]
    fn of(frame: &'a (impl Frame + ?Sized)) -> Option<Self> {
        frame.bytes(UDP_HEADERS).map(Self)
    }

    #[inline(always)]
    fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(load32::<0, _>(self.0).to_le_bytes())
    }

    /// In bytes.
    #[inline(always)]
    const fn header_length(&self) -> u16 {
        (self.0[4] >> 4) as u16 * 4
    }

    #[inline(always)]
    const fn flags(&self) -> u8 {
        self.0[5]
    }
}

/// The TCP flags of a packet with a TCP header that [`parse`] has found whole.
#[inline(always)]
pub fn tcp_flags(frame: &(impl Frame + ?Sized)) -> Option<u8> {
    Some(TcpRest::of(frame)?.flags())
}

/// Its sequence number and its acknowledgement number.
#[inline(always)]
pub fn tcp_numbers(frame: &(impl Frame + ?Sized)) -> Option<(u32, u32)> {
    // Both are loaded and turned round at once.
    let numbers = load64::<{ L4 + 4 }, _>(frame.bytes::<TCP_HEADERS>(0)?).swap_bytes();
    Some(((numbers >> u32::BITS) as u32, numbers as u32))
}

/// Whether a frame says that it carries something else than IPv4.
#[inline(always)]
pub fn is_not_ipv4(frame: &(impl Frame + ?Sized)) -> bool {
    frame
        .bytes::<ETHERNET_LENGTH>(0)
        .is_some_and(|ethernet| load16::<12, _>(ethernet).to_le_bytes() != ETHERTYPE_IPV4)
}

/// What a frame is that is too short for a transport header.
#[inline(always)]
fn short(frame: &(impl Frame + ?Sized)) -> Reason {
    if is_not_ipv4(frame) {
        return Reason::NotIpv4;
    }
    match frame.bytes::<L4>(0) {
        // What is behind the IP header is no matter of ports.
        Some(headers)
            if headers[ETHERNET_LENGTH] >> 4 == 4
                && Protocol::from_number(headers[IPV4_TTL + 1]).is_none()
                && usize::from(u16::from_be_bytes([headers[16], headers[17]]))
                    <= frame.length() - ETHERNET_LENGTH =>
        {
            Reason::UnsupportedProtocol
        }
        // The end of a datagram.
        Some(headers)
            if headers[ETHERNET_LENGTH] == 0x45
                && usize::from(u16::from_be_bytes([headers[16], headers[17]]))
                    <= frame.length() - ETHERNET_LENGTH
                && u16::from_be_bytes([headers[20], headers[21]]) & FRAGMENT_MASK != 0 =>
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
    if load16::<12, _>(headers).to_le_bytes() != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    // The header in as few numbers as there can be: what it says is taken from them, and its
    // checksum is of them.
    let start = load32::<ETHERNET_LENGTH, _>(headers);
    let [first, _, length @ ..] = start.to_le_bytes();
    if first != 0x45 {
        return Err(if first >> 4 == 4 && first & 0x0f > 5 { Reason::IpOptions } else { Reason::Malformed });
    }
    let ip_length = u16::from_be_bytes(length);
    if usize::from(ip_length) > frame.length() - ETHERNET_LENGTH {
        return Err(Reason::Truncated);
    }
    let middle = load32::<{ ETHERNET_LENGTH + 4 }, _>(headers);
    let end = load32::<IPV4_TTL, _>(headers);
    let addresses = load64::<IPV4_SOURCE, _>(headers);
    // RFC 1812 5.2.2: a router verifies this one. The transport's checksum is its ends' business.
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    let words = [start, middle, end, source, destination];
    if !words.iter().fold(Sum::ZERO, |sum, pair| sum.add_pair(pair.to_le_bytes())).is_intact() {
        return Err(Reason::BadChecksum);
    }
    let [_, _, fragment @ ..] = middle.to_le_bytes();
    let fragment = u16::from_be_bytes(fragment);
    let is_fragment = fragment & FRAGMENT_MASK != 0;
    if is_fragment && !(leading && fragment & FRAGMENT_MASK == MORE_FRAGMENTS) {
        return Err(Reason::Fragment);
    }
    let [ttl, protocol, ..] = end.to_le_bytes();
    let protocol = Protocol::from_number(protocol).ok_or(Reason::UnsupportedProtocol)?;
    // A transport header that does not end where it may.
    let misfit = if is_fragment { Reason::FragmentBad } else { Reason::Malformed };
    // What is behind the IP header. In 32 bits, where nothing goes round.
    let payload_ends_before = |length: u16| u32::from(ip_length) < IPV4_LENGTH as u32 + u32::from(length);
    let (mut tcp_flags, mut sequence, mut acknowledgement, mut carries_data) = (0, 0, 0, false);
    // Of TCP and UDP.
    let mut ports = load32::<L4, _>(headers);
    match protocol {
        Protocol::Tcp => {
            const LENGTH: u16 = (TCP_HEADERS - L4) as u16;
            let Some(rest) = TcpRest::of(frame) else {
                return Err(if payload_ends_before(LENGTH) { misfit } else { Reason::Truncated });
            };
            sequence = u32::from_be_bytes(load32::<{ L4 + 4 }, _>(headers).to_le_bytes());
            (tcp_flags, acknowledgement) = (rest.flags(), rest.acknowledgement());
            let header_length = rest.header_length();
            carries_data = ip_length > IPV4_LENGTH as u16 + header_length;
            if header_length < LENGTH || payload_ends_before(header_length) {
                return Err(misfit);
            }
        }
        Protocol::Udp => {
            let length = u16::from_be_bytes(load16::<{ L4 + 4 }, _>(headers).to_le_bytes());
            const LENGTH: u16 = (UDP_HEADERS - L4) as u16;
            // A first fragment says how long the whole is.
            if is_fragment && payload_ends_before(LENGTH) {
                return Err(misfit);
            }
            if length < LENGTH || (!is_fragment && payload_ends_before(length)) {
                return Err(Reason::Malformed);
            }
        }
        Protocol::Icmp => {
            if payload_ends_before((ICMP_HEADERS - L4) as u16) {
                return Err(misfit);
            }
            // Type, code and checksum stand where others have their ports.
            let [kind, code, ..] = ports.to_le_bytes();
            let identifier = u32::from(load16::<{ L4 + 4 }, _>(headers));
            ports = match [kind, code] {
                [ICMP_ECHO_REQUEST, 0] => identifier,
                // A reply to us carries an identifier that we chose, and we never choose 0: with
                // it, it would look like a request.
                [ICMP_ECHO_REPLY, 0] if identifier != 0 => identifier << 16,
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
        dont_fragment: fragment & DONT_FRAGMENT != 0,
        is_fragment,
    })
}
