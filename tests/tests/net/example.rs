//! An example to copy: hosts that talk through the router. `tests/README.md` tells where tests
//! belong.

use anyhow::ensure;
use lab::{Lab, client::Tcp, wait, witness::Witness};

use crate::common::{ECHO, LIMIT, check, counters, rule};

// Each name becomes two tests: `example::one_nic::NAME` and `example::two_nics::NAME`. Those under
// `any` also pass with the kernel's own NAT (`LAB_ROUTER=nftables`).
lab_tests! {
    any: [a_connection_carries_data_both_ways],
    pls_router: [a_connection_is_one_session_of_its_rule],
}

fn a_connection_carries_data_both_ways(lab: &mut Lab) {
    // tcpdump on both sides of the router.
    let witness = check(Witness::start(lab));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"there and back", LIMIT));
    check(tcp.close());
    // Fails if a checksum on a wire is wrong, or an address is on the wrong side.
    let seen = check(witness.finish());
    assert!(seen.pls > 0 && seen.firewall > 0, "no packets on a wire: {seen:?}");
}

fn a_connection_is_one_session_of_its_rule(lab: &mut Lab) {
    let before = rule(&counters(lab), "echo-tcp").sessions_opened;
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"there and back", LIMIT));
    // Wait for what must become true, and never for a time.
    check(wait::until("the session to be counted", LIMIT, || {
        let opened = rule(&counters(lab), "echo-tcp").sessions_opened - before;
        ensure!(opened == 1, "{opened} sessions");
        Ok(())
    }));
}
