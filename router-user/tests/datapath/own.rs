//! This machine's own traffic: answers to it are neither a rule's nor a session's.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use router_common::{address::Ipv4, ports::PortRange, reason::Reason, tuple::Protocol};
use router_user::dataplane::{ForwardSpec, RuleSetSpec};
use socket2::{Domain, Socket, Type};

use crate::{
    packets::{
        IcmpError, OTHER, PLS, ROUTER, STRANGER, Spec, TARGET, echo_reply, echo_request, fix_ip_checksum,
        read, tcp, tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World, ip, network},
};

/// Rules that listen on ports that the kernel gives out.
fn listen_everywhere(spec: &mut RuleSetSpec) {
    spec.forwards = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| ForwardSpec {
            name: protocol.as_str().to_owned(),
            protocol,
            address: None,
            ports: PortRange { first: 5000, last: 65_535 },
            targets: vec![(TARGET.into(), None)],
            sources: vec![network(PLS, 32)],
            mss: 0,
        })
        .into();
}

fn world() -> World {
    World::with(Setup { rules: listen_everywhere, ..Setup::default() })
}

#[track_caller]
fn passes(world: &mut World, packet: &Spec) {
    let frame = packet.build();
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched));
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

#[track_caller]
fn opens(world: &mut World, packet: &Spec) {
    assert_eq!(world.run(&packet.build()).reason, Reason::Opened);
}

/// The peers are on this machine as well, by addresses on the loopback interface: only where this
/// machine's sockets are connected matters.
fn on_loopback(addresses: &[[u8; 4]]) {
    for address in addresses {
        ip(&format!("addr add {}/32 dev lo", Ipv4Addr::from(*address)));
    }
}

#[test]
fn an_answer_to_a_connection_of_this_machine_opens_no_session() {
    let world = &mut world();
    on_loopback(&[PLS, STRANGER]);
    // From a source that may use the rule, and from one that may not.
    for peer in [PLS, STRANGER] {
        let listener = TcpListener::bind((Ipv4Addr::from(peer), 443)).expect("a peer");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((ROUTER, 0)).into()).expect("this machine's address");
        socket.connect(&SocketAddr::from((peer, 443)).into()).expect("a connection");
        let port = socket.local_addr().expect("an address").as_socket().expect("of IP").port();
        for flags in [tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            passes(world, &tcp_packet((peer, 443), (ROUTER, port), flags));
        }
        drop(listener);
    }
    let stranger = world.run(&tcp_packet((STRANGER, 444), (ROUTER, 50_000), tcp::SYN).build());
    assert_eq!(stranger.reason, Reason::SourceNotAllowed);
    opens(world, &tcp_packet((PLS, 444), (ROUTER, 50_000), tcp::SYN));
}

/// A forged SYN of the peer does not take over a connection of this machine.
#[test]
fn a_syn_into_a_connection_of_this_machine_opens_no_session() {
    let world = &mut world();
    on_loopback(&[PLS]);
    let listener = TcpListener::bind((Ipv4Addr::from(PLS), 443)).expect("a peer");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((ROUTER, 0)).into()).expect("this machine's address");
    socket.connect(&SocketAddr::from((PLS, 443)).into()).expect("a connection");
    let port = socket.local_addr().expect("an address").as_socket().expect("of IP").port();
    // The kernel answers it by a challenge.
    passes(world, &tcp_packet((PLS, 443), (ROUTER, port), tcp::SYN));
    drop(listener);
}

#[test]
fn an_answer_to_a_datagram_of_this_machine_opens_no_session() {
    let world = &mut world();
    let connected = UdpSocket::bind((Ipv4Addr::from(ROUTER), 5060)).expect("a socket");
    connected.connect((Ipv4Addr::from(PLS), 53)).expect("a peer");
    passes(world, &udp_packet((PLS, 53), (ROUTER, 5060), b"answer"));
    opens(world, &udp_packet((PLS, 54), (ROUTER, 5060), b"another end's"));
}

/// A router that does not guess by ports what this machine has sent.
fn seeing_world() -> World {
    World::with(Setup {
        rules: |spec| {
            listen_everywhere(spec);
            spec.local.ephemeral = PortRange { first: 1, last: 0 };
        },
        ..Setup::default()
    })
}

/// A packet of this machine, and the answer to it.
fn exchange(port: u16) -> [Spec; 2] {
    [udp_packet((ROUTER, port), (PLS, 53), b"question"), udp_packet((PLS, 53), (ROUTER, port), b"answer")]
}

#[test]
fn answers_to_this_machine_pass_from_any_port() {
    let world = &mut seeing_world();
    for port in [53, 123, 5353, 40_000, 65_535] {
        let [question, answer] = exchange(port);
        let socket = UdpSocket::bind((Ipv4Addr::from(ROUTER), port)).expect("a socket that is not connected");
        let before = world.run(&answer.build());
        let is_rules = port >= 5000;
        assert_eq!(
            before.reason,
            if is_rules { Reason::Opened } else { Reason::LocalDenied },
            "there was no request"
        );
        world.forget_sessions();
        assert_eq!(world.sends(&question.build()), None);
        passes(world, &answer);
        drop(socket);
    }
}

#[test]
fn the_first_fragment_of_an_answer_to_this_machine_passes() {
    let world = &mut seeing_world();
    let [question, answer] = exchange(7000);
    assert_eq!(world.sends(&question.build()), None);
    let mut first = answer.payload(b"8 bytes.").may_be_fragmented().build();
    first[20] |= 0x20;
    fix_ip_checksum(&mut first);
    let ran = world.run(&first);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched));
}

#[test]
fn other_packets_are_not_taken_for_answers_to_this_machine() {
    let world = &mut seeing_world();
    let [question, _] = exchange(4000);
    let [_, answer] = exchange(4100);
    assert_eq!(world.sends(&question.build()), None);
    for other in [
        udp_packet((PLS, 54), (ROUTER, 4000), b"another port"),
        udp_packet((PLS, 53), (ROUTER, 4001), b"to another"),
        tcp_packet((PLS, 53), (ROUTER, 4000), tcp::SYN),
    ] {
        assert_eq!(world.run(&other.build()).reason, Reason::LocalDenied);
    }
    // Packets that another machine has sent, or that have no single destination.
    for packet in [
        udp_packet((STRANGER, 4100), (PLS, 53), b"x"),
        udp_packet((ROUTER, 4100), ([255; 4], 53), b"x"),
        udp_packet((ROUTER, 4100), ([224, 0, 0, 251], 53), b"x"),
    ] {
        assert_eq!(world.sends(&packet.build()), None);
        assert_eq!(world.run(&answer.build()).reason, Reason::LocalDenied);
    }
}

/// A datagram or ping of this machine on the tuple of a session.
#[test]
fn a_session_gives_way_and_its_client_goes_on_with_another_port() {
    let datagrams = [
        udp_packet((PLS, 20_001), (ROUTER, 5300), b"the client's"),
        udp_packet((ROUTER, 20_001), (TARGET, 5300), b"this machine's"),
        udp_packet((TARGET, 5300), (ROUTER, 20_001), b"an answer"),
    ];
    let echoes = [
        echo_request(PLS, OTHER, 20_001),
        echo_request(ROUTER, OTHER, 20_001),
        echo_reply(OTHER, ROUTER, 20_001),
    ];
    for [client, own, answer] in [datagrams, echoes] {
        let world = &mut seeing_world();
        opens(world, &client);
        assert_eq!(world.run(&answer.build()).reason, Reason::Forwarded, "the client's, so far");
        assert_eq!(world.sends(&own.build()), None);
        assert_eq!((world.entries(), world.sessions()), (0, 0));
        passes(world, &answer);
        let again = world.run(&client.build());
        assert_eq!(again.reason, Reason::Opened);
        assert_ne!(read(&again.frame).source.1, 20_001, "which is this machine's");
        let frame = answer.build();
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.frame), (Verdict::Pass, frame), "still this machine's");
        assert_eq!(world.sends(&own.build()), None);
        assert_eq!((world.entries(), world.sessions(), world.own().sessions_ended), (2, 1, 1));
    }
}

/// The counters of a session that gives way are reduced.
#[test]
fn a_session_that_gives_way_leaves_nothing_behind() {
    let world = &mut seeing_world();
    opens(world, &udp_packet((PLS, 20_001), (ROUTER, 5300), b"x"));
    assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), 1);
    assert_eq!(world.sends(&udp_packet((ROUTER, 20_001), (TARGET, 5300), b"x").build()), None);
    assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), 0);
    assert_eq!((world.entries(), world.sessions()), (0, 0));
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert!(audit.half_sessions.is_empty() && audit.leaked_ports.is_empty(), "{audit:?}");
}

/// The rule's session with an end that this machine itself talks to.
#[test]
fn a_rules_session_gives_way_to_this_machines_queries() {
    let world = &mut seeing_world();
    let [question, answer] = exchange(5300);
    opens(world, &answer);
    assert_eq!(world.sends(&question.build()), None);
    assert_eq!(world.entries(), 0);
    passes(world, &answer);
}

/// The SYN of this machine's own on the tuple of a session.
fn own_syn() -> Spec {
    tcp_packet((ROUTER, 20_001), (TARGET, 5000), tcp::SYN).numbers(7000, 0)
}

#[test]
fn a_live_connection_stays_and_this_machines_own_is_refused() {
    let world = &mut seeing_world();
    opens(world, &tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::SYN));
    world.run(&tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::SYN | tcp::ACK).numbers(500, 1001).build());
    world.run(&tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::ACK).numbers(1001, 501).build());
    for syn in [own_syn(), own_syn().tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7])] {
        let frame = world.sends(&syn.build_between([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])).expect("a reset");
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], "to this machine");
        let reset = read(&frame);
        assert_eq!((reset.source, reset.destination), ((TARGET, 5000), (ROUTER, 20_001)));
        assert_eq!(frame[47], tcp::RST | tcp::ACK);
        assert_eq!(frame[42..46], 7001_u32.to_be_bytes(), "it acknowledges the SYN");
    }
    assert_eq!((world.entries(), world.own().connections_refused), (2, 2));
    let more = world.run(&tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::ACK).numbers(1001, 501).build());
    assert_eq!(more.reason, Reason::Forwarded);
}

#[test]
fn a_connection_that_is_over_or_was_never_answered_gives_way() {
    let world = &mut seeing_world();
    let syn = tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::SYN);
    opens(world, &syn);
    assert_eq!(world.sends(&own_syn().build()), None, "not answered");
    assert_eq!((world.entries(), world.dataplane.flows.half_open(Ipv4(PLS))), (0, 0));
    opens(world, &syn);
    world.run(&tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::SYN | tcp::ACK).numbers(500, 1001).build());
    world.run(&tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::ACK).numbers(1001, 501).build());
    world.run(&tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::RST | tcp::ACK).numbers(501, 1001).build());
    assert_eq!(world.sends(&own_syn().build()), None, "reset");
    assert_eq!((world.entries(), world.sessions()), (0, 0));
    assert_eq!(world.own().sessions_ended, 2);
}

/// The kernel's answer to a packet: a reset (RFC 9293 3.10.7.1), or that its port is not reachable.
fn answer_to(packet: &Spec) -> Vec<u8> {
    let seen = read(&packet.build());
    let ((source, source_port), (destination, destination_port)) = (seen.source, seen.destination);
    let back = ((destination, destination_port), (source, source_port));
    match packet.build()[23] {
        6 => {
            let answers_syn = packet.build()[47] & tcp::ACK == 0;
            let reset = if answers_syn {
                tcp_packet(back.0, back.1, tcp::RST | tcp::ACK).numbers(0, 1001)
            } else {
                tcp_packet(back.0, back.1, tcp::RST).numbers(501, 0)
            };
            reset.build()
        }
        _ => IcmpError {
            source: destination,
            destination: source,
            ttl: 64,
            kind: (3, 3),
            rest: [0; 4],
            quote: packet.build()[14..].to_vec(),
        }
        .build(),
    }
}

/// What a session's packets get that reach the kernel while no program is attached.
#[test]
fn answers_of_this_machines_stack_to_packets_of_sessions_are_withheld() {
    let world = &mut seeing_world();
    opens(world, &tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::SYN));
    opens(world, &udp_packet((PLS, 20_002), (ROUTER, 5300), b"x"));
    for packet in [
        tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::ACK),
        tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::SYN | tcp::ACK),
        tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::ACK),
        tcp_packet((TARGET, 5000), (ROUTER, 20_001), tcp::FIN | tcp::ACK),
        udp_packet((PLS, 20_002), (ROUTER, 5300), b"more"),
        udp_packet((TARGET, 5300), (ROUTER, 20_002), b"an answer"),
    ] {
        assert!(world.withholds(&answer_to(&packet)), "{:?}", read(&packet.build()));
    }
    assert_eq!(world.entries(), 4, "the sessions stay");
    // Of the same ends, and no session's.
    for packet in [
        tcp_packet((PLS, 20_003), (ROUTER, 5000), tcp::ACK),
        tcp_packet((TARGET, 5001), (ROUTER, 20_001), tcp::ACK),
        tcp_packet((TARGET, 5000), (ROUTER, 20_002), tcp::SYN | tcp::ACK),
        udp_packet((TARGET, 5301), (ROUTER, 4002), b"x"),
    ] {
        assert!(!world.withholds(&answer_to(&packet)), "{:?}", read(&packet.build()));
    }
    // Other traffic of the same tuple.
    assert!(!world.withholds(&tcp_packet((ROUTER, 5000), (PLS, 20_001), tcp::ACK).build()));
}

/// A client that connects at that moment tries again.
#[test]
fn answers_of_this_machines_stack_to_new_clients_of_rules_are_withheld() {
    let world = &mut seeing_world();
    let syn = |port| tcp_packet((PLS, 20_001), (ROUTER, port), tcp::SYN);
    let datagram = |port| udp_packet((PLS, 20_001), (ROUTER, port), b"x");
    for (port, is_rules) in [(5000, true), (65_535, true), (4999, false), (22, false)] {
        assert_eq!(world.withholds(&answer_to(&syn(port))), is_rules, "TCP {port}");
        assert_eq!(world.withholds(&answer_to(&datagram(port))), is_rules, "UDP {port}");
    }
    // The programs leave these to the kernel, whose answer is the right one.
    let stray = tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::ACK);
    assert_eq!(world.run(&stray.build()).reason, Reason::NoSession);
    assert!(!world.withholds(&answer_to(&stray)));
    // But a reset about a segment without ACK cannot be told from one about a SYN.
    let scan = tcp_packet((PLS, 20_001), (ROUTER, 5000), tcp::FIN);
    assert_eq!(world.run(&scan.build()).reason, Reason::NoSession);
    assert!(world.withholds(&answer_to(&scan)));
    assert_eq!(world.entries(), 0);
}
