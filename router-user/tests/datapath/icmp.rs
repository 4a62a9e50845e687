//! ICMP errors about known sessions, in both directions.

use router_common::reason::Reason;

use crate::{
    packets::{
        FIREWALL_MAC, IcmpError, OTHER, PLS, PLS_MAC, ROUTER, STRANGER, Spec, TARGET, echo_reply,
        echo_request, internet_checksum, tcp, tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World, ip, next},
};

/// A router between the firewall and the target.
const HOP: [u8; 4] = [192, 0, 2, 9];

/// Types and codes, and what stands beside them.
const ERRORS: [((u8, u8), [u8; 4]); 6] = [
    ((3, 1), [0; 4]),
    ((3, 3), [0; 4]),
    ((3, 4), [0, 0, 5, 0x14]),
    ((4, 0), [0; 4]),
    ((11, 0), [0; 4]),
    ((12, 0), [20, 0, 0, 0]),
];

fn error_about(quote: &[u8], source: [u8; 4], destination: [u8; 4]) -> IcmpError {
    IcmpError { source, destination, ttl: 60, kind: (11, 0), rest: [0; 4], quote: quote.to_vec() }
}

/// A packet through the router: what it was, and what it has become, from their IP headers on. The
/// time to live is what it was after the router in both, so that an error about one is an error
/// about the other once it is translated.
fn through(world: &mut World, spec: &Spec) -> (Vec<u8>, Vec<u8>) {
    let ran = world.run(&spec.build());
    assert!(matches!(ran.reason, Reason::Opened | Reason::Forwarded), "{:?}", ran.reason);
    let sent = spec.clone().ttl(63).build()[14..].to_vec();
    (sent, ran.frame[14..].to_vec())
}

/// An error about `translated` has to arrive as one about `sent`.
fn comes_through(world: &mut World, error: &IcmpError, wanted: &IcmpError, mac: [u8; 6]) {
    let ran = world.run(&error.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::IcmpError), "{error:?}");
    assert_eq!(ran.frame[..6], mac, "to the next hop");
    assert_eq!(&IcmpError::read(&ran.frame), wanted);
}

fn passes(world: &mut World, error: &IcmpError, why: &str) {
    let frame = error.build();
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::IcmpOther), "{why}");
    assert_eq!(ran.frame, frame, "untouched");
}

fn syn() -> Spec {
    tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).tcp_options(&[2, 4, 5, 180])
}

fn query() -> Spec {
    udp_packet((PLS, 5000), (ROUTER, 53), b"an odd query")
}

/// The client talks to the router, so every error comes from the router's address, for any sender.
#[test]
fn errors_about_a_forwards_packets_come_from_the_router() {
    let mut world = World::new();
    for packet in [syn(), query(), query().without_checksum()] {
        let (sent, translated) = through(&mut world, &packet);
        for (kind, rest) in ERRORS {
            for sender in [TARGET, HOP] {
                // The minimum of RFC 792, up to TCP's checksum, with TCP's checksum, and
                // everything.
                for length in [28, 36, 38, translated.len()] {
                    let length = length.min(translated.len());
                    let error =
                        IcmpError { kind, rest, ..error_about(&translated[..length], sender, ROUTER) };
                    let quote = sent[..length].to_vec();
                    let wanted =
                        IcmpError { source: ROUTER, destination: PLS, ttl: 59, quote, ..error.clone() };
                    comes_through(&mut world, &error, &wanted, PLS_MAC);
                }
            }
        }
    }
}

/// The client talks to the target itself, and sees which machine on the way has sent the error.
#[test]
fn errors_about_a_masquerades_packets_keep_their_source() {
    let mut world = World::new();
    let packets = [
        tcp_packet((PLS, 40_000), (OTHER, 22), tcp::SYN),
        udp_packet((PLS, 999), (OTHER, 33_434), b""),
        echo_request(PLS, OTHER, 77),
    ];
    for packet in packets {
        let (sent, translated) = through(&mut world, &packet);
        assert_ne!(sent[20..], translated[20..], "ports below the range are changed, and checksums");
        for sender in [OTHER, HOP] {
            let error = error_about(&translated[..28], sender, ROUTER);
            let quote = sent[..28].to_vec();
            let wanted = IcmpError { destination: PLS, ttl: 59, quote, ..error.clone() };
            comes_through(&mut world, &error, &wanted, PLS_MAC);
        }
    }
}

/// The target's side knows only the router: the sender on the client's side does not show.
#[test]
fn errors_about_replies_come_from_the_snat_address() {
    let mut world = World::new();
    let echo = echo_request(PLS, OTHER, 7777);
    let sessions = [
        (syn(), tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK), ROUTER, TARGET),
        (query(), udp_packet((TARGET, 53), (ROUTER, 5000), b"answer"), ROUTER, TARGET),
        (echo, echo_reply(OTHER, ROUTER, 7777), OTHER, OTHER),
    ];
    for (request, reply, speaks_to_client, server) in sessions {
        through(&mut world, &request);
        let (sent, translated) = through(&mut world, &reply);
        assert_eq!(translated[12..16], speaks_to_client);
        for sender in [PLS, STRANGER] {
            let error = error_about(&translated, sender, speaks_to_client);
            let wanted = IcmpError {
                source: ROUTER,
                destination: server,
                ttl: 59,
                quote: sent.clone(),
                ..error.clone()
            };
            comes_through(&mut world, &error, &wanted, FIREWALL_MAC);
        }
    }
}

/// The IP header of a packet with this many more words of options.
fn with_options(packet: &[u8], words: u8) -> Vec<u8> {
    let mut header = packet[..20].to_vec();
    header[0] += words;
    header.extend(std::iter::repeat_n(1, usize::from(words) * 4));
    header[10..12].fill(0);
    let checksum = internet_checksum(&header);
    header[10..12].copy_from_slice(&checksum);
    [&header, &packet[20..]].concat()
}

#[test]
fn quotes_with_ip_options_are_translated() {
    let mut world = World::new();
    for packet in [syn(), query(), echo_request(PLS, OTHER, 77)] {
        let (sent, translated) = through(&mut world, &packet);
        let source = if sent[16..20] == OTHER { HOP } else { ROUTER };
        for words in 1..=10 {
            let quote = with_options(&translated, words);
            let error = error_about(&quote, HOP, ROUTER);
            let quote = with_options(&sent, words);
            let wanted = IcmpError { source, destination: PLS, ttl: 59, quote, ..error.clone() };
            comes_through(&mut world, &error, &wanted, PLS_MAC);

            let short = error_about(&error.quote[..20 + usize::from(words) * 4 + 7], HOP, ROUTER);
            passes(&mut world, &short, "not enough behind the options");
        }
    }
}

/// Quotes of any length: verified as a whole, in two parts, not at all.
#[test]
fn quotes_of_any_length_are_translated() {
    let mut world = World::new();
    for payload in [1, 470, 475, 476, 477, 500, 548, 900, 968, 969, 970, 985, 1200, 1440] {
        let packet = query().payload(&vec![0xa7; payload]);
        let (sent, translated) = through(&mut world, &packet);
        let error = error_about(&translated, HOP, ROUTER);
        let wanted = IcmpError { source: ROUTER, destination: PLS, ttl: 59, quote: sent, ..error.clone() };
        comes_through(&mut world, &error, &wanted, PLS_MAC);
    }
}

/// The session is found, and the bytes are not those that were sent.
#[test]
fn a_wrong_checksum_is_dropped() {
    let mut world = World::new();
    for payload in [1, 471, 548, 900] {
        let (_, translated) = through(&mut world, &query().payload(&vec![7; payload]));
        let frame = error_about(&translated, HOP, ROUTER).build();
        for at in [36, 35, frame.len() - 1] {
            let mut damaged = frame.clone();
            damaged[at] ^= 1;
            let ran = world.run(&damaged);
            assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::BadChecksum), "byte {at}");
        }
    }
}

#[test]
fn errors_without_a_session_pass() {
    let mut world = World::new();
    let (_, translated) = through(&mut world, &syn());
    let good = error_about(&translated, HOP, ROUTER);
    passes(&mut world, &IcmpError { destination: STRANGER, ..good.clone() }, "to who has not sent it");
    passes(&mut world, &IcmpError { quote: translated[..27].to_vec(), ..good.clone() }, "cut short");
    passes(&mut world, &IcmpError { quote: vec![], ..good.clone() }, "no quote");
    for (at, byte, why) in [
        (21, 1, "another source port"),
        (23, 1, "another destination port"),
        (19, 99, "another target"),
        (9, 17, "another protocol"),
        (9, 47, "GRE"),
        (9, 4, "IPIP"),
        (9, 1, "ICMP that is no echo"),
        (7, 1, "a later fragment"),
        (0, 0x65, "IPv6"),
        (0, 0x43, "no IP header"),
    ] {
        let mut quote = translated.clone();
        quote[at] = byte;
        passes(&mut world, &IcmpError { quote, ..good.clone() }, why);
    }
    for kind in [5, 9, 10, 13, 17, 40] {
        passes(&mut world, &IcmpError { kind: (kind, 0), ..good.clone() }, "no error that travels");
    }
    let reply = tcp_packet((ROUTER, 443), (PLS, 40_000), tcp::SYN | tcp::ACK).build()[14..].to_vec();
    passes(&mut world, &error_about(&reply, PLS, ROUTER), "the target has not said anything yet");
    assert_eq!(world.entries(), 2, "errors open nothing");
}

/// RFC 1122 3.2.2: there is no error about an error.
#[test]
fn an_expired_ttl_of_an_icmp_error_is_not_answered() {
    let mut world = World::new();
    let (_, translated) = through(&mut world, &syn());
    for ttl in [0, 1] {
        let frame = IcmpError { ttl, ..error_about(&translated, HOP, ROUTER) }.build();
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::TtlExpired));
        assert_eq!(ran.frame, frame);
    }
    let frame = IcmpError { ttl: 2, ..error_about(&translated, HOP, ROUTER) }.build();
    assert_eq!(world.run(&frame).reason, Reason::IcmpError);
}

/// RFC 5508 REQ-6, RFC 5382 REQ-10: an error neither keeps the session nor ends it.
#[test]
fn an_icmp_error_does_not_change_its_session() {
    let mut world = World::new();
    let (_, translated) = through(&mut world, &syn());
    let state = |world: &World| -> Vec<String> {
        let mut flows: Vec<_> = world.dataplane.flows.flows().map(|flow| format!("{flow:?}")).collect();
        flows.sort();
        flows
    };
    let before = state(&world);
    assert_eq!(world.run(&error_about(&translated, HOP, ROUTER).build()).reason, Reason::IcmpError);
    assert_eq!(state(&world), before);
}

#[test]
fn an_error_to_an_unresolved_neighbour_is_punted() {
    let mut world = World::new();
    let mut punts = world.dataplane.take_punts().expect("ring");
    let (sent, translated) = through(&mut world, &syn());
    ip("neigh del 10.0.2.69 dev eth0");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    let error = error_about(&translated, HOP, ROUTER);
    assert_eq!(world.run(&error.build()).reason, Reason::NeighbourUnresolved, "no daemon");
    world.dataplane.settings.show_presence().expect("settings");
    let ran = world.run(&error.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::Resolving));
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!(waiting.packet, error.build()[14..], "as it came");
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud reachable");
    let translated = IcmpError::read(&world.replay(&waiting).expect("to be sent").frame);
    assert_eq!(translated, IcmpError { source: ROUTER, destination: PLS, ttl: 59, quote: sent, ..error });
}

#[test]
fn two_interfaces_redirect_between_them() {
    let mut world = World::with(Setup { nics: 2, snat: vec![[10, 0, 3, 4]], ..Setup::default() });
    world.dataplane.set_egress(0, "eth0").expect("egress");
    world.dataplane.set_egress(1, "eth1").expect("egress");
    let ran = world.run(&syn().build());
    assert_eq!(ran.reason, Reason::Opened);
    let ran = world.run_on(1, &error_about(&ran.frame[14..], HOP, [10, 0, 3, 4]).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Redirect, Reason::IcmpError));
    let seen = IcmpError::read(&ran.frame);
    assert_eq!((seen.source, seen.destination), (ROUTER, PLS));
    assert_eq!(seen.quote, syn().ttl(63).build()[14..]);
}

#[test]
fn the_platform_address_is_left_alone() {
    let mut world = World::new();
    let (_, translated) = through(&mut world, &syn());
    let frame = error_about(&translated, crate::packets::PLATFORM, ROUTER).build();
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::Platform));
}
