//! IPv4 packets as bytes: how they are made, cut into fragments and damaged.
//!
//! Nothing of the router's own code is used here: it is what is tested.

use std::net::{Ipv4Addr, SocketAddrV4};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const UNREACHABLE: u8 = 3;
pub(crate) const ECHO_REQUEST: u8 = 8;
pub(crate) const TIME_EXCEEDED: u8 = 11;
pub(crate) const PARAMETER_PROBLEM: u8 = 12;

/// TCP flags (RFC 9293 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// The length of an IPv4 header without options.
pub(crate) const IP_HEADER: usize = 20;

/// Returns an IPv4 packet between two ends, with an ordinary header.
pub(crate) fn ipv4(protocol: u8, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source: *source.ip(),
        destination: *destination.ip(),
        protocol,
        id: 0,
        tos: 0,
        ttl: 64,
        dont_fragment: true,
        options: Vec::new(),
    };
    header.packet(payload)
}

/// The one's complement sum of these bytes; only the last part may have an odd length (RFC 1071).
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The pseudo header of TCP and UDP (RFC 9293 3.1, RFC 768).
pub(crate) fn pseudo_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    length: usize,
) -> [u8; 12] {
    let mut header = [0; 12];
    header[0..4].copy_from_slice(&source.octets());
    header[4..8].copy_from_slice(&destination.octets());
    header[9] = protocol;
    header[10..12].copy_from_slice(&(length as u16).to_be_bytes());
    header
}

/// Everything in an IPv4 header that is not computed from the rest.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) id: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) dont_fragment: bool,
    /// A multiple of four bytes, at most 40.
    pub(crate) options: Vec<u8>,
}

impl Header {
    /// A packet with this header.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let length = IP_HEADER + self.options.len();
        let mut packet = vec![0x40 | (length / 4) as u8, self.tos];
        packet.extend(((length + payload.len()) as u16).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, self.protocol, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(&self.options);
        packet.extend(payload);
        set_ip_checksum(&mut packet);
        packet
    }
}

fn set_ip_checksum(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let checksum = !sum(&[&packet[..length]]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// A TCP segment without its ports.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// A multiple of four bytes, at most 40.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Segment {
    /// The segment as the payload of an IP packet.
    pub(crate) fn bytes(&self, source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(source.port().to_be_bytes());
        bytes.extend(destination.port().to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        let pseudo = pseudo_header(*source.ip(), *destination.ip(), TCP, bytes.len());
        let checksum = !sum(&[&pseudo, &bytes]);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// A UDP datagram as the payload of an IP packet.
pub(crate) fn udp(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
    checksum: bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(payload);
    if checksum {
        let pseudo = pseudo_header(*source.ip(), *destination.ip(), UDP, bytes.len());
        // Zero means "none", so that a computed zero is sent as its other form (RFC 768).
        let checksum = match !sum(&[&pseudo, &bytes]) {
            0 => 0xffff,
            checksum => checksum,
        };
        bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

/// An ICMP message as the payload of an IP packet.
pub(crate) fn icmp(kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(body);
    let checksum = !sum(&[&bytes]);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A piece of a packet's payload, as a fragment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Cut {
    /// The offset at which the piece starts, a multiple of 8.
    pub(crate) offset: usize,
    /// Its length, or less if the payload ends before.
    pub(crate) length: usize,
}

/// Cuts a fragment out of a packet without options.
pub(crate) fn fragment(packet: &[u8], cut: Cut) -> Vec<u8> {
    let payload = &packet[IP_HEADER..];
    let start = cut.offset.min(payload.len());
    let end = (start + cut.length).min(payload.len());
    let mut fragment = packet[..IP_HEADER].to_vec();
    fragment.extend(&payload[start..end]);
    let length = fragment.len() as u16;
    fragment[2..4].copy_from_slice(&length.to_be_bytes());
    let more = if end < payload.len() { 0x2000 } else { 0 };
    fragment[6..8].copy_from_slice(&(more | (cut.offset / 8) as u16).to_be_bytes());
    set_ip_checksum(&mut fragment);
    fragment
}

/// A defect of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Damage {
    /// The IP header's checksum.
    IpChecksum,
    /// The transport header's checksum.
    L4Checksum,
    /// The IP header says that there is more than there is.
    LengthTooLong,
    /// The IP header says that the packet is shorter than its header.
    LengthTooShort,
    /// The IP header says that it is shorter than an IP header is.
    HeaderTooShort,
    /// It is no IPv4 packet.
    Version,
    /// The packet ends here.
    Cut(usize),
    /// The packet ends after these bytes of the transport header, and the IP header knows that.
    ShortL4(usize),
    /// The TCP header says that it is this many words long.
    TcpOffset(u8),
    /// The UDP header says that the datagram is this many bytes longer.
    UdpLength(i16),
    /// The frame goes on after the packet: Ethernet's padding.
    Trailer(usize),
}

/// Damages a packet.
pub(crate) fn damage(packet: &mut Vec<u8>, damage: Damage) {
    let header = usize::from(packet[0] & 0x0f) * 4;
    let protocol = packet[9];
    match damage {
        Damage::IpChecksum => spoil(packet, 10),
        Damage::L4Checksum => {
            let at = match protocol {
                TCP => 16,
                UDP => 6,
                _ => 2,
            };
            spoil(packet, header + at);
        }
        Damage::LengthTooLong => {
            let length = packet.len() + 8;
            set_length(packet, length);
        }
        Damage::LengthTooShort => set_length(packet, header - 4),
        Damage::HeaderTooShort => {
            packet[0] = 0x44;
            set_ip_checksum(packet);
        }
        Damage::Version => packet[0] = (packet[0] & 0x0f) | 0x60,
        Damage::Cut(length) => packet.truncate(length),
        Damage::ShortL4(length) => {
            packet.truncate(header + length);
            let length = packet.len();
            set_length(packet, length);
        }
        Damage::TcpOffset(words) => {
            if protocol == TCP
                && let Some([byte, ..]) = packet.get_mut(header + 12..)
            {
                let old = *byte;
                *byte = words << 4;
                // The checksum stays right: only the length is wrong.
                adjust(packet, header + 16, u16::from(old) << 8, u16::from(words << 4) << 8);
            }
        }
        Damage::UdpLength(more) => {
            if protocol == UDP
                && let Some([a, b, ..]) = packet.get_mut(header + 4..)
            {
                let old = u16::from_be_bytes([*a, *b]);
                let new = old.wrapping_add_signed(more);
                [*a, *b] = new.to_be_bytes();
                // In the header and in the pseudo header.
                adjust(packet, header + 6, old, new);
                adjust(packet, header + 6, old, new);
            }
        }
        Damage::Trailer(length) => packet.extend(std::iter::repeat_n(0xee, length)),
    }
}

fn set_length(packet: &mut [u8], length: usize) {
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    set_ip_checksum(packet);
}

/// Makes a checksum wrong, by an amount that does not depend on the packet.
pub(crate) fn spoil(packet: &mut [u8], at: usize) {
    if let Some([a, b, ..]) = packet.get_mut(at..)
        && [*a, *b] != [0, 0]
    {
        // Zero is none at all to UDP, and has to stay that, or must not become it.
        let spoilt = match replace(u16::from_be_bytes([*a, *b]), 0, 0x5a5a) {
            0 => 0xffff,
            spoilt => spoilt,
        };
        [*a, *b] = spoilt.to_be_bytes();
    }
}

/// Keeps a checksum right, if there is one.
fn adjust(packet: &mut [u8], at: usize, old: u16, new: u16) {
    if let Some([a, b, ..]) = packet.get_mut(at..)
        && [*a, *b] != [0, 0]
    {
        [*a, *b] = replace(u16::from_be_bytes([*a, *b]), old, new).to_be_bytes();
    }
}

/// The checksum of data in which one word has become another (RFC 1624, equation 3).
pub(crate) fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    !sum(&[&(!checksum).to_be_bytes(), &(!old).to_be_bytes(), &new.to_be_bytes()])
}
