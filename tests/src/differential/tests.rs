//! The sequences themselves, without any router.

use std::{collections::HashSet, net::Ipv4Addr};

use etherparse::{IpNumber, Ipv4HeaderSlice, TcpSlice, UdpSlice, checksum::Sum16BitWords};
use router_common::ports::{PortRange, SourcePorts};

use super::{
    category::{Category, ENABLED},
    generate::{SLOTS, generate, slot},
    life, observe,
    plan::{Body, IDENTIFIED, Known, Sequence, Wrong},
    topology::{ROUTER, SNAT_PORTS, Side},
};
use crate::{
    packet::{self, Cut},
    random::Random,
    view::View,
};

/// A way through a router that does nothing: what is sent comes out as it was.
#[derive(Default)]
struct Straight(Vec<(u16, Side, Vec<u8>)>);

impl Known for Straight {
    fn port(&self, _session: usize) -> Option<u16> {
        Some(2000)
    }

    fn forwarded(&self, number: u16, side: Side) -> Option<&[u8]> {
        let found = self.0.iter().find(|(sent, from, _)| *sent == number && *from != side);
        found.map(|(_, _, packet)| packet.as_slice())
    }

    fn address(&self) -> Ipv4Addr {
        ROUTER
    }
}

/// The packets of a sequence, each with whether anything is wrong with it on purpose.
fn packets(sequence: &Sequence) -> Vec<(bool, Vec<u8>)> {
    let mut way = Straight::default();
    let mut packets = Vec::new();
    for step in &sequence.steps {
        // Only a packet can be quoted.
        let Some(packet) = sequence.packet(step, &way) else { continue };
        let quotes_wrong = matches!(&step.body, Body::Error(quote) if quote.wrong != Wrong::Nothing);
        packets.push((step.damage.is_some() || quotes_wrong, packet.clone()));
        way.0.push((step.number, step.from, packet));
    }
    packets
}

/// Verifies every checksum of a packet, by other code than that which made it.
fn verify(packet: &[u8]) {
    let ip = Ipv4HeaderSlice::from_slice(packet).expect("IPv4");
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum(), "IPv4 header checksum");
    assert_eq!(usize::from(ip.total_len()), packet.len(), "length");
    if ip.is_fragmenting_payload() {
        return;
    }
    let payload = &packet[ip.slice().len()..];
    match ip.protocol() {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(payload).expect("TCP");
            let expected = tcp.calc_checksum_ipv4(ip.source(), ip.destination()).expect("length");
            assert_eq!(tcp.checksum(), expected, "TCP checksum");
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice(payload).expect("UDP");
            let header = udp.to_header();
            let expected = header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload());
            if udp.checksum() != 0 {
                assert_eq!(udp.checksum(), expected.expect("length"), "UDP checksum");
            }
        }
        IpNumber::ICMP => {
            // Of the bytes as they are: etherparse's own headers leave out what an error of this
            // kind does not use.
            let sum = Sum16BitWords::new().add_slice(payload).ones_complement();
            assert_eq!(sum, 0, "ICMP checksum of {payload:02x?}");
        }
        _ => {}
    }
}

#[test]
fn packets_are_right_unless_they_are_damaged() {
    let mut kinds = HashSet::new();
    for seed in 0..3_000 {
        let sequence = generate(seed, slot(seed), Category::ALL);
        for (damaged, packet) in packets(&sequence) {
            if !damaged {
                verify(&packet);
                let view = View::new(&packet).expect("IPv4");
                kinds.insert((view.protocol(), view.is_fragment()));
                assert!(packet.len() <= super::topology::MTU, "a packet of {} bytes", packet.len());
            }
        }
    }
    for kind in
        [(packet::TCP, false), (packet::UDP, false), (packet::ICMP, false), (packet::UDP, true), (47, false)]
    {
        assert!(kinds.contains(&kind), "no packets of protocol {} (fragments: {})", kind.0, kind.1);
    }
}

/// Failures are told by their seed, so that has to mean the same everywhere. A version of the
/// library that draws other numbers is to be taken on purpose. These are of wyrand with the
/// constants of wyhash 4.2, computed apart.
#[test]
fn a_seed_means_the_same_numbers_everywhere() {
    let mut random = Random::with_seed(0);
    assert_eq!([random.u64(..), random.u64(..)], [0x9a45_cd88_8d59_f0d6, 0x0144_5b6a_1896_63f5]);
}

#[test]
fn every_router_may_keep_a_sequences_ports() {
    let range = PortRange { first: SNAT_PORTS.0, last: SNAT_PORTS.1 };
    for seed in 0..u64::from(SLOTS) {
        let sequence = generate(seed, slot(seed), ENABLED);
        let ports = sequence.sessions.iter().map(|session| session.client.port());
        for port in ports.filter(|port| range.contains(*port)) {
            let is_kept = |source| SourcePorts::new(range, source).contains(port);
            assert!((0..32).all(is_kept), "port {port} of seed {seed}");
        }
    }
}

#[test]
fn a_seed_makes_the_same_packets_again() {
    for seed in 0..50 {
        let one = generate(seed, slot(seed), ENABLED);
        assert_eq!(packets(&one), packets(&generate(seed, slot(seed), ENABLED)));
        assert_ne!(packets(&one), packets(&generate(seed + 1, slot(seed), ENABLED)));
    }
}

#[test]
fn sequences_that_run_at_the_same_time_share_nothing() {
    let mut clients = HashSet::new();
    let mut identifications = HashSet::new();
    for seed in 0..u64::from(IDENTIFIED) {
        let sequence = generate(seed, slot(seed), Category::ALL);
        for session in &sequence.sessions {
            assert!(clients.insert(session.client), "{} is in two sessions", session.client);
        }
        let own: HashSet<_> = sequence.steps.iter().map(|step| sequence.id(step.number)).collect();
        for id in own {
            assert!(id != 0 && identifications.insert(id), "the identification {id} is in two sequences");
        }
    }
}

/// A sequence's connections have the same ends, all of them, but for where the rules of the time
/// lead.
#[test]
fn a_life_uses_the_same_ports_again() {
    let (mut seen, mut again) = (HashSet::new(), 0);
    for seed in 0..2_000 {
        let changes = life::changes(seed / 500);
        let sequence = life::generate(seed, slot(seed), ENABLED, &changes);
        let ends: HashSet<_> =
            sequence.sessions.iter().map(|session| (session.client, session.listen)).collect();
        assert_eq!(ends.len(), 1, "{seed}: {:?}", sequence.sessions);
        again += sequence.sessions.len() - 1;
        let phases: Vec<_> = sequence.steps.iter().map(|step| step.phase).collect();
        assert!(phases.is_sorted() && phases.iter().all(|phase| *phase <= changes.len()), "{seed}");
        assert_eq!(packets(&sequence), packets(&life::generate(seed, slot(seed), ENABLED, &changes)));
        seen.extend(changes.into_iter().map(|change| format!("{change:?}")));
        for session in &sequence.sessions {
            seen.insert(format!("protocol {} refused {}", session.protocol, session.refused));
        }
        if sequence.steps.iter().any(|step| step.spice == Some(Category::Late)) {
            seen.insert("late".to_owned());
        }
    }
    for what in [
        "Pause",
        "Expire",
        "Lead(First)",
        "Lead(Second)",
        "Lead(Withdrawn)",
        "protocol 6 refused true",
        "protocol 17 refused false",
        "protocol 1 refused false",
        "late",
    ] {
        assert!(seen.contains(what), "{what} never comes up among {seen:?}");
    }
    assert!(again > 4_000, "{again} connections use ports again");
}

#[test]
fn fragments_are_put_together_again() {
    let header = packet::Header {
        source: Ipv4Addr::new(10, 64, 0, 1),
        destination: ROUTER,
        protocol: packet::UDP,
        id: 7,
        tos: 0,
        ttl: 64,
        dont_fragment: false,
        options: Vec::new(),
    };
    let whole = header.packet(&(0..100).collect::<Vec<u8>>());
    let cut = |offset, length| packet::fragment(&whole, Cut { offset, length });
    let pieces = [cut(48, 400), cut(0, 16), cut(16, 32)];
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    for piece in &pieces {
        verify(piece);
    }
    assert_eq!(observe::reassemble(&pieces).as_deref(), Some(whole.as_slice()));
    assert_eq!(observe::reassemble(&pieces[..2]), None);
    assert_eq!(observe::reassemble(&pieces[1..]), None);
}
