//! Access to this machine itself, and packets that no wire carries.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use router_common::{ports::PortRange, reason::Reason, tuple::Protocol};
use router_user::dataplane::LocalAllowSpec;
use socket2::{Domain, Socket, Type};

use crate::{
    packets::{
        FIREWALL, OTHER, PLS, ROUTER, STRANGER, Spec, TARGET, echo_reply, echo_request, fix_ip_checksum, tcp,
        tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World, network},
};

fn ends(world: &mut World, frame: &[u8], expected: (Verdict, Reason)) {
    let ran = world.run(frame);
    assert_eq!((ran.verdict, ran.reason), expected);
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

const DENIED: (Verdict, Reason) = (Verdict::Drop, Reason::LocalDenied);
const PASSED: (Verdict, Reason) = (Verdict::Pass, Reason::NotMatched);

#[test]
fn a_rules_source_reaches_only_rules_and_the_probe() {
    let world = &mut World::new();
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build(), DENIED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 9090), tcp::SYN).build(), DENIED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::ACK).build(), DENIED);
    ends(world, &udp_packet((PLS, 5000), (ROUTER, 8082), b"not tcp").build(), DENIED);
    ends(world, &echo_request(PLS, ROUTER, 7).build(), DENIED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 8082), tcp::SYN).build(), PASSED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 8082), tcp::ACK).build(), PASSED);
    ends(world, &echo_reply(PLS, ROUTER, 7).build(), PASSED);
    // A rule's port without a session: the kernel's reset makes the client fail fast.
    let ran = world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NoSession));
}

#[test]
fn other_kinds_of_packets_from_a_rules_source_are_denied() {
    let world = &mut World::new();
    for protocol in [2, 4, 41, 47, 50, 132] {
        let mut frame = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build();
        frame[23] = protocol;
        fix_ip_checksum(&mut frame);
        ends(world, &frame, DENIED);
    }
    let mut options = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build();
    options[14] = 0x46;
    ends(world, &options, DENIED);
    // An error may be about a connection of this machine. Redirects and timestamp requests are of
    // no use.
    for (kind, expected) in [
        (3, (Verdict::Pass, Reason::IcmpOther)),
        (11, (Verdict::Pass, Reason::IcmpOther)),
        (5, DENIED),
        (13, DENIED),
    ] {
        let mut frame = echo_request(PLS, ROUTER, 7).build();
        frame[34] = kind;
        ends(world, &frame, expected);
        // Where this machine is a router for others, too, it passes none on.
        let mut elsewhere = echo_request(PLS, [10, 9, 9, 9], 7).build();
        elsewhere[34] = kind;
        ends(world, &elsewhere, DENIED);
    }
}

#[test]
fn allowed_protocols_pass() {
    let world = &mut World::with(Setup {
        rules: |spec| {
            let allow = |protocol: Protocol, first, last, from: [u8; 4], prefix| LocalAllowSpec {
                protocol: protocol as u8,
                ports: PortRange { first, last },
                from: network(from, prefix).into(),
            };
            spec.local.allow = vec![
                allow(Protocol::Tcp, 22, 22, [10, 0, 2, 0], 24),
                allow(Protocol::Udp, 8125, 8126, [0; 4], 0),
                allow(Protocol::Tcp, 9100, 9100, [10, 9, 0, 0], 16),
                allow(Protocol::Icmp, 0, 65535, [0; 4], 0),
            ];
        },
        ..Setup::default()
    });
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build(), PASSED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::ACK).build(), PASSED);
    ends(world, &udp_packet((PLS, 40_000), (ROUTER, 8126), b"x").build(), PASSED);
    ends(world, &echo_request(PLS, ROUTER, 7).build(), PASSED);
    ends(world, &udp_packet((PLS, 40_000), (ROUTER, 8127), b"x").build(), DENIED);
    ends(world, &udp_packet((PLS, 40_000), (ROUTER, 22), b"x").build(), DENIED);
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 9100), tcp::SYN).build(), DENIED);
}

/// A packet of another protocol, between these hosts, by a frame to this MAC address.
fn other_protocol(protocol: u8, source: [u8; 4], destination: [u8; 4], mac: [u8; 6]) -> Vec<u8> {
    let mut frame = udp_packet((source, 1), (destination, 2), b"twenty bytes of it..")
        .build_between([2, 0, 0, 0, 0, 1], mac);
    frame[23] = protocol;
    fix_ip_checksum(&mut frame);
    frame
}

/// The Ethernet address of a group (RFC 1112 6.4).
fn group_mac([_, a, b, c]: [u8; 4]) -> [u8; 6] {
    [1, 0, 0x5e, a & 0x7f, b, c]
}

const HERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VRRP_GROUP: [u8; 4] = [224, 0, 0, 18];
const CLUSTER: [u8; 4] = [239, 192, 1, 1];

/// A rule set that allows `entries`, from anyone, with all ports where a protocol has none.
fn allowing(spec: &mut router_user::dataplane::RuleSetSpec, entries: &[(u8, u16, u16)]) {
    spec.local.allow = entries
        .iter()
        .map(|(protocol, first, last)| LocalAllowSpec {
            protocol: *protocol,
            ports: PortRange { first: *first, last: *last },
            from: network(PLS, 32).into(),
        })
        .collect();
}

/// A source of a rule may be a neighbour that shares an address with this machine, or routes with
/// it.
#[test]
fn link_control_protocols_reach_the_stack() {
    let world = &mut World::new();
    for (protocol, group) in
        [(112, VRRP_GROUP), (89, [224, 0, 0, 5]), (103, [224, 0, 0, 13]), (2, [224, 0, 0, 1])]
    {
        let frame = other_protocol(protocol, PLS, group, group_mac(group));
        ends(world, &frame, (Verdict::Pass, Reason::UnsupportedProtocol));
    }
    // IGMP with its router alert option (RFC 2236 2).
    let mut query = other_protocol(2, PLS, [224, 0, 0, 1], group_mac([224, 0, 0, 1]));
    query[14] = 0x46;
    query.splice(34..34, [0x94, 4, 0, 0]);
    query[17] += 4;
    fix_ip_checksum(&mut query);
    ends(world, &query, (Verdict::Pass, Reason::IpOptions));
    // Protocols that routers forward, or that have ports, are not link control.
    for (protocol, group) in [(112, CLUSTER), (2, CLUSTER), (50, [224, 0, 1, 1]), (17, [224, 0, 0, 251])] {
        ends(world, &other_protocol(protocol, PLS, group, group_mac(group)), DENIED);
    }
    for protocol in [112, 89, 50] {
        ends(world, &other_protocol(protocol, PLS, ROUTER, HERE), DENIED);
    }
}

#[test]
fn protocols_are_allowed_by_number() {
    let world = &mut World::with(Setup {
        rules: |spec| allowing(spec, &[(112, 0, 65535), (50, 0, 65535), (47, 0, 65535)]),
        ..Setup::default()
    });
    let passed = (Verdict::Pass, Reason::UnsupportedProtocol);
    for protocol in [112, 50, 47] {
        ends(world, &other_protocol(protocol, PLS, ROUTER, HERE), passed);
        ends(world, &other_protocol(protocol, PLS, CLUSTER, group_mac(CLUSTER)), passed);
        // Not on to others.
        ends(world, &other_protocol(protocol, PLS, TARGET, HERE), DENIED);
    }
    for protocol in [51, 89, 132] {
        ends(world, &other_protocol(protocol, PLS, ROUTER, HERE), DENIED);
    }
    // Any length: `veth` does not pad.
    for (protocol, expected) in [(112, passed), (51, DENIED)] {
        let mut frame = other_protocol(protocol, PLS, ROUTER, HERE);
        frame.truncate(14 + 20 + 6);
        frame[16..18].copy_from_slice(&26_u16.to_be_bytes());
        fix_ip_checksum(&mut frame);
        ends(world, &frame, expected);
    }
    // In fragments: the kernel puts them together.
    for (offset, expected) in [([0x20, 0], Reason::UnsupportedProtocol), ([0, 3], Reason::Fragment)] {
        let mut frame = other_protocol(50, PLS, ROUTER, HERE);
        frame[20..22].copy_from_slice(&offset);
        fix_ip_checksum(&mut frame);
        ends(world, &frame, (Verdict::Pass, expected));
        frame[23] = 51;
        fix_ip_checksum(&mut frame);
        assert_eq!(world.run(&frame).verdict, Verdict::Drop);
    }
}

#[test]
fn groups_and_broadcasts_are_allowed_by_port() {
    let world = &mut World::with(Setup {
        rules: |spec| allowing(spec, &[(17, 5405, 5405), (1, 0, 65535)]),
        ..Setup::default()
    });
    let to = |group: [u8; 4], port| udp_packet((PLS, 5404), (group, port), b"totem");
    for mac in [group_mac(CLUSTER), HERE] {
        ends(world, &to(CLUSTER, 5405).build_between([2, 0, 0, 0, 0, 1], mac), PASSED);
        ends(world, &to(CLUSTER, 5406).build_between([2, 0, 0, 0, 0, 1], mac), DENIED);
    }
    ends(world, &to([255; 4], 5405).build_between([2, 0, 0, 0, 0, 1], [0xff; 6]), PASSED);
    let ping = echo_request(PLS, [224, 0, 0, 1], 7);
    ends(world, &ping.build_between([2, 0, 0, 0, 0, 1], group_mac([224, 0, 0, 1])), PASSED);
    // Requests only: a group sends none.
    let reply = echo_reply(PLS, [224, 0, 0, 1], 7);
    ends(world, &reply.build_between([2, 0, 0, 0, 0, 1], group_mac([224, 0, 0, 1])), DENIED);
    // Large ones come in fragments.
    let whole = udp_packet((PLS, 5404), (CLUSTER, 5405), &[7; 64]);
    let mut first = whole.build_between([2, 0, 0, 0, 0, 1], group_mac(CLUSTER));
    first[18..22].copy_from_slice(&[0x12, 0x34, 0x20, 0]);
    let mut last = first.clone();
    last[20..22].copy_from_slice(&[0, 9]);
    fix_ip_checksum(&mut first);
    fix_ip_checksum(&mut last);
    ends(world, &first, PASSED);
    ends(world, &last, (Verdict::Pass, Reason::Fragment));
    // Of another datagram, whose first has not come.
    last[18] = 0x55;
    fix_ip_checksum(&mut last);
    ends(world, &last, DENIED);
}

/// 240.0.0.0/4 is what Linux takes it for: addresses like others.
#[test]
fn class_e_addresses_are_forwarded() {
    const CLASS_E: [u8; 4] = [240, 0, 0, 10];
    let world = &mut World::with(Setup {
        rules: |spec| {
            spec.forwards[0].targets = vec![(CLASS_E.into(), Some(8443))];
            spec.forwards[0].sources = vec![network([240, 0, 0, 0], 4)];
            spec.masquerades[0].sources = vec![network([240, 0, 0, 0], 4)];
        },
        ..Setup::default()
    });
    let opened = world.run(&tcp_packet(([250, 1, 2, 3], 40_000), (ROUTER, 443), tcp::SYN).build());
    assert_eq!((opened.verdict, opened.reason), (Verdict::Tx, Reason::Opened));
    assert_eq!(opened.frame[30..34], CLASS_E);
    let masqueraded = world.run(&udp_packet((CLASS_E, 40_000), ([255, 255, 255, 254], 53), b"x").build());
    assert_eq!((masqueraded.verdict, masqueraded.reason), (Verdict::Tx, Reason::Opened));
    let broadcast = world.run(&tcp_packet(([255; 4], 40_000), (ROUTER, 443), tcp::SYN).build());
    assert_eq!((broadcast.verdict, broadcast.reason), (Verdict::Drop, Reason::Martian));
}

#[test]
fn other_sources_can_be_closed_out() {
    let world =
        &mut World::with(Setup { rules: |spec| spec.local.others_are_closed = true, ..Setup::default() });
    ends(world, &tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build(), DENIED);
    ends(world, &tcp_packet((STRANGER, 40_000), (ROUTER, 8082), tcp::SYN).build(), PASSED);
    let platform = tcp_packet(([168, 63, 129, 16], 40_000), (ROUTER, 22), tcp::SYN);
    ends(world, &platform.build(), (Verdict::Pass, Reason::Platform));
}

/// The peer's socket is in the same namespace, by its address on the loopback interface: only this
/// machine's socket matters here.
#[test]
fn replies_to_connections_of_this_machine_pass() {
    let world = &mut World::new();
    let (peer, here) = (Ipv4Addr::from(PLS), Ipv4Addr::from(ROUTER));
    crate::world::ip(&format!("addr add {peer}/32 dev lo"));
    let listener = TcpListener::bind((peer, 5432)).expect("a peer");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((here, 0)).into()).expect("this machine's address");
    socket.connect(&SocketAddr::from((peer, 5432)).into()).expect("a connection");
    let port = socket.local_addr().expect("an address").as_socket().expect("of IP").port();
    ends(world, &tcp_packet((PLS, 5432), (ROUTER, port), tcp::ACK).build(), PASSED);
    ends(world, &tcp_packet((PLS, 5433), (ROUTER, port), tcp::ACK).build(), DENIED);
    drop(listener);
    let listener = TcpListener::bind((here, 9000)).expect("a service of this machine");
    ends(world, &tcp_packet((PLS, 40_000), (ROUTER, 9000), tcp::ACK).build(), DENIED);
    drop(listener);

    let connected = UdpSocket::bind((here, 0)).expect("a socket");
    connected.connect((peer, 53)).expect("a peer");
    let port = connected.local_addr().expect("an address").port();
    ends(world, &udp_packet((PLS, 53), (ROUTER, port), b"answer").build(), PASSED);
    ends(world, &udp_packet((PLS, 54), (ROUTER, port), b"not the peer").build(), DENIED);
    let client = UdpSocket::bind((here, 0)).expect("a socket");
    let port = client.local_addr().expect("an address").port();
    ends(world, &udp_packet((PLS, 53), (ROUTER, port), b"answer").build(), PASSED);
    let service = UdpSocket::bind((here, 5353)).expect("a socket");
    ends(world, &udp_packet((PLS, 53), (ROUTER, 5353), b"question").build(), DENIED);
    drop((client, service));
}

#[test]
fn martians_are_dropped() {
    let world = &mut World::new();
    let martian = (Verdict::Drop, Reason::Martian);
    for source in [ROUTER, [127, 0, 0, 1], [0; 4], [0, 1, 2, 3], [224, 0, 0, 1], [239, 1, 2, 3], [255; 4]] {
        ends(world, &tcp_packet((source, 40_000), (ROUTER, 443), tcp::SYN).build(), martian);
        ends(world, &udp_packet((source, 40_000), (ROUTER, 53), b"x").build(), martian);
    }
    for destination in [[127, 0, 0, 1], [0; 4], [0, 1, 2, 3]] {
        ends(world, &tcp_packet((PLS, 40_000), (destination, 443), tcp::SYN).build(), martian);
    }
    // LAND: to itself.
    ends(world, &tcp_packet((ROUTER, 443), (ROUTER, 443), tcp::SYN).build(), martian);
    // A client without an address broadcasts its request.
    ends(world, &udp_packet(([0; 4], 68), ([255; 4], 67), b"discover").build(), PASSED);
}

#[test]
fn frames_for_others_are_not_forwarded() {
    let world = &mut World::new();
    let syn = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN);
    ends(
        world,
        &syn.build_between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]),
        (Verdict::Pass, Reason::OtherHost),
    );
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        ends(world, &syn.build_between([2, 0, 0, 0, 0, 1], mac), DENIED);
    }
}

#[test]
fn a_wrong_header_checksum_opens_no_session() {
    let world = &mut World::new();
    for spec in
        [tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN), udp_packet((FIREWALL, 1), (OTHER, 53), b"x")]
    {
        let mut frame = spec.build();
        frame[24] ^= 1;
        ends(world, &frame, (Verdict::Drop, Reason::BadChecksum));
    }
}

#[test]
fn a_wrong_header_checksum_is_dropped_on_known_sessions_too() {
    let world = &mut World::new();
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"query").build();
    assert_eq!(world.run(&query).reason, Reason::Opened);
    let mut wrong = query;
    wrong[24] ^= 1;
    let ran = world.run(&wrong);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::BadChecksum));
}

#[test]
fn packets_with_ip_options_do_not_reset_a_live_connection() {
    let world = &mut World::new();
    assert_eq!(world.run(&tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build()).reason, Reason::Opened);
    let with_options = |spec: Spec| {
        let mut frame = spec.build();
        frame[14] = 0x46;
        frame.splice(34..34, [1, 1, 1, 0]);
        frame[17] += 4;
        fix_ip_checksum(&mut frame);
        frame
    };
    let ran = world.run(&with_options(tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK)));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::SessionOptions));
    let ran = world.run(&with_options(tcp_packet((TARGET, 8443), (ROUTER, 40_001), tcp::SYN | tcp::ACK)));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::IpOptions));
}

/// Lengths inside the packet that contradict each other: the meaning of such a packet is undefined.
/// The kernel discards it, but raw sockets get it before.
#[test]
fn wrong_transport_lengths_pass_and_the_kernel_discards_them() {
    let world = &mut World::new();
    for (source, expected) in [(STRANGER, (Verdict::Pass, Reason::Malformed)), (PLS, DENIED)] {
        for offset in [0, 4, 15] {
            let mut frame = tcp_packet((source, 40_000), (ROUTER, 443), tcp::SYN).build();
            frame[46] = offset << 4;
            ends(world, &frame, expected);
        }
        for length in [0, 7, 9 + 1, 2000_u16] {
            let mut frame = udp_packet((source, 5000), (ROUTER, 53), b"x").build();
            frame[38..40].copy_from_slice(&length.to_be_bytes());
            ends(world, &frame, expected);
        }
    }
}

#[test]
fn truncated_packets_of_a_rules_source_are_dropped() {
    let world = &mut World::new();
    for (source, expected) in [(STRANGER, (Verdict::Pass, Reason::Truncated)), (PLS, DENIED)] {
        for protocol in [1, 6, 17] {
            let mut frame = tcp_packet((source, 40_000), (ROUTER, 443), tcp::SYN).build();
            frame[23] = protocol;
            frame[16..18].copy_from_slice(&24_u16.to_be_bytes());
            frame.truncate(14 + 24);
            fix_ip_checksum(&mut frame);
            ends(world, &frame, expected);
        }
    }
}

/// DHCP answers come from any server or relay. The transaction tells them from a stranger's packet.
#[test]
fn dhcp_answers_pass_only_after_a_request() {
    let world = &mut World::with(Setup {
        rules: |spec| spec.local.ephemeral = PortRange { first: 1, last: 0 },
        ..Setup::default()
    });
    let message = |transaction: u8| [1, 1, 6, 0, transaction, 2, 3, 4, 0, 0, 0, 0];
    let answer = |transaction| udp_packet((PLS, 67), (ROUTER, 68), &message(transaction)).build();
    ends(world, &answer(1), DENIED);
    // By a client that has no address yet, and by one that has.
    for (client, server, transaction) in [([0; 4], [255; 4], 1), (ROUTER, PLS, 2)] {
        let request = udp_packet((client, 68), (server, 67), &message(transaction));
        assert_eq!(world.sends(&request.build()), None);
        ends(world, &answer(transaction), PASSED);
        let to_all = udp_packet((OTHER, 67), ([255; 4], 68), &message(transaction));
        ends(world, &to_all.build_between([2, 0, 0, 0, 0, 1], [0xff; 6]), PASSED);
        ends(world, &answer(9), DENIED);
    }
    for other in [
        udp_packet((PLS, 1234), (ROUTER, 68), &message(1)),
        udp_packet((PLS, 67), (ROUTER, 69), &message(1)),
        udp_packet((PLS, 67), (ROUTER, 68), b"short"),
    ] {
        ends(world, &other.build(), DENIED);
    }
}

/// Nothing tells there what this machine has sent.
#[test]
fn without_the_classifier_dhcp_answers_are_recognised_by_ports() {
    let world = &mut World::new();
    ends(world, &udp_packet((PLS, 67), (ROUTER, 68), &[0; 12]).build(), PASSED);
    ends(world, &udp_packet((PLS, 1234), (ROUTER, 68), &[0; 12]).build(), DENIED);
}

/// The kernel takes UDP and ICMP to its own address also from a frame to all: it must not be a way
/// around what is denied.
#[test]
fn a_broadcast_frame_reaches_no_more_than_a_unicast_one() {
    let world = &mut World::new();
    for packet in [udp_packet((PLS, 5000), (ROUTER, 161), b"x"), echo_request(PLS, ROUTER, 7)] {
        ends(world, &packet.build(), DENIED);
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            ends(world, &packet.build_between([2, 0, 0, 0, 0, 1], mac), DENIED);
        }
    }
}

/// The network's broadcast address is no address of this machine, although its packets are.
#[test]
fn a_packet_to_the_broadcast_address_opens_no_session() {
    let world = &mut World::new();
    world
        .dataplane
        .local_addresses
        .set(&[ROUTER.into()].into(), &[[10, 0, 2, 127].into()].into())
        .expect("addresses");
    for packet in [
        udp_packet((PLS, 5000), ([10, 0, 2, 127], 53), b"x"),
        tcp_packet((PLS, 5000), ([10, 0, 2, 127], 443), tcp::SYN),
    ] {
        let ran = world.run(&packet.build());
        assert_ne!(ran.reason, Reason::Opened);
    }
}
