//! The number of instructions that the verifier looks at. A million is its limit. Long before that
//! a restart takes seconds, and the verifier starts over at each signal.

use crate::world::World;

#[test]
fn programs_are_verified_quickly() {
    const LIMIT: u32 = 120_000;
    let mut world = World::new();
    for name in [
        "pls_router",
        "forward",
        "slow",
        "open",
        "claim",
        "local",
        "icmp_error",
        "fragment",
        "answer",
        "ethernet",
        "ipv6",
    ] {
        let program = world.dataplane.program(name).expect("a program");
        let verified = program.info().expect("its information").verified_instruction_count();
        let verified = verified.expect("Linux 5.16 or later");
        println!("{name}: {verified}");
        assert!(verified <= LIMIT, "{name}: {verified} instructions");
    }
    let own_traffic = world.dataplane.own_traffic_program().expect("a program");
    let verified = own_traffic.info().expect("its information").verified_instruction_count();
    let verified = verified.expect("Linux 5.16 or later");
    println!("own_traffic: {verified}");
    assert!(verified <= LIMIT, "own_traffic: {verified} instructions");
}
