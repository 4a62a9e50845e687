//! Next hops whose MAC address the router does not know: no connection may be lost to them.

use std::{net::Ipv4Addr, time::Duration};

use lab::{
    Lab, Nics,
    addresses::{FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, PLS_GATEWAY, TOOLS},
    client::{self, Tcp, Udp},
};

use crate::common::{ECHO, LIMIT, check};

lab_tests! {
    any: [
        the_first_syn_to_cold_neighbours_succeeds,
        the_first_datagram_to_cold_neighbours_succeeds,
        sessions_outlive_their_neighbours,
        sessions_follow_a_next_hop_to_its_new_address,
    ],
    pls_router: [],
}

/// TCP sends its SYN again after a second: what is quicker was not lost.
const NO_RETRANSMISSION: Duration = Duration::from_millis(950);

/// The router's next hops: to the firewall, and back to the clients.
fn next_hops(lab: &Lab) -> [Ipv4Addr; 2] {
    let firewall = match lab.options.nics {
        Nics::One => FIREWALL_ONE_NIC,
        Nics::Two => FIREWALL_TWO_NICS,
    };
    [firewall, PLS_GATEWAY]
}

/// Makes the router forget neighbours: one of them, or all.
fn forget(lab: &Lab, neighbour: Option<Ipv4Addr>) {
    let which = neighbour.map_or_else(|| "all".to_owned(), |address| format!("to {address}"));
    check(lab.hosts.router.ip(&format!("neigh flush {which}")));
}

/// Every way in which the router's neighbours can be cold.
fn coldness(lab: &Lab) -> impl Iterator<Item = Option<Ipv4Addr>> {
    [None].into_iter().chain(next_hops(lab).map(Some))
}

fn the_first_syn_to_cold_neighbours_succeeds(lab: &mut Lab) {
    // Its answers would warm the neighbours up again.
    check(lab.stop_probe());
    for cold in coldness(lab) {
        for _ in 0..3 {
            forget(lab, cold);
            let connected = Tcp::connect(&lab.hosts.serverless, ECHO, NO_RETRANSMISSION);
            let mut tcp = connected.unwrap_or_else(|error| panic!("cold: {cold:?}: {error:#}"));
            check(tcp.echo(b"hello", LIMIT));
        }
    }
}

fn the_first_datagram_to_cold_neighbours_succeeds(lab: &mut Lab) {
    check(lab.stop_probe());
    for cold in coldness(lab) {
        for _ in 0..3 {
            forget(lab, cold);
            let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
            let echoed = udp.echo(b"hello", LIMIT);
            echoed.unwrap_or_else(|error| panic!("cold: {cold:?}: {error:#}"));
        }
        forget(lab, cold);
        let answers = check(client::ping(&lab.hosts.vm, TOOLS, 1, &[]));
        assert_eq!(answers, 1, "answers to a ping, cold: {cold:?}");
    }
}

fn sessions_outlive_their_neighbours(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    for round in 0..10_u8 {
        check(tcp.echo(&[round], LIMIT));
        check(udp.echo(&[round], LIMIT));
        forget(lab, None);
    }
}

/// What happens when a firewall's twin takes over: the same IP address, another MAC address.
fn sessions_follow_a_next_hop_to_its_new_address(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    check(lab.hosts.firewall.ip("link set vnet address 02:00:00:00:00:66"));
    let [firewall, _] = next_hops(lab);
    // A twin says so to everybody; `arping -A` would, and so does forgetting it.
    forget(lab, Some(firewall));
    check(tcp.echo(b"after", LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
}
