//! The share of one source of the SNAT ports to a target.

use std::collections::HashSet;

use router_common::{ports::PortRange, reason::Reason, tuple::Protocol};

use crate::{
    packets::{OTHER, PLS, ROUTER, echo_reply, echo_request, read, tcp, tcp_packet, udp_packet},
    ports::{open_masquerade, ports_of},
    world::{Setup, Verdict, World, ip},
};

/// Three clients with different addresses.
const SOURCES: [[u8; 4]; 3] = [[10, 0, 2, 70], [10, 0, 2, 71], [10, 0, 2, 72]];
/// With 62 pairs.
const PORTS: PortRange = PortRange { first: 30_000, last: 30_999 };

/// A router with these ports.
fn router(ports: PortRange) -> World {
    let world = open_masquerade(Setup { ports, sessions: 4096, ..Setup::default() });
    for [.., last] in &SOURCES[1..] {
        ip(&format!("neigh replace 10.0.2.{last} lladdr 02:00:00:00:00:{last} dev eth0 nud permanent"));
    }
    world
}

/// The ports that a source may use.
fn all_of(world: &World, range: PortRange, source: [u8; 4]) -> HashSet<u16> {
    let ports = ports_of(world, range, source);
    (range.first..=range.last).filter(|port| ports.contains(*port)).collect()
}

/// Has a client open a session from this port and its target answer: the SNAT port, or why there is
/// none.
fn establish(world: &mut World, protocol: Protocol, client: ([u8; 4], u16)) -> Result<u16, Reason> {
    let first = match protocol {
        Protocol::Tcp => tcp_packet(client, (OTHER, 443), tcp::SYN),
        Protocol::Udp => udp_packet(client, (OTHER, 53), b"question"),
        Protocol::Icmp => echo_request(client.0, OTHER, client.1),
    };
    let ran = world.run(&first.build());
    if ran.reason != Reason::Opened {
        return Err(ran.reason);
    }
    let port = read(&ran.frame).source.1;
    let answer = match protocol {
        Protocol::Tcp => tcp_packet((OTHER, 443), (ROUTER, port), tcp::SYN | tcp::ACK).numbers(5000, 1001),
        Protocol::Udp => udp_packet((OTHER, 53), (ROUTER, port), b"answer"),
        Protocol::Icmp => echo_reply(OTHER, ROUTER, port),
    };
    assert_eq!(world.run(&answer.build()).reason, Reason::Forwarded);
    if protocol == Protocol::Tcp {
        let last = tcp_packet(client, (OTHER, 443), tcp::ACK).numbers(1001, 5001);
        assert_eq!(world.run(&last.build()).reason, Reason::Forwarded);
    }
    Ok(port)
}

/// Has a source establish as many sessions as it can: their SNAT ports.
fn establish_all(world: &mut World, protocol: Protocol, source: [u8; 4]) -> HashSet<u16> {
    let mut ports = HashSet::new();
    for client_port in 40_000.. {
        match establish(world, protocol, (source, client_port)) {
            Ok(port) => assert!(ports.insert(port), "port {port} is given out twice"),
            Err(reason) => {
                assert_eq!(reason, Reason::PortsExhausted);
                break;
            }
        }
    }
    ports
}

/// One source has established sessions on all ports of its share to a target, then a second
/// one, and a third one still gets in. Each gets all ports of its share that the others have left.
#[test]
fn established_sessions_of_a_source_leave_ports_to_the_others() {
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Icmp] {
        let mut world = router(PORTS);
        let mut taken = HashSet::new();
        for (greedy, source) in SOURCES.into_iter().enumerate() {
            let got = establish_all(&mut world, protocol, source);
            let share = all_of(&world, PORTS, source);
            assert_eq!(got, &share - &taken, "{protocol:?} of {source:?}");
            println!("{protocol:?}: {} ports for the source behind {greedy} greedy ones", got.len());
            let least = [938, 5, 1][greedy];
            assert!(got.len() >= least, "{} behind {greedy}", got.len());
            taken.extend(got);
        }
        // No session was displaced by later ones.
        assert_eq!(world.sessions(), taken.len());
        // The source with the most sessions is still refused, and gets ports that it gives up.
        let refused = establish(&mut world, protocol, (SOURCES[0], 60_000));
        assert_eq!(refused, Err(Reason::PortsExhausted));
        let mut ended = None;
        world.dataplane.flows.for_each(|session| {
            ended = (session.forward.key.source.0 == SOURCES[0]).then_some(*session);
            ended.is_none()
        });
        world.dataplane.flows.remove(&ended.expect("a session")).expect("removal");
        let again = establish(&mut world, protocol, (SOURCES[0], 60_000));
        assert!(again.is_ok(), "{again:?}");
    }
}

/// It makes no difference whether there is a pool: a small range has none, nor has a target where
/// the clients' own ports are free.
#[test]
fn port_shares_hold_without_a_pool() {
    let small = PortRange { first: 30_001, last: 30_064 };
    let mut world = router(small);
    let first = establish_all(&mut world, Protocol::Udp, SOURCES[0]);
    assert_eq!((first.len(), &first), (60, &all_of(&world, small, SOURCES[0])));
    let second = establish_all(&mut world, Protocol::Udp, SOURCES[1]);
    assert_eq!(second, &all_of(&world, small, SOURCES[1]) - &first);

    let mut world = router(PORTS);
    let share = all_of(&world, PORTS, SOURCES[0]);
    for port in share.iter().copied() {
        let frame = udp_packet((SOURCES[0], port), (OTHER, 53), b"x").build();
        let ran = world.run(&frame);
        assert_eq!((ran.reason, read(&ran.frame).source.1), (Reason::Opened, port));
    }
    for port in (PORTS.first..=PORTS.last).filter(|port| !share.contains(port)) {
        let one_more = establish(&mut world, Protocol::Udp, (SOURCES[0], port));
        assert_eq!(one_more, Err(Reason::PortsExhausted), "from port {port}");
    }
    assert_eq!(world.sessions(), share.len());
}

/// Too few ports to leave some to others.
#[test]
fn a_source_may_have_all_of_a_few_ports() {
    let few = PortRange { first: 30_000, last: 30_030 };
    let mut world = router(few);
    assert_eq!(establish_all(&mut world, Protocol::Tcp, SOURCES[0]).len(), 31);
}

/// A client whose own port is outside its source's share gets another one, the same to every
/// target, and as even.
#[test]
fn a_port_outside_the_share_is_changed_alike_for_all_targets() {
    let mut world = router(PORTS);
    let ports = ports_of(&world, PORTS, PLS);
    let changed: Vec<_> = (PORTS.first..=PORTS.last).filter(|port| !ports.contains(*port)).collect();
    assert_eq!(changed.len(), 62);
    for port in changed {
        for target in [53, 54] {
            let ran = world.run(&udp_packet((PLS, port), (OTHER, target), b"x").build());
            assert_eq!(read(&ran.frame).source, (ROUTER, port ^ 2), "towards port {target}");
        }
    }
}

/// Two sources take their whole shares at the same time, each on a CPU: neither gets a port outside
/// its share, and a third one gets all of its own that are left.
#[test]
fn two_cpus_take_no_more_than_their_sources_may() {
    let mut world = router(PORTS);
    let program = world.program();
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for (cpu, source) in SOURCES[..2].iter().enumerate() {
            let (program, barrier) = (&program, &barrier);
            scope.spawn(move || {
                crate::world::stay_on(cpu);
                barrier.wait();
                let query = |port| udp_packet((*source, port), (OTHER, 53), b"x").build();
                (40_000..42_000).filter(|port| program.run(&query(*port)).0 == Verdict::Tx).count()
            });
        }
    });
    let mut taken = HashSet::new();
    let shares = [all_of(&world, PORTS, SOURCES[0]), all_of(&world, PORTS, SOURCES[1])];
    world.dataplane.flows.for_each(|session| {
        let of = SOURCES.iter().position(|source| *source == session.forward.key.source.0);
        let port = session.reply.key.destination_port.number();
        assert!(shares[of.expect("a source")].contains(&port), "port {port} of source {of:?}");
        assert!(taken.insert(port), "port {port} is given out twice");
        true
    });
    assert_eq!(taken, &shares[0] | &shares[1]);
    world.moved();
    let third = establish_all(&mut world, Protocol::Udp, SOURCES[2]);
    assert_eq!(third, &all_of(&world, PORTS, SOURCES[2]) - &taken);
    assert!(!third.is_empty());
}
