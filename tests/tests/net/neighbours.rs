//! Next hops whose MAC address the router does not know: no connection may be lost to them.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics,
    addresses::{
        ECHO_PORT, FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, HEALTH_PORT, PLS_GATEWAY, PLS_NAT, ROUTER, TOOLS,
    },
    arp::Spoofer,
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
        packets_that_cannot_be_sent_are_reported,
        unused_neighbours_do_not_affect_sessions,
        two_machines_with_one_next_hop_address_are_reported,
        a_next_hop_that_answers_only_broadcasts_is_not_reported_as_lost,
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

/// A firewall's twin takes over: the same IP address, another MAC address.
fn sessions_follow_a_next_hop_to_its_new_address(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    check(lab.hosts.firewall.ip("link set vnet address 02:00:00:00:00:66"));
    let [firewall, _] = next_hops(lab);
    // A twin says so to all hosts; `arping -A` would, and so does forgetting it.
    forget(lab, Some(firewall));
    check(tcp.echo(b"after", LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
}

/// A hardened machine: output has to belong to a tracked connection, or to be an answer to the
/// probe. Here, nothing else is let out at all.
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

/// The output of a packet socket can be dropped as well, by an egress chain of the device. Then
/// `status` reports it.
fn packets_that_cannot_be_sent_are_reported(lab: &mut Lab) {
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

/// A gateway that does not answer when its MAC address is asked of itself, as some switches and
/// virtual gateways: the router's kernel loses it every few seconds, and has it back at once.
fn a_next_hop_that_answers_only_broadcasts_is_not_reported_as_lost(lab: &mut Lab) {
    const LOST: usize = 2;
    check(lab.hosts.firewall.nft(
        "table arp deaf {\n chain in {\n type filter hook input priority 0;\n \
         meta pkttype host arp operation request counter drop;\n }\n}\n",
    ));
    let unanswered = |lab: &Lab| -> Result<usize> {
        let table = lab.hosts.firewall.run("nft", &["list", "table", "arp", "deaf"])?;
        let count = table.split_once("packets ").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(count.with_context(|| table.clone())?.parse()?)
    };
    let lost = |lab: &Lab| lab.router_log().matches("not resolved").count();
    let before = lost(lab);
    // Three of them, and the kernel takes a neighbour for lost.
    let start = Instant::now();
    while check(unanswered(lab)) < 3 * (LOST + 1) {
        assert!(start.elapsed() < 6 * LIMIT, "the router asks its next hop too seldom");
        let now: Status = check(lab.pls_router_json(&["status"]));
        assert!(now.healthy && now.degraded.is_empty(), "{now:#?}");
        assert!(now.next_hops.iter().all(|next_hop| next_hop.resolved), "{now:#?}");
    }
    assert_eq!(lost(lab), before, "{}", lab.router_log());
    check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
}

/// The MAC address that the router has for a neighbour.
fn mac_of(lab: &Lab, address: Ipv4Addr) -> Result<String> {
    let text = lab.hosts.router.run("ip", &["neigh", "show", "to", &address.to_string()])?;
    let mac = text.split_once("lladdr ").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(mac.with_context(|| format!("{address} is not known: {text}"))?.to_owned())
}

/// A machine of the router's link that makes up others: the router takes note of each, as every
/// machine does, and no session asks for its next hop again.
fn unused_neighbours_do_not_affect_sessions(lab: &mut Lab) {
    const UNUSED: std::ops::RangeInclusive<u8> = 72..=120;
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let spoofer = check(Spoofer::new(&lab.hosts.pls, "vnet"));
    let before: Status = check(lab.pls_router_json(&["status"]));
    let start = Instant::now();
    for round in 0..20 {
        for last in UNUSED {
            check(spoofer.claim(Ipv4Addr::new(10, 0, 2, last), [2, 0, 0, 0, round, last], ROUTER));
        }
        let expected = format!("02:00:00:00:{round:02x}:{:02x}", UNUSED.end());
        check(wait::until("the router's kernel to take note", LIMIT, || {
            let mac = mac_of(lab, Ipv4Addr::new(10, 0, 2, *UNUSED.end()))?;
            ensure!(mac == expected, "{mac}, and not {expected}");
            Ok(())
        }));
        check(tcp.echo(b"meanwhile", LIMIT));
    }
    // The daemon looks at everything every two seconds, so its reaction is there after the next
    // look.
    let uptime = check(lab.pls_router_json::<Status>(&["status"])).uptime_seconds;
    let after = check(wait::until("the next look", LIMIT, || {
        let now: Status = lab.pls_router_json(&["status"])?;
        ensure!(now.uptime_seconds >= uptime + 3, "{}", now.uptime_seconds);
        Ok(now)
    }));
    let invalidations = after.next_hop_invalidations - before.next_hop_invalidations;
    println!("980 changes in {:?}, {invalidations} invalidations", start.elapsed());
    // A neighbour of the lab's own may go meanwhile.
    assert!(invalidations <= 2, "{invalidations}");
    assert_eq!((after.degraded, after.contested_next_hops), (vec![], vec![]));
}

/// Another machine on the router's link answers for a client's address and gets half of the
/// client's packets. That is reported once and costs the other clients next to nothing. The router
/// believes the last answer, like any host.
fn two_machines_with_one_next_hop_address_are_reported(lab: &mut Lab) {
    let [client, _] = PLS_NAT;
    let own = check(lab.hosts.pls.run("cat", &["/sys/class/net/vnet/address"]));
    let own: Vec<u8> = own.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let own: [u8; 6] = own.try_into().expect("a MAC address");
    let other = [2, 0, 0, 0, 0, 0x99];
    // From the very address whose next hop is contested.
    let service = std::net::SocketAddrV4::new(ROUTER, ECHO_PORT);
    let connect = |port| {
        Tcp::connect_between(&lab.hosts.pls, std::net::SocketAddrV4::new(client, port), service, LIMIT)
    };
    let mut tcp = check(connect(40_000));
    check(tcp.echo(b"before", LIMIT));
    let spoofer = check(Spoofer::new(&lab.hosts.pls, "vnet"));
    let claim = |mac: [u8; 6]| {
        check(spoofer.claim(client, mac, ROUTER));
        let expected = mac.map(|byte| format!("{byte:02x}")).join(":");
        check(wait::until("the router's kernel to take note", LIMIT, || {
            let mac = mac_of(lab, client)?;
            ensure!(mac == expected, "{mac}, and not {expected}");
            Ok(())
        }));
    };
    claim(other);
    claim(own);
    check(tcp.echo(b"again", LIMIT));
    let text = format!("two machines answer for {client} (");
    let told = wait::until("the router to say so", LIMIT, || {
        let now: Status = lab.pls_router_json(&["status"])?;
        let log = lab.router_log();
        ensure!(now.degraded.iter().any(|reason| reason.starts_with(&text)), "{now:#?}");
        ensure!(log.contains(&format!("degraded: {text}")), "{log}");
        Ok(now)
    });
    let before = check(told);
    let [contested] = &before.contested_next_hops[..] else { panic!("{before:#?}") };
    assert!(
        contested.address == client && contested.macs.contains(&"02:00:00:00:00:99".to_owned()),
        "{contested:?}"
    );
    assert!(before.healthy, "{before:#?}");

    // A hundred changes a second. Only the pace of a flood is slept for here.
    let start = Instant::now();
    for round in 0..150 {
        check(spoofer.claim(client, if round % 2 == 0 { other } else { own }, ROUTER));
        thread::sleep(Duration::from_millis(10));
    }
    let after: Status = check(lab.pls_router_json(&["status"]));
    let (invalidations, took) =
        (after.next_hop_invalidations - before.next_hop_invalidations, start.elapsed());
    println!("150 changes in {took:?}, {invalidations} invalidations");
    assert!(invalidations <= 4 + took.as_secs() + 2, "{invalidations} in {took:?}");
    // The router follows the final state.
    claim(own);
    check(tcp.echo(b"in the end", LIMIT));
    check(check(connect(40_001)).echo(b"a new one", LIMIT));
    let log = lab.router_log();
    assert_eq!(log.matches(&format!("degraded: {text}")).count(), 1, "said once while it lasts: {log}");
}
