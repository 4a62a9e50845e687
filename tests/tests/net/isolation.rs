//! Isolation: sources that may not use the router, and the machine's own traffic, are left alone.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Namespace, Nics,
    addresses::{
        ECHO_PORT, ENDPOINT, HEALTH_PORT, PLATFORM, PLS_NAT, ROUTER, ROUTER_SECOND, SSH_PORT, TOOLS, VM,
    },
    client::{self, Tcp, Udp},
    wait,
};
use router_user::model::Flow;

use crate::common::{ECHO, LIMIT, check, counters, in_lab, reason, rule};

lab_tests! {
    any: [
        the_router_itself_stays_reachable,
        the_router_itself_reaches_others,
    ],
    pls_router: [
        only_sources_may_use_a_rule,
        the_platform_is_never_translated,
        sources_of_a_rule_reach_nothing_else,
    ],
}

/// A source address is easily made up; the side that a packet comes from is not.
#[test]
fn the_firewall_s_side_cannot_pose_as_a_client() {
    in_lab(Nics::Two, true, |lab| {
        let [client, _] = PLS_NAT;
        check(
            lab.hosts.firewall.ip(&format!(
                "addr add {client}/32 dev lo\nroute add {ROUTER}/32 via {ROUTER_SECOND} dev vnet"
            )),
        );
        let before = counters(lab);
        let socket =
            check(check(lab.hosts.firewall.inside(|| UdpSocket::bind((client, 5000)))).context("bind"));
        for address in [ROUTER, ROUTER_SECOND] {
            check(socket.send_to(b"as a client", (address, ECHO_PORT)).context("send"));
        }
        check(wait::until("both to be counted", LIMIT, || {
            let counted = reason(&counters(lab), "wrong_interface") - reason(&before, "wrong_interface");
            ensure!(counted == 2, "{counted} are");
            Ok(())
        }));
        let after = counters(lab);
        assert_eq!(rule(&after, "echo-udp").sessions_opened, rule(&before, "echo-udp").sessions_opened);
        assert_eq!(rule(&after, "echo-udp").denied_packets - rule(&before, "echo-udp").denied_packets, 2);
        check(check(Udp::open(&lab.hosts.serverless, ECHO)).echo(b"a client", LIMIT));
    });
}

/// An attempt that gets no answer is given up after this time.
const NO_ANSWER: Duration = Duration::from_millis(300);

/// Returns the kind of error that a connection attempt ended with.
#[track_caller]
fn refusal(from: &Namespace, source: Ipv4Addr, target: SocketAddrV4, limit: Duration) -> io::ErrorKind {
    let Err(error) = Tcp::connect_from(from, source, target, limit) else {
        panic!("{source} could connect to {target}");
    };
    match error.downcast_ref::<nix::Error>() {
        // A connect() that ran into its timeout says this: connect(2).
        Some(nix::Error::EINPROGRESS | nix::Error::EAGAIN) => io::ErrorKind::TimedOut,
        Some(number) => io::Error::from(*number).kind(),
        None => panic!("{error:#}"),
    }
}

fn only_sources_may_use_a_rule(lab: &mut Lab) {
    let before = counters(lab);
    // In the network, but outside of the subnet that the rules allow.
    let tcp = SocketAddrV4::new(ROUTER, ECHO_PORT);
    assert_eq!(refusal(&lab.hosts.vm, VM, tcp, NO_ANSWER), io::ErrorKind::TimedOut);
    let udp = check(Udp::open(&lab.hosts.vm, tcp.into()));
    for _ in 0..5 {
        check(udp.send(b"let me in"));
    }
    udp.echo(b"please", NO_ANSWER).expect_err("an outsider got an answer");
    let after = counters(lab);
    assert_eq!(rule(&after, "echo-udp").denied_packets - rule(&before, "echo-udp").denied_packets, 6);
    let denied_tcp = rule(&after, "echo-tcp").denied_packets - rule(&before, "echo-tcp").denied_packets;
    assert!(denied_tcp >= 1, "no denied packet of echo-tcp");
    assert_eq!(reason(&after, "source_not_allowed") - reason(&before, "source_not_allowed"), 6 + denied_tcp);
    assert_eq!(rule(&after, "echo-udp").sessions_opened, rule(&before, "echo-udp").sessions_opened);

    // Sources that the rules allow are not affected, from any of their addresses.
    for source in PLS_NAT {
        check(check(Tcp::connect_from(&lab.hosts.pls, source, tcp, LIMIT)).echo(b"hello", LIMIT));
    }
}

fn the_router_itself_stays_reachable(lab: &mut Lab) {
    let target = SocketAddr::from((ROUTER, SSH_PORT));
    check(check(Tcp::connect(&lab.hosts.vm, target, LIMIT)).echo(b"SSH-2.0-lab", LIMIT));
    // ARP too: no host knows the router's MAC address any more.
    check(lab.hosts.pls.ip("neigh flush all"));
    assert_eq!(check(client::ping(&lab.hosts.vm, ROUTER, 3, &[])), 3, "answers of the router itself");
}

fn the_router_itself_reaches_others(lab: &mut Lab) {
    // The router's own traffic: its name server is the platform, and its route leads to the
    // firewall.
    let page = check(
        lab.hosts
            .router
            .run("curl", &["--silent", "--show-error", "--max-time", "10", "http://pypi.example.org/"]),
    );
    assert_eq!(page, lab::front_page("pypi.example.org"));
    let udp = check(Udp::open(&lab.hosts.router, (TOOLS, ECHO_PORT).into()));
    check(udp.echo(b"from the router itself", LIMIT));
}

fn sources_of_a_rule_reach_nothing_else(lab: &mut Lab) {
    let before = reason(&counters(lab), "local_denied");
    for port in [SSH_PORT, 9999] {
        let target = SocketAddrV4::new(ROUTER, port);
        for source in PLS_NAT {
            assert_eq!(refusal(&lab.hosts.pls, source, target, NO_ANSWER), io::ErrorKind::TimedOut);
        }
    }
    // Through the load balancer, which has all ports.
    let endpoint = SocketAddr::from((ENDPOINT, SSH_PORT));
    Tcp::connect(&lab.hosts.serverless, endpoint, NO_ANSWER).expect_err("SSH from the private endpoint");
    assert!(reason(&counters(lab), "local_denied") - before >= 5);
}

fn the_platform_is_never_translated(lab: &mut Lab) {
    // The platform's probe comes in every lab. Here it comes to a rule's port as well, on which no
    // process listens.
    let rules_port = SocketAddrV4::new(ROUTER, ECHO_PORT);
    assert_eq!(refusal(&lab.hosts.pls, PLATFORM, rules_port, LIMIT), io::ErrorKind::ConnectionRefused);
    check(Tcp::connect_from(&lab.hosts.pls, PLATFORM, SocketAddrV4::new(ROUTER, HEALTH_PORT), LIMIT));

    // And what the router sends to it: DNS, from a source that a masquerade covers.
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"a flow", LIMIT));
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows"]));
    assert!(!flows.is_empty(), "no flow at all is listed");
    for flow in &flows {
        let ends = [flow.client.ip(), flow.listen.ip(), flow.snat.ip(), flow.target.ip()];
        assert!(!ends.contains(&PLATFORM.into()), "the platform has a session: {flow:?}");
    }
    assert!(reason(&counters(lab), "platform") > 0, "no packet of the platform was counted");
}
