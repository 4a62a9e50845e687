//! Checksums, in the kernel: the known pitfalls, and many random cases.

use proptest::{prelude::*, test_runner::TestRunner};
use router_common::reason::Reason;

use crate::{
    packets::{PLS, ROUTER, Spec, TARGET, echo_request, read, tcp, tcp_packet, udp_packet},
    world::{Setup, World, ip, network},
};

#[test]
fn udp_without_checksum_stays_without() {
    let mut world = World::new();
    let ran = world.run(&udp_packet((PLS, 5000), (ROUTER, 53), b"query").without_checksum().build());
    assert_eq!(ran.reason, Reason::Opened);
    assert_eq!(ran.frame[40..42], [0, 0]);
    assert_eq!(read(&ran.frame).payload, b"query");
}

/// Finds a payload whose checksum after translation is zero, which must be sent as 0xffff (RFC
/// 768).
#[test]
fn udp_checksum_zero_is_sent_as_ones() {
    let mut world = World::new();
    world.run(&udp_packet((PLS, 5000), (ROUTER, 53), b"open").build());
    let translated = udp_packet((ROUTER, 5000), (TARGET, 53), &[0, 0]).build();
    // With this word in the payload, the checksum that was there comes to zero.
    let word = [translated[40], translated[41]];
    let ran = world.run(&udp_packet((PLS, 5000), (ROUTER, 53), &word).build());
    assert_eq!(ran.frame[40..42], [0xff, 0xff]);
    read(&ran.frame);
}

/// And one whose checksum comes in as 0xffff.
#[test]
fn a_udp_checksum_of_ones_is_accepted() {
    let mut world = World::new();
    world.run(&udp_packet((PLS, 5000), (ROUTER, 53), b"open").build());
    let sent = udp_packet((PLS, 5000), (ROUTER, 53), &[0, 0]).build();
    let frame = udp_packet((PLS, 5000), (ROUTER, 53), &[sent[40], sent[41]]).build();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    read(&world.run(&frame).frame);
}

#[test]
fn any_packet_is_translated_with_right_checksums() {
    let mut world = World::with(Setup {
        sessions: 8192,
        rules: |spec| spec.masquerades[0].sources = vec![network([10, 0, 2, 64], 26)],
        ..Setup::default()
    });
    for host in 70..74 {
        ip(&format!("neigh replace 10.0.2.{host} lladdr 02:00:00:00:00:{host} dev eth0 nud permanent"));
    }
    let packets = (
        0..4_u8,
        70..74_u8,
        1..=u16::MAX,
        prop_oneof![
            Just([10, 0, 2, 68]),
            any::<[u8; 4]>().prop_filter("unicast, not local", |a| {
                a[0] > 0
                    && a[0] < 224
                    && a[0] != 127
                    && *a != [10, 0, 2, 68]
                    && a[..3] != [10, 0, 2]
                    && *a != [168, 63, 129, 16]
            })
        ],
        1..=u16::MAX,
        2..=255_u8,
        proptest::collection::vec(any::<u8>(), 0..300),
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let world = std::cell::RefCell::new(&mut world);
    runner
        .run(&packets, |(kind, host, port, destination, destination_port, ttl, payload)| {
            let source = [10, 0, 2, host];
            let spec: Spec = match kind {
                0 => tcp_packet((source, port), (destination, destination_port), tcp::SYN).payload(&payload),
                1 => udp_packet((source, port), (destination, destination_port), &payload),
                2 => udp_packet((source, port), (destination, destination_port), &payload).without_checksum(),
                _ => echo_request(source, destination, port).payload(&payload),
            };
            let world = &mut *world.borrow_mut();
            let ran = world.run(&spec.clone().ttl(ttl).build());
            if matches!(ran.reason, Reason::NotMatched | Reason::SourceNotAllowed | Reason::LocalDenied) {
                return Ok(());
            }
            prop_assert!(matches!(ran.reason, Reason::Opened | Reason::Forwarded), "{:?}", ran.reason);
            let out = read(&ran.frame);
            prop_assert_eq!(out.ttl, ttl - 1);
            prop_assert_eq!(out.source.0, ROUTER);
            prop_assert_eq!(&out.payload, &payload);

            // The answer comes back to the client, from where it sent to.
            let answer = match kind {
                0 => tcp_packet(out.destination, out.source, tcp::SYN | tcp::ACK).payload(&payload),
                1 | 2 => udp_packet(out.destination, out.source, &payload),
                _ => crate::packets::echo_reply(out.destination.0, ROUTER, out.source.1).payload(&payload),
            };
            let ran = world.run(&answer.build());
            prop_assert_eq!(ran.reason, Reason::Forwarded);
            let back = read(&ran.frame);
            let client = (source, port);
            prop_assert_eq!(back.destination, client);
            prop_assert_eq!(back.source.0, destination);
            prop_assert_eq!(&back.payload, &payload);
            Ok(())
        })
        .expect("every packet");
}
