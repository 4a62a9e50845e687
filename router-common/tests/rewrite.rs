//! A rewritten packet is, byte for byte, the packet that etherparse builds from scratch with the
//! new tuple.

use etherparse::PacketBuilder;
use proptest::prelude::*;
use router_common::{
    address::{Ipv4, Port},
    entry::FlowEntry,
    packet::{Packet, parse},
    reason::Reason,
    rewrite::Rewrite,
    tcp,
    time::Ticks,
    tuple::{FlowKey, Protocol},
};

#[derive(Clone, Debug)]
struct Tuple {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    fn key(&self, protocol: Protocol) -> FlowKey {
        FlowKey::new(
            protocol,
            Ipv4(self.source),
            Port::new(self.source_port),
            Ipv4(self.destination),
            Port::new(self.destination_port),
        )
    }
}

fn tuples() -> impl Strategy<Value = Tuple> {
    // Zeros and ones are where one's-complement arithmetic goes wrong.
    let address = prop_oneof![any::<[u8; 4]>(), Just([0; 4]), Just([255; 4])];
    let port = prop_oneof![any::<u16>(), Just(0), Just(u16::MAX)];
    (address.clone(), address, port.clone(), port).prop_map(
        |(source, destination, source_port, destination_port)| Tuple {
            source,
            destination,
            source_port,
            destination_port,
        },
    )
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(255)];
    proptest::collection::vec(byte, 0..64)
}

fn tcp_frame(tuple: &Tuple, ttl: u8, payload: &[u8], options: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(tuple.source, tuple.destination, ttl)
        .tcp(tuple.source_port, tuple.destination_port, 77, 1000)
        .ack(5)
        .psh();
    let options: &[u8] = if options { &[2, 4, 5, 180, 1, 3, 3, 7] } else { &[] };
    step.options_raw(options)
        .expect("a packet of this size can be built")
        .write(&mut frame, payload)
        .expect("a packet of this size can be built");
    frame
}

fn udp_frame(tuple: &Tuple, ttl: u8, payload: &[u8], checksum: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(tuple.source, tuple.destination, ttl)
        .udp(tuple.source_port, tuple.destination_port)
        .write(&mut frame, payload)
        .expect("a packet of this size can be built");
    if !checksum {
        frame[40..42].fill(0);
    }
    frame
}

fn echo_frame(
    source: [u8; 4],
    destination: [u8; 4],
    identifier: u16,
    reply: bool,
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, destination, ttl);
    if reply {
        step.icmpv4_echo_reply(identifier, 9)
            .write(&mut frame, payload)
            .expect("a packet of this size can be built");
    } else {
        step.icmpv4_echo_request(identifier, 9)
            .write(&mut frame, payload)
            .expect("a packet of this size can be built");
    }
    frame
}

/// Makes a packet what it becomes in a flow of which it is the first.
fn translate(packet: &Packet, to: &FlowKey, frame: &mut [u8]) {
    let entry = FlowEntry::default();
    entry.start(&packet.key, to, Ticks(0x1234_5678));
    assert_eq!(entry.opened(), Ticks(0x1234_5678));
    assert_eq!(entry.rewrite(), Rewrite::to(to));
    entry.translate(packet, None, frame).expect("the frame is as long as it was");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tcp_is_rewritten(from in tuples(), to in tuples(), ttl in 1..=255_u8, payload in payloads(), options in any::<bool>()) {
        let mut frame = tcp_frame(&from, ttl, &payload, options);
        let packet = parse(&frame[..]).unwrap();
        prop_assert_eq!(packet.key, from.key(Protocol::Tcp));
        prop_assert_eq!(packet.ttl, ttl);
        prop_assert_eq!(packet.tcp_flags, tcp::ACK | tcp::PSH);
        prop_assert_eq!(usize::from(packet.ip_length), frame.len() - 14);
        translate(&packet, &to.key(Protocol::Tcp), &mut frame);
        prop_assert_eq!(frame, tcp_frame(&to, ttl - 1, &payload, options));
    }

    #[test]
    fn udp_is_rewritten(from in tuples(), to in tuples(), ttl in 1..=255_u8, payload in payloads(), checksum in any::<bool>()) {
        let mut frame = udp_frame(&from, ttl, &payload, checksum);
        let packet = parse(&frame[..]).unwrap();
        prop_assert_eq!(packet.key, from.key(Protocol::Udp));
        translate(&packet, &to.key(Protocol::Udp), &mut frame);
        prop_assert_eq!(frame, udp_frame(&to, ttl - 1, &payload, checksum));
    }

    #[test]
    fn echo_is_rewritten(
        from in tuples(), to in tuples(), reply in any::<bool>(), ttl in 1..=255_u8, payload in payloads(),
    ) {
        let (old, new) = (from.source_port, to.source_port);
        let mut frame = echo_frame(from.source, from.destination, old, reply, ttl, &payload);
        let parsed = parse(&frame[..]);
        if reply && old == 0 {
            prop_assert_eq!(parsed, Err(Reason::IcmpOther));
            return Ok(());
        }
        let packet = parsed.unwrap();
        prop_assert_eq!(packet.opens(), !reply);
        let ports = |identifier| if reply { (0, identifier) } else { (identifier, 0) };
        let key = |tuple: &Tuple, identifier| {
            let (source_port, destination_port) = ports(identifier);
            Tuple { source_port, destination_port, ..tuple.clone() }.key(Protocol::Icmp)
        };
        prop_assert_eq!(packet.key, key(&from, old));
        translate(&packet, &key(&to, new), &mut frame);
        prop_assert_eq!(frame, echo_frame(to.source, to.destination, new, reply, ttl - 1, &payload));
    }

    /// A session's two rewrites undo each other, and each names the other's key.
    #[test]
    fn the_reply_is_the_mirror_image(client in tuples(), outbound in tuples()) {
        let (key, out) = (client.key(Protocol::Tcp), outbound.key(Protocol::Tcp));
        let forward = Rewrite::to(&out);
        let reply_key = key.twin(&forward);
        prop_assert_eq!(reply_key, out.reversed());
        let reply = Rewrite::to(&key.reversed());
        prop_assert_eq!(reply_key.twin(&reply), key);

        // The answer travels the other way round.
        let answer = Tuple {
            source: outbound.destination,
            destination: outbound.source,
            source_port: outbound.destination_port,
            destination_port: outbound.source_port,
        };
        let mut frame = tcp_frame(&answer, 60, b"answer", false);
        let packet = parse(&frame[..]).unwrap();
        prop_assert_eq!(packet.key, reply_key);
        translate(&packet, &key.reversed(), &mut frame);
        let expected = Tuple {
            source: client.destination,
            destination: client.source,
            source_port: client.destination_port,
            destination_port: client.source_port,
        };
        prop_assert_eq!(frame, tcp_frame(&expected, 59, b"answer", false));
    }

    /// For any bytes, parsing ends, and a parsed packet lies within the frame.
    #[test]
    fn parsing_never_reads_beyond_the_frame(bytes in proptest::collection::vec(any::<u8>(), 0..100), ipv4 in any::<bool>()) {
        let mut frame = bytes;
        if ipv4 && frame.len() > 24 {
            frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            frame[16] = 0;
            frame[20..22].fill(0);
            frame[23] = [1, 6, 17][usize::from(frame[23]) % 3];
        }
        if let Ok(packet) = parse(&frame[..]) {
            prop_assert!(usize::from(packet.ip_length) + 14 <= frame.len());
        }
    }
}
