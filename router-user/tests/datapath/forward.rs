//! `[[forward]]` rules.

use std::net::Ipv4Addr;

use router_common::{maps::punt::Kind, ports::PortRange, reason::Reason};

use crate::{
    packets::{
        FIREWALL, FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, ROUTER_SECOND, STRANGER, Seen, TARGET,
        echo_request, read, tcp, tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World, ip, mac, network, next},
};

const CLIENT: ([u8; 4], u16) = (PLS, 40_000);

#[test]
fn a_tcp_session_goes_out_and_comes_back() {
    let mut world = World::new();
    let syn = tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN);
    let ran = world.run(&syn.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    assert_eq!(
        read(&ran.frame),
        Seen {
            destination_mac: FIREWALL_MAC,
            source: (ROUTER, 40_000),
            destination: (TARGET, 8443),
            ttl: 63,
            payload: vec![],
        }
    );
    assert_eq!((world.sessions(), world.entries()), (1, 2));

    let ran = world.run(&tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    assert_eq!(
        read(&ran.frame),
        Seen {
            destination_mac: PLS_MAC,
            source: (ROUTER, 443),
            destination: CLIENT,
            ttl: 63,
            payload: vec![],
        }
    );

    let data = tcp_packet(CLIENT, (ROUTER, 443), tcp::ACK | tcp::PSH).payload(b"odd");
    let ran = world.run(&data.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    assert_eq!(read(&ran.frame).payload, b"odd");
    assert_eq!((world.sessions(), world.entries()), (1, 2));
}

#[test]
fn udp_keeps_the_port_when_the_target_has_none() {
    let mut world = World::new();
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"query");
    let ran = world.run(&query.build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((ROUTER, 5000), (TARGET, 53)));
    let ran = world.run(&udp_packet((TARGET, 53), (ROUTER, 5000), b"answer").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
    let seen = read(&ran.frame);
    assert_eq!((seen.source, seen.destination), ((ROUTER, 53), (PLS, 5000)));
}

#[test]
fn a_port_range_takes_its_ports_and_no_others() {
    let mut world = World::new();
    for (port, reason) in [
        (7999, Reason::LocalDenied),
        (8000, Reason::Opened),
        (8005, Reason::Opened),
        (8010, Reason::Opened),
        (8011, Reason::LocalDenied),
    ] {
        let ran = world.run(&tcp_packet(CLIENT, (ROUTER, port), tcp::SYN).build());
        assert_eq!(ran.reason, reason, "port {port}");
        if reason == Reason::Opened {
            assert_eq!(read(&ran.frame).destination, (TARGET, port));
        }
    }
}

#[test]
fn a_rule_for_one_address_comes_before_one_for_all() {
    let mut world = World::with(Setup {
        rules: |spec| {
            let mut specific = spec.forwards[0].clone();
            specific.name = "specific".to_owned();
            specific.address = Some(ROUTER.into());
            specific.targets = vec![(crate::world::other_server().into(), None)];
            spec.forwards.push(specific);
        },
        ..Setup::default()
    });
    let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!(read(&ran.frame).destination, (crate::world::other_server(), 443));
}

#[test]
fn strangers_are_dropped_and_counted() {
    let mut world = World::new();
    let frame = tcp_packet((STRANGER, 40_000), (ROUTER, 443), tcp::SYN).build();
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::SourceNotAllowed));
    assert_eq!(ran.frame, frame, "a dropped packet is untouched");
    assert_eq!(world.entries(), 0);
}

/// Only its target reaches a session's client: filtering is by address and port (RFC 4787 REQ-8).
#[test]
fn a_snat_port_accepts_only_packets_of_its_session() {
    let mut world = World::new();
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"query").build();
    for opens in [tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build(), query] {
        assert_eq!(world.run(&opens).reason, Reason::Opened);
    }
    let entries = world.entries();
    for (source, port) in [(OTHER, 8443), (TARGET, 8444), (FIREWALL, 8443), (STRANGER, 53), (PLS, 8443)] {
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
            let ran = world.run(&tcp_packet((source, port), (ROUTER, 40_000), flags).build());
            assert!(matches!(ran.verdict, Verdict::Pass | Verdict::Drop), "{source:?} {flags:#x}");
        }
        let ran = world.run(&udp_packet((source, port), (ROUTER, 5000), b"not an answer").build());
        assert!(matches!(ran.verdict, Verdict::Pass | Verdict::Drop), "{source:?}: {ran:?}");
    }
    assert_eq!(world.entries(), entries);
    for answer in [
        tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build(),
        udp_packet((TARGET, 53), (ROUTER, 5000), b"answer").build(),
    ] {
        assert_eq!(world.run(&answer).reason, Reason::Forwarded);
    }
}

#[test]
fn tcp_without_a_session_is_the_kernels_to_reset() {
    let mut world = World::new();
    for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK, 0] {
        let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), flags).build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NoSession), "flags {flags:#x}");
    }
    assert_eq!(world.entries(), 0);
}

#[test]
fn a_retransmitted_syn_opens_nothing_new() {
    let mut world = World::new();
    let syn = tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build();
    let first = world.run(&syn);
    let second = world.run(&syn);
    assert_eq!(second.reason, Reason::Forwarded);
    assert_eq!(first.frame, second.frame);
    assert_eq!(world.entries(), 2);
}

#[test]
fn two_interfaces_redirect_between_them() {
    let mut world = World::with(Setup { nics: 2, snat: vec![[10, 0, 3, 4]], ..Setup::default() });
    world.dataplane.set_egress(0, "eth0").expect("egress");
    world.dataplane.set_egress(1, "eth1").expect("egress");
    world
        .dataplane
        .local_addresses
        .set(&[ROUTER.into(), [10, 0, 3, 4].into()].into(), &[].into())
        .expect("addresses");
    let ran = world.run_on(0, &tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Redirect, Reason::Opened));
    assert_eq!(read(&ran.frame).source, ([10, 0, 3, 4], 40_000));
    let ran =
        world.run_on(1, &tcp_packet((TARGET, 8443), ([10, 0, 3, 4], 40_000), tcp::SYN | tcp::ACK).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Redirect, Reason::Forwarded));
    assert_eq!(read(&ran.frame).destination, CLIENT);
}

#[test]
fn an_unattached_egress_interface_is_not_used() {
    let mut world = World::new();
    ip("link add other type veth peer name elsewhere");
    ip("link set other up");
    ip("link set elsewhere up");
    ip("addr add 192.0.2.1/24 dev other");
    ip("route add 203.0.113.0/24 via 192.0.2.2");
    ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:09 dev other nud permanent");
    let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::EgressNotAttached));
    assert_eq!(world.entries(), 0);
}

#[test]
fn without_a_route_no_session_opens() {
    for (route, reason) in [
        ("unreachable 203.0.113.0/24", Reason::RouteUnreachable),
        ("blackhole 203.0.113.0/24", Reason::RouteBlackhole),
        ("prohibit 203.0.113.0/24", Reason::RouteProhibited),
        ("throw 203.0.113.0/24", Reason::NoRoute),
    ] {
        std::thread::spawn(move || {
            let mut world = World::new();
            ip(&format!("route add {route}"));
            let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
            // A throw ends the look-up in its table, which is the last one.
            assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, reason), "{route}");
            assert_eq!(world.entries(), 0);
        })
        .join()
        .expect("the case holds");
    }
}

#[test]
fn disabled_route_lookups_have_their_own_reason() {
    let mut world = World::new();
    std::fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", "0").expect("sysctl");
    let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::RouteLookupsOff));
}

/// Ethernet's padding only decides which program handles the frame.
#[test]
fn padding_does_not_change_the_result() {
    let mut world = World::new();
    for length in 0..14 {
        let payload = &[0xff; 14][..length];
        let packets = [
            udp_packet((PLS, 6000), (ROUTER, 53), payload),
            udp_packet((PLS, 6000), (ROUTER, 53), payload).without_checksum(),
            echo_request(PLS, OTHER, 77).payload(payload),
        ];
        for packet in packets {
            world.run(&packet.build());
            let padded = world.run(&packet.build());
            let bare = world.run(&packet.unpadded().build());
            assert_eq!((padded.reason, bare.reason), (Reason::Forwarded, Reason::Forwarded));
            assert_eq!(bare.frame.len(), 14 + 20 + 8 + length);
            assert!(padded.frame.starts_with(&bare.frame), "{length} bytes: {padded:?} {bare:?}");
        }
    }
    let mut packets = Vec::new();
    world.dataplane.flows.for_each(|session| {
        packets.push(session.forward.entry.packets);
        true
    });
    packets.sort_unstable();
    assert_eq!(packets, [14 * 3, 14 * 3 * 2]);
    let number = |name| world.dataplane.rules.number(name).expect("a rule");
    let stats = world.dataplane.counters.read().expect("counters");
    assert_eq!(stats.rule(number("dns")).forward.packets, 14 * 3 * 2);
    assert_eq!(stats.rule(number("vnet")).forward.packets, 14 * 3);
}

#[test]
fn a_changed_next_hop_is_used_from_the_next_packet_on() {
    let mut world = World::new();
    // One program makes the packets of the one, and another one those of the other.
    let query = |port| udp_packet((PLS, port), (ROUTER, 53), b"query");
    let [long, short] = [query(5000).build(), query(5001).unpadded().build()];
    let check = |world: &mut World, mac: [u8; 6], when: &str| {
        for query in [&long, &short] {
            assert_eq!(read(&world.run(query).frame).destination_mac, mac, "{when}, {} bytes", query.len());
        }
    };
    check(&mut world, FIREWALL_MAC, "at first");
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:ff dev eth0 nud permanent");
    check(&mut world, FIREWALL_MAC, "cached");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    check(&mut world, [2, 0, 0, 0, 0, 0xff], "resolved again");
}

#[test]
fn a_packet_to_an_unresolved_neighbour_is_punted() {
    let mut world = World::new();
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    ip("neigh del 10.0.2.65 dev eth0");
    let syn = tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build();
    let ran = world.run(&syn);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::Resolving));
    assert_eq!(ran.frame, syn, "untouched");
    assert_eq!(world.entries(), 0, "nothing is opened that cannot leave yet");
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!((waiting.kind, waiting.interface), (Kind::Wait, world.interface(0)));
    assert_eq!(waiting.neighbour.interface, world.interface(0));
    assert_eq!(waiting.neighbour.ip(), Ipv4Addr::from(FIREWALL));
    assert_eq!(waiting.packet, syn[14..54], "as it came");
    assert!(next(&mut punts).is_none());

    // Still cold: it would wait again. Then the neighbour answers.
    assert_eq!(world.replay(&waiting), None);
    assert_eq!(world.moved().reasons, [(Reason::Resolving, 1)]);
    assert_eq!(next(&mut punts).as_ref(), Some(&waiting));
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
    let sent = world.replay(&waiting).expect("to be sent");
    assert_eq!(world.moved().reasons, [(Reason::Opened, 1)]);
    assert_eq!(sent.interface, world.interface(0));
    assert_eq!((&sent.frame[..6], &sent.frame[6..12]), (&FIREWALL_MAC[..], &mac("eth0")[..]));
    let seen = read(&sent.frame);
    assert_eq!((seen.source, seen.destination, seen.ttl), ((ROUTER, 40_000), (TARGET, 8443), 63));
    let ran = world.run(&syn);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
}

/// Of a session that is there already, nothing changes before the packet leaves.
#[test]
fn a_session_is_unchanged_while_its_packet_waits() {
    let mut world = World::new();
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    ip("neigh del 10.0.2.69 dev eth0");
    let state = |world: &World| -> Vec<String> {
        let mut flows: Vec<_> = world.dataplane.flows.flows().map(|flow| format!("{flow:?}")).collect();
        flows.sort();
        flows
    };
    let before = state(&world);
    let answer = tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build();
    assert_eq!(world.run(&answer).reason, Reason::Resolving);
    assert_eq!(state(&world), before);
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!(waiting.neighbour.ip(), Ipv4Addr::from(PLS));
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud reachable");
    let seen = read(&world.replay(&waiting).expect("to be sent").frame);
    assert_eq!((seen.source, seen.destination, seen.destination_mac), ((ROUTER, 443), CLIENT, PLS_MAC));
    assert_ne!(state(&world), before);
}

#[test]
fn a_punted_packet_leaves_by_the_other_interface() {
    let mut world = World::with(Setup { nics: 2, snat: vec![ROUTER_SECOND], ..Setup::default() });
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    for (slot, name) in [(0, "eth0"), (1, "eth1")] {
        world.dataplane.set_egress(slot, name).expect("egress");
    }
    ip("neigh del 10.0.3.1 dev eth1");
    assert_eq!(world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build()).reason, Reason::Resolving);
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!((waiting.interface, waiting.neighbour.interface), (world.interface(0), world.interface(1)));
    assert_eq!(waiting.neighbour.ip(), Ipv4Addr::new(10, 0, 3, 1));
    ip("neigh replace 10.0.3.1 lladdr 02:00:00:00:00:65 dev eth1 nud reachable");
    let sent = world.replay(&waiting).expect("to be sent");
    assert_eq!(sent.interface, world.interface(1));
    assert_eq!((&sent.frame[..6], &sent.frame[6..12]), (&FIREWALL_MAC[..], &mac("eth1")[..]));
    assert_eq!(read(&sent.frame).source, (ROUTER_SECOND, 40_000));
    assert_eq!(world.moved().transmitted, [0, 1]);

    ip("neigh del 10.0.2.69 dev eth0");
    let answer = tcp_packet((TARGET, 8443), (ROUTER_SECOND, 40_000), tcp::SYN | tcp::ACK).build();
    assert_eq!(world.run_on(1, &answer).reason, Reason::Resolving);
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!((waiting.interface, waiting.neighbour.interface), (world.interface(1), world.interface(0)));
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud reachable");
    let sent = world.replay(&waiting).expect("to be sent");
    assert_eq!((sent.interface, read(&sent.frame).destination), (world.interface(0), CLIENT));
}

#[test]
fn without_a_daemon_an_unresolved_neighbour_is_a_drop_reason() {
    let mut world = World::new();
    ip("neigh del 10.0.2.65 dev eth0");
    let frame = tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build();
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NeighbourUnresolved));
    assert!(world.dataplane.take_punts().expect("ring").next().is_none());
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
    assert_eq!(world.entries(), 0, "nothing is opened that cannot leave");
    assert_eq!(world.run(&frame).reason, Reason::Opened, "the retransmission goes through");
}

#[test]
fn a_new_rule_set_applies_at_once_and_sessions_keep_their_target() {
    let mut world = World::new();
    let syn = tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build();
    world.run(&syn);
    let mut spec = crate::world::rule_set();
    spec.forwards.remove(1);
    spec.forwards[0].targets = vec![(crate::world::other_server().into(), Some(9443))];
    let number = world.dataplane.rules.number("range");
    world.dataplane.rules.apply(&spec, &mut world.dataplane.settings).expect("rules");
    assert_eq!(world.dataplane.rules.number("range"), number, "a rule keeps its number");

    assert_eq!(read(&world.run(&syn).frame).destination, (TARGET, 8443), "known session");
    let fresh = tcp_packet((PLS, 40_001), (ROUTER, 443), tcp::SYN).build();
    assert_eq!(read(&world.run(&fresh).frame).destination, (crate::world::other_server(), 9443));
    let gone = world.run(&udp_packet((PLS, 5000), (ROUTER, 53), b"query").build());
    assert_eq!(gone.reason, Reason::LocalDenied, "a rule that is gone");
}

#[test]
fn new_sessions_are_spread_over_targets() {
    let mut world = World::with(Setup {
        rules: |spec| {
            spec.forwards[0].targets = (1..=4).map(|host| ([203, 0, 113, host].into(), None)).collect();
        },
        ..Setup::default()
    });
    let mut hits = std::collections::BTreeMap::new();
    for port in 20_000..20_400 {
        let ran = world.run(&tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build());
        *hits.entry(read(&ran.frame).destination.0).or_insert(0) += 1;
    }
    assert_eq!(hits.len(), 4, "{hits:?}");
    // 400 fair picks of 4: fewer than 50 for one has a probability below 1e-9.
    assert!(hits.values().all(|count| *count > 50), "{hits:?}");
}

#[test]
fn a_rule_without_a_target_drops_new_sessions() {
    let mut world = World::with(Setup { rules: |spec| spec.forwards[0].targets.clear(), ..Setup::default() });
    let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NoTarget));
}

#[test]
fn the_largest_rule_set_fits_twice() {
    let mut world = World::new();
    let mut spec = crate::world::rule_set();
    spec.masquerades.clear();
    let model = spec.forwards[0].clone();
    spec.forwards = (0..router_common::limits::MAX_RULES as u16)
        .map(|number| {
            let mut forward = model.clone();
            forward.name = format!("rule-{number}");
            // An odd range is many prefixes.
            forward.address = Some([10, 1, (number >> 8) as u8, number as u8].into());
            forward.ports = PortRange { first: 1, last: 65534 };
            forward.targets = (0..32).map(|host| ([203, 0, 113, host].into(), None)).collect();
            forward.sources = (0..128).map(|net| network([10, 2, net, 0], 24)).collect();
            forward
        })
        .collect();
    for _ in 0..3 {
        world.dataplane.rules.apply(&spec, &mut world.dataplane.settings).expect("the rule set fits");
    }
    let last = [10, 1, 1, 255];
    world.dataplane.local_addresses.set(&[last.into()].into(), &[].into()).expect("addresses");
    let ran = world.run(&tcp_packet(([10, 2, 127, 9], 40_000), (last, 65534), tcp::SYN).build());
    assert_eq!(ran.reason, Reason::Opened);
    let number = world.dataplane.rules.number("rule-511").expect("the rule has a number");
    assert_eq!(world.dataplane.counters.read().expect("counters").rule(number).opened, 1);
}

#[test]
fn the_platform_address_is_no_target() {
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[0].targets = vec![(crate::packets::PLATFORM.into(), None)],
        ..Setup::default()
    });
    let ran = world.run(&tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN).build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NoTarget));
}
