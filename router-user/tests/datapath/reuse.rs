//! A client's tuple that is used again: what a closed connection has been says nothing of where the
//! next one goes.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use router_common::{
    address::{Ipv4, Port},
    ports::PortRange,
    reason::Reason,
    session::State,
    table::SETTLED,
    tuple::Direction,
};
use router_user::dataplane::{self, RuleSetSpec, Session};

use crate::{
    packets::{FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, Seen, Spec, TARGET, read, tcp, tcp_packet},
    tcp::at_once,
    world::{Program, Ran, Setup, Verdict, World, ip, network},
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
const RST_ACK: u8 = tcp::RST | tcp::ACK;
const CLIENT: ([u8; 4], u16) = (PLS, 40_000);
/// The client's next connection starts here.
const AGAIN: u32 = 70_000;

fn client(flags: u8, sequence: u32, acknowledgement: u32) -> Spec {
    tcp_packet(CLIENT, (ROUTER, 443), flags).numbers(sequence, acknowledgement)
}

fn server(target: ([u8; 4], u16), port: u16, flags: u8, sequence: u32, acknowledgement: u32) -> Spec {
    tcp_packet(target, (ROUTER, port), flags).numbers(sequence, acknowledgement)
}

/// A change of the rules.
type Change = fn(&mut RuleSetSpec);

/// The way in which a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    ByBoth,
    ServerFirst,
    ResetByClient,
    ResetByServer,
    Refused,
    /// The client resets what it has not opened.
    GivenUp,
}

const ENDS: [End; 6] =
    [End::ByBoth, End::ServerFirst, End::ResetByClient, End::ResetByServer, End::Refused, End::GivenUp];

/// A connection to `TARGET` from its SYN to its end.
fn connect_and_end(world: &mut World, end: End) {
    let from_server = |flags, sequence, acknowledgement| {
        server((TARGET, 8443), CLIENT.1, flags, sequence, acknowledgement).build()
    };
    assert_eq!(world.run(&client(tcp::SYN, 1000, 0).build()).reason, Reason::Opened);
    let rest = match end {
        End::Refused => vec![from_server(RST_ACK, 0, 1001)],
        End::GivenUp => vec![client(tcp::RST, 1001, 0).build()],
        End::ByBoth | End::ServerFirst | End::ResetByClient | End::ResetByServer => {
            vec![from_server(SYN_ACK, 5000, 1001), client(tcp::ACK, 1001, 5001).build()]
        }
    };
    let last = match end {
        End::Refused | End::GivenUp => vec![],
        End::ByBoth => vec![client(FIN_ACK, 1001, 5001).build(), from_server(FIN_ACK, 5001, 1002)],
        End::ServerFirst => vec![from_server(FIN_ACK, 5001, 1001), client(FIN_ACK, 1001, 5002).build()],
        End::ResetByClient => vec![client(tcp::RST, 1001, 0).build()],
        End::ResetByServer => vec![from_server(RST_ACK, 5001, 1001)],
    };
    for frame in rest.iter().chain(&last) {
        assert_eq!(world.run(frame).reason, Reason::Forwarded, "{end:?}");
    }
    assert_eq!(only(world).state(), Some(State::Closed), "{end:?}");
}

fn only(world: &World) -> Session {
    let mut sessions = Vec::new();
    world.dataplane.flows.for_each(|session| {
        sessions.push(*session);
        true
    });
    let [session] = sessions[..] else { panic!("{} sessions and not one", sessions.len()) };
    session
}

/// The client's next SYN.
fn again(world: &mut World) -> Ran {
    world.run(&client(tcp::SYN, AGAIN, 0).build())
}

#[track_caller]
fn opened(ran: &Ran) -> Seen {
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    read(&ran.frame)
}

/// Asserts that the table is whole, and that this many ports are held.
#[track_caller]
fn assert_whole(world: &World, held: u64) {
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{audit:?}"
    );
    assert_eq!((audit.flows, audit.held), (2 * u64::from(audit.sessions), held), "{audit:?}");
}

fn other_target(spec: &mut RuleSetSpec) {
    spec.forwards[0].targets = vec![(OTHER.into(), Some(9443))];
}

fn two_targets(spec: &mut RuleSetSpec) {
    spec.forwards[0].targets.push((OTHER.into(), Some(9443)));
}

/// Sweeps once, and has go what `verdict` says.
fn sweep(world: &World, verdict: impl FnMut(&dataplane::Flow) -> dataplane::Verdict) {
    let generation = world.dataplane.settings.current().next_hop_generation;
    world.dataplane.flows.sweep(generation, 0, verdict).expect("a sweep");
}

#[test]
fn a_reused_tuple_follows_the_current_rules() {
    for end in ENDS {
        let mut world = World::new();
        connect_and_end(&mut world, end);
        world.set_rules(other_target);
        let seen = opened(&again(&mut world));
        assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (OTHER, 9443)), "{end:?}");
        assert_eq!((world.sessions(), world.entries()), (1, 2), "{end:?}");
        assert_whole(&world, 1);
        let ran = world.run(&server((OTHER, 9443), 40_000, SYN_ACK, 90_000, AGAIN + 1).build());
        let seen = read(&ran.frame);
        assert_eq!((ran.reason, seen.source, seen.destination), (Reason::Forwarded, (ROUTER, 443), CLIENT));
        world.run(&client(tcp::ACK, AGAIN + 1, 90_001).build());
        assert_eq!(only(&world).state(), Some(State::Established), "{end:?}");

        // Late packets of the old server belong to no session, and change nothing.
        let before = only(&world);
        for flags in [FIN_ACK, tcp::ACK, tcp::RST, RST_ACK, SYN_ACK, tcp::SYN] {
            let ran = world.run(&server((TARGET, 8443), 40_000, flags, 5001, 1001).build());
            assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched), "{end:?} {flags:#x}");
        }
        let after = only(&world);
        assert_eq!((before.reply.entry, before.state()), (after.reply.entry, after.state()), "{end:?}");
    }
}

#[test]
fn a_reused_tuple_follows_a_name_that_moves_back_and_forth() {
    let mut world = World::new();
    connect_and_end(&mut world, End::Refused);
    for round in 0..20 {
        let target = [(OTHER, 9443), (TARGET, 8443)][round % 2];
        world.set_rules(|spec| spec.forwards[0].targets = vec![(target.0.into(), Some(target.1))]);
        assert_eq!(opened(&again(&mut world)).destination, target, "round {round}");
        let port = only(&world).reply.key.destination_port.number();
        let ran = world.run(&server(target, port, RST_ACK, 0, AGAIN + 1).build());
        assert_eq!((ran.verdict, only(&world).state()), (Verdict::Tx, Some(State::Closed)));
    }
    // No target sees a port that another of its connections has had moments ago.
    assert_whole(&world, 20);
}

/// A refusal of the rules of now is a first packet's, and does not keep the session from its end.
#[test]
fn a_refused_syn_leaves_an_ended_session_alone() {
    let refusals: [(&str, Change, Reason); 3] = [
        ("the rule is gone", |spec| drop(spec.forwards.remove(0)), Reason::LocalDenied),
        (
            "the source may not",
            |spec| spec.forwards[0].sources = vec![network(OTHER, 32)],
            Reason::SourceNotAllowed,
        ),
        ("no target", |spec| spec.forwards[0].targets.clear(), Reason::NoTarget),
    ];
    for end in ENDS {
        for (what, change, reason) in refusals {
            let mut world = World::new();
            connect_and_end(&mut world, end);
            let before = only(&world);
            world.set_rules(change);
            for _ in 0..3 {
                assert_eq!(again(&mut world).reason, reason, "{end:?}, {what}");
            }
            let after = only(&world);
            assert_eq!(before.forward.entry, after.forward.entry, "{end:?}, {what}");
            assert_eq!(before.reply.entry, after.reply.entry, "{end:?}, {what}");
            assert_eq!(after.state(), Some(State::Closed), "{end:?}, {what}");
            // The rule is back, and so is the connection.
            world.set_rules(|_| {});
            opened(&again(&mut world));
            assert_whole(&world, 0);
        }
    }
}

#[test]
fn without_a_route_an_ended_session_is_left_alone() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ByBoth);
    let before = only(&world);
    ip("route add unreachable 203.0.113.10/32");
    assert_eq!(again(&mut world).reason, Reason::RouteUnreachable);
    assert_eq!(before.forward.entry, only(&world).forward.entry);
}

/// A damaged SYN opens nothing, and a SYN whose time ends here is told so, as with a first packet.
#[test]
fn a_bad_syn_leaves_an_ended_session_alone() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ByBoth);
    let before = only(&world);
    let mut damaged = client(tcp::SYN, AGAIN, 0).build();
    damaged[48] ^= 0x10;
    assert_eq!(world.run(&damaged).reason, Reason::BadChecksum);
    assert_eq!(world.run(&client(tcp::SYN, AGAIN, 0).ttl(1).build()).reason, Reason::TtlExceeded);
    assert_eq!(before.forward.entry, only(&world).forward.entry);
}

/// To the same target, a connection starts over with its port, and by the rule, the route and the
/// counters of now.
#[test]
fn a_connection_to_the_same_target_starts_over() {
    for end in ENDS {
        let mut world = World::new();
        connect_and_end(&mut world, end);
        let before = only(&world);
        world.set_rules(|spec| spec.forwards[0].name = "renamed".to_owned());
        let seen = opened(&again(&mut world));
        assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (TARGET, 8443)), "{end:?}");
        let after = only(&world);
        assert_eq!(after.state(), Some(State::Opening), "{end:?}");
        assert_ne!(before.forward.rule(), after.forward.rule(), "{end:?}");
        assert_eq!(after.forward.rule(), after.reply.rule(), "{end:?}");
        assert_eq!((after.forward.entry.packets, after.reply.entry.packets), (1, 0), "{end:?}");
        assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), 1, "{end:?}");
        let opened =
            |world: &World, rule| world.dataplane.counters.read().expect("counters").rule(rule).opened;
        assert_eq!(opened(&world, before.forward.rule()), 1, "{end:?}");
        assert_eq!(opened(&world, after.forward.rule()), 1, "{end:?}");
        // An acknowledgement in the last connection does not validate resets in this one.
        world.run(&server((TARGET, 8443), 40_000, RST_ACK, 0x9000_0000, AGAIN + 1).build());
        assert_eq!(only(&world).state(), Some(State::Closed), "{end:?}");
        assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), 0, "{end:?}");
        assert_whole(&world, 0);
    }
}

/// The next hop is asked for again, even where its generation has not moved.
#[test]
fn a_reused_tuple_follows_the_current_route() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ByBoth);
    assert_eq!(opened(&again(&mut world)).destination_mac, FIREWALL_MAC);
    world.run(&server((TARGET, 8443), 40_000, RST_ACK, 0, AGAIN + 1).build());
    ip("route add 203.0.113.10/32 via 10.0.2.69");
    assert_eq!(opened(&again(&mut world)).destination_mac, PLS_MAC);
}

/// The addresses and ports that sessions get are those of now.
#[test]
fn an_ended_connection_does_not_keep_its_snat_address_or_port() {
    const SPARE: [u8; 4] = [10, 0, 2, 67];
    let changes: [(Change, _); 2] = [
        (|spec| spec.snat = vec![SPARE.into()], (SPARE, 40_000..=40_000)),
        (|spec| spec.ports = PortRange { first: 2000, last: 2009 }, (ROUTER, 2000..=2009)),
    ];
    for (change, (address, ports)) in changes {
        let mut world = World::new();
        connect_and_end(&mut world, End::ByBoth);
        world.set_rules(change);
        let seen = opened(&again(&mut world));
        assert_eq!((seen.source.0, seen.destination), (address, (TARGET, 8443)));
        assert!(ports.contains(&seen.source.1), "port {}", seen.source.1);
        assert_whole(&world, 1);
    }
}

/// A masquerade keeps the destination: its ended connections start over, unless the rule is gone.
#[test]
fn a_masqueraded_connection_starts_over() {
    let mut world = World::new();
    let from_client = |flags| tcp_packet(CLIENT, (OTHER, 80), flags).numbers(1000, 5001).build();
    world.run(&from_client(tcp::SYN));
    world.run(&server((OTHER, 80), 40_000, RST_ACK, 0, 1001).build());
    let seen = opened(&world.run(&from_client(tcp::SYN)));
    assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (OTHER, 80)));
    world.run(&server((OTHER, 80), 40_000, RST_ACK, 0, 1001).build());
    world.set_rules(|spec| spec.masquerades.clear());
    let ran = world.run(&from_client(tcp::SYN));
    assert_ne!(ran.verdict, Verdict::Tx);
    assert_eq!(only(&world).state(), Some(State::Closed));
}

/// A session that is not over is not opened again, even if the rules have changed.
#[test]
fn a_living_connection_keeps_its_target() {
    let mut world = World::new();
    world.run(&client(tcp::SYN, 1000, 0).build());
    world.set_rules(other_target);
    let goes_to_the_old_target = |world: &mut World, spec: &Spec| {
        let ran = world.run(&spec.build());
        assert_eq!((ran.reason, read(&ran.frame).destination), (Reason::Forwarded, (TARGET, 8443)));
    };
    // Again, since its answer is late.
    goes_to_the_old_target(&mut world, &client(tcp::SYN, 1000, 0));
    // Both at once (RFC 9293 3.5).
    world.run(&server((TARGET, 8443), 40_000, tcp::SYN, 5000, 0).build());
    goes_to_the_old_target(&mut world, &client(SYN_ACK, 1000, 5001));
    world.run(&server((TARGET, 8443), 40_000, SYN_ACK, 5000, 1001).build());
    goes_to_the_old_target(&mut world, &client(tcp::ACK, 1001, 5001));
    assert_eq!(only(&world).state(), Some(State::Established));
    // RFC 5961 4: the server says what it thinks of it, and the client hears that.
    goes_to_the_old_target(&mut world, &client(tcp::SYN, AGAIN, 0));
    let challenge = world.run(&server((TARGET, 8443), 40_000, tcp::ACK, 5001, 1001).build());
    assert_eq!((challenge.reason, read(&challenge.frame).destination), (Reason::Forwarded, CLIENT));
    // Closed on one side only.
    goes_to_the_old_target(&mut world, &client(FIN_ACK, 1001, 5001));
    goes_to_the_old_target(&mut world, &client(tcp::SYN, AGAIN, 0));
    assert_eq!(only(&world).state(), Some(State::Closing));
    // A SYN with a FIN opens nothing (RFC 9293 has no such segment).
    world.run(&server((TARGET, 8443), 40_000, FIN_ACK, 5001, 1002).build());
    goes_to_the_old_target(&mut world, &client(tcp::SYN | tcp::FIN, AGAIN, 0));
    assert_eq!(only(&world).state(), Some(State::Closed));
}

/// The old target may still have the connection: its port is not given to another session until the
/// sweep releases it.
#[test]
fn the_port_towards_the_old_target_is_held() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ResetByClient);
    world.set_rules(|spec| {
        other_target(spec);
        spec.forwards[0].sources.push(network([10, 0, 2, 70], 32));
        let mut old = spec.forwards[0].clone();
        old.name = "old".to_owned();
        old.ports = PortRange { first: 444, last: 444 };
        old.targets = vec![(TARGET.into(), Some(8443))];
        spec.forwards.push(old);
    });
    opened(&again(&mut world));
    ip("neigh replace 10.0.2.70 lladdr 02:00:00:00:00:69 dev eth0 nud permanent");
    let other = |port| tcp_packet(([10, 0, 2, 70], port), (ROUTER, 444), tcp::SYN).build();
    let seen = opened(&world.run(&other(40_000)));
    assert_eq!(seen.destination, (TARGET, 8443));
    assert_ne!(seen.source.1, 40_000, "the old connection's port");
    assert_whole(&world, 1);

    // Held flows are shown, with the time of their last packet; the one that is let go is free
    // again.
    let mut shown = Vec::new();
    sweep(&world, |flow| {
        if flow.is_held() {
            shown.push((flow.key.source, flow.key.destination_port, flow.direction()));
            return dataplane::Verdict::Remove;
        }
        dataplane::Verdict::Keep
    });
    assert_eq!(shown, [(Ipv4(TARGET), Port::new(40_000), Direction::Reply)]);
    assert_whole(&world, 0);
    world.dataplane.flows.for_each(|session| {
        if session.forward.key.source == Ipv4([10, 0, 2, 70]) {
            world.dataplane.flows.remove(session).expect("removal");
        }
        true
    });
    assert_eq!(opened(&world.run(&other(40_000))).source.1, 40_000);
}

/// A late packet of the old target could open a session by a rule if its tuple were not held. It
/// belongs to no session.
#[test]
fn a_late_packet_to_a_held_port_opens_nothing() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ByBoth);
    world.set_rules(|spec| {
        other_target(spec);
        // Its port is one that a rule listens on by now, and its target may use the rule.
        let mut rule = spec.forwards[0].clone();
        rule.name = "overlap".to_owned();
        rule.ports = PortRange { first: 40_000, last: 40_000 };
        rule.sources = vec![network(TARGET, 32)];
        spec.forwards.push(rule);
    });
    opened(&again(&mut world));
    for flags in [tcp::SYN, SYN_ACK, FIN_ACK] {
        let ran = world.run(&server((TARGET, 8443), 40_000, flags, 5001, 1001).build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::LocalDenied), "{flags:#x}");
    }
    assert_eq!(world.sessions(), 1);
}

/// A port is free at once where many are held already, and its mark in the target's pool goes.
#[test]
fn the_number_of_held_ports_is_bounded() {
    const SESSIONS: u32 = 1024;
    const CLIENTS: u16 = 400;
    let ports = PortRange { first: 30_000, last: 30_999 };
    let mut world = World::with(Setup { ports, sessions: SESSIONS, ..Setup::default() });
    let end = |world: &mut World, target: ([u8; 4], u16)| {
        for number in 0..CLIENTS {
            let syn = tcp_packet((PLS, 2000 + number), (ROUTER, 443), tcp::SYN).numbers(1000, 0);
            let seen = opened(&world.run(&syn.build()));
            assert_eq!(seen.destination, target);
            let refusal = server(target, seen.source.1, RST_ACK, 0, 1001);
            assert_eq!(world.run(&refusal.build()).reason, Reason::Forwarded);
        }
    };
    end(&mut world, (TARGET, 8443));
    world.set_rules(|spec| {
        other_target(spec);
        spec.ports = ports;
    });
    end(&mut world, (OTHER, 9443));
    assert_eq!(world.sessions(), usize::from(CLIENTS));
    assert_whole(&world, u64::from(SESSIONS / 8));
    // The next sweep counts them, and with it others may be held.
    sweep(&world, |flow| if flow.is_held() { dataplane::Verdict::Remove } else { dataplane::Verdict::Keep });
    assert_whole(&world, 0);
    world.set_rules(|spec| spec.ports = ports);
    end(&mut world, (TARGET, 8443));
    assert_whole(&world, u64::from(SESSIONS / 8));
}

#[test]
fn a_reopened_session_counts_as_half_open() {
    // In its place, and to another target.
    for changes_target in [false, true] {
        let mut world = World::with(Setup { half_open_per_source: 2, ..Setup::default() });
        connect_and_end(&mut world, End::ByBoth);
        let attempt = |port| tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build();
        for port in [50_000, 50_001] {
            assert_eq!(world.run(&attempt(port)).reason, Reason::Opened);
        }
        if changes_target {
            world.set_rules(other_target);
        }
        // An older attempt makes room for it, and it for others.
        assert_eq!(again(&mut world).reason, Reason::OpenedInPlace);
        assert_eq!((world.sessions(), world.dataplane.flows.half_open(Ipv4(PLS))), (2, 2));
        assert_eq!(world.run(&attempt(50_001)).reason, Reason::Forwarded, "the younger one is still there");
        assert_eq!(world.run(&attempt(50_002)).reason, Reason::OpenedInPlace);
        assert_eq!(world.run(&attempt(50_003)).reason, Reason::OpenedInPlace);
        assert_eq!((world.sessions(), world.dataplane.flows.half_open(Ipv4(PLS))), (2, 2));
        assert_eq!(again(&mut world).reason, Reason::OpenedInPlace, "a new session");
        // Opened by the client's acknowledgement, another attempt's place is free.
        let target = if changes_target { (OTHER, 9443) } else { (TARGET, 8443) };
        world.run(&server(target, 50_003, SYN_ACK, 5000, 1001).build());
        world.run(&tcp_packet((PLS, 50_003), (ROUTER, 443), tcp::ACK).numbers(1001, 5001).build());
        assert_eq!(world.run(&attempt(50_004)).reason, Reason::Opened);
        assert_eq!((world.sessions(), world.dataplane.flows.half_open(Ipv4(PLS))), (3, 2));
    }
}

/// A session that moves takes over its place: a full table does not keep it from that.
#[test]
fn a_tuple_is_reused_even_if_the_table_is_full() {
    let mut world = World::with(Setup { sessions: 1024, ..Setup::default() });
    connect_and_end(&mut world, End::ByBoth);
    while world.dataplane.flows.sessions() < 1024 {
        let port = 2000 + world.dataplane.flows.sessions() as u16;
        world.run(&tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build());
    }
    assert_eq!(world.run(&tcp_packet((PLS, 9), (ROUTER, 443), tcp::SYN).build()).reason, Reason::TableFull);
    opened(&again(&mut world));
    world.run(&server((TARGET, 8443), 40_000, RST_ACK, 0, AGAIN + 1).build());
    world.set_rules(other_target);
    assert_eq!(opened(&again(&mut world)).destination, (OTHER, 9443));
    assert_eq!(world.dataplane.flows.sessions(), 1024);
}

/// Without a port to the new target, the client is refused, and no half of a session is left.
#[test]
fn a_reused_tuple_without_a_port_to_the_new_target_is_refused() {
    let ports = PortRange { first: 40_000, last: 40_000 };
    let mut world = World::with(Setup { ports, ..Setup::default() });
    connect_and_end(&mut world, End::ByBoth);
    world.run(&tcp_packet(CLIENT, (OTHER, 9443), tcp::SYN).build());
    world.set_rules(|spec| {
        other_target(spec);
        spec.ports = ports;
    });
    assert_eq!(again(&mut world).reason, Reason::PortsExhausted);
    assert_eq!((world.sessions(), world.entries()), (1, 2));
    assert_whole(&world, 1);
    assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), 1, "the other client's");
}

/// A tight loop on one tuple, of a rule with several targets: what it leaves in quarantine does not
/// grow with its rounds.
#[test]
fn a_tight_loop_over_one_tuple_takes_no_room() {
    const ROUNDS: u32 = 20_000;
    let mut world = World::with(Setup { rules: two_targets, ..Setup::default() });
    let mut refused_by = [0; 2];
    let mut round = |world: &mut World| {
        let (verdict, frame) = world.run_quietly(&client(tcp::SYN, AGAIN, 0).build());
        assert_eq!(verdict, Verdict::Tx);
        let seen = read(&frame);
        refused_by[usize::from(seen.destination.0 == OTHER)] += 1;
        world.run_quietly(&server(seen.destination, seen.source.1, RST_ACK, 0, AGAIN + 1).build());
    };
    for _ in 0..ROUNDS {
        round(&mut world);
    }
    let audit = world.dataplane.flows.audit().expect("an audit");
    println!("after {ROUNDS} rounds: {} slots in quarantine, {} held", audit.retired, audit.held);
    assert!(audit.retired + audit.held <= 8, "{audit:?}");
    let moved = world.moved();
    let count = |reason| moved.reasons.iter().find(|(known, _)| *known == reason).map(|(_, count)| *count);
    assert_eq!(count(Reason::Opened), Some(u64::from(ROUNDS)), "{moved:?}");
    assert_eq!(world.sessions(), 1);
    assert_whole(&world, audit.held);
}

/// Each connection is spread anew, once the last has had its time.
#[test]
fn a_reused_tuple_is_spread_over_the_current_targets() {
    const TUPLES: u16 = 200;
    let mut world = World::new();
    for number in 0..TUPLES {
        world.run(&tcp_packet((PLS, 2000 + number), (ROUTER, 443), tcp::SYN).numbers(1000, 0).build());
        world.run(&server((TARGET, 8443), 2000 + number, RST_ACK, 0, 1001).build());
    }
    world.set_rules(two_targets);
    let mut opened_last = None;
    world.dataplane.flows.for_each(|session| {
        opened_last = opened_last.max(Some(session.forward.entry.opened));
        true
    });
    let settled = |now: u32| now.wrapping_sub(opened_last.expect("sessions").0) >= SETTLED;
    let start = Instant::now();
    while !settled(dataplane::now().0) {
        assert!(start.elapsed() < Duration::from_secs(30), "the clock stands still");
        std::thread::sleep(Duration::from_millis(20));
    }
    let to_other = (0..TUPLES)
        .filter(|number| {
            let syn = tcp_packet((PLS, 2000 + number), (ROUTER, 443), tcp::SYN).numbers(1000, 0);
            opened(&world.run(&syn.build())).destination == (OTHER, 9443)
        })
        .count();
    // Less than one in a million runs is further off the middle.
    assert!((60..=140).contains(&to_other), "{to_other} of {TUPLES}");
    assert_whole(&world, to_other as u64);
}

/// A connection of this machine's own from the session's port ends the session, also where it is
/// the only sign: the next one gets another port.
#[test]
fn a_port_that_this_machine_has_taken_is_not_used_again() {
    let mut world = World::new();
    connect_and_end(&mut world, End::ByBoth);
    let _listener = std::net::TcpListener::bind(("0.0.0.0", 40_000)).expect("a socket");
    let seen = opened(&again(&mut world));
    assert_eq!(seen.destination, (TARGET, 8443));
    assert_ne!(seen.source.1, 40_000);
    assert_whole(&world, 1);
}

const PORTS: u16 = 30_000;
/// From here on, every client's port is kept if it is free (`router_common::ports::SourcePorts`).
const FIRST: u16 = 20_000;

fn syn_of(number: u16) -> Vec<u8> {
    tcp_packet((PLS, FIRST + number), (ROUTER, 443), tcp::SYN).numbers(AGAIN, 0).build()
}

/// Sessions that the target has refused, all of them over.
fn ended(program: &Program) {
    for number in 0..PORTS {
        program.run(&tcp_packet((PLS, FIRST + number), (ROUTER, 443), tcp::SYN).numbers(1000, 0).build());
        program.run(&server((TARGET, 8443), FIRST + number, RST_ACK, 0, 1001).build());
    }
}

/// The properties that hold for any interleaving of two CPUs, or of a CPU and the sweep.
#[track_caller]
fn assert_all_opened_once(world: &mut World) {
    let sessions = world.sessions();
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{} half, {} twice, {} leaked",
        audit.half_sessions.len(),
        audit.twice.len(),
        audit.leaked_ports.len()
    );
    let mut opening = 0;
    world.dataplane.flows.for_each(|session| {
        opening += u32::from(session.forward.is_opening());
        true
    });
    assert_eq!(world.dataplane.flows.half_open(Ipv4(PLS)), opening, "half-open, of {sessions}");
}

/// The number of SYNs that were dropped because another CPU was at work in the same place: the
/// client's next attempt does better.
fn contended(world: &mut World) -> usize {
    let moved = world.moved().reasons;
    moved.iter().find(|(reason, _)| *reason == Reason::Contended).map_or(0, |(_, count)| *count as usize)
}

/// The same SYN on two CPUs at once: one of them takes the session over.
#[test]
fn two_cpus_open_a_connection_again_at_once() {
    for change in [(|_| {}) as Change, other_target] {
        let mut world = World::with(Setup { sessions: 100_000, ..Setup::default() });
        let program = world.program();
        ended(&program);
        world.set_rules(change);
        world.moved();
        at_once(&program, PORTS, |number| [syn_of(number), syn_of(number)]);
        assert_all_opened_once(&mut world);
        let lost = usize::from(PORTS) - world.sessions();
        let contended = contended(&mut world);
        println!("{lost} of {PORTS} are gone, {contended} SYNs were contended");
        assert!(2 * lost <= contended && lost < 300, "{lost} are lost, {contended} SYNs were contended");
        let mut wrong = 0;
        world.dataplane.flows.for_each(|session| {
            wrong += u32::from(session.state() != Some(State::Opening));
            true
        });
        assert_eq!(wrong, 0, "of {PORTS} are not opening");
    }
}

/// The client's SYN beside a refusal of its last one that comes once more.
#[test]
fn a_connection_is_opened_again_beside_a_late_packet() {
    for moves in [false, true] {
        let mut world = World::with(Setup { sessions: 100_000, ..Setup::default() });
        let program = world.program();
        ended(&program);
        world.set_rules(|spec| {
            if moves {
                other_target(spec);
            }
        });
        at_once(&program, PORTS, |number| {
            [syn_of(number), server((TARGET, 8443), FIRST + number, RST_ACK, 0, 1001).build()]
        });
        assert_eq!(world.sessions(), usize::from(PORTS));
        assert_all_opened_once(&mut world);
        let target = if moves { OTHER } else { TARGET };
        let mut wrong = 0;
        world.dataplane.flows.for_each(|Session { forward, .. }| {
            let leads_there = forward.entry.rewrite.destination == Ipv4(target);
            wrong += u32::from(!leads_there || forward.entry.packets != 1);
            true
        });
        assert_eq!(wrong, 0, "of {PORTS} are not opened again, or not to {target:?}");
    }
}

/// Sweeps that remove every session which is over, beside SYNs that open them again.
#[test]
fn sweeps_and_syns_at_the_same_time_lose_no_session() {
    for change in [(|_| {}) as Change, other_target] {
        let mut world = World::with(Setup { sessions: 100_000, ..Setup::default() });
        let program = world.program();
        ended(&program);
        world.set_rules(change);
        let (flows, done) = (world.dataplane.flows.clone(), AtomicBool::new(false));
        let generation = world.dataplane.settings.current().next_hop_generation;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let judge = |flow: &dataplane::Flow| match flow.direction() {
                        Direction::Forward if flow.seen().is_over() => dataplane::Verdict::Remove,
                        Direction::Forward | Direction::Reply => dataplane::Verdict::Keep,
                    };
                    flows.sweep(generation, 0, judge).expect("a sweep");
                }
            });
            // From the end on, as the sweep goes.
            for number in 0..PORTS {
                program.run(&syn_of(number));
            }
            done.store(true, Ordering::SeqCst);
        });
        assert_all_opened_once(&mut world);
        // One that a sweep has judged before its SYN came, and removes after it, is the client's to
        // open again.
        let sessions = world.sessions();
        assert!(sessions > usize::from(PORTS) - 1000, "{sessions} are left");
    }
}
