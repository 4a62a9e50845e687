//! The packets of a test session: frames from scratch, and what differs between two of them.

use std::net::Ipv4Addr;

use router_common::{address::Mac, checksum::Sum, tuple::Protocol};

/// The IP identification of test packets.
const IDENTIFICATION: u16 = 0x5e1f;
/// The data of test packets. With it, the shortest one is long enough for the fast path.
pub(super) const DATA: &[u8] = b"pls-router self-test";
/// The client's port: 0 is reserved, so no real session has it.
pub(super) const CLIENT_PORT: u16 = 0;
/// The first sequence numbers of TCP, the client's and the target's. With the identification they
/// tell the target's packets from all others, since its addresses and ports are real ones.
pub(super) const CLIENT_NUMBER: u32 = 1_000_000;
pub(super) const TARGET_NUMBER: u32 = 2_000_000;
/// The TTL that a test packet comes in with.
pub(super) const TTL: u8 = 64;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const UDP: usize = 8;

/// An end of a session: address and port.
pub(super) type End = (Ipv4Addr, u16);

/// A TCP segment or UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packet {
    pub(super) protocol: Protocol,
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) ttl: u8,
    /// Sequence and acknowledgement number, of TCP only.
    pub(super) numbers: (u32, u32),
    /// Of TCP only.
    pub(super) flags: u8,
    pub(super) data: &'static [u8],
}

impl Packet {
    /// Returns the frame, from one MAC address to another.
    pub(super) fn frame(&self, source: Mac, destination: Mac) -> Vec<u8> {
        let transport = self.transport();
        let mut header = vec![0x45, 0];
        header.extend(((IPV4 + transport.len()) as u16).to_be_bytes());
        header.extend(IDENTIFICATION.to_be_bytes());
        // Not to be fragmented.
        header.extend([0x40, 0, self.ttl, self.protocol as u8, 0, 0]);
        header.extend(self.source.0.octets());
        header.extend(self.destination.0.octets());
        let checksum = Sum::ZERO.add_bytes(&header).checksum();
        header[10..12].copy_from_slice(&checksum);
        [&destination.bytes()[..], &source.bytes(), &[8, 0], &header, &transport].concat()
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.source.1.to_be_bytes(), self.destination.1.to_be_bytes()].concat();
        let checksum_at = match self.protocol {
            Protocol::Tcp => {
                bytes.extend(self.numbers.0.to_be_bytes());
                bytes.extend(self.numbers.1.to_be_bytes());
                bytes.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            Protocol::Udp | Protocol::Icmp => {
                bytes.extend(((UDP + self.data.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
        };
        bytes.extend(self.data);
        let pseudo = [&self.source.0.octets()[..], &self.destination.0.octets(), &[0, self.protocol as u8]];
        let sum = Sum::ZERO.add_bytes(&pseudo.concat()).add((bytes.len() as u16).to_be_bytes());
        let mut checksum = sum.add_bytes(&bytes).checksum();
        if self.protocol == Protocol::Udp && checksum == [0, 0] {
            // Zero would say that there is none (RFC 768).
            checksum = [0xff, 0xff];
        }
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum);
        bytes
    }

    /// Returns `true` if its session is one of TCP.
    pub(super) fn is_tcp(&self) -> bool {
        self.protocol == Protocol::Tcp
    }
}

/// Returns an answer of ARP (RFC 826) to the machine with this MAC address, from an address of
/// documentation (RFC 5737).
pub(super) fn arp_answer(to: Mac) -> Vec<u8> {
    const FROM: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 1], [192, 0, 2, 1]);
    let (mac, address) = FROM;
    let header = [&to.bytes()[..], &mac, &[8, 6]].concat();
    [&header[..], &[0, 1, 8, 0, 6, 4, 0, 2], &mac, &address, &to.bytes(), &[192, 0, 2, 2]].concat()
}

/// Returns `true` if an IP packet, as it was received, is one of a test session: of the client,
/// whose port no client has, or of the target.
pub(crate) fn is_test(packet: &[u8]) -> bool {
    let word = |at: usize| packet.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let number = |at| Some(u32::from(word(at)?) << 16 | u32::from(word(at + 2)?));
    if packet.first() != Some(&0x45) || word(4) != Some(IDENTIFICATION) {
        return false;
    }
    let is_clients = word(IPV4) == Some(CLIENT_PORT);
    let is_of = |first: u32, number: Option<u32>| {
        number.is_some_and(|number| (first..=first + 1 + DATA.len() as u32).contains(&number))
    };
    match packet.get(9) {
        Some(&protocol) if protocol == Protocol::Tcp as u8 => {
            let is_targets =
                || is_of(TARGET_NUMBER, number(IPV4 + 4)) && is_of(CLIENT_NUMBER, number(IPV4 + 8));
            is_clients || is_targets()
        }
        Some(&protocol) if protocol == Protocol::Udp as u8 => {
            is_clients || packet.get(IPV4 + UDP..) == Some(DATA)
        }
        _ => false,
    }
}

/// Returns the source and destination of a TCP or UDP packet without IP options.
pub(super) fn ends(frame: &[u8]) -> Option<(End, End)> {
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    let port = |at: usize| frame.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let source = (address(ETHERNET + 12)?, port(ETHERNET + IPV4)?);
    let destination = (address(ETHERNET + 16)?, port(ETHERNET + IPV4 + 2)?);
    Some((source, destination))
}

/// Returns the first field that differs from what was expected, in words; `None` if nothing does.
pub(super) fn difference(protocol: Protocol, got: &[u8], expected: &[u8]) -> Option<String> {
    if got == expected {
        return None;
    }
    if got.len() != expected.len() {
        return Some(format!("is {} bytes long instead of {}", got.len(), expected.len()));
    }
    let l4 = ETHERNET + IPV4;
    let (checksum, data) = match protocol {
        Protocol::Tcp => (l4 + 16, l4 + TCP),
        Protocol::Udp | Protocol::Icmp => (l4 + 6, l4 + UDP),
    };
    // Checksums last: they differ with everything else.
    let fields = [
        ("the destination MAC address", 0..6),
        ("the source MAC address", 6..12),
        ("the EtherType", 12..14),
        ("the source address", ETHERNET + 12..ETHERNET + 16),
        ("the destination address", ETHERNET + 16..l4),
        ("the TTL", ETHERNET + 8..ETHERNET + 9),
        ("the source port", l4..l4 + 2),
        ("the destination port", l4 + 2..l4 + 4),
        ("the IP checksum", ETHERNET + 10..ETHERNET + 12),
        ("the transport checksum", checksum..checksum + 2),
        ("the data", data..expected.len()),
        ("the frame", 0..expected.len()),
    ];
    let (name, range) =
        fields.into_iter().find(|(_, range)| got.get(range.clone()) != expected.get(range.clone()))?;
    let shown = |bytes: &[u8]| match (name, bytes) {
        ("the source address" | "the destination address", &[a, b, c, d]) => {
            Ipv4Addr::new(a, b, c, d).to_string()
        }
        ("the source port" | "the destination port", &[a, b]) => u16::from_be_bytes([a, b]).to_string(),
        ("the TTL", &[ttl]) => ttl.to_string(),
        (_, bytes) if bytes.len() <= 6 => {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
        }
        _ => "other bytes".to_owned(),
    };
    let (got, expected) =
        (got.get(range.clone()).unwrap_or_default(), expected.get(range).unwrap_or_default());
    Some(format!("has {name} wrong: {} instead of {}", shown(got), shown(expected)))
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    const SOURCE: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const DESTINATION: Mac = Mac::new([2, 0, 0, 0, 0, 2]);

    fn packet(protocol: Protocol) -> Packet {
        Packet {
            protocol,
            source: (Ipv4Addr::new(10, 0, 2, 69), CLIENT_PORT),
            destination: (Ipv4Addr::new(10, 0, 2, 68), 443),
            ttl: TTL,
            numbers: (7, 9),
            flags: 0x18,
            data: DATA,
        }
    }

    #[test]
    fn frames_are_what_another_parser_reads() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let frame = packet(protocol).frame(SOURCE, DESTINATION);
            let parsed = PacketHeaders::from_ethernet_slice(&frame).expect("a packet");
            let Some(NetHeaders::Ipv4(ip, _)) = &parsed.net else { panic!("{parsed:?}") };
            assert_eq!((ip.source, ip.destination), ([10, 0, 2, 69], [10, 0, 2, 68]));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let payload = parsed.payload.slice();
            let (checksum, wanted) = match parsed.transport.expect("a transport") {
                TransportHeader::Tcp(tcp) => {
                    assert_eq!((tcp.source_port, tcp.destination_port), (0, 443));
                    assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (7, 9));
                    assert!(tcp.ack && tcp.psh && !tcp.syn);
                    (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).expect("a checksum"))
                }
                TransportHeader::Udp(udp) => {
                    assert_eq!((udp.source_port, udp.destination_port), (0, 443));
                    (udp.checksum, udp.calc_checksum_ipv4(ip, payload).expect("a checksum"))
                }
                other @ (TransportHeader::Icmpv4(_)
                | TransportHeader::Icmpv6(_)
                | TransportHeader::Igmp(_)) => {
                    panic!("{other:?}")
                }
            };
            assert_eq!((checksum, payload), (wanted, DATA));
            assert!(frame.len() >= ETHERNET + IPV4 + TCP, "too short for the fast path");
            assert!(is_test(&frame[ETHERNET..]));
            assert_eq!(ends(&frame), Some((packet(protocol).source, packet(protocol).destination)));
        }
    }

    /// They could be sent: their addresses and ports are real ones.
    #[test]
    fn the_targets_packets_are_of_a_test_as_well() {
        let (target, snat) = ((Ipv4Addr::new(203, 0, 113, 10), 443), (Ipv4Addr::new(10, 0, 2, 68), 1500));
        let of_target = |protocol| Packet { source: target, destination: snat, ..packet(protocol) };
        let is_seen = |packet: Packet| is_test(&packet.frame(SOURCE, DESTINATION)[ETHERNET..]);
        let end = 1 + DATA.len() as u32;
        for (numbers, data) in [
            ((TARGET_NUMBER, CLIENT_NUMBER + 1), &[][..]),
            ((TARGET_NUMBER + 1, CLIENT_NUMBER + 1), DATA),
            ((TARGET_NUMBER + end, CLIENT_NUMBER + end), &[]),
        ] {
            assert!(is_seen(Packet { numbers, data, ..of_target(Protocol::Tcp) }), "{numbers:?}");
        }
        assert!(is_seen(of_target(Protocol::Udp)));
        // A target's that has the identification by chance.
        for numbers in [(TARGET_NUMBER, CLIENT_NUMBER - 1), (TARGET_NUMBER + end + 1, CLIENT_NUMBER)] {
            assert!(!is_seen(Packet { numbers, ..of_target(Protocol::Tcp) }), "{numbers:?}");
        }
        assert!(!is_seen(Packet { data: b"pls-router self-tesT", ..of_target(Protocol::Udp) }));
    }

    #[test]
    fn packets_of_real_clients_are_none_of_a_test() {
        let real = Packet { source: (Ipv4Addr::new(10, 0, 2, 69), 40_000), ..packet(Protocol::Tcp) };
        assert!(!is_test(&real.frame(SOURCE, DESTINATION)[ETHERNET..]));
        let mut other = packet(Protocol::Udp).frame(SOURCE, DESTINATION);
        other[ETHERNET + 5] ^= 1;
        assert!(!is_test(&other[ETHERNET..]), "another identification");
        assert!(!is_test(&[]));
    }

    #[test]
    fn the_first_wrong_field_is_named() {
        let expected = packet(Protocol::Tcp).frame(SOURCE, DESTINATION);
        let said = |change: fn(&mut Packet)| {
            let mut packet = packet(Protocol::Tcp);
            change(&mut packet);
            difference(Protocol::Tcp, &packet.frame(SOURCE, DESTINATION), &expected)
        };
        assert_eq!(said(|_| {}), None);
        let ttl = "has the TTL wrong: 63 instead of 64".to_owned();
        assert_eq!(said(|packet| packet.ttl -= 1), Some(ttl));
        let address = "has the source address wrong: 10.0.2.70 instead of 10.0.2.69".to_owned();
        assert_eq!(said(|packet| packet.source.0 = Ipv4Addr::new(10, 0, 2, 70)), Some(address));
        let port = "has the destination port wrong: 80 instead of 443".to_owned();
        assert_eq!(said(|packet| packet.destination.1 = 80), Some(port));
        let mut wrong = expected.clone();
        wrong[50] ^= 0xff;
        let text = difference(Protocol::Tcp, &wrong, &expected).unwrap_or_default();
        assert!(text.starts_with("has the transport checksum wrong: "), "{text}");
        let short = difference(Protocol::Tcp, &expected[..40], &expected);
        assert_eq!(short, Some(format!("is 40 bytes long instead of {}", expected.len())));
    }
}
