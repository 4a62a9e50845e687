//! With two interfaces, clients come in by one of them only: an address is no proof of where a
//! packet comes from.

use router_common::{
    address::{Ipv4, Mac},
    maps::settings::Interface,
    reason::Reason,
};

use crate::{
    packets::{
        PLS, ROUTER, ROUTER_SECOND, STRANGER, Spec, TARGET, echo_request, fix_ip_checksum, tcp, tcp_packet,
        udp_packet,
    },
    world::{Setup, Verdict, World, index, ip, mac},
};

const CLIENTS: usize = 0;
const FIREWALL: usize = 1;

fn world() -> World {
    let mut world = World::with(Setup { nics: 2, snat: vec![ROUTER_SECOND], ..Setup::default() });
    for (slot, name) in [(0, "eth0"), (1, "eth1")] {
        world.dataplane.set_egress(slot, name).expect("an egress interface");
    }
    world
        .dataplane
        .local_addresses
        .set(&[ROUTER.into(), ROUTER_SECOND.into()].into(), &[].into())
        .expect("addresses");
    world
}

#[track_caller]
fn ends(world: &mut World, slot: usize, frame: &[u8], expected: (Verdict, Reason)) {
    let ran = world.run_on(slot, frame);
    assert_eq!((ran.verdict, ran.reason), expected);
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

const WRONG: (Verdict, Reason) = (Verdict::Drop, Reason::WrongInterface);
const DENIED: (Verdict, Reason) = (Verdict::Drop, Reason::LocalDenied);

/// Packets that a client may send to a rule at this address of the router.
fn to_rules(address: [u8; 4]) -> [Spec; 3] {
    [
        tcp_packet((PLS, 40_000), (address, 443), tcp::SYN),
        tcp_packet((PLS, 40_000), (address, 8001), tcp::SYN),
        udp_packet((PLS, 5000), (address, 53), b"question"),
    ]
}

#[test]
fn the_firewall_s_side_cannot_pose_as_a_client() {
    let world = &mut world();
    for address in [ROUTER, ROUTER_SECOND] {
        for packet in to_rules(address) {
            ends(world, FIREWALL, &packet.build(), WRONG);
            ends(world, FIREWALL, &packet.unpadded().build(), WRONG);
        }
        // Nor does it get the kernel's answer to what opens nothing.
        for flags in [tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK, tcp::SYN | tcp::ACK] {
            ends(world, FIREWALL, &tcp_packet((PLS, 40_000), (address, 443), flags).build(), WRONG);
        }
    }
    for address in [ROUTER, ROUTER_SECOND] {
        for packet in to_rules(address) {
            let ran = world.run_on(CLIENTS, &packet.build());
            assert_eq!((ran.verdict, ran.reason), (Verdict::Redirect, Reason::Opened));
            world.forget_sessions();
        }
    }
}

#[test]
fn fragments_from_the_firewall_s_side_cannot_pose_as_a_client() {
    let world = &mut world();
    for address in [ROUTER, ROUTER_SECOND] {
        let whole = udp_packet((PLS, 5000), (address, 53), &[7; 64]).may_be_fragmented();
        let part = |place: [u8; 2]| {
            let mut frame = whole.build();
            frame[18..20].copy_from_slice(&address[..2]);
            frame[20..22].copy_from_slice(&place);
            fix_ip_checksum(&mut frame);
            frame
        };
        ends(world, FIREWALL, &part([0x20, 0]), WRONG);
        ends(world, FIREWALL, &part([0, 9]), WRONG);
        // By the way round, too: the later one first.
        let mut early = part([0, 9]);
        early[19] ^= 1;
        fix_ip_checksum(&mut early);
        let ran = world.run_on(FIREWALL, &early);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::FragmentEarly));
    }
}

#[test]
fn a_client_s_address_is_closed_out_on_either_side() {
    let world = &mut world();
    for address in [ROUTER, ROUTER_SECOND] {
        for frame in [
            tcp_packet((PLS, 40_000), (address, 22), tcp::SYN).build(),
            udp_packet((PLS, 40_000), (address, 161), b"x").build(),
            echo_request(PLS, address, 7).build(),
        ] {
            for slot in [CLIENTS, FIREWALL] {
                ends(world, slot, &frame, DENIED);
            }
        }
    }
}

#[test]
fn strangers_get_the_same_verdict_on_either_side() {
    let world = &mut world();
    for slot in [CLIENTS, FIREWALL] {
        let refused = (Verdict::Drop, Reason::SourceNotAllowed);
        ends(world, slot, &tcp_packet((STRANGER, 40_000), (ROUTER, 443), tcp::SYN).build(), refused);
        let passed = (Verdict::Pass, Reason::NotMatched);
        ends(world, slot, &tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build(), passed);
    }
}

/// Nor does it send anything for a client into a session that the client has opened.
#[test]
fn known_sessions_are_entered_from_their_side() {
    let world = &mut world();
    for address in [ROUTER, ROUTER_SECOND] {
        let session = [
            tcp_packet((PLS, 40_000), (address, 443), tcp::SYN),
            udp_packet((PLS, 5000), (address, 53), b"question"),
        ];
        for packet in session {
            let opened = world.run_on(CLIENTS, &packet.build());
            assert_eq!((opened.verdict, opened.reason), (Verdict::Redirect, Reason::Opened));
            // By the slow path, and by the fast one where there has been a packet before.
            for _ in 0..2 {
                let ran = world.run_on(FIREWALL, &packet.build());
                assert_eq!((ran.verdict, ran.reason), WRONG);
                let short = world.run_on(FIREWALL, &packet.clone().unpadded().build());
                assert_eq!((short.verdict, short.reason), WRONG);
                let again = world.run_on(CLIENTS, &packet.build());
                assert_eq!((again.verdict, again.reason), (Verdict::Redirect, Reason::Forwarded));
            }
            world.forget_sessions();
        }
        // Nor the later fragments of its datagrams.
        let whole = udp_packet((PLS, 5000), (address, 53), &[7; 64]).may_be_fragmented();
        let part = |place: [u8; 2]| {
            let mut frame = whole.build();
            frame[20..22].copy_from_slice(&place);
            fix_ip_checksum(&mut frame);
            frame
        };
        assert_eq!(world.run_on(CLIENTS, &part([0x20, 0])).reason, Reason::Opened);
        for first_or_later in [[0x20, 0], [0, 9]] {
            let ran = world.run_on(FIREWALL, &part(first_or_later));
            assert_eq!((ran.verdict, ran.reason), WRONG);
        }
        assert_eq!(world.run_on(CLIENTS, &part([0, 9])).reason, Reason::Forwarded);
        world.forget_sessions();
    }
}

/// Machines that use this one as their router may be on any of its links.
#[test]
fn a_masquerade_is_entered_from_both_sides() {
    let world = &mut world();
    for slot in [CLIENTS, FIREWALL] {
        let ran = world.run_on(slot, &tcp_packet((PLS, 40_000), (TARGET, 80), tcp::SYN).build());
        assert_eq!(ran.reason, Reason::Opened);
        world.forget_sessions();
    }
}

#[test]
fn a_virtual_function_is_on_its_interface_s_side() {
    let world = &mut world();
    for name in ["vf0", "vf1", "vf2"] {
        ip(&format!("link add {name} type veth peer name {name}peer"));
    }
    let interfaces = [("eth0", "vf0", ROUTER), ("eth1", "vf1", ROUTER_SECOND)];
    world
        .dataplane
        .settings
        .set_interfaces(interfaces.map(|(primary, virtual_function, address)| Interface {
            primary: index(primary),
            virtual_function: index(virtual_function),
            address: Ipv4(address),
            mac: Mac::new(mac(primary)),
            ..Interface::default()
        }))
        .expect("interfaces");
    let syn = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).build();
    for name in ["eth1", "vf1", "vf2"] {
        assert_eq!(world.run_by(index(name), &syn), WRONG, "{name}");
    }
    for name in ["eth0", "vf0"] {
        assert_eq!(world.run_by(index(name), &syn), (Verdict::Redirect, Reason::Opened), "{name}");
        world.forget_sessions();
    }
}
