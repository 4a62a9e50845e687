//! `[[masquerade]]` rules.

use router_common::reason::Reason;

use crate::{
    packets::{
        FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, STRANGER, echo_reply, echo_request, read, tcp, tcp_packet,
        udp_packet,
    },
    world::{Setup, Verdict, World, network},
};

#[test]
fn the_destination_stays_and_the_source_becomes_the_routers() {
    let mut world = World::new();
    let ran = world.run(&tcp_packet((PLS, 40_000), (OTHER, 22), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (OTHER, 22)));
    assert_eq!(seen.destination_mac, FIREWALL_MAC);
    let ran = world.run(&tcp_packet((OTHER, 22), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build());
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((OTHER, 22), (PLS, 40_000)));
    assert_eq!(seen.destination_mac, PLS_MAC);
}

#[test]
fn echo_is_translated_by_its_identifier() {
    let mut world = World::new();
    let first = world.run(&echo_request(PLS, OTHER, 77).build());
    assert_eq!((first.verdict, first.reason), (Verdict::Tx, Reason::Opened));
    // Below the port range: not kept.
    let seen = read(&first.frame);
    assert_eq!(seen.source.0, ROUTER);
    assert_ne!(seen.source.1, 77);
    let identifier = seen.source.1;
    let ran = world.run(&echo_reply(OTHER, ROUTER, identifier).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((OTHER, 0), (PLS, 77)));
}

#[test]
fn an_echo_reply_opens_no_session() {
    let mut world = World::new();
    let ran = world.run(&echo_reply(PLS, OTHER, 77).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NoSession));
    let ran = world.run(&echo_reply(PLS, OTHER, 0).build());
    assert_eq!(
        (ran.verdict, ran.reason),
        (Verdict::Drop, Reason::LocalDenied),
        "not an echo that can be translated"
    );
}

#[test]
fn echo_identifier_zero_is_translated() {
    let mut world = World::new();
    let ran = world.run(&echo_request(PLS, OTHER, 0).build());
    assert_eq!(ran.reason, Reason::Opened);
    let identifier = read(&ran.frame).source.1;
    assert_ne!(identifier, 0);
    let ran = world.run(&echo_reply(OTHER, ROUTER, identifier).build());
    assert_eq!(read(&ran.frame).destination, (PLS, 0));
}

#[test]
fn only_matching_sources_and_destinations_are_masqueraded() {
    let mut world = World::with(Setup {
        rules: |spec| spec.masquerades[0].destinations = vec![network([198, 51, 100, 0], 24)],
        ..Setup::default()
    });
    let ran = world.run(&udp_packet((PLS, 5000), (OTHER, 53), b"in").build());
    assert_eq!(ran.reason, Reason::Opened);
    let ran = world.run(&udp_packet((STRANGER, 5000), (OTHER, 53), b"out").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched));
    let ran = world.run(&udp_packet((PLS, 5000), ([203, 0, 113, 99], 53), b"out").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::LocalDenied));
}

#[test]
fn the_first_pair_that_matches_wins() {
    let mut world = World::with(Setup {
        rules: |spec| {
            let mut narrow = spec.masquerades[0].clone();
            narrow.name = "narrow".to_owned();
            narrow.destinations = vec![network([198, 51, 100, 0], 24)];
            spec.masquerades.insert(0, narrow);
        },
        ..Setup::default()
    });
    world.run(&udp_packet((PLS, 5000), (OTHER, 53), b"in").build());
    world.run(&udp_packet((PLS, 5000), ([203, 0, 113, 99], 53), b"out").build());
    let stats = world.dataplane.counters.read().expect("counters");
    let opened = |name| stats.rule(world.dataplane.rules.number(name).expect("a rule")).opened;
    assert_eq!((opened("narrow"), opened("vnet")), (1, 1));
}

#[test]
fn multicast_and_broadcast_pass_to_the_kernel() {
    let mut world = World::new();
    for destination in [[224, 0, 0, 251], [239, 1, 2, 3], [255, 255, 255, 255]] {
        let ran = world.run(&udp_packet((STRANGER, 5353), (destination, 5353), b"who").build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched), "{destination:?}");
        let ran = world.run(&udp_packet((PLS, 5353), (destination, 5353), b"who").build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::LocalDenied), "{destination:?}");
    }
}
