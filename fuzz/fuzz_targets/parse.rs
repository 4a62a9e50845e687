//! Any bytes as a frame: parsing ends, and what is rewritten stays a packet.
//!
//! After every rewrite: the frame has the tuple that it was meant to get and one hop less to live,
//! nothing beyond the headers has changed, and each checksum is right if it was right before. The
//! checksums are verified by a plain RFC 1071 sum written here, not by the code under test.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_common::{
    address::{Ipv4, Port},
    entry::FlowEntry,
    fragment::{Coverage, Datagram, Fragment, split},
    packet::{Packet, parse, parse_leading},
    reason::Reason,
    time::Ticks,
    tuple::{FlowKey, Protocol},
    wire::TCP_HEADERS,
};

fuzz_target!(|data: &[u8]| {
    // The first bytes choose the new tuple, the rest is the frame.
    let Some((tuple, frame)) = data.split_first_chunk::<12>() else { return };
    let packet = match parse(frame) {
        Ok(packet) => packet,
        Err(Reason::Fragment) => return fragment(frame, u16::from_ne_bytes([tuple[0], tuple[1]])),
        Err(_) => return,
    };
    assert!(usize::from(packet.ip_length) + 14 <= frame.len());

    let to = new_key(&packet, tuple);
    let mut out = frame.to_vec();
    let entry = FlowEntry::default();
    entry.start(&packet.key, &to, Ticks(0));
    // Time that is over has no less: the router answers such a packet and does not rewrite it.
    if packet.ttl == 0 {
        return;
    }
    entry.translate(&packet, None, &mut out[..]).expect("as long as when it was parsed");

    let again = parse(&out[..]).expect("a rewritten packet is a packet");
    assert_eq!(again, Packet { key: to, ttl: packet.ttl - 1, ..packet });
    let headers = TCP_HEADERS.min(out.len());
    assert_eq!(out[headers..], frame[headers..]);
    for checksum in [ip_checksum_is_right, l4_checksum_is_right] {
        if checksum(frame, &packet) {
            assert!(checksum(&out, &again));
        }
    }
});

/// A fragment lies within its datagram and comes once; its pieces for a link that takes `mtu` bytes
/// lie where it did.
fn fragment(frame: &[u8], mtu: u16) {
    let Ok(fragment) = Fragment::parse(frame) else { return };
    assert!(fragment.end() <= 65_515);
    assert!(usize::from(fragment.ip_length()) + 14 <= frame.len());
    let nobody = Ipv4([0; 4]);
    let flow = FlowKey::new(fragment.protocol, nobody, Port([0; 2]), nobody, Port([0; 2]));
    let flow = match parse_leading(frame) {
        Ok(packet) => {
            assert!(packet.is_fragment && fragment.is_first());
            packet.key
        }
        Err(reason) => {
            assert!(!fragment.is_first() || matches!(reason, Reason::FragmentBad | Reason::IcmpOther));
            flow
        }
    };
    let datagram = Datagram::new(&flow, Reason::Forwarded, 0);
    assert_eq!(datagram.cover(&fragment, 0), Coverage::Partial);
    assert_eq!(datagram.cover(&fragment, 0), Coverage::Bad);

    let whole = Datagram::new(&flow, Reason::Forwarded, 0);
    let mut end = u32::from(fragment.offset);
    for (header, data) in split(&frame[14..], mtu).into_iter().flatten() {
        let piece = [&frame[..14], &header, data].concat();
        assert!(piece.len() - 14 <= usize::from(mtu));
        assert_eq!(sum(&[&header]), 0xffff);
        // Between the header of TCP and its rest a narrow link may cut, which the next router need
        // not like.
        let Ok(piece) = Fragment::parse(&piece[..]) else { return };
        assert_eq!((piece.key, u32::from(piece.offset)), (fragment.key, end));
        assert_eq!(whole.cover(&piece, 0), Coverage::Partial);
        end = piece.end();
    }
    assert!(end == fragment.end() || end == u32::from(fragment.offset));
}

/// A tuple from arbitrary bytes that the router could have chosen: an echo keeps its one
/// identifier, a reply's is not 0.
fn new_key(packet: &Packet, bytes: &[u8; 12]) -> FlowKey {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
    let (source, destination) = (Ipv4([a, b, c, d]), Ipv4([e, f, g, h]));
    let (source_port, destination_port) = match packet.protocol {
        Protocol::Icmp if packet.opens() => (Port([i, j]), Port([0, 0])),
        Protocol::Icmp => (Port([0, 0]), Port([i, j | 1])),
        Protocol::Tcp | Protocol::Udp => (Port([i, j]), Port([k, l])),
    };
    packet.key.between(source, source_port, destination, destination_port)
}

fn ip_checksum_is_right(frame: &[u8], _packet: &Packet) -> bool {
    sum(&[&frame[14..34]]) == 0xffff
}

fn l4_checksum_is_right(frame: &[u8], packet: &Packet) -> bool {
    let segment = &frame[34..14 + usize::from(packet.ip_length)];
    let length = (segment.len() as u16).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, packet.protocol as u8], &length].concat();
    match packet.protocol {
        Protocol::Icmp => sum(&[segment]) == 0xffff,
        // None was computed.
        Protocol::Udp if segment[6..8] == [0, 0] => true,
        Protocol::Tcp | Protocol::Udp => sum(&[&pseudo, segment]) == 0xffff,
    }
}

/// The folded one's-complement sum of big-endian words (RFC 1071).
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
