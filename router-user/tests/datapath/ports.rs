//! SNAT ports: kept when free, never shared, and exhaustion that says so.

use std::collections::HashSet;

use router_common::{ports::PortRange, reason::Reason};

use crate::{
    packets::{OTHER, PLS, ROUTER, read, tcp, tcp_packet, udp_packet},
    world::{Setup, Verdict, World, ip, network},
};

/// Every host of the link may use the masquerade; 10.0.2.70 is one of them.
fn open_masquerade(setup: Setup) -> World {
    let world = World::with(Setup {
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)],
        ..setup
    });
    ip("neigh replace 10.0.2.70 lladdr 02:00:00:00:00:70 dev eth0 nud permanent");
    world
}

#[test]
fn the_clients_port_is_kept_when_it_is_free_and_changed_when_not() {
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
fn several_addresses_are_all_used() {
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
