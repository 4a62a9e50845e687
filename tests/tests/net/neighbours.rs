//! Next hops whose MAC address the router does not know: no connection may be lost to them.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use lab::{
    Lab, Nics,
    addresses::{FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, HEALTH_PORT, PLS_GATEWAY, TOOLS},
    client::{self, Tcp, Udp},
    wait,
};
use router_user::model::Status;

use crate::{
    common::{ECHO, LIMIT, check, counters, reason},
    fragments,
};

lab_tests! {
    any: [
        the_first_syn_to_cold_neighbours_succeeds,
        the_first_datagram_to_cold_neighbours_succeeds,
        sessions_outlive_their_neighbours,
        sessions_follow_a_next_hop_to_its_new_address,
    ],
    pls_router: [
        nothing_leaves_through_the_hosts_firewall,
        what_cannot_be_sent_is_told,
    ],
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

/// As on a hardened machine: what leaves it has to be known to the connection tracking, or to be an answer of the probe. Here, nothing else is
/// let out at all.
const HARDENED: &str = "table inet hardened {
    chain output { type filter hook output priority 0; policy drop; oif lo accept; tcp sport PROBE accept; }
    chain postrouting { type filter hook postrouting priority 0; policy drop; oif lo accept; tcp sport PROBE accept; }
}";

fn nothing_leaves_through_the_hosts_firewall(lab: &mut Lab) {
    check(lab.hosts.router.nft(&HARDENED.replace("PROBE", &HEALTH_PORT.to_string())));
    the_first_syn_to_cold_neighbours_succeeds(lab);
    the_first_datagram_to_cold_neighbours_succeeds(lab);
    let before = counters(lab);
    narrow(lab);
    for length in [1400, 5000] {
        fragments::Client::open(lab).echo(length, |_| {});
    }
    let split = reason(&counters(lab), "fragmenting") - reason(&before, "fragmenting");
    assert!(split >= 4, "{split} packets were split");
    let Status { punts, degraded, .. } = check(lab.pls_router_json(&["status"]));
    assert!(punts.sent > 20, "{punts:?}");
    assert_eq!((punts.failed, punts.no_room, &*punts.problem), (0, 0, ""), "{punts:?}");
    assert_eq!(degraded, [""; 0]);
}

/// Has the router's way to the firewall take less than the others.
fn narrow(lab: &Lab) {
    let [firewall, _] = next_hops(lab);
    check(lab.hosts.router.ip(&format!("route replace default via {firewall} mtu lock 1000")));
}

/// What a packet socket sends can be stopped, too, by who wants it: by a chain on the way out of the device itself. Then it is said.
fn what_cannot_be_sent_is_told(lab: &mut Lab) {
    let device = match lab.options.nics {
        Nics::One => "eth0",
        Nics::Two => "eth1",
    };
    narrow(lab);
    fragments::Client::open(lab).echo(1400, |_| {});
    check(lab.hosts.router.nft(&format!(
        "table netdev stop {{ chain out {{ type filter hook egress device {device} priority 0; ip daddr {TOOLS} drop; }}\n}}"
    )));
    let mut client = fragments::Client::open(lab);
    let said = wait::until("the router to say that it is degraded", LIMIT, || {
        client.send(1400, |_| {});
        let status: Status = lab.pls_router_json(&["status"])?;
        let log = lab.router_log();
        ensure!(status.punts.failed > 1 && log.contains("degraded: packets are lost"), "{status:?}\n{log}");
        Ok((status, log))
    });
    let (status, log) = check(said);
    assert!(status.punts.problem.starts_with(&format!("cannot send by {device}: ")), "{status:?}");
    assert_eq!(status.degraded, [format!("packets are lost: {}", status.punts.problem)]);
    assert_eq!(log.matches("degraded: packets are lost").count(), 1, "said once while it lasts: {log}");
    check(lab.hosts.router.nft("delete table netdev stop"));
    fragments::Client::open(lab).echo(1400, |_| {});
}
