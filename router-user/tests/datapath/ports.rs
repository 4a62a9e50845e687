//! SNAT ports: kept when free, never shared, and exhaustion that says so.

use std::{collections::HashSet, ops::Range};

use router_common::{
    address::{Ipv4, Port},
    ports::{PortRange, SourcePorts},
    reason::Reason,
    table::source_hash,
    tuple::{Direction, FlowKey, Protocol},
};
use router_user::dataplane::Verdict as SweepVerdict;

use crate::{
    packets::{OTHER, PLS, ROUTER, read, tcp, tcp_packet, udp_packet},
    world::{Setup, Verdict, World, ip, network},
};

/// Every host of the link may use the masquerade; 10.0.2.70 is one of them.
pub(crate) fn open_masquerade(setup: Setup) -> World {
    let world = World::with(Setup {
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)],
        ..setup
    });
    ip("neigh replace 10.0.2.70 lladdr 02:00:00:00:00:70 dev eth0 nud permanent");
    world
}

/// The ports that a source may use.
pub(crate) fn ports_of(world: &World, range: PortRange, source: [u8; 4]) -> SourcePorts {
    SourcePorts::new(range, source_hash(&world.dataplane.settings.current().seeds, Ipv4(source)))
}

#[test]
fn a_clients_port_is_kept_if_free_and_changed_if_taken() {
    let mut world = open_masquerade(Setup::default());
    let first = world.run(&tcp_packet((PLS, 40_000), (OTHER, 443), tcp::SYN).build());
    assert_eq!(read(&first.frame).source, (ROUTER, 40_000));
    let second = world.run(&tcp_packet(([10, 0, 2, 70], 40_000), (OTHER, 443), tcp::SYN).build());
    assert_eq!(second.reason, Reason::Opened);
    let port = read(&second.frame).source.1;
    assert_ne!(port, 40_000);
    let elsewhere = world.run(&tcp_packet(([10, 0, 2, 70], 40_000), (OTHER, 80), tcp::SYN).build());
    assert_eq!(read(&elsewhere.frame).source, (ROUTER, 40_000), "free towards another target");
    // Each reply finds its own client.
    let reply = world.run(&tcp_packet((OTHER, 443), (ROUTER, port), tcp::SYN | tcp::ACK).build());
    assert_eq!(read(&reply.frame).destination, ([10, 0, 2, 70], 40_000));
    let reply = world.run(&tcp_packet((OTHER, 443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build());
    assert_eq!(read(&reply.frame).destination, (PLS, 40_000));
}

#[test]
fn a_free_client_port_is_kept_even_if_most_are_taken() {
    let ports = PortRange { first: 30_000, last: 30_199 };
    let mut world = open_masquerade(Setup { ports, ..Setup::default() });
    let share = ports_of(&world, ports, [10, 0, 2, 70]);
    let mut open = |port| {
        let ran = world.run(&udp_packet(([10, 0, 2, 70], port), (OTHER, 53), b"x").build());
        assert_eq!(ran.reason, Reason::Opened, "from port {port}");
        read(&ran.frame).source.1
    };
    let mut taken: HashSet<u16> = (1000..1150).map(&mut open).collect();
    assert_eq!(taken.len(), 150);
    for port in (ports.first..=ports.last).filter(|port| share.contains(*port)) {
        // Of those that have been asked for, some are taken by then that were free at first.
        let was_free = taken.insert(port);
        if taken.len() > ports.per_source() as usize - 10 {
            break;
        }
        let given = open(port);
        assert_eq!(given == port, was_free, "port {port} becomes {given}");
        assert!(was_free || taken.insert(given), "port {given} is given out twice");
    }
}

#[test]
fn ports_stay_in_the_range_and_run_out_with_a_reason() {
    let ports = PortRange { first: 30_000, last: 30_015 };
    let mut world = open_masquerade(Setup { ports, ..Setup::default() });
    let mut used = HashSet::new();
    for client in 0..16 {
        let ran = world.run(&udp_packet(([10, 0, 2, 70], 1000 + client), (OTHER, 53), b"x").build());
        assert_eq!(ran.reason, Reason::Opened, "session {client} of 16");
        let (address, port) = read(&ran.frame).source;
        assert_eq!(address, ROUTER);
        assert!(ports.contains(port) && used.insert(port), "port {port}");
    }
    let ran = world.run(&udp_packet(([10, 0, 2, 70], 2000), (OTHER, 53), b"x").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::PortsExhausted));
    assert_eq!(world.entries(), 32, "nothing half made");
    let ran = world.run(&udp_packet(([10, 0, 2, 70], 2000), (OTHER, 54), b"x").build());
    assert_eq!(ran.reason, Reason::Opened, "another target has its own ports");
}

#[test]
fn all_snat_addresses_are_used() {
    let addresses = [[10, 0, 2, 68], [10, 0, 2, 67]];
    let mut world = open_masquerade(Setup { snat: addresses.to_vec(), ..Setup::default() });
    let used: HashSet<_> = (0..64)
        .map(|client| {
            let ran = world.run(&udp_packet((PLS, 2000 + client), (OTHER, 53), b"x").build());
            read(&ran.frame).source.0
        })
        .collect();
    assert_eq!(used, addresses.into());
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    let mut world = open_masquerade(Setup { sessions: 16, ..Setup::default() });
    let mut refused = 0;
    for client in 0..64 {
        let ran = world.run(&udp_packet((PLS, 2000 + client), (OTHER, 53), b"x").build());
        if ran.reason != Reason::Opened {
            assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::TableFull));
            refused += 1;
        }
    }
    assert_eq!(refused, 64 - 16);
    assert_eq!((world.sessions(), world.entries()), (16, 32));
    let ran = world.run(&udp_packet((PLS, 2000), (OTHER, 53), b"x").build());
    assert_eq!(ran.reason, Reason::Forwarded, "the first session lives on");
}

/// Hosts of the link with different addresses. There are so many that of each pair of ports
/// (`SourcePorts`) one host may use the one and another host the other.
const SOURCES: Range<u8> = 70..110;

/// Has sources take their shares in turn until all ports to `OTHER`'s port 53 but `left` are
/// taken. Returns the number of sessions of each.
fn take_all(world: &mut World, ports: PortRange, left: u32) -> Vec<u32> {
    let all = ports.size() - left;
    let mut got = Vec::new();
    for source in SOURCES {
        let before = world.dataplane.flows.sessions();
        // Like a Private Link Service: an address with all its ports, which are kept if possible.
        // Few collisions show that ports get scarce.
        for port in 1024..=u16::MAX {
            world.run_quietly(&udp_packet(([10, 0, 2, source], port), (OTHER, 53), b"x").build());
            if world.dataplane.flows.sessions() - before < u32::from(port - 1023) {
                break;
            }
        }
        got.push(world.dataplane.flows.sessions() - before);
        if world.dataplane.flows.sessions() == all {
            break;
        }
    }
    assert_eq!(world.dataplane.flows.sessions(), all, "{got:?}");
    got
}

/// The whole range of a default configuration to one target, up to its last port, then one
/// that is freed in the middle.
#[test]
fn every_port_of_the_range_is_used() {
    const PORTS: u32 = 65_535 - 1024 + 1;
    let ports = PortRange { first: 1024, last: 65_535 };
    let mut world = open_masquerade(Setup { sessions: PORTS + 100, ..Setup::default() });
    let got = take_all(&mut world, ports, 0);
    // The first has all that it may: 15 of 16. The others have what is left of theirs.
    assert_eq!(got[0], 60_480, "{got:?}");
    assert!(got[1] > 1700 && got[2] > 800 && got[3] > 350, "{got:?}");
    world.moved();
    for _ in 0..3 {
        let (verdict, _) = world.run_quietly(&udp_packet(([10, 0, 2, 110], 3000), (OTHER, 53), b"x").build());
        assert_eq!(verdict, Verdict::Drop);
    }
    assert_eq!(world.moved().reasons, [(Reason::PortsExhausted, 3)]);

    // Another target has its own ports, and a freed one is found again.
    let ran = world.run(&udp_packet(([10, 0, 2, 71], 3000), (OTHER, 54), b"x").build());
    assert_eq!(ran.reason, Reason::Opened);
    let reply = FlowKey::new(Protocol::Udp, Ipv4(OTHER), Port::new(53), Ipv4(ROUTER), Port::new(30_000));
    let mut freed = None;
    world.dataplane.flows.for_each(|session| {
        if session.reply.key == reply {
            freed = Some(*session);
        }
        freed.is_none()
    });
    world.dataplane.flows.remove(&freed.expect("a session")).expect("removal");
    let ran = world.run(&udp_packet(([10, 0, 2, 110], 3000), (OTHER, 53), b"x").build());
    assert_eq!((ran.reason, read(&ran.frame).source.1), (Reason::Opened, 30_000));
    let audit = world.dataplane.flows.audit().expect("audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{audit:?}"
    );
}

/// There are fewer pools than crowded targets: with and without one, every port of every address is
/// given out once, and again when it is free.
#[test]
fn more_targets_are_crowded_than_there_are_pools() {
    const TARGETS: u16 = 12;
    // The limit of one source.
    const EACH: u16 = 2 * (200 - 12);
    let ports = PortRange { first: 30_000, last: 30_199 };
    let other = [10, 0, 2, 80];
    let mut world =
        open_masquerade(Setup { ports, sessions: 8192, snat: vec![ROUTER, other], ..Setup::default() });
    let target = |number| (OTHER, 1000 + number % TARGETS);
    let query = |number: u16| udp_packet(([10, 0, 2, 70], 1 + number), target(number), b"x").build();
    let mut given = HashSet::new();
    for number in 0..TARGETS * EACH {
        let ran = world.run(&query(number));
        assert_eq!(ran.reason, Reason::Opened, "session {number}");
        assert!(given.insert((read(&ran.frame).source, target(number))), "session {number} shares its port");
    }
    let late = |number| udp_packet(([10, 0, 2, 70], 60_000), target(number), b"x").build();
    for number in 0..TARGETS {
        assert_eq!(world.run(&late(number)).reason, Reason::PortsExhausted, "target {number}");
    }
    let mut ended = Vec::new();
    world.dataplane.flows.for_each(|session| {
        if session.forward.key.source_port.number() <= TARGETS {
            ended.push(*session);
        }
        true
    });
    assert_eq!(ended.len(), usize::from(TARGETS));
    for session in ended {
        world.dataplane.flows.remove(&session).expect("removal");
    }
    for number in 0..TARGETS {
        assert_eq!(world.run(&late(number)).reason, Reason::Opened, "target {number}");
    }
    let audit = world.dataplane.flows.audit().expect("audit");
    assert!(audit.twice.is_empty() && audit.leaked_ports.is_empty(), "{audit:?}");
}

/// A port that this machine has a socket on is left alone: the answers to it are that socket's.
#[test]
fn ports_of_this_machines_sockets_are_left_alone() {
    let here = std::net::Ipv4Addr::from(ROUTER);
    let ports = PortRange { first: 40_000, last: 40_003 };
    let mut world = open_masquerade(Setup { ports, ..Setup::default() });
    let _udp = std::net::UdpSocket::bind((here, 40_001)).expect("a socket");
    let _tcp = std::net::TcpListener::bind((here, 40_002)).expect("a socket");
    let mut used = HashSet::new();
    for client in 0..3 {
        let ran = world.run(&udp_packet(([10, 0, 2, 70], 40_001 + client), (OTHER, 53), b"x").build());
        assert_eq!(ran.reason, Reason::Opened);
        used.insert(read(&ran.frame).source.1);
    }
    assert_eq!(used, [40_000, 40_002, 40_003].into());
    let ran = world.run(&udp_packet(([10, 0, 2, 70], 41_000), (OTHER, 53), b"x").build());
    assert_eq!(ran.reason, Reason::PortsExhausted);
    for client in 0..3 {
        let ran = world.run(&tcp_packet(([10, 0, 2, 70], 40_001 + client), (OTHER, 53), tcp::SYN).build());
        assert_ne!(read(&ran.frame).source.1, 40_002);
    }
}

/// A world whose ports to a target are crowded: all are taken but one, which a socket has.
fn crowded(ports: PortRange) -> (World, std::net::UdpSocket) {
    let mut world = open_masquerade(Setup { ports, ..Setup::default() });
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::from(ROUTER), 30_100)).expect("a socket");
    take_all(&mut world, ports, 1);
    world.moved();
    let one_more = world.run(&udp_packet(([10, 0, 2, 70], 5000), (OTHER, 53), b"x").build());
    assert_eq!(one_more.reason, Reason::PortsExhausted);
    (world, socket)
}

/// A while of sweeps.
fn clean_pools(world: &World) {
    for _ in 0..16 {
        world.dataplane.flows.clean_pools(200, |_| 0).expect("pools");
    }
}

/// A port that a socket had is given out after the socket is closed, and not before.
#[test]
fn a_port_is_given_out_after_its_socket_is_closed() {
    let (mut world, socket) = crowded(PortRange { first: 30_000, last: 30_199 });
    let packet = udp_packet(([10, 0, 2, 70], 5000), (OTHER, 53), b"x").build();
    clean_pools(&world);
    assert_eq!(world.run(&packet).reason, Reason::PortsExhausted);
    drop(socket);
    clean_pools(&world);
    let ran = world.run(&packet);
    assert_eq!((ran.reason, read(&ran.frame).source.1), (Reason::Opened, 30_100));
}

/// A daemon that is killed in the midst of a sweep has not given back the ports of what it has
/// removed.
#[test]
fn an_interrupted_sweep_loses_no_ports() {
    let ports = PortRange { first: 30_000, last: 30_199 };
    let (mut world, socket) = crowded(ports);
    drop(socket);
    let mut removed = 0;
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.dataplane.flows.sweep(1, 0, |flow| {
            assert!(removed < 50, "killed");
            let is_session = flow.direction() == Direction::Forward;
            removed += u32::from(is_session);
            if is_session { SweepVerdict::Remove } else { SweepVerdict::Keep }
        })
    }));
    assert!(killed.is_err());
    assert_eq!(world.sessions(), 149);
    clean_pools(&world);
    let audit = world.dataplane.flows.audit().expect("audit");
    assert!(audit.leaked_ports.is_empty(), "{:?}", audit.leaked_ports);
    take_all(&mut world, ports, 0);
}

/// Two CPUs open sessions to one target at the same time, from clients that all use the same
/// ports: no two sessions get the same port, none is half, none is lost.
#[test]
fn two_cpus_never_give_out_a_port_twice() {
    // Of 8000 ports, one in 32 is neither's.
    const EACH: u16 = 3750;
    let ports = PortRange { first: 20_000, last: 27_999 };
    let mut world = open_masquerade(Setup { ports, sessions: 16_384, ..Setup::default() });
    let program = world.program();
    let barrier = std::sync::Barrier::new(2);
    let opened: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2_u8)
            .map(|cpu| {
                let (program, barrier) = (&program, &barrier);
                scope.spawn(move || {
                    crate::world::stay_on(usize::from(cpu));
                    barrier.wait();
                    (0..EACH)
                        .filter(|number| {
                            let client = ([10, 0, 2, 70 + cpu], 20_000 + number);
                            let frame = udp_packet(client, (OTHER, 53), b"x").build();
                            program.run(&frame).0 == Verdict::Tx
                        })
                        .count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    let moved = world.moved();
    assert_eq!(opened, 2 * usize::from(EACH), "{moved:?}");
    let mut used = HashSet::new();
    world.dataplane.flows.for_each(|session| {
        assert!(used.insert(session.reply.key), "{session:?}");
        true
    });
    assert_eq!(used.len(), opened);
    let audit = world.dataplane.flows.audit().expect("audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{audit:?}"
    );
    assert_eq!(audit.flows, 2 * opened as u64);
}

/// Ports of one address run out before those of another: then the other's are used.
#[test]
fn every_address_is_searched_before_giving_up() {
    for ports in [PortRange { first: 30_000, last: 30_015 }, PortRange { first: 30_000, last: 30_199 }] {
        let addresses = [[10, 0, 2, 68], [10, 0, 2, 67], [10, 0, 2, 66]];
        let mut world = open_masquerade(Setup { ports, snat: addresses.to_vec(), ..Setup::default() });
        let mut used = HashSet::new();
        let share = ports.per_source() as u16;
        for client in 0..3 * share {
            let ran = world.run(&udp_packet(([10, 0, 2, 70], 1000 + client), (OTHER, 53), b"x").build());
            assert_eq!(ran.reason, Reason::Opened, "session {client}");
            assert!(used.insert(read(&ran.frame).source));
        }
        let ran = world.run(&udp_packet(([10, 0, 2, 70], 5000), (OTHER, 53), b"x").build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::PortsExhausted));
    }
}

/// After the range is widened, its new ports can be used before a session ends.
#[test]
fn a_wider_range_is_used_at_once() {
    let ports = PortRange { first: 30_000, last: 30_199 };
    let mut world = open_masquerade(Setup { ports, ..Setup::default() });
    for client in 0..200 - 12 {
        let ran = world.run(&udp_packet(([10, 0, 2, 70], 1000 + client), (OTHER, 53), b"x").build());
        assert_eq!(ran.reason, Reason::Opened, "session {client}");
    }
    let last = udp_packet(([10, 0, 2, 70], 5000), (OTHER, 53), b"x").build();
    assert_eq!(world.run(&last).reason, Reason::PortsExhausted);
    let mut spec = crate::world::rule_set();
    spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)];
    spec.ports = PortRange { last: 30_999, ..ports };
    world.dataplane.rules.apply(&spec, &mut world.dataplane.settings).expect("rules");
    assert_eq!(world.run(&last).reason, Reason::Opened);
}

/// This machine makes a connection while a session has the same port to the same peer: the
/// answers belong to the socket.
#[test]
fn a_connection_of_this_machine_is_not_stolen_by_an_older_session() {
    use socket2::{Domain, Socket, Type};
    let mut world = open_masquerade(Setup::default());
    world.run(&tcp_packet((PLS, 40_000), (OTHER, 443), tcp::SYN).build());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let (here, there) = (std::net::Ipv4Addr::from(ROUTER), std::net::Ipv4Addr::from(OTHER));
    socket.bind(&std::net::SocketAddr::from((here, 40_000)).into()).expect("this machine's address");
    let _ = socket.connect(&std::net::SocketAddr::from((there, 443)).into());
    let answer = tcp_packet((OTHER, 443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build();
    assert_eq!(world.run(&answer).verdict, Verdict::Pass);
}
