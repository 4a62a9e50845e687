//! The limit on the opening sessions of a source, and the one of them that makes room for another.

use std::time::Instant;

use router_common::{
    address::Ipv4,
    maps::{
        half_open::half_open_slot,
        openings::{MAX_ANSWERED, MAX_NOTES, NOTES, RINGS, rate},
    },
    ports::PortRange,
    reason::Reason,
    session::State,
    table::source_hash,
};
use router_user::dataplane::Session;

use crate::{
    packets::{OTHER, PLS, ROUTER, TARGET, read, tcp, tcp_packet, udp_packet},
    world::{Setup, Verdict, World, ip, network, stay_on},
};

/// Another client.
const NEIGHBOUR: [u8; 4] = [10, 0, 2, 70];

/// A table in which more than a thousand sessions may make room at once: a fast machine does not
/// meet the rate then.
const ROOMY: u32 = 1 << 18;
/// A table so large that the sessions of a test stay below the rate of replacements.
const SESSIONS: u32 = 65_536;

/// A router with a masquerade, by which every host of the link may have this many half-open
/// sessions.
fn world(half_open_per_source: u32) -> World {
    world_with(Setup { half_open_per_source, sessions: SESSIONS, ..Setup::default() })
}

fn world_with(setup: Setup) -> World {
    let world = World::with(Setup {
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)],
        ..setup
    });
    ip("neigh replace 10.0.2.70 lladdr 02:00:00:00:00:70 dev eth0 nud permanent");
    world
}

fn syn_to(target: [u8; 4], port: u16) -> Vec<u8> {
    tcp_packet((PLS, port), (target, 443), tcp::SYN).build()
}

fn syn(port: u16) -> Vec<u8> {
    syn_to(OTHER, port)
}

/// The target's answer to a session whose port was kept.
fn answer(target: [u8; 4], port: u16) -> Vec<u8> {
    tcp_packet((target, 443), (ROUTER, port), tcp::SYN | tcp::ACK).numbers(5000, 1001).build()
}

/// The target's refusal of a session whose port was kept.
fn refusal(target: [u8; 4], port: u16) -> Vec<u8> {
    tcp_packet((target, 443), (ROUTER, port), tcp::RST | tcp::ACK).numbers(0, 1001).build()
}

/// Has a session open whose SYN is there.
fn finish(world: &mut World, target: [u8; 4], port: u16) {
    assert_eq!(world.run(&answer(target, port)).reason, Reason::Forwarded);
    let ack = tcp_packet((PLS, port), (target, 443), tcp::ACK).numbers(1001, 5001).build();
    assert_eq!(world.run(&ack).reason, Reason::Forwarded);
}

fn session(world: &World, port: u16) -> Option<Session> {
    let mut found = None;
    world.dataplane.flows.for_each(|session| {
        let key = &session.forward.key;
        found = (key.source == Ipv4(PLS) && key.source_port.number() == port).then_some(*session);
        found.is_none()
    });
    found
}

fn half_open(world: &World) -> u32 {
    world.dataplane.flows.half_open(Ipv4(PLS))
}

/// The table is whole, no port is lost, and what is counted is what there is.
#[track_caller]
fn assert_whole(world: &World) {
    let audit = world.dataplane.flows.audit().expect("an audit");
    assert!(
        audit.half_sessions.is_empty() && audit.twice.is_empty() && audit.leaked_ports.is_empty(),
        "{audit:?}"
    );
    assert_eq!(audit.flows, 2 * u64::from(audit.sessions), "{audit:?}");
    let mut opening = 0;
    world.dataplane.flows.for_each(|session| {
        let is_theirs = session.forward.key.source == Ipv4(PLS);
        opening += u32::from(is_theirs && session.forward.is_opening());
        true
    });
    assert_eq!(half_open(world), opening, "half-open, as counted");
}

#[test]
fn at_the_limit_the_oldest_half_open_session_is_replaced() {
    let mut world = world(10);
    for port in 2000..2010 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    for port in 2010..2025 {
        let ran = world.run(&syn(port));
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::OpenedInPlace));
        assert!(session(&world, port - 10).is_none() && session(&world, port - 9).is_some(), "{port}");
        assert_eq!((half_open(&world), world.sessions()), (10, 10));
        assert_eq!(world.run(&syn(port - 9)).reason, Reason::Forwarded, "a retransmission opens nothing");
    }
    assert_whole(&world);
    // Its port is free, and the peer that had it is a stranger now.
    assert_eq!(world.run(&answer(OTHER, 2000)).verdict, Verdict::Pass);
    assert_eq!(read(&world.run(&syn(2000)).frame).source, (ROUTER, 2000));
    let other = tcp_packet((NEIGHBOUR, 2000), (OTHER, 443), tcp::SYN).build();
    assert_eq!(world.run(&other).reason, Reason::Opened, "others are not held to it");
}

/// Neither established sessions, of any age, nor answered ones are replaced.
#[test]
fn answered_sessions_are_not_replaced_before_unanswered_ones() {
    let mut world = world(10);
    for port in 2000..2003 {
        world.run(&syn(port));
        finish(&mut world, OTHER, port);
    }
    for port in 3000..3010 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    for port in 3000..3004 {
        assert_eq!(world.run(&answer(OTHER, port)).reason, Reason::Forwarded);
    }
    for port in 10_000..10_100 {
        assert_eq!(world.run(&syn_to(TARGET, port)).reason, Reason::OpenedInPlace);
    }
    for port in 3000..3004 {
        finish(&mut world, OTHER, port);
        assert_eq!(session(&world, port).and_then(|session| session.state()), Some(State::Established));
    }
    for port in 2000..2003 {
        assert_eq!(session(&world, port).and_then(|session| session.state()), Some(State::Established));
    }
    assert_eq!(half_open(&world), 6);
    assert_eq!(world.run(&syn(3100)).reason, Reason::Opened, "and made room by opening");
    assert_whole(&world);
}

/// A client that never acknowledges answers does not lock out others either: its oldest session is
/// replaced.
#[test]
fn if_all_are_answered_the_oldest_is_replaced() {
    let limit = 3 * MAX_ANSWERED as u16;
    let mut world = world(limit.into());
    for port in 2000..2000 + limit {
        world.run(&syn(port));
        world.run(&answer(OTHER, port));
    }
    for port in 2000..2000 + 2 * limit {
        let new = port + limit;
        assert_eq!(world.run(&syn(new)).reason, Reason::OpenedInPlace);
        assert!(session(&world, port).is_none() && session(&world, port + 1).is_some(), "{port}");
        world.run(&answer(OTHER, new));
    }
    assert_whole(&world);
}

/// A refused or reset attempt has no use for its session.
#[test]
fn reset_sessions_are_replaced_before_answered_ones() {
    let mut world = world(3);
    for port in 2000..2003 {
        world.run(&syn(port));
        world.run(&answer(OTHER, port));
    }
    world.run(&tcp_packet((PLS, 2002), (OTHER, 443), tcp::RST).numbers(1001, 0).build());
    assert_eq!(half_open(&world), 3, "who resets has not acknowledged");
    assert_eq!(world.run(&syn(3000)).reason, Reason::OpenedInPlace);
    assert!(session(&world, 2002).is_none() && session(&world, 2000).is_some());
}

#[test]
fn unanswered_udp_sessions_are_replaced_too() {
    let mut world = world(4);
    let query = |port| udp_packet((PLS, port), (OTHER, 53), b"x").build();
    for port in 2000..2004 {
        assert_eq!(world.run(&query(port)).reason, Reason::Opened);
    }
    world.run(&udp_packet((OTHER, 53), (ROUTER, 2000), b"y").build());
    assert_eq!(world.run(&query(2004)).reason, Reason::Opened, "one was answered");
    assert_eq!(world.run(&query(2005)).reason, Reason::OpenedInPlace);
    assert!(session(&world, 2000).is_some() && session(&world, 2001).is_none());
    assert_eq!(world.run(&syn(3000)).reason, Reason::OpenedInPlace, "TCP in the place of UDP");
    assert!(session(&world, 2002).is_none());
    assert_whole(&world);
}

/// A session that its target has refused is over, and does not count as a flood: its client can
/// still open sessions to others.
#[test]
fn a_refused_connection_is_not_half_open() {
    let mut world = world(1);
    assert_eq!(world.run(&syn(2000)).reason, Reason::Opened);
    assert_eq!(world.run(&refusal(OTHER, 2000)).reason, Reason::Forwarded);
    assert_eq!(half_open(&world), 0);
    assert_eq!(world.run(&syn(2001)).reason, Reason::Opened);
    assert!(session(&world, 2000).is_some());
}

/// Notes of sessions that have opened are in the way of few attempts.
#[test]
fn established_sessions_are_not_candidates() {
    const OPENED: u16 = 1000;
    let mut world = world(10);
    for port in 2000..2000 + OPENED {
        world.run(&syn(port));
        finish(&mut world, OTHER, port);
    }
    for port in 10_000..10_010 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    // Fewer than may be replaced at once, on a machine of any speed.
    let refused =
        (10_010..10_200).filter(|port| world.run(&syn(*port)).reason == Reason::HalfOpenLimit).count();
    assert!(refused <= usize::from(OPENED) / MAX_NOTES as usize, "{refused}");
    assert_eq!(world.sessions(), usize::from(OPENED) + 10);
    assert_whole(&world);
}

/// Opens sessions until this many have made room for them: how many were refused before.
fn refused_before(world: &mut World, made_room: usize) -> usize {
    let (mut refused, mut made) = (0, 0);
    for port in 40_000..60_000 {
        let reason = world.run(&syn(port)).reason;
        if reason == Reason::OpenedInPlace {
            made += 1;
        } else {
            assert_eq!(reason, Reason::HalfOpenLimit);
            refused += 1;
            assert!(refused <= 2 * (NOTES / MAX_NOTES) as usize, "none makes room: {made} have");
        }
        if made == made_room {
            break;
        }
    }
    refused
}

/// One client that resets and opens the same connection again and again does not take away what the
/// others behind its address have noted.
#[test]
fn a_session_that_reopens_repeatedly_is_noted_once() {
    let mut world = world(11);
    for port in 2000..2011 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    let reset = tcp_packet((PLS, 2010), (OTHER, 443), tcp::RST).numbers(1001, 0).build();
    for _ in 0..NOTES {
        world.run_quietly(&reset);
        world.run_quietly(&syn(2010));
    }
    world.moved();
    assert_eq!(half_open(&world), 11);
    for port in 2000..2010 {
        assert_eq!(world.run(&syn(port + 10_000)).reason, Reason::OpenedInPlace);
        assert!(session(&world, port).is_none() && session(&world, port + 1).is_some(), "{port}");
    }
    assert_whole(&world);
}

/// Half-open sessions can be found after any number of other sessions.
#[test]
fn notes_of_half_open_sessions_are_not_overwritten() {
    const STANDING: u16 = 10;
    let mut world = world(STANDING.into());
    for port in 2000..2000 + STANDING - 1 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    for number in 0..NOTES as u16 {
        let port = 10_000 + number;
        world.run_quietly(&syn_to(TARGET, port));
        world.run_quietly(&refusal(TARGET, port));
    }
    world.moved();
    assert_eq!(world.run(&syn(2000 + STANDING - 1)).reason, Reason::Opened);
    let refused = refused_before(&mut world, STANDING.into());
    assert!(refused <= (NOTES / MAX_NOTES) as usize, "{refused}");
    for port in 2000..2000 + STANDING {
        assert!(session(&world, port).is_none(), "{port}");
    }
    assert_whole(&world);
}

/// Searches without a candidate do not use up the rate of replacements.
#[test]
fn a_search_without_a_candidate_does_not_count_against_the_rate() {
    const SMALL: u32 = 1024;
    let mut world = world_with(Setup { half_open_per_source: 10, sessions: SMALL, ..Setup::default() });
    let searches = rate(SMALL).burst as u32 + 10;
    for _ in 0..searches * MAX_NOTES {
        world.run_quietly(&syn_to(TARGET, 2000));
        world.run_quietly(&refusal(TARGET, 2000));
    }
    world.moved();
    for port in 3000..3010 {
        assert_eq!(world.run(&syn(port)).reason, Reason::Opened);
    }
    let refused = refused_before(&mut world, 10);
    assert!((searches as usize - 1..=searches as usize).contains(&refused), "{refused} of {searches}");
}

/// Two hosts of the link whose notes are in one ring, but which are counted apart.
fn sharing(world: &World) -> [[u8; 4]; 2] {
    let seeds = world.dataplane.settings.current().seeds;
    let hosts = || (69..127).map(|host| [10, 0, 2, host]);
    let ring = |host| source_hash(&seeds, Ipv4(host)) % RINGS;
    let counter = |host| half_open_slot(&seeds, Ipv4(host));
    hosts()
        .flat_map(|one| hosts().map(move |other| [one, other]))
        .find(|[one, other]| ring(*one) == ring(*other) && counter(*one) != counter(*other))
        .expect("so many hosts and so few rings")
}

/// A source at its limit neither loses the notes of another whose ring it shares, nor is kept from
/// its own by them.
#[test]
fn sources_that_share_a_ring_keep_their_notes() {
    for limit in [10, 2 * MAX_NOTES as u16 + 10] {
        let mut world = world(limit.into());
        let sources = sharing(&world);
        let from = |source, port| tcp_packet((source, port), (OTHER, 443), tcp::SYN).build();
        for (number, source) in (0..).zip(sources) {
            for port in 0..limit {
                let frame = from(source, 2000 + 10_000 * number + port);
                assert_eq!(world.run(&frame).reason, Reason::Opened);
            }
        }
        let mut refused = 0;
        // The last source first: all notes of the other come before its own.
        for (round, source) in (0..).zip([sources[1], sources[0], sources[1], sources[0]]) {
            // No more than may make room at once.
            for port in 0..limit.min(60) {
                let port = 30_000 + 1000 * round + port;
                let reason = world.run(&from(source, port)).reason;
                assert!(matches!(reason, Reason::OpenedInPlace | Reason::HalfOpenLimit), "{reason:?}");
                refused += usize::from(reason == Reason::HalfOpenLimit);
            }
        }
        assert!(refused <= 4 * usize::from(limit) / MAX_NOTES as usize, "{refused} refused at {limit}");
        assert_eq!(world.sessions(), 2 * usize::from(limit));
        assert_whole(&world);
    }
}

/// Ports of sessions that have made room are given out again where ports are few, with the pool of
/// their target and without.
#[test]
fn ports_of_replaced_sessions_are_given_out_again() {
    for size in [16, 200] {
        let ports = PortRange { first: 30_000, last: 30_000 + size - 1 };
        let limit = u32::from(size) / 2;
        let mut world =
            world_with(Setup { half_open_per_source: limit, sessions: ROOMY, ports, ..Setup::default() });
        for port in 0..limit {
            assert_eq!(world.run(&syn(2000 + port as u16)).reason, Reason::Opened, "{port} of {size}");
        }
        // Nearly all others: of 200, some are of neither's share.
        let others = (0..limit)
            .map(|port| tcp_packet((NEIGHBOUR, 1000 + port as u16), (OTHER, 443), tcp::SYN).build())
            .take_while(|frame| world.run(frame).reason == Reason::Opened)
            .count() as u32;
        assert!(others >= limit - limit / 8, "{others} of {limit}");
        for port in limit as u16..400 {
            assert_eq!(world.run(&syn(2000 + port)).reason, Reason::OpenedInPlace, "{port} of {size}");
        }
        assert_eq!((world.sessions() as u32, half_open(&world)), (limit + others, limit));
        assert_whole(&world);
    }
}

/// Replaced sessions leave slots in quarantine. A flood does not fill the table with them.
#[test]
fn a_flood_is_refused_beyond_a_rate() {
    const SMALL: u32 = 1024;
    let mut world = world_with(Setup { half_open_per_source: 100, sessions: SMALL, ..Setup::default() });
    let rate = rate(SMALL);
    let start = Instant::now();
    let mut opened = 0;
    for port in 2000..20_000 {
        opened += u64::from(world.run_quietly(&syn(port)).0 == Verdict::Tx);
    }
    let most = 100 + rate.burst + start.elapsed().as_nanos() as u64 / rate.interval + 1;
    assert!((100 + rate.burst..=most).contains(&opened), "{opened} of {most}");
    let reasons = world.moved().reasons;
    assert!(reasons.iter().any(|(reason, _)| *reason == Reason::HalfOpenLimit), "{reasons:?}");
    assert!(
        reasons.iter().all(|(reason, _)| !matches!(reason, Reason::TableFull | Reason::Contended)),
        "{reasons:?}"
    );
    assert_eq!((world.sessions(), half_open(&world)), (100, 100));
    let other = tcp_packet((NEIGHBOUR, 2000), (OTHER, 443), tcp::SYN).build();
    assert_eq!(world.run(&other).reason, Reason::Opened);
    assert_whole(&world);
}

/// Two CPUs flood from one address, to a target that answers and to one that does not: the limit is
/// what it is, and nothing is lost or half.
#[test]
fn two_cpus_at_the_limit_stay_within_it() {
    const LIMIT: u32 = 50;
    const EACH: u16 = 6000;
    let mut world = world_with(Setup { half_open_per_source: LIMIT, sessions: ROOMY, ..Setup::default() });
    let program = world.program();
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for cpu in 0..2_u16 {
            let (program, barrier) = (&program, &barrier);
            scope.spawn(move || {
                stay_on(usize::from(cpu));
                barrier.wait();
                for number in 0..EACH {
                    let port = 2000 + cpu * EACH + number;
                    let target = [OTHER, TARGET][usize::from(number % 2)];
                    program.run(&syn_to(target, port));
                    if target == TARGET {
                        program.run(&answer(target, port));
                    }
                    if number % 10 == 1 {
                        program.run(
                            &tcp_packet((PLS, port), (target, 443), tcp::ACK).numbers(1001, 5001).build(),
                        );
                    }
                }
            });
        }
    });
    let reasons = world.moved().reasons;
    assert!(
        reasons.iter().any(|(reason, times)| *reason == Reason::OpenedInPlace && *times > 1000),
        "{reasons:?}"
    );
    assert_eq!(half_open(&world), LIMIT);
    assert_whole(&world);
}
