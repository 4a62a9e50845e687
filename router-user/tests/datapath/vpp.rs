//! Cases of VPP's tests of its endpoint-dependent NAT that no other test here covers:
//! `docs/vpp-cases.md` has the list.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use router_common::{ports::PortRange, reason::Reason};
use router_user::dataplane::now;

use crate::{
    packets::{
        IcmpError, OTHER, PLS, PLS_MAC, ROUTER, STRANGER, Spec, TARGET, echo_reply, echo_request, read, tcp,
        tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World, ip, network},
};

#[track_caller]
fn comes_out(world: &mut World, packet: &Spec, reason: Reason) -> (([u8; 4], u16), ([u8; 4], u16)) {
    let ran = world.run(&packet.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, reason));
    let seen = read(&ran.frame);
    (seen.source, seen.destination)
}

/// Many sessions of every protocol that a client opens at once with one server, of ports below the
/// range and in it: each answer finds the port that asked.
#[test]
fn replies_of_many_sessions_reach_their_clients() {
    const SESSIONS: u16 = 1500;
    let mut world = World::with(Setup { sessions: 8192, ..Setup::default() });
    let mut used = HashSet::new();
    for port in 20..20 + SESSIONS {
        let requests = [
            (tcp_packet((PLS, port), (OTHER, 20), tcp::SYN), 0),
            (udp_packet((PLS, port), (OTHER, 20), b"q"), 1),
            (echo_request(PLS, OTHER, port), 2),
        ];
        for (request, kind) in requests {
            let ((address, snat), _) = comes_out(&mut world, &request, Reason::Opened);
            assert_eq!(address, ROUTER);
            assert!(used.insert((kind, snat, port)), "a port twice");
        }
    }
    assert_eq!(world.sessions(), 3 * usize::from(SESSIONS));
    for (kind, snat, port) in used {
        let (reply, from) = match kind {
            0 => (tcp_packet((OTHER, 20), (ROUTER, snat), tcp::SYN | tcp::ACK), (OTHER, 20)),
            1 => (udp_packet((OTHER, 20), (ROUTER, snat), b"a"), (OTHER, 20)),
            _ => (echo_reply(OTHER, ROUTER, snat), (OTHER, 0)),
        };
        assert_eq!(comes_out(&mut world, &reply, Reason::Forwarded), (from, (PLS, port)));
    }
    let audit = world.dataplane.flows.audit().expect("audit");
    assert!(audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty());
}

/// Address and port dependent filtering: a port that is in use lets in what it was opened to, and
/// nothing else.
#[test]
fn a_snat_port_accepts_packets_only_from_its_target() {
    let mut world = World::new();
    for reply in [
        udp_packet((OTHER, 53), (ROUTER, 40_000), b"unasked"),
        tcp_packet((OTHER, 443), (ROUTER, 40_000), tcp::SYN),
        echo_reply(OTHER, ROUTER, 40_000),
    ] {
        assert_eq!(world.run(&reply.build()).reason, Reason::NotMatched, "there was no request yet");
    }
    comes_out(&mut world, &udp_packet((PLS, 40_000), (OTHER, 53), b"q"), Reason::Opened);
    comes_out(&mut world, &tcp_packet((PLS, 40_000), (OTHER, 443), tcp::SYN), Reason::Opened);
    for (stranger, why) in [
        (udp_packet((OTHER, 54), (ROUTER, 40_000), b"x"), "another port"),
        (udp_packet((TARGET, 53), (ROUTER, 40_000), b"x"), "another host"),
        (udp_packet((OTHER, 53), (ROUTER, 40_001), b"x"), "to another port"),
        (tcp_packet((OTHER, 53), (ROUTER, 40_000), tcp::SYN), "another protocol"),
        (tcp_packet((TARGET, 443), (ROUTER, 40_000), tcp::SYN), "a SYN from another host"),
        (tcp_packet((OTHER, 444), (ROUTER, 40_000), tcp::SYN | tcp::ACK), "a SYN-ACK from another port"),
    ] {
        let frame = stranger.build();
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched), "{why}");
        assert_eq!(ran.frame, frame, "{why}: untouched");
    }
    assert_eq!(world.sessions(), 2);
    comes_out(&mut world, &udp_packet((OTHER, 53), (ROUTER, 40_000), b"a"), Reason::Forwarded);
}

/// A rule leads to a host on the client's side, which is to see the router as its client and not
/// the neighbour it could answer directly.
#[test]
fn a_rule_may_lead_back_to_the_clients_side() {
    let mut world = World::with(Setup {
        rules: |spec| {
            spec.forwards[0].targets = vec![(STRANGER.into(), Some(8443))];
            spec.forwards[1].targets = vec![(STRANGER.into(), None)];
        },
        ..Setup::default()
    });
    let syn = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN);
    assert_eq!(comes_out(&mut world, &syn, Reason::Opened), ((ROUTER, 40_000), (STRANGER, 8443)));
    let answer = tcp_packet((STRANGER, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK);
    assert_eq!(comes_out(&mut world, &answer, Reason::Forwarded), ((ROUTER, 443), (PLS, 40_000)));
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"q");
    assert_eq!(comes_out(&mut world, &query, Reason::Opened), ((ROUTER, 5000), (STRANGER, 53)));
    let answer = udp_packet((STRANGER, 53), (ROUTER, 5000), b"a");
    assert_eq!(comes_out(&mut world, &answer, Reason::Forwarded), ((ROUTER, 53), (PLS, 5000)));
}

/// A rule leads to the very host that uses it.
#[test]
fn a_client_may_be_its_own_server() {
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[0].targets = vec![(PLS.into(), Some(8443))],
        ..Setup::default()
    });
    let ran = world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build());
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (PLS, 8443)));
    assert_eq!((ran.reason, seen.destination_mac), (Reason::Opened, PLS_MAC));
    let answer = tcp_packet((PLS, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK);
    assert_eq!(comes_out(&mut world, &answer, Reason::Forwarded), ((ROUTER, 443), (PLS, 40_000)));
}

/// The same, and the client uses the server's port, the rule's too: were the port kept, requests
/// and answers would have one tuple.
#[test]
fn a_client_may_be_its_own_server_on_one_port() {
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[2].targets = vec![(PLS.into(), None)],
        ..Setup::default()
    });
    let syn = tcp_packet((PLS, 8005), (ROUTER, 8005), tcp::SYN);
    let ((address, port), to) = comes_out(&mut world, &syn, Reason::Opened);
    assert_eq!((address, to), (ROUTER, (PLS, 8005)));
    assert_ne!(port, 8005);
    let answer = tcp_packet((PLS, 8005), (ROUTER, port), tcp::SYN | tcp::ACK);
    assert_eq!(comes_out(&mut world, &answer, Reason::Forwarded), ((ROUTER, 8005), (PLS, 8005)));
}

/// Bytes after the packet, as an Ethernet has them after a short one: no part of the checksum.
#[test]
fn an_echo_with_a_trailer_comes_back() {
    let mut world = World::new();
    let trailed = |packet: Spec| [packet.build(), vec![0xa5; 18]].concat();
    let ran = world.run(&trailed(echo_request(PLS, OTHER, 7777)));
    assert_eq!(ran.reason, Reason::Opened);
    assert_eq!(read(&ran.frame).source, (ROUTER, 7777));
    let ran = world.run(&trailed(echo_reply(OTHER, ROUTER, 7777)));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    assert_eq!(read(&ran.frame).destination, (PLS, 7777));
}

#[test]
fn without_a_snat_address_no_session_opens() {
    let mut world = World::with(Setup { snat: Vec::new(), ..Setup::default() });
    ip("addr flush dev eth0");
    ip("route add default via 10.0.2.65 dev eth0 onlink");
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud permanent");
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud permanent");
    let packets = [
        tcp_packet((PLS, 40_000), (OTHER, 443), tcp::SYN),
        udp_packet((PLS, 40_000), (OTHER, 53), b"q"),
        echo_request(PLS, OTHER, 40_000),
    ];
    for packet in &packets {
        let ran = world.run(&packet.build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NoSourceAddress));
    }
    assert_eq!(world.entries(), 0);
    world.dataplane.rules.apply(&crate::world::rule_set(), &mut world.dataplane.settings).expect("rules");
    for packet in &packets {
        comes_out(&mut world, packet, Reason::Opened);
    }
}

/// As of any other packet that is too big: a SNAT address would not make it fit.
#[test]
fn a_packet_above_the_mtu_is_answered_even_without_a_source_address() {
    let mut world = World::with(Setup { snat: Vec::new(), ..Setup::default() });
    ip("addr flush dev eth0");
    ip("route add default via 10.0.2.65 dev eth0 onlink mtu lock 1000");
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud permanent");
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud permanent");
    let datagram = |length| udp_packet((PLS, 40_000), (OTHER, 53), &vec![b'q'; length]).build();
    let ran = world.run(&datagram(900));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NoSourceAddress));
    let ran = world.run(&datagram(1200));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::FragmentationNeeded));
    assert_eq!(world.entries(), 0);
}

/// The free ports of all addresses together count, even if they fill unevenly.
#[test]
fn the_ports_of_all_addresses_are_used() {
    let mut world = World::with(Setup {
        snat: vec![ROUTER, [10, 0, 2, 67]],
        ports: PortRange { first: 30_000, last: 30_015 },
        ..Setup::default()
    });
    let mut used = HashSet::new();
    for port in 1000..1032 {
        let query = udp_packet((PLS, port), (OTHER, 53), b"q");
        let (source, _) = comes_out(&mut world, &query, Reason::Opened);
        assert!(used.insert(source), "{source:?}");
    }
    let ran = world.run(&udp_packet((PLS, 2000), (OTHER, 53), b"q").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::PortsExhausted));
}

/// A session that is removed, by hand or by its end: its port lets nothing in any more, and its
/// client's next packet opens another.
#[test]
fn a_removed_session_is_gone_in_both_directions() {
    let mut world = World::new();
    comes_out(&mut world, &udp_packet((PLS, 40_000), (OTHER, 53), b"q"), Reason::Opened);
    let mut session = None;
    world.dataplane.flows.for_each(|found| {
        session = Some(*found);
        true
    });
    world.dataplane.flows.remove(&session.expect("a session")).expect("removal");
    assert_eq!(world.entries(), 0);
    let late = world.run(&udp_packet((OTHER, 53), (ROUTER, 40_000), b"a").build());
    assert_eq!((late.verdict, late.reason), (Verdict::Pass, Reason::NotMatched));
    comes_out(&mut world, &udp_packet((PLS, 40_000), (OTHER, 53), b"q"), Reason::Opened);
}

/// VPP's "forwarding" lets such packets through untranslated; here they are the kernel's, which
/// does not forward.
#[test]
fn packets_without_a_rule_are_not_translated() {
    let mut world = World::with(Setup {
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 9, 0, 0], 16)],
        ..Setup::default()
    });
    for packet in [
        tcp_packet((STRANGER, 40_000), (OTHER, 443), tcp::SYN),
        udp_packet((STRANGER, 40_000), (OTHER, 53), b"q"),
        echo_request(STRANGER, OTHER, 40_000),
    ] {
        let frame = packet.build();
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched));
        assert_eq!(ran.frame, frame, "untouched");
    }
}

/// Also by a router between the two.
#[test]
fn errors_come_back_from_the_clients_side() {
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[1].targets = vec![(STRANGER.into(), None)],
        ..Setup::default()
    });
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"q");
    let sent = world.run(&query.build());
    assert_eq!(sent.reason, Reason::Opened);
    let answer = world.run(&udp_packet((STRANGER, 53), (ROUTER, 5000), b"a").build());
    assert_eq!(answer.reason, Reason::Forwarded);
    let about = |frame: &[u8], source| IcmpError {
        source,
        destination: ROUTER,
        ttl: 60,
        kind: (3, 3),
        rest: [0; 4],
        quote: frame[14..].to_vec(),
    };
    let back = udp_packet((STRANGER, 53), (ROUTER, 5000), b"a").ttl(63);
    for (error, destination, quote) in [
        (about(&sent.frame, STRANGER), PLS, query.clone().ttl(63)),
        (about(&answer.frame, PLS), STRANGER, back),
    ] {
        let ran = world.run(&error.build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::IcmpError));
        let seen = IcmpError::read(&ran.frame);
        assert_eq!((seen.source, seen.destination, seen.kind), (ROUTER, destination, (3, 3)));
        assert_eq!(seen.quote, quote.build()[14..]);
    }
}

/// RFC 6056: a client that knows some of the ports does not know the next.
#[test]
fn changed_ports_are_unpredictable() {
    let mut world = World::new();
    // Below the range, so that all of them are changed.
    let ports: Vec<u16> = (100..164)
        .map(|port| {
            let (source, _) =
                comes_out(&mut world, &udp_packet((PLS, port), (OTHER, 53), b"q"), Reason::Opened);
            source.1
        })
        .collect();
    let steps: HashSet<u16> = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    // Of 63 random steps among 64,512, two are the same once in 30 times, and fewer than 50 are
    // different never.
    assert!(steps.len() >= 50, "{ports:?}");
}

/// RFC 4787 REQ-6: the timeout of a session starts at its last packet in either direction.
#[test]
fn packets_of_either_direction_keep_a_session_alive() {
    let mut world = World::new();
    comes_out(&mut world, &udp_packet((PLS, 5000), (OTHER, 53), b"q"), Reason::Opened);
    let last_seen = |world: &World| {
        let mut seen = Vec::new();
        world.dataplane.flows.for_each(|session| {
            seen.push(session.last_seen());
            true
        });
        seen[0]
    };
    for packet in
        [udp_packet((OTHER, 53), (ROUTER, 5000), b"a"), udp_packet((PLS, 5000), (OTHER, 53), b"another")]
    {
        let before = last_seen(&world);
        let deadline = Instant::now() + Duration::from_secs(10);
        while now() == before {
            assert!(Instant::now() < deadline, "the clock stands still");
            std::thread::yield_now();
        }
        comes_out(&mut world, &packet, Reason::Forwarded);
        assert!(last_seen(&world) > before);
    }
}
