//! Packets as plain bytes, read and repaired without any code of the router's: what it does is
//! judged by what is here.

/// The offset of the IP packet in a frame.
pub(crate) const IP: usize = 14;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// An address and a port, or an echo's identifier.
pub(crate) type End = ([u8; 4], u16);

/// The ends and the protocol of a packet. For an echo, the identifier is the source port of a
/// request and the destination port of a reply.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) source: End,
    pub(crate) destination: End,
}

impl Tuple {
    /// The tuple of packets that answer this one's.
    pub(crate) const fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

/// The fields of an IPv4 header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Its length with its options.
    pub(crate) length: usize,
    /// The packet's length.
    pub(crate) total: usize,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) more_fragments: bool,
    /// In bytes.
    pub(crate) fragment_offset: usize,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
}

impl Header {
    pub(crate) const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn address(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

/// The header of the IPv4 packet that these bytes begin with, if they hold all of it.
pub(crate) fn header(packet: &[u8]) -> Option<Header> {
    if packet.len() < 20 || packet[0] >> 4 != 4 {
        return None;
    }
    let length = usize::from(packet[0] & 0x0f) * 4;
    if length < 20 || packet.len() < length {
        return None;
    }
    let fragment = word(packet, 6);
    Some(Header {
        length,
        total: usize::from(word(packet, 2)),
        ttl: packet[8],
        protocol: packet[9],
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset: usize::from(fragment & 0x1fff) * 8,
        source: address(packet, 12),
        destination: address(packet, 16),
    })
}

/// The header of a frame's IPv4 packet.
pub(crate) fn frame_header(frame: &[u8]) -> Option<Header> {
    if frame.len() < IP || frame[12..IP] != [0x08, 0x00] { None } else { header(&frame[IP..]) }
}

/// The tuple of a packet or of the beginning of one, as in an ICMP error: eight bytes after the
/// header are enough.
pub(crate) fn tuple(packet: &[u8]) -> Option<Tuple> {
    let ip = header(packet)?;
    let l4 = packet.get(ip.length..ip.length + 8)?;
    if ip.fragment_offset > 0 {
        return None;
    }
    let (source_port, destination_port) = match (ip.protocol, l4[0], l4[1]) {
        (TCP | UDP, ..) => (word(l4, 0), word(l4, 2)),
        (ICMP, 8, 0) => (word(l4, 4), 0),
        (ICMP, 0, 0) if word(l4, 4) != 0 => (0, word(l4, 4)),
        _ => return None,
    };
    Some(Tuple {
        protocol: ip.protocol,
        source: (ip.source, source_port),
        destination: (ip.destination, destination_port),
    })
}

/// The tuple of a frame that holds a whole packet of a kind that the router translates.
pub(crate) fn whole_tuple(frame: &[u8]) -> Option<Tuple> {
    let ip = frame_header(frame)?;
    let shortest = if ip.protocol == TCP { 40 } else { 28 };
    if ip.length != 20 || ip.is_fragment() || ip.total < shortest || ip.total > frame.len() - IP {
        return None;
    }
    let l4 = &frame[IP + ip.length..IP + ip.total];
    let makes_sense = match ip.protocol {
        TCP => l4[12] >> 4 >= 5 && usize::from(l4[12] >> 4) * 4 <= l4.len(),
        UDP => (8..=l4.len()).contains(&usize::from(word(l4, 4))),
        _ => true,
    };
    if makes_sense { tuple(&frame[IP..]) } else { None }
}

/// Returns `true` if a packet is an ICMP error message (RFC 1122 3.2.2), or the first fragment of
/// one.
pub(crate) fn is_icmp_error(packet: &[u8]) -> bool {
    header(packet).is_some_and(|ip| {
        ip.protocol == ICMP
            && ip.fragment_offset == 0
            && matches!(packet.get(ip.length), Some(3 | 4 | 5 | 11 | 12))
    })
}

/// The folded one's-complement sum of big-endian words (RFC 1071); parts other than the last have
/// an even length.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (words, rest) = part.as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_be_bytes(*word));
        }
        if let [last] = rest {
            sum += u64::from(*last) << 8;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Returns `true` if two sums are the same number; zero has two forms.
pub(crate) const fn same_sum(one: u16, other: u16) -> bool {
    one % 0xffff == other % 0xffff
}

pub(crate) fn header_checksum_is_right(packet: &[u8]) -> bool {
    header(packet).is_some_and(|ip| sum(&[&packet[..ip.length]]) == 0xffff)
}

/// The sum over all that a transport checksum covers, of what is there of a packet: what it should
/// be is 0xffff, for a whole packet.
pub(crate) fn transport_sum(packet: &[u8], ip: &Header) -> u16 {
    let segment = packet.get(ip.length..ip.total.min(packet.len())).unwrap_or_default();
    if ip.protocol == ICMP {
        return sum(&[segment]);
    }
    let length = (ip.total.saturating_sub(ip.length) as u16).to_be_bytes();
    sum(&[&packet[12..20], &[0, ip.protocol], &length, segment])
}

/// The offset of the checksum after the IP header, for the protocols that have one.
pub(crate) const fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        ICMP => Some(2),
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

/// Makes the IP header checksum right, if there is a header.
pub(crate) fn repair_header(packet: &mut [u8]) {
    if let Some(ip) = header(packet) {
        packet[10..12].fill(0);
        let checksum = !sum(&[&packet[..ip.length]]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Makes the transport checksum right, if there is one in this packet.
pub(crate) fn repair_transport(packet: &mut [u8]) {
    let Some(ip) = header(packet) else { return };
    let Some(offset) = checksum_offset(ip.protocol) else { return };
    let at = ip.length + offset;
    if ip.fragment_offset > 0 || at + 2 > ip.total.min(packet.len()) {
        return;
    }
    packet[at..at + 2].fill(0);
    let mut checksum = !transport_sum(packet, &ip);
    if checksum == 0 && ip.protocol == UDP {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The form of the files of regressions.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of what [`hex`] has written; white space does not count.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| Some(c.to_digit(16)? as u8))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Returns `true` if a single host can send from an address, or be reached by it, over a wire.
pub(crate) fn is_host(address: [u8; 4]) -> bool {
    !matches!(address, [0 | 127 | 224..=239, ..] | [255, 255, 255, 255])
}
