//! The next hop of packets and the source address of sessions, by every kind of route and rule that
//! the kernel's own forwarding follows.

use std::collections::{BTreeMap, BTreeSet};

use router_common::{
    address::Ipv4,
    maps::{
        route::{InterfaceAddress, InterfaceAddresses, Query},
        rules::Network,
    },
    reason::Reason,
};

use crate::{
    packets::{
        FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, ROUTER_SECOND, Spec, TARGET, echo_reply, echo_request,
        read, tcp, tcp_packet, udp_packet,
    },
    world::{Ran, Setup, Verdict, World, ip, kernel_is_at_least, network},
};

/// A gateway beside the firewall.
const GATEWAY: &str = "10.0.2.66";
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
/// And one more.
const GATEWAY_THIRD: &str = "10.0.2.67";
const GATEWAY_THIRD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x67];

/// A router whose sessions come from where their routes say, for every source of its link.
fn world(nics: usize) -> World {
    let world = World::with(Setup {
        nics,
        snat: Vec::new(),
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)],
        ..Setup::default()
    });
    for (gateway, mac) in [(GATEWAY, "66"), (GATEWAY_THIRD, "67")] {
        ip(&format!("neigh replace {gateway} lladdr 02:00:00:00:00:{mac} dev eth0 nud permanent"));
    }
    world
}

/// The MAC address that a packet is sent to.
#[track_caller]
fn gateway(ran: &Ran) -> [u8; 6] {
    assert!(matches!(ran.verdict, Verdict::Tx | Verdict::Redirect), "{ran:?}");
    ran.frame[..6].try_into().expect("six bytes")
}

#[track_caller]
fn gateway_of(world: &mut World, packet: &Spec) -> [u8; 6] {
    let ran = world.run(&packet.build());
    gateway(&ran)
}

fn https() -> Spec {
    tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN)
}

fn dns() -> Spec {
    udp_packet((PLS, 40_000), (ROUTER, 53), b"query")
}

#[test]
fn policy_rules_see_what_the_kernels_forwarding_would() {
    let another_client = tcp_packet(([10, 0, 2, 70], 40_000), (OTHER, 443), tcp::SYN);
    let echo = echo_request(PLS, OTHER, 7);
    // A selector; a packet that it selects; one that it does not.
    let cases: [(&str, Spec, Spec); 8] = [
        // Of the target, not the one that the client used.
        ("ipproto 6 dport 8443", https(), dns()),
        ("dport 53", dns(), https()),
        ("ipproto 17", dns(), https()),
        ("ipproto 1", echo, dns()),
        ("sport 40000", https(), tcp_packet((PLS, 40_001), (ROUTER, 443), tcp::SYN)),
        ("from 10.0.2.69", https(), another_client),
        ("to 203.0.113.10 dport 8443", https(), dns()),
        ("ipproto 6 sport 39000-40999 dport 8000-9000", https(), dns()),
    ];
    for (selector, selected, other) in cases {
        std::thread::spawn(move || {
            let mut world = world(1);
            ip(&format!("route add default via {GATEWAY} table 100"));
            ip(&format!("rule add {selector} lookup 100"));
            assert_eq!(gateway_of(&mut world, &selected), GATEWAY_MAC, "{selector}");
            assert_eq!(gateway_of(&mut world, &other), FIREWALL_MAC, "{selector}");
            // And again, when all has to be resolved anew.
            world.dataplane.settings.invalidate_next_hops().expect("settings");
            assert_eq!(gateway_of(&mut world, &selected), GATEWAY_MAC, "{selector}, later");
            assert_eq!(gateway_of(&mut world, &other), FIREWALL_MAC, "{selector}, later");
        })
        .join()
        .unwrap_or_else(|_| panic!("{selector}"));
    }
}

/// Packets that this router sends have its own address as their source, but the kernel routes
/// before that: a policy rule by that address is about the machine's own packets.
#[test]
fn policy_rules_by_the_snat_address_do_not_apply_to_sessions() {
    let mut world = world(1);
    ip(&format!("route add default via {GATEWAY} table 100"));
    ip(&format!("rule add from {} lookup 100", std::net::Ipv4Addr::from(ROUTER)));
    assert_eq!(gateway_of(&mut world, &https()), FIREWALL_MAC);
}

#[test]
fn policy_rules_see_the_type_of_service() {
    const TOS: u8 = 0x10;
    let mut world = world(1);
    ip(&format!("route add default via {GATEWAY} table 100"));
    ip("rule add tos 0x10 lookup 100");
    let mut frame = dns().build();
    frame[15] = TOS;
    // RFC 1624: the sum of what has changed, TOS from 0.
    let checksum = u16::from_be_bytes([frame[24], frame[25]]);
    let (sum, carry) = (!checksum).overflowing_add(TOS.into());
    frame[24..26].copy_from_slice(&(!(sum + u16::from(carry))).to_be_bytes());
    assert_eq!(gateway(&world.run(&frame)), GATEWAY_MAC);
    assert_eq!(gateway_of(&mut world, &https()), FIREWALL_MAC);
}

/// Replies to clients ask as the target's packets.
#[test]
fn policy_rules_see_replies() {
    let mut world = world(1);
    ip("neigh replace 10.0.2.70 lladdr 02:00:00:00:00:70 dev eth0 nud permanent");
    ip(&format!("route add {}/32 via {GATEWAY} table 100", std::net::Ipv4Addr::from(PLS)));
    ip("rule add from 203.0.113.10 ipproto 6 sport 8443 dport 40000 lookup 100");
    let opened = world.run(&https().build());
    let reply = |port| tcp_packet((TARGET, 8443), (ROUTER, port), tcp::SYN | tcp::ACK);
    let port = read(&opened.frame).source.1;
    assert_eq!(gateway_of(&mut world, &reply(port)), GATEWAY_MAC);
    let opened = world.run(&tcp_packet((PLS, 40_001), (ROUTER, 443), tcp::SYN).build());
    let port = read(&opened.frame).source.1;
    assert_eq!(gateway_of(&mut world, &reply(port)), PLS_MAC, "another port");
}

/// The gateways of many sessions, by the port of their client; some get another SNAT port than
/// that.
fn gateways(world: &mut World, client: [u8; 4]) -> BTreeMap<u16, [u8; 6]> {
    let packet = |port| udp_packet((client, port), (OTHER, 53), b"query");
    (2000..2100).map(|port| (port, gateway_of(world, &packet(port)))).collect()
}

/// Has sessions balanced over two gateways by their ports; the way that each has does not change
/// when all are resolved again.
fn assert_balanced_and_stable(mut world: World) {
    // So ports are taken, and the next client does not get its own.
    gateways(&mut world, [10, 0, 2, 70]);
    let first = gateways(&mut world, PLS);
    let used: BTreeSet<_> = first.values().copied().collect();
    assert_eq!(used, BTreeSet::from([FIREWALL_MAC, GATEWAY_MAC]), "both are used");
    for _ in 0..3 {
        world.dataplane.settings.invalidate_next_hops().expect("settings");
        assert_eq!(gateways(&mut world, PLS), first);
    }
    // One that goes takes only its own sessions along.
    ip(&format!("neigh del {GATEWAY} dev eth0"));
    ip(&format!("neigh replace {GATEWAY} dev eth0 nud failed"));
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    let left = gateways(&mut world, PLS);
    assert!(left.values().all(|mac| *mac == FIREWALL_MAC), "{left:?}");
}

/// As `sysctl`, in this thread's namespace.
fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/thread-self/root/proc/sys/net/ipv4/{name}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

#[test]
fn sessions_stay_with_their_gateway_of_a_multipath_route() {
    let world = world(1);
    sysctl("fib_multipath_hash_policy", "1");
    sysctl("fib_multipath_use_neigh", "1");
    ip(&format!("route replace default nexthop via 10.0.2.65 nexthop via {GATEWAY}"));
    assert_balanced_and_stable(world);
}

#[test]
fn sessions_stay_with_their_gateway_of_a_next_hop_group() {
    let world = world(1);
    sysctl("fib_multipath_hash_policy", "1");
    sysctl("fib_multipath_use_neigh", "1");
    ip("nexthop add id 1 via 10.0.2.65 dev eth0");
    ip(&format!("nexthop add id 2 via {GATEWAY} dev eth0"));
    ip("nexthop add id 3 group 1/2");
    ip("route replace default nhid 3");
    assert_balanced_and_stable(world);
}

/// If only addresses count, every packet of a client takes the same gateway, for any ports.
#[test]
fn a_gateway_is_chosen_by_addresses_by_default() {
    let mut world = world(1);
    ip(&format!("route replace default nexthop via 10.0.2.65 nexthop via {GATEWAY}"));
    let used: BTreeSet<_> = gateways(&mut world, PLS).into_values().collect();
    assert_eq!(used.len(), 1);
    let clients = (64..128).map(|last| [10, 0, 2, last]).filter(|client| *client != ROUTER);
    let packets = clients.map(|client| udp_packet((client, 5000), (OTHER, 53), b"query"));
    let used: BTreeSet<_> = packets.map(|packet| gateway_of(&mut world, &packet)).collect();
    assert_eq!(used.len(), 2, "the client's address counts");
}

#[test]
fn an_ipv4_route_may_lead_to_an_ipv6_gateway() {
    let mut world = world(1);
    ip("-4 route replace default via inet6 fe80::66 dev eth0");
    // The neighbour is unresolved, and there is no daemon.
    let ran = world.run(&https().build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::NeighbourUnresolved));
    let query = query(PLS, TARGET);
    let neighbour = world.dataplane.route(&query).expect("an answer").neighbour;
    assert_eq!(neighbour.ip().to_string(), "fe80::66");
    ip("neigh replace fe80::66 lladdr 02:00:00:00:00:66 dev eth0 nud permanent");
    let ran = world.run(&https().build());
    assert_eq!((gateway(&ran), ran.frame[12..14].to_vec()), (GATEWAY_MAC, vec![0x08, 0x00]));
    assert_eq!(read(&ran.frame).source.0, ROUTER);
}

fn query(source: [u8; 4], destination: [u8; 4]) -> Query {
    let end = |address, port| (Ipv4(address), router_common::address::Port::new(port));
    Query::new(6, 0, end(source, 40_000), end(destination, 8443))
}

/// An address of an interface, as the daemon tells the programs of it.
fn known(address: [u8; 4], prefix: u8, link_only: bool) -> InterfaceAddress {
    let address = Ipv4(address);
    InterfaceAddress { address, network: Network::new(address, prefix), link_only: link_only.into() }
}

fn interface<const N: usize>(known: [InterfaceAddress; N]) -> InterfaceAddresses {
    let mut interface = InterfaceAddresses::default();
    interface.addresses[..N].copy_from_slice(&known);
    interface
}

#[track_caller]
fn comes_from(world: &mut World, packet: &Spec, source: [u8; 4]) {
    let ran = world.run(&packet.build());
    assert!(matches!(ran.verdict, Verdict::Tx | Verdict::Redirect), "{ran:?}");
    assert_eq!(read(&ran.frame).source.0, source);
}

#[test]
fn a_session_comes_from_the_gateways_network() {
    for first in ["169.254.10.1/16 scope link", "192.168.5.2/24", "169.254.10.1/16"] {
        std::thread::spawn(move || {
            let mut world = world(1);
            ip("addr flush dev eth0");
            ip(&format!("addr add {first} dev eth0"));
            ip("addr add 10.0.2.68/26 dev eth0");
            ip("route add default via 10.0.2.65");
            ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud permanent");
            let (address, rest) = first.split_once('/').expect("a prefix");
            let octets = address.parse::<std::net::Ipv4Addr>().expect("an address").octets();
            let prefix = rest.split(' ').next().and_then(|prefix| prefix.parse().ok()).expect("a prefix");
            let interface =
                interface([known(octets, prefix, rest.contains("link")), known(ROUTER, 26, false)]);
            world
                .dataplane
                .interface_addresses
                .set([interface, InterfaceAddresses::default()])
                .expect("addresses");
            comes_from(&mut world, &https(), ROUTER);
            comes_from(&mut world, &dns(), ROUTER);
        })
        .join()
        .unwrap_or_else(|_| panic!("{first}"));
    }
}

#[test]
fn a_session_comes_from_the_interface_that_it_leaves_by() {
    let mut world = world(2);
    let interfaces = [interface([known(ROUTER, 26, false)]), interface([known(ROUTER_SECOND, 26, false)])];
    world.dataplane.interface_addresses.set(interfaces).expect("addresses");
    world.dataplane.set_egress(0, "eth0").expect("egress");
    world.dataplane.set_egress(1, "eth1").expect("egress");
    comes_from(&mut world, &https(), ROUTER_SECOND);
    // On the link of the clients' side.
    ip("neigh replace 10.0.2.80 lladdr 02:00:00:00:00:80 dev eth0 nud permanent");
    comes_from(&mut world, &udp_packet((PLS, 40_000), ([10, 0, 2, 80], 53), b"query"), ROUTER);
    // A configured address is used on any route.
    let mut given = crate::world::rule_set();
    given.snat = vec![[10, 0, 3, 9].into()];
    world.dataplane.rules.apply(&given, &mut world.dataplane.settings).expect("rules");
    comes_from(&mut world, &udp_packet((PLS, 40_001), (ROUTER, 53), b"query"), [10, 0, 3, 9]);
}

#[test]
fn a_session_comes_from_the_source_that_its_route_names() {
    // BPF_FIB_LOOKUP_SRC. An older kernel does not tell, and the daemon says so.
    if !kernel_is_at_least(6, 7) {
        return;
    }
    let mut world = world(1);
    ip("addr add 10.0.9.9/32 dev lo");
    ip("addr add 10.0.2.90/26 dev eth0");
    ip("route add 203.0.113.0/24 via 10.0.2.65 src 10.0.9.9");
    ip("route add 198.51.100.0/24 via 10.0.2.65 src 10.0.2.90");
    comes_from(&mut world, &https(), [10, 0, 9, 9]);
    comes_from(&mut world, &udp_packet((PLS, 40_000), (OTHER, 53), b"query"), [10, 0, 2, 90]);
    ip("route replace 198.51.100.0/24 via 10.0.2.65");
    comes_from(&mut world, &udp_packet((PLS, 40_001), (OTHER, 53), b"query"), ROUTER);
    // The one that has begun stays as it is.
    comes_from(&mut world, &udp_packet((PLS, 40_000), (OTHER, 53), b"query"), [10, 0, 2, 90]);
}

/// The daemon's lookups have the results of the packets'.
#[test]
fn route_lookups_of_the_daemon_equal_those_of_packets() {
    let mut world = world(1);
    world
        .dataplane
        .interface_addresses
        .set([interface([known(ROUTER, 26, false)]), InterfaceAddresses::default()])
        .expect("addresses");
    let answer = world.dataplane.route(&query(PLS, TARGET)).expect("an answer");
    assert_eq!((answer.code, answer.source), (0, Ipv4(ROUTER)));
    assert_eq!(answer.mac.bytes(), FIREWALL_MAC);
    assert_eq!(answer.neighbour.ip().to_string(), "10.0.2.65");
    // BPF_FIB_LKUP_RET_*
    for (route, code) in [("blackhole", 1), ("unreachable", 2), ("prohibit", 3)] {
        ip(&format!("route replace {route} 203.0.113.0/24"));
        assert_eq!(world.dataplane.route(&query(PLS, TARGET)).expect("an answer").code, code, "{route}");
    }
    assert_eq!(world.moved().reasons, [], "no packet");
}

/// An error about a session travels as its packets do: a firewall on the way knows the session.
#[test]
fn icmp_errors_take_the_route_of_their_session() {
    let mut world = world(1);
    ip(&format!("route add {}/32 via {GATEWAY_THIRD} table 100", std::net::Ipv4Addr::from(PLS)));
    ip("rule add from 198.51.100.7 lookup 100");
    comes_from(&mut world, &echo_request(PLS, OTHER, 7777), ROUTER);
    assert_eq!(gateway_of(&mut world, &echo_reply(OTHER, ROUTER, 7777)), GATEWAY_THIRD_MAC);
}
