//! Counters: what moved, and nothing else.

use aya::maps::Array;
use router_common::{
    address::Ipv4,
    maps::{
        half_open::half_open_slot,
        stats::{Counter, RuleStats},
    },
    reason::Reason,
    session::State,
    tuple::{Direction, FlowKey},
};

use router_user::dataplane::{Flow, REPLY_SHARE, Session, Surplus, Verdict};

use crate::{
    packets::{PLS, ROUTER, STRANGER, TARGET, tcp, tcp_packet},
    pins::OwnPins,
    world::{Setup, World},
};

fn sessions(world: &World) -> Vec<Session> {
    let mut sessions = Vec::new();
    world.dataplane.flows.for_each(|session| {
        sessions.push(*session);
        true
    });
    sessions
}

/// Removes the client's direction of a session only, as a daemon does that is killed between the
/// two: that session, as it was.
fn remove_half_a_session(world: &World) -> Session {
    let session = sessions(world)[0];
    let mut half = session;
    half.reply.key = half.reply.key.reversed();
    world.dataplane.flows.remove(&half).expect("half a removal");
    session
}

/// Sweeps as the daemon does, once no session can be in the making any more: the flows that were
/// removed for want of their other direction.
fn sweep_halves_away(world: &World) -> Vec<FlowKey> {
    let flows = &world.dataplane.flows;
    let mut removed = Vec::new();
    for round in 0..REPLY_SHARE {
        let judge = |flow: &Flow| match flows.get(&flow.twin()) {
            Some(twin) if twin.twin() == flow.key => Verdict::Keep,
            _ => {
                removed.push(flow.key);
                Verdict::Remove
            }
        };
        flows.sweep(1, round, judge).expect("a sweep");
    }
    removed
}

#[test]
fn rules_interfaces_and_entries_add_up() {
    let mut world = World::new();
    let out = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN);
    let back = tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).numbers(5000, 1001);
    let before = world.dataplane.counters.read().expect("counters");
    assert_eq!(before.interfaces[0].received.packets, 0);
    world.run(&out.build());
    world.run(&back.build());
    let data =
        tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).numbers(1001, 5001).payload(&[1; 100]).build();
    world.run(&data);
    world.run(&tcp_packet((STRANGER, 1), (ROUTER, 443), tcp::SYN).build());

    let stats = world.dataplane.counters.read().expect("counters");
    let https = stats.rule(world.dataplane.rules.number("https").expect("a rule"));
    let expected = RuleStats {
        forward: Counter { packets: 2, bytes: 54 + 154 },
        reply: Counter { packets: 1, bytes: 54 },
        opened: 1,
        denied: 1,
    };
    assert_eq!(https, expected);
    assert_eq!(stats.interfaces[0].received, Counter { packets: 4, bytes: 54 * 3 + 154 });
    assert_eq!(stats.interfaces[0].transmitted, Counter { packets: 3, bytes: 54 * 2 + 154 });
    assert_eq!(stats.reasons[Reason::Forwarded as usize], Counter { packets: 2, bytes: 54 + 154 });
    assert_eq!(stats.reasons[Reason::Opened as usize], Counter { packets: 1, bytes: 54 });
    assert_eq!(stats.reasons[Reason::SourceNotAllowed as usize], Counter { packets: 1, bytes: 54 });
    let total: u64 = stats.reasons.iter().map(|counter| counter.packets).sum();
    assert_eq!(total, stats.interfaces[0].received.packets, "every packet has exactly one reason");

    let [session] = sessions(&world)[..] else { panic!("one session") };
    assert_eq!((session.forward.entry.packets, session.forward.entry.bytes), (2, 54 + 154));
    assert_eq!((session.reply.entry.packets, session.reply.entry.bytes), (1, 54));
    assert_eq!(session.state(), Some(State::Established));
}

#[test]
fn sessions_change_state_and_are_removed_in_pairs() {
    let mut world = World::new();
    let client = |flags| tcp_packet((PLS, 40_000), (ROUTER, 443), flags).numbers(1000, 5001).build();
    let server = |flags| tcp_packet((TARGET, 8443), (ROUTER, 40_000), flags).numbers(5000, 1001).build();
    let reset = tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::RST).numbers(5001, 0).build();
    let only = |world: &World| {
        let [session] = sessions(world)[..] else { panic!("one session") };
        session
    };
    for (frame, expected) in [
        (client(tcp::SYN), State::Opening),
        (server(tcp::SYN | tcp::ACK), State::Opening),
        (client(tcp::ACK), State::Established),
        (client(tcp::FIN | tcp::ACK), State::Closing),
        (server(tcp::FIN | tcp::ACK), State::Closed),
        (client(tcp::SYN), State::Opening),
        (server(tcp::SYN | tcp::ACK), State::Opening),
        (client(tcp::ACK), State::Established),
        (reset, State::Closed),
    ] {
        world.run(&frame);
        assert_eq!(only(&world).state(), Some(expected));
    }
    world.dataplane.flows.remove(&only(&world)).expect("removal");
    assert_eq!(world.entries(), 0);
}

/// A daemon that is killed between the two removals leaves half a session: it is found, and the
/// sweeps of half a minute take it away.
#[test]
fn a_half_session_is_found_and_swept_away() {
    let mut world = World::new();
    for port in [40_000, 40_001] {
        world.run(&tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build());
    }
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert_eq!((audit.flows, audit.sessions), (4, 2));
    assert!(audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty());

    let Session { forward, reply } = remove_half_a_session(&world);
    let audit = world.dataplane.flows.audit().expect("an audit");
    let half: Vec<_> = audit.half_sessions.iter().map(|flow| (flow.key, flow.direction())).collect();
    assert_eq!((audit.flows, audit.sessions, half), (3, 1, vec![(reply.key, Direction::Reply)]));

    assert_eq!(sweep_halves_away(&world), [reply.key]);
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert_eq!((audit.flows, audit.sessions, audit.half_sessions.len()), (2, 1, 0));
    assert!(audit.leaked_ports.is_empty());
    // The other one is as it was, and the port is free again.
    assert_eq!(world.sessions(), 1);
    let again =
        world.run(&tcp_packet((PLS, forward.key.source_port.number()), (ROUTER, 443), tcp::SYN).build());
    assert_eq!(again.reason, Reason::Opened);
}

/// Half a session that a killed daemon has left, and its client has opened another since, with
/// another port: the half goes alone.
#[test]
fn removing_half_a_session_keeps_live_ones() {
    let mut world = World::new();
    let syn = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build();
    world.run(&syn);
    let Session { reply, .. } = remove_half_a_session(&world);
    assert_eq!(world.run(&syn).reason, Reason::Opened);
    assert_eq!((world.sessions(), world.entries()), (1, 3));

    assert_eq!(sweep_halves_away(&world), [reply.key]);
    assert_eq!((world.sessions(), world.entries()), (1, 2));
    assert_eq!(world.run(&syn).reason, Reason::Forwarded);
}

/// A daemon that is killed after it has retired a flow and before it has counted that: the counters
/// are one ahead, for good.
#[test]
fn sessions_that_a_killed_daemon_did_not_count_are_recounted() {
    let pins = OwnPins::new("counters");
    let mut world = World::with(Setup { pins: Some(pins.0.clone()), ..Setup::default() });
    // One that is opening, and one that is not any more.
    for (port, flags) in [(40_000, [tcp::SYN].as_slice()), (40_001, &[tcp::SYN, tcp::ACK])] {
        for flags in flags {
            let client = tcp_packet((PLS, port), (ROUTER, 443), *flags).numbers(1000, 5001).build();
            world.run(&client);
            let server = tcp_packet((TARGET, 8443), (ROUTER, port), tcp::SYN | tcp::ACK).numbers(5000, 1001);
            world.run(&server.build());
        }
    }
    let flows = world.dataplane.flows.clone();
    assert_eq!((flows.sessions(), flows.half_open(Ipv4(PLS))), (2, 1));
    assert_eq!(flows.surplus(), Surplus::default());

    let slot = half_open_slot(&world.dataplane.settings.current().seeds, Ipv4(PLS));
    let mut half_open: Array<_, u32> = pins.array("HALF_OPEN").try_into().expect("an array of numbers");
    half_open.set(slot, 2, 0).expect("a counter that is one ahead");
    let mut occupancy: Array<_, [u32; 16]> = pins.array("OCCUPANCY").try_into().expect("an array of records");
    let mut record = occupancy.get(&0, 0).expect("the record");
    record[0] += 1;
    occupancy.set(0, record, 0).expect("a count that is one ahead");
    assert_eq!((flows.sessions(), flows.half_open(Ipv4(PLS))), (3, 2));

    let surplus = flows.surplus();
    assert_eq!(surplus, Surplus { sessions: 1, half_open: [(slot, 1)].into() });
    flows.take_back(&surplus);
    assert_eq!((flows.sessions(), flows.half_open(Ipv4(PLS))), (2, 1));
    assert_eq!(flows.surplus(), Surplus::default());
}
