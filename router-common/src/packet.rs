//! Reading an Ethernet frame: what the router can translate, and its tuple.

use crate::{
    address::{Address as _, Ipv4, Port, join},
    checksum::Sum,
    flow::{FlowKey, Protocol},
    reason::Reason,
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
pub(crate) const IPV4_CHECKSUM: usize = ETHERNET_LENGTH + 10;
pub(crate) const IPV4_SOURCE: usize = ETHERNET_LENGTH + 12;
pub(crate) const IPV4_DESTINATION: usize = ETHERNET_LENGTH + 16;

pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// More-fragments flag and fragment offset: anything set, and the packet is a fragment (RFC 791 3.1).
const FRAGMENT_MASK: u16 = 0x3fff;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;

/// TCP flags, as they stand in byte 13 of the TCP header (RFC 9293 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A frame that can be read and written at an offset: the one door to packet bytes.
///
/// In the kernel this is the XDP context, where every access is a bounds check that the verifier sees; on the host, a
/// slice.
pub trait Frame {
    /// The frame's length in bytes.
    fn length(&self) -> usize;

    /// The `N` bytes at `offset`, if the frame is that long.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// The `N` bytes at `offset` to write, if the frame is that long.
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
    // SAFETY: OFFSET + N <= LENGTH, so the bytes lie in `header`, whose exclusive borrow the result carries on; an array
    // of bytes has no alignment.
    unsafe { &mut *header.as_mut_ptr().add(OFFSET).cast() }
}

/// The source and destination of an IPv4 packet of whatever kind, if the frame is long enough for them.
#[inline(always)]
pub fn addresses(frame: &(impl Frame + ?Sized)) -> Option<(Ipv4, Ipv4)> {
    let bytes: &[u8; 8] = frame.bytes(IPV4_SOURCE)?;
    let [a, b, c, d, e, f, g, h] = *bytes;
    Some((Ipv4([a, b, c, d]), Ipv4([e, f, g, h])))
}

/// The tuple of a TCP or UDP packet with IP options, if the frame is long enough for it.
#[inline(always)]
pub fn key_behind_options(frame: &(impl Frame + ?Sized)) -> Option<FlowKey<Ipv4>> {
    let (source, destination) = addresses(frame)?;
    let [first] = *frame.bytes::<1>(ETHERNET_LENGTH)?;
    let protocol = match Protocol::from_number(frame.bytes::<1>(IPV4_TTL + 1)?[0])? {
        Protocol::Icmp => return None,
        protocol @ (Protocol::Tcp | Protocol::Udp) => protocol,
    };
    let [a, b, c, d] = *frame.bytes::<4>(ETHERNET_LENGTH + usize::from(first & 0x0f) * 4)?;
    Some(FlowKey::new(protocol, source, Port([a, b]), destination, Port([c, d])))
}

/// Whether an ICMP packet without IP options is an error message (RFC 1122 3.2.2).
#[inline(always)]
pub fn is_icmp_error(frame: &(impl Frame + ?Sized)) -> bool {
    matches!(frame.bytes::<1>(L4), Some([3 | 4 | 11 | 12]))
}

/// The word at `OFFSET` of a header. The fast path reads headers in words and takes bytes from them: a compiler that has seen one byte
/// of a word by itself loads all of them one by one.
#[inline(always)]
const fn word<const OFFSET: usize, const LENGTH: usize>(header: &[u8; LENGTH]) -> [u8; 2] {
    const { assert!(OFFSET + 2 <= LENGTH) };
    // SAFETY: OFFSET + 2 <= LENGTH, so the bytes lie in `header`; an array of bytes has no alignment.
    unsafe { *header.as_ptr().add(OFFSET).cast() }
}

/// The two words at `OFFSET` of a header.
#[inline(always)]
const fn pair<const OFFSET: usize, const LENGTH: usize>(header: &[u8; LENGTH]) -> [u8; 4] {
    const { assert!(OFFSET + 4 <= LENGTH) };
    // SAFETY: as above.
    join(word::<OFFSET, _>(header), unsafe { *header.as_ptr().add(OFFSET + 2).cast() })
}

#[inline(always)]
fn header_checksum_is_right<const N: usize>(headers: &[u8; N]) -> bool {
    Sum::ZERO
        .add(word::<ETHERNET_LENGTH, _>(headers))
        .add(word::<{ ETHERNET_LENGTH + 2 }, _>(headers))
        .add(word::<{ ETHERNET_LENGTH + 4 }, _>(headers))
        .add(word::<{ ETHERNET_LENGTH + 6 }, _>(headers))
        .add(word::<IPV4_TTL, _>(headers))
        .add(word::<IPV4_CHECKSUM, _>(headers))
        .add(word::<IPV4_SOURCE, _>(headers))
        .add(word::<{ IPV4_SOURCE + 2 }, _>(headers))
        .add(word::<IPV4_DESTINATION, _>(headers))
        .add(word::<{ IPV4_DESTINATION + 2 }, _>(headers))
        .is_intact()
}

/// What the router needs to know of a packet that it can translate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Its tuple.
    pub key: FlowKey<Ipv4>,
    /// Its protocol (also in the key; here as what the code matches on).
    pub protocol: Protocol,
    /// The IP packet's length in bytes, from its header.
    pub ip_length: u16,
    /// Its time to live.
    pub ttl: u8,
    /// Its TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Its TCP sequence number; 0 for other protocols.
    pub sequence: [u8; 4],
    /// Its TCP acknowledgement number, which counts if the flags say so; 0 for other protocols.
    pub acknowledgement: [u8; 4],
    /// Whether its sender asked not to fragment it.
    pub dont_fragment: bool,
    /// Whether it is the first fragment of a packet, and not all of it: only [`parse_leading`] reads such.
    pub is_fragment: bool,
}

impl Packet {
    /// Whether it may open a session: any UDP or ICMP echo request, and a TCP SYN that acknowledges nothing.
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

/// Whether the transport checksum of a packet that opens a connection is right. Only of a bare SYN: what one carries is rare, and long.
///
/// Elsewhere that checksum is the ends' business (it stays as right or wrong as it was), but a SYN that its target will not even look at
/// is not to take a port for minutes, nor to make the target look dead.
#[inline(always)]
pub fn opening_is_intact(frame: &(impl Frame + ?Sized), packet: &Packet) -> bool {
    const WORDS: usize = 15;
    let length = usize::from(packet.ip_length).wrapping_sub(IPV4_LENGTH);
    let is_bare = !packet.is_fragment && length <= WORDS * 4 && length & 3 == 0;
    if !matches!(packet.protocol, Protocol::Tcp) || !is_bare {
        return true;
    }
    // RFC 9293 3.1's pseudo header.
    let mut sum = packet
        .key
        .source
        .sum()
        .plus(packet.key.destination.sum())
        .add([0, Protocol::Tcp as u8])
        .add((length as u16).to_be_bytes());
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

/// Reads a frame.
///
/// # Errors
/// The reason why the router does not translate the packet. All of these are reasons to pass it on untouched: nothing has
/// been written yet, and this machine's own stack knows best what to do with it.
#[inline(always)]
pub fn parse(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, false)
}

/// Reads a frame that may be the first fragment of a packet. That has ports like a whole packet, and its checksum changes like a whole
/// packet's.
///
/// # Errors
/// As [`parse`]; and a first fragment that has not all of the least transport header is to be dropped (RFC 1858).
#[inline(always)]
pub fn parse_leading(frame: &(impl Frame + ?Sized)) -> Result<Packet, Reason> {
    read(frame, true)
}

/// What an IPv4 packet in so short a frame is: the end of a datagram, or cut off.
#[inline(always)]
fn short(frame: &(impl Frame + ?Sized)) -> Reason {
    match frame.bytes::<L4>(0) {
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
    let ethernet: &[u8; ETHERNET_LENGTH] = frame.bytes(0).ok_or(Reason::Truncated)?;
    if [ethernet[12], ethernet[13]] != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4);
    }
    // No IP packet with a transport header is shorter than this.
    let Some(headers) = frame.bytes::<UDP_HEADERS>(0) else { return Err(short(frame)) };
    let [first, _] = word::<ETHERNET_LENGTH, _>(headers);
    if first != 0x45 {
        return Err(if first >> 4 == 4 && first & 0x0f > 5 { Reason::IpOptions } else { Reason::Malformed });
    }
    let ip_length = u16::from_be_bytes(word::<{ ETHERNET_LENGTH + 2 }, _>(headers));
    if usize::from(ip_length) > frame.length() - ETHERNET_LENGTH {
        return Err(Reason::Truncated);
    }
    // RFC 1812 5.2.2: a router verifies this one. The transport's checksum is its ends' business.
    if !header_checksum_is_right(headers) {
        return Err(Reason::BadChecksum);
    }
    let fragment = u16::from_be_bytes(word::<{ ETHERNET_LENGTH + 6 }, _>(headers));
    let is_fragment = fragment & FRAGMENT_MASK != 0;
    if is_fragment && !(leading && fragment & FRAGMENT_MASK == MORE_FRAGMENTS) {
        return Err(Reason::Fragment);
    }
    let [ttl, protocol] = word::<IPV4_TTL, _>(headers);
    let protocol = Protocol::from_number(protocol).ok_or(Reason::UnsupportedProtocol)?;
    let minimum = match protocol {
        Protocol::Tcp => TCP_HEADERS,
        Protocol::Udp => UDP_HEADERS,
        Protocol::Icmp => ICMP_HEADERS,
    };
    if usize::from(ip_length) < minimum - ETHERNET_LENGTH {
        return Err(if is_fragment { Reason::FragmentBad } else { Reason::Malformed });
    }
    let ports = || (Port(word::<L4, _>(headers)), Port(word::<{ L4 + 2 }, _>(headers)));
    let (mut tcp_flags, mut sequence, mut acknowledgement) = (0, [0; 4], [0; 4]);
    let (source_port, destination_port) = match protocol {
        Protocol::Tcp => {
            let rest: &[u8; TCP_HEADERS - UDP_HEADERS] = frame.bytes(UDP_HEADERS).ok_or(Reason::Truncated)?;
            let [offset, flags] = word::<4, _>(rest);
            sequence = pair::<{ L4 + 4 }, _>(headers);
            acknowledgement = pair::<0, _>(rest);
            tcp_flags = flags;
            let header_length = u16::from(offset >> 4) * 4;
            if header_length < 20 || header_length > ip_length - IPV4_LENGTH as u16 {
                return Err(if is_fragment { Reason::FragmentBad } else { Reason::Malformed });
            }
            ports()
        }
        Protocol::Udp => {
            let length = u16::from_be_bytes(word::<{ L4 + 4 }, _>(headers));
            // A first fragment says how long the whole is.
            if length < 8 || (!is_fragment && length > ip_length - IPV4_LENGTH as u16) {
                return Err(Reason::Malformed);
            }
            ports()
        }
        Protocol::Icmp => {
            let identifier = word::<{ L4 + 4 }, _>(headers);
            match word::<L4, _>(headers) {
                [ICMP_ECHO_REQUEST, 0] => (Port(identifier), Port([0, 0])),
                // A reply to us carries an identifier that we chose, and we never choose 0: with it, it would look like a request.
                [ICMP_ECHO_REPLY, 0] if identifier != [0, 0] => (Port([0, 0]), Port(identifier)),
                _ => return Err(Reason::IcmpOther),
            }
        }
    };
    let source = Ipv4(pair::<IPV4_SOURCE, _>(headers));
    let destination = Ipv4(pair::<IPV4_DESTINATION, _>(headers));
    Ok(Packet {
        key: FlowKey::new(protocol, source, source_port, destination, destination_port),
        protocol,
        ip_length,
        ttl,
        tcp_flags,
        sequence,
        acknowledgement,
        dont_fragment: fragment & DONT_FRAGMENT != 0,
        is_fragment,
    })
}
