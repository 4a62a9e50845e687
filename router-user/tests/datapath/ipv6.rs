//! IPv6, which is not translated: a source that may use a rule reaches nothing of this machine by
//! it.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use router_common::{ports::PortRange, reason::Reason};
use router_user::dataplane::LocalAllowSpec;
use socket2::{Domain, Socket, Type};

use crate::{
    packets::ROUTER_SECOND,
    world::{Setup, Verdict, World, ip},
};

/// Another machine's address.
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x67);

const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x69);
const HERE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x68);
const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x69);
const ADMIN: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 7);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const DENIED: (Verdict, Reason) = (Verdict::Drop, Reason::Ipv6Denied);
const PASSED: (Verdict, Reason) = (Verdict::Pass, Reason::NotIpv4);

/// A packet with this next header and hop limit.
fn packet(next: u8, hop_limit: u8, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, hop_limit]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(payload);
    frame
}

fn tcp((source, from): (Ipv6Addr, u16), (destination, to): (Ipv6Addr, u16), flags: u8) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.resize(20, 0);
    (segment[12], segment[13]) = (0x50, flags);
    packet(TCP, 64, source, destination, &segment)
}

fn udp((source, from): (Ipv6Addr, u16), (destination, to): (Ipv6Addr, u16), data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len()) as u16;
    let datagram =
        [&from.to_be_bytes(), &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0][..], data].concat();
    packet(UDP, 64, source, destination, &datagram)
}

fn icmp(source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8, kind: u8) -> Vec<u8> {
    let mut message = [0; 24];
    message[0] = kind;
    packet(ICMPV6, hop_limit, source, destination, &message)
}

#[track_caller]
fn ends(world: &mut World, frame: &[u8], expected: (Verdict, Reason)) {
    ends_on(world, 0, frame, expected);
}

#[track_caller]
fn ends_on(world: &mut World, slot: usize, frame: &[u8], expected: (Verdict, Reason)) {
    let ran = world.run_on(slot, frame);
    assert_eq!((ran.verdict, ran.reason), expected);
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

/// A router that knows its address.
fn world_with(setup: Setup) -> World {
    let mut world = World::with(setup);
    world.dataplane.local_addresses.set_ipv6(&[HERE].into()).expect("its address");
    world
}

/// A router that does not guess by ports what this machine has sent, with IPv6 addresses.
fn world() -> World {
    let world = world_with(Setup { rules: |spec| spec.local.ephemeral = NOTHING, ..Setup::default() });
    for address in [HERE, CLIENT] {
        // Without waiting for others to claim it.
        ip(&format!("-6 addr add {address}/128 dev lo nodad"));
    }
    world
}

const NOTHING: PortRange = PortRange { first: 1, last: 0 };

const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn clients_reach_no_ipv6_listener() {
    let world = &mut world();
    let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 22)).expect("a server");
    let _server = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 51_820)).expect("a server");
    for source in [CLIENT, NEAR, ADMIN] {
        for destination in [HERE, ALL_NODES] {
            for flags in [SYN, ACK, SYN | ACK] {
                ends(world, &tcp((source, 40_000), (destination, 22), flags), DENIED);
                ends(world, &tcp((source, 40_000), (destination, 8082), flags), DENIED);
            }
            ends(world, &udp((source, 53), (destination, 51_820), b"x"), DENIED);
            ends(world, &udp((source, 5353), (destination, 5353), b"x"), DENIED);
            ends(world, &icmp(source, destination, 64, 128), DENIED);
        }
    }
    // In a VLAN, and after a priority tag.
    let syn = tcp((CLIENT, 40_000), (HERE, 22), SYN);
    let tagged = |tag: [u8; 4]| [&syn[..12], &tag, &syn[12..]].concat();
    ends(world, &tagged([0x81, 0, 0, 5]), (Verdict::Drop, Reason::EthernetDenied));
    let ran = world.run(&tagged([0x81, 0, 0xa0, 0]));
    assert_eq!((ran.verdict, ran.reason), DENIED);
}

#[test]
fn neighbour_and_listener_discovery_pass() {
    let world = &mut world();
    for (source, hop_limit, kind, expected) in [
        (NEAR, 255, 133, PASSED),
        (NEAR, 255, 134, PASSED),
        (CLIENT, 255, 135, PASSED),
        (Ipv6Addr::UNSPECIFIED, 255, 135, PASSED),
        (CLIENT, 255, 136, PASSED),
        (CLIENT, 254, 136, DENIED),
        (NEAR, 255, 137, DENIED),
        (NEAR, 1, 130, PASSED),
        (NEAR, 64, 130, DENIED),
        (CLIENT, 1, 130, DENIED),
        (CLIENT, 64, 1, PASSED),
        (CLIENT, 64, 2, PASSED),
        (CLIENT, 64, 129, PASSED),
        (CLIENT, 64, 200, DENIED),
        (Ipv6Addr::LOCALHOST, 255, 135, DENIED),
        (ALL_NODES, 255, 135, DENIED),
    ] {
        ends(world, &icmp(source, HERE, hop_limit, kind), expected);
    }
    let mut report = vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0];
    report.resize(28, 0);
    ends(world, &packet(0, 1, NEAR, ALL_NODES, &report), PASSED);
}

#[test]
fn extension_headers_and_fragments_are_dropped() {
    let world = &mut world_with(Setup {
        rules: |spec| allow(spec, &[(TCP, 22, "::/0"), (UDP, 161, "::/0"), (60, 0, "::/0")]),
        ..Setup::default()
    });
    let plain = tcp((CLIENT, 40_000), (HERE, 22), SYN);
    ends(world, &plain, PASSED);
    for next in [0, 43, 44, 51, 60, 135, 139, 140, 253] {
        let headers = [TCP, 0, 0, 0, 0, 0, 0, 0];
        let segment = &plain[54..];
        ends(world, &packet(next, 64, CLIENT, HERE, &[&headers, segment].concat()), DENIED);
        // Neighbour discovery's, too.
        let headers = [ICMPV6, 0, 0, 0, 0, 0, 0, 0];
        let message = &icmp(CLIENT, HERE, 255, 135)[54..];
        ends(world, &packet(next, 255, CLIENT, HERE, &[&headers, message].concat()), DENIED);
    }
    // Fragments: the first, and a later one.
    for place in [[0, 1], [0, 8]] {
        let header = [UDP, 0, place[0], place[1], 0, 0, 0, 7];
        let datagram = &udp((CLIENT, 40_000), (HERE, 161), b"12345678")[54..];
        ends(world, &packet(44, 64, CLIENT, HERE, &[&header, datagram].concat()), DENIED);
    }
    for length in 14..plain.len() {
        ends(world, &plain[..length], DENIED);
    }
}

fn allow(spec: &mut router_user::dataplane::RuleSetSpec, entries: &[(u8, u16, &str)]) {
    spec.local.ephemeral = NOTHING;
    spec.local.allow = entries
        .iter()
        .map(|(protocol, port, from)| LocalAllowSpec {
            protocol: *protocol,
            ports: PortRange { first: *port, last: *port },
            from: from.parse().expect("a network"),
        })
        .collect();
}

#[test]
fn allowed_protocols_pass() {
    let world = &mut world_with(Setup {
        rules: |spec| {
            let anyone = (TCP, 22, "0.0.0.0/0");
            allow(spec, &[anyone, (TCP, 22, "fd00:9::/64"), (1, 0, "fd00:9::/64"), (112, 0, "fe80::/10")]);
        },
        ..Setup::default()
    });
    ends(world, &tcp((ADMIN, 40_000), (HERE, 22), SYN), PASSED);
    ends(world, &tcp((ADMIN, 40_000), (HERE, 22), ACK), PASSED);
    ends(world, &icmp(ADMIN, HERE, 64, 128), PASSED);
    ends(world, &tcp((ADMIN, 40_000), (HERE, 23), SYN), DENIED);
    ends(world, &udp((ADMIN, 40_000), (HERE, 22), b"x"), DENIED);
    // An entry for IPv4 says nothing of IPv6.
    ends(world, &tcp((CLIENT, 40_000), (HERE, 22), SYN), DENIED);
    ends(world, &icmp(CLIENT, HERE, 64, 128), DENIED);
    ends(world, &packet(112, 255, NEAR, HERE, &[0; 20]), PASSED);
    ends(world, &packet(112, 255, CLIENT, HERE, &[0; 20]), DENIED);
}

#[test]
fn the_probe_is_reached_by_ipv6_where_it_listens() {
    let world = &mut world_with(Setup { rules: |spec| spec.local.health_by_ipv6 = true, ..Setup::default() });
    ends(world, &tcp((CLIENT, 40_000), (HERE, 8082), SYN), PASSED);
    ends(world, &udp((CLIENT, 40_000), (HERE, 8082), b"x"), DENIED);
}

/// The kernel would send such packets on where it forwards IPv6.
#[test]
fn packets_for_other_machines_are_dropped() {
    let world = &mut world_with(Setup {
        rules: |spec| {
            allow(spec, &[(TCP, 22, "::/0"), (1, 0, "::/0"), (112, 0, "::/0")]);
            spec.local.health_by_ipv6 = true;
        },
        ..Setup::default()
    });
    for (destination, expected) in [(HERE, PASSED), (ELSEWHERE, DENIED)] {
        for port in [22, 8082] {
            ends(world, &tcp((CLIENT, 40_000), (destination, port), SYN), expected);
            ends(world, &tcp((CLIENT, 40_000), (destination, port), ACK), expected);
        }
        ends(world, &icmp(CLIENT, destination, 64, 128), expected);
        ends(world, &icmp(CLIENT, destination, 64, 129), expected);
        ends(world, &packet(112, 255, CLIENT, destination, &[0; 20]), expected);
        for error_or_discovery in [1, 2, 3, 4, 133, 134, 135, 136] {
            ends(world, &icmp(CLIENT, destination, 255, error_or_discovery), expected);
        }
    }
    // To many: this machine may be one of them.
    ends(world, &packet(112, 255, CLIENT, ALL_NODES, &[0; 20]), PASSED);
    world.dataplane.local_addresses.set_ipv6(&[ELSEWHERE].into()).expect("its address");
    for (destination, expected) in [(HERE, DENIED), (ELSEWHERE, PASSED)] {
        ends(world, &tcp((CLIENT, 40_000), (destination, 22), SYN), expected);
    }
}

#[test]
fn the_firewall_s_side_is_open_unless_others_are_closed() {
    let world = &mut World::with(Setup { nics: 2, snat: vec![ROUTER_SECOND], ..Setup::default() });
    let syn = tcp((CLIENT, 40_000), (HERE, 22), SYN);
    for (others_are_closed, expected) in [(false, PASSED), (true, DENIED)] {
        world.set_rules(|spec| spec.local.others_are_closed = others_are_closed);
        ends_on(world, 0, &syn, DENIED);
        ends_on(world, 1, &syn, expected);
    }
}

/// The peer's socket is in the same namespace, by its address on the loopback interface: only this
/// machine's socket matters here.
#[test]
fn answers_to_this_machine_come_in() {
    let world = &mut world();
    let listener = TcpListener::bind((CLIENT, 5432)).expect("a peer");
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((HERE, 0)).into()).expect("this machine's address");
    socket.connect(&SocketAddr::from((CLIENT, 5432)).into()).expect("a connection");
    let port = socket.local_addr().expect("an address").as_socket().expect("of IP").port();
    ends(world, &tcp((CLIENT, 5432), (HERE, port), ACK), PASSED);
    ends(world, &tcp((CLIENT, 5433), (HERE, port), ACK), DENIED);
    ends(world, &tcp((ADMIN, 5432), (HERE, port), ACK), DENIED);
    drop(listener);

    let connected = UdpSocket::bind((HERE, 0)).expect("a socket");
    connected.connect((CLIENT, 53)).expect("a peer");
    let port = connected.local_addr().expect("an address").port();
    ends(world, &udp((CLIENT, 53), (HERE, port), b"answer"), PASSED);
    ends(world, &udp((CLIENT, 54), (HERE, port), b"not the peer"), DENIED);

    // One that is not connected: what it has sent is seen.
    let socket = UdpSocket::bind((HERE, 0)).expect("a socket");
    let port = socket.local_addr().expect("an address").port();
    let answer = udp((CLIENT, 123), (HERE, port), b"answer");
    ends(world, &answer, DENIED);
    assert_eq!(world.sends(&udp((HERE, port), (CLIENT, 123), b"question")), None);
    ends(world, &answer, PASSED);
    ends(world, &udp((CLIENT, 124), (HERE, port), b"another port's"), DENIED);
    ends(world, &udp((ADMIN, 123), (HERE, port), b"another's"), DENIED);
}

#[test]
fn dhcp_answers_pass_only_after_a_request() {
    let world = &mut world();
    let answer = |transaction| udp((NEAR, 547), (NEAR, 546), &[7, transaction, 2, 3]);
    ends(world, &answer(1), DENIED);
    assert_eq!(world.sends(&udp((NEAR, 546), (DHCP_SERVERS, 547), &[1, 1, 2, 3])), None);
    ends(world, &answer(1), PASSED);
    ends(world, &answer(2), DENIED);
    ends(world, &udp((CLIENT, 547), (NEAR, 546), &[7, 1, 2, 3]), DENIED);
    ends(world, &udp((NEAR, 1234), (NEAR, 546), &[7, 1, 2, 3]), DENIED);
}
