//! An example to copy: one packet in, one packet out. `tests/README.md` tells where tests belong.

use router_common::reason::Reason;

use crate::{
    packets::{FIREWALL_MAC, PLS, ROUTER, Seen, TARGET, read, udp_packet},
    world::{Setup, Verdict, World},
};

#[test]
fn a_rule_may_change_the_port_of_datagrams() {
    // A router in a network namespace of this test. Its rules are those of `world::rule_set`, here
    // with one change.
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[1].targets = vec![(TARGET.into(), Some(5353))],
        ..Setup::default()
    });
    // `run` fails unless exactly one reason has been counted, once.
    let ran = world.run(&udp_packet((PLS, 5000), (ROUTER, 53), b"query").build());
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    // `read` verifies all checksums of the packet.
    assert_eq!(
        read(&ran.frame),
        Seen {
            destination_mac: FIREWALL_MAC,
            source: (ROUTER, 5000),
            destination: (TARGET, 5353),
            ttl: 63,
            payload: b"query".to_vec(),
        }
    );
    // One session is two entries of the flow table.
    assert_eq!((world.sessions(), world.entries()), (1, 2));
}
