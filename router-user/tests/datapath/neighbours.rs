//! The programs' notes of neighbours that are next hops of sessions: they tell the daemon which
//! changes matter.

use std::{fs, net::Ipv4Addr};

use router_common::{
    address::Mac,
    maps::{punt::Neighbour, route::InUse},
    reason::Reason,
    tcp,
};

use crate::{
    packets::{
        FIREWALL, FIREWALL_MAC, OTHER, PLS, PLS_MAC, ROUTER, STRANGER, TARGET, tcp_packet, udp_packet,
    },
    world::{Setup, World, ip, network},
};

/// Returns the notes, by address, on the one link of a world.
fn noted(world: &World) -> Vec<(Ipv4Addr, InUse)> {
    let all = world.dataplane.next_hops_in_use.all().expect("the map");
    let mut noted: Vec<_> = all
        .into_iter()
        .map(|(neighbour, in_use)| match neighbour.ip() {
            std::net::IpAddr::V4(address) => (address, in_use),
            std::net::IpAddr::V6(address) => panic!("{address}"),
        })
        .collect();
    noted.sort_unstable_by_key(|(address, _)| *address);
    noted
}

fn has(address: [u8; 4], mac: [u8; 6]) -> (Ipv4Addr, InUse) {
    (address.into(), InUse::new(Mac::new(mac)))
}

#[test]
fn next_hops_in_use_are_noted_at_lookup() {
    let mut world = World::new();
    assert_eq!(noted(&world), []);
    assert!(world.dataplane.next_hops_in_use.has_room().expect("the map"));
    // A source that opens no session has no next hop here.
    assert_eq!(
        world.run(&tcp_packet((STRANGER, 40_000), (ROUTER, 443), tcp::SYN).build()).reason,
        Reason::SourceNotAllowed
    );
    assert_eq!(noted(&world), []);

    let request = udp_packet((PLS, 40_000), (ROUTER, 53), b"a query that is long enough");
    let reply = udp_packet((TARGET, 53), (ROUTER, 40_000), b"an answer that is long enough");
    assert_eq!(world.run(&request.build()).reason, Reason::Opened);
    assert_eq!(noted(&world), [has(FIREWALL, FIREWALL_MAC)]);
    assert_eq!(world.run(&reply.build()).reason, Reason::Forwarded);
    let both = [has(FIREWALL, FIREWALL_MAC), has(PLS, PLS_MAC)];
    assert_eq!(noted(&world), both);

    // Not for each packet: what the daemon has forgotten comes back when sessions ask again.
    world.dataplane.next_hops_in_use.forget_all().expect("the map");
    assert_eq!(world.run(&request.build()).reason, Reason::Forwarded);
    assert_eq!(noted(&world), []);
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    for packet in [&request, &reply] {
        assert_eq!(world.run(&packet.build()).reason, Reason::Forwarded);
    }
    assert_eq!(noted(&world), both);
}

#[test]
fn a_changed_next_hop_address_is_noticed_by_any_session() {
    let mut world = World::new();
    let request = |port| udp_packet((PLS, port), (ROUTER, 53), b"a query that is long enough").build();
    assert_eq!(world.run(&request(40_000)).reason, Reason::Opened);
    let firewall = Ipv4Addr::from(FIREWALL);
    ip(&format!("neigh replace {firewall} lladdr 02:00:00:00:00:77 dev eth0 nud permanent"));
    // The first session still has the old address, the second one has the new.
    assert_eq!(world.run(&request(40_001)).reason, Reason::Opened);
    assert_eq!(noted(&world), [(firewall, InUse::MIXED)]);
    let neighbour = Neighbour::new(2, firewall.into());
    let [(of_link, _)] = world.dataplane.next_hops_in_use.all().expect("the map")[..] else { panic!("one") };
    assert_eq!(of_link.address, neighbour.address);
    world.dataplane.next_hops_in_use.forget(&of_link).expect("the map");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    assert_eq!(world.run(&request(40_000)).frame[..6], [2, 0, 0, 0, 0, 0x77]);
    assert_eq!(noted(&world), [has(FIREWALL, [2, 0, 0, 0, 0, 0x77])]);
}

/// Clients can have sessions to as many machines of a link as they like.
#[test]
fn if_the_map_is_full_all_neighbours_count_as_in_use() {
    let mut world = World::with(Setup {
        sessions: 16_384,
        rules: |spec| spec.masquerades[0].sources = vec![network(PLS, 32)],
        ..Setup::default()
    });
    ip("addr add 10.32.0.1/16 dev eth0");
    let target = |number: u32| Ipv4Addr::from(0x0a20_0100 + number);
    let lines: String = (0..InUse::ROOM)
        .map(|number| {
            format!("neigh replace {} lladdr 02:00:00:00:00:55 dev eth0 nud permanent\n", target(number))
        })
        .collect();
    let batch = tempfile::NamedTempFile::new().expect("a file");
    fs::write(batch.path(), lines).expect("a file");
    ip(&format!("-batch {}", batch.path().display()));
    let open = |world: &mut World, number| {
        let packet = udp_packet((PLS, 40_000), (target(number).octets(), 7), b"hello hello hello").build();
        assert_eq!(world.run(&packet).reason, Reason::Opened, "{number}");
    };
    let stranger = Neighbour::new(2, Ipv4Addr::from(OTHER).into());
    for number in 0..InUse::ROOM - 1 {
        open(&mut world, number);
    }
    assert!(world.dataplane.next_hops_in_use.has_room().expect("the map"));
    assert_eq!(world.dataplane.next_hops_in_use.get(&stranger).expect("the map"), None);
    open(&mut world, InUse::ROOM - 1);
    assert!(!world.dataplane.next_hops_in_use.has_room().expect("the map"));
    assert_eq!(world.dataplane.next_hops_in_use.get(&stranger).expect("the map"), Some(InUse::MIXED));

    world.dataplane.next_hops_in_use.forget_all().expect("the map");
    assert!(noted(&world).is_empty() && world.dataplane.next_hops_in_use.has_room().expect("the map"));
}
