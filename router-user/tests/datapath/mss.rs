//! The segment size that TCP's ends announce, kept to what the rule says.

use proptest::{prelude::*, test_runner::TestRunner};
use router_common::{maps::rules::Rule, reason::Reason};
use router_user::dataplane::RuleSetSpec;

use crate::{
    packets::{OTHER, PLS, ROUTER, Spec, TARGET, read, tcp, tcp_packet},
    world::{Setup, World, ip, next},
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

fn world(rules: fn(&mut RuleSetSpec)) -> World {
    World::with(Setup { rules, ..Setup::default() })
}

fn kept_to_1360(spec: &mut RuleSetSpec) {
    spec.forwards[0].mss = 1360;
    spec.masquerades[0].mss = 1360;
}

fn kept_to_the_routes(spec: &mut RuleSetSpec) {
    spec.forwards[0].mss = Rule::MSS_OF_ROUTES;
}

fn size(bytes: u16) -> [u8; 4] {
    let [high, low] = bytes.to_be_bytes();
    [2, 4, high, low]
}

fn syn() -> Spec {
    tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN)
}

fn syn_ack() -> Spec {
    tcp_packet((TARGET, 8443), (ROUTER, 40_000), SYN_ACK)
}

/// The options that a packet leaves with. Its checksums are right.
fn options(world: &mut World, packet: &Spec) -> Vec<u8> {
    let ran = world.run(&packet.build());
    assert!(matches!(ran.reason, Reason::Opened | Reason::Forwarded), "{:?}", ran.reason);
    options_of(&ran.frame)
}

fn options_of(frame: &[u8]) -> Vec<u8> {
    read(frame);
    frame[54..34 + usize::from(frame[46] >> 4) * 4].to_vec()
}

#[test]
fn the_mss_is_lowered_and_never_raised() {
    let mut world = world(kept_to_1360);
    for (announced, leaves) in [(1460, 1360), (65_495, 1360), (1361, 1360), (1360, 1360), (536, 536), (0, 0)]
    {
        for packet in [syn(), syn_ack()] {
            let packet = packet.tcp_options(&size(announced)).payload(b"odd");
            assert_eq!(options(&mut world, &packet), size(leaves), "{announced}");
        }
    }
}

#[test]
fn no_mss_option_is_inserted() {
    let mut world = world(kept_to_1360);
    assert_eq!(options(&mut world, &syn()), [0; 0]);
    assert_eq!(options(&mut world, &syn().tcp_options(&[4, 2, 3, 3, 7])), [4, 2, 3, 3, 7, 0, 0, 0]);
}

#[test]
fn the_mss_option_is_found_at_any_offset() {
    let mut world = world(kept_to_1360);
    for before in 0..=36 {
        let packet = |bytes| {
            let options = [vec![1; before], size(bytes).to_vec()].concat();
            syn().tcp_options(&options).payload(&[9; 7])
        };
        let mut wanted = [vec![1; before], size(1360).to_vec()].concat();
        wanted.resize(wanted.len().next_multiple_of(4), 0);
        assert_eq!(options(&mut world, &packet(1460)), wanted, "{before} bytes before it");
    }
}

#[test]
fn the_mss_is_changed_only_by_its_rule_and_in_the_handshake() {
    let mut plain = World::new();
    assert_eq!(options(&mut plain, &syn().tcp_options(&size(9000))), size(9000));
    drop(plain);
    let mut world = world(kept_to_1360);
    options(&mut world, &syn());
    let data = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).tcp_options(&size(9000));
    assert_eq!(options(&mut world, &data), size(9000), "no announcement");
    let other_rule = tcp_packet((PLS, 40_000), (ROUTER, 8000), tcp::SYN).tcp_options(&size(9000));
    assert_eq!(options(&mut world, &other_rule), size(9000));
    let masquerade = tcp_packet((PLS, 40_000), (OTHER, 22), tcp::SYN).tcp_options(&size(9000));
    assert_eq!(options(&mut world, &masquerade), size(1360));
}

#[test]
fn the_mss_follows_the_mtu_of_both_routes() {
    let mut world = world(kept_to_the_routes);
    assert_eq!(options(&mut world, &syn().tcp_options(&size(1460))), size(1460), "1500 both ways");
    assert_eq!(options(&mut world, &syn().tcp_options(&size(9000))), size(1460));
    ip("route change default via 10.0.2.65 mtu lock 1400");
    for packet in [syn(), syn_ack()] {
        assert_eq!(options(&mut world, &packet.tcp_options(&size(1460))), size(1360), "to the firewall");
    }
    ip("route add 10.0.2.69/32 dev eth0 mtu lock 1300");
    for packet in [syn(), syn_ack()] {
        assert_eq!(options(&mut world, &packet.tcp_options(&size(1460))), size(1260), "to the client");
    }
}

#[test]
fn the_mss_follows_the_mtu_with_unresolved_neighbours() {
    let mut world = world(kept_to_the_routes);
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    ip("route change default via 10.0.2.65 mtu lock 1400");
    ip("neigh del 10.0.2.65 dev eth0");
    ip("neigh del 10.0.2.69 dev eth0");
    assert_eq!(world.run(&syn().tcp_options(&size(1460)).build()).reason, Reason::Resolving);
    let waiting = next(&mut punts).expect("a packet in the ring");
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
    assert_eq!(options_of(&world.replay(&waiting).expect("to be sent").frame), size(1360));
}

/// Any bytes in place of options leave unchanged, but for one size, and with right checksums.
#[test]
fn arbitrary_tcp_options_are_left_intact() {
    let world = std::cell::RefCell::new(world(kept_to_1360));
    let piece = prop_oneof![
        Just(vec![1]),
        Just(size(1460).to_vec()),
        Just(vec![4, 2]),
        proptest::collection::vec(any::<u8>(), 1..6),
    ];
    let pieces = proptest::collection::vec(piece, 0..8);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() });
    runner
        .run(&(pieces, proptest::collection::vec(any::<u8>(), 0..20)), |(pieces, payload)| {
            let mut bytes = pieces.concat();
            bytes.truncate(40);
            let packet = syn().tcp_options(&bytes).payload(&payload);
            let sent = packet.build();
            let sent = &sent[54..34 + usize::from(sent[46] >> 4) * 4];
            let left = options(&mut world.borrow_mut(), &packet);
            let changed: Vec<_> = (0..sent.len()).filter(|at| sent[*at] != left[*at]).collect();
            if let (Some(first), Some(last)) = (changed.first(), changed.last()) {
                let at = if sent[first - 1] == 4 && sent[first - 2] == 2 { *first } else { first - 1 };
                prop_assert!(*last <= at + 1, "{sent:?} became {left:?}");
                prop_assert_eq!(&sent[at - 2..at], &[2, 4]);
                prop_assert!(u16::from_be_bytes([sent[at], sent[at + 1]]) > 1360);
                prop_assert_eq!(&left[at..at + 2], &1360_u16.to_be_bytes());
            }
            Ok(())
        })
        .expect("any options");
}
