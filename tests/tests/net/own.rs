//! The router's own traffic beside its sessions.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::ensure;
use aya::programs::{SchedClassifier, TcAttachType};
use lab::{
    Lab, Nics,
    addresses::{ECHO_PORT, PLS_NAT, PLS_SUBNET, ROUTER, TOOLS},
    client::{self, Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;
use router_common::limits::LAYOUT;
use router_user::model::{Check, Flow, Status};

use crate::{
    common::{LIMIT, check, counters},
    lifecycle::without_router,
};

lab_tests! {
    any: [
        a_session_gives_way_to_a_connection_of_the_router,
        a_session_gives_way_to_a_datagram_of_the_router,
        a_session_gives_way_to_a_ping_of_the_router,
        an_ended_session_gives_way_to_a_connection_of_the_router,
    ],
    pls_router: [
        sessions_keep_away_from_the_kernels_ports,
        answers_to_unconnected_sockets_pass,
        a_connection_of_the_router_from_a_live_sessions_port_is_refused,
        the_classifier_is_attached_while_the_router_is_on,
    ],
}

/// The echo services of the rules, and where they lead.
const RULE: SocketAddrV4 = SocketAddrV4::new(ROUTER, ECHO_PORT);
const TARGET: SocketAddrV4 = SocketAddrV4::new(TOOLS, ECHO_PORT);

/// A port that the kernel may give to a socket of the router.
const PORT: u16 = 40_001;

/// Any address of a host, with this port.
const fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// A client's socket with this port, which the Private Link Service would keep.
fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(PLS_NAT[0], port)
}

fn a_session_gives_way_to_a_connection_of_the_router(lab: &mut Lab) {
    let mut session = check(Tcp::connect_between(&lab.hosts.pls, client(PORT), RULE, LIMIT));
    let udp_session = check(Udp::open_at(&lab.hosts.pls, client(PORT), RULE.into()));
    check(session.echo(b"before", LIMIT));
    check(udp_session.echo(b"before", LIMIT));
    let mut own = check(Tcp::connect_between(&lab.hosts.router, any(PORT), TARGET, LIMIT));
    let own_udp = check(Udp::open_at(&lab.hosts.router, any(PORT), TARGET.into()));
    for _ in 0..3 {
        check(own.echo(b"the router's", LIMIT));
        check(own_udp.echo(b"the router's", LIMIT));
        check(session.echo(b"the client's", LIMIT));
        check(udp_session.echo(b"the client's", LIMIT));
    }
}

fn sessions_keep_away_from_the_kernels_ports(lab: &mut Lab) {
    for port in [PORT, 50_000, 60_999] {
        let udp = check(Udp::open_at(&lab.hosts.pls, client(port), RULE.into()));
        check(udp.echo(b"hello", LIMIT));
    }
    let kept = check(Udp::open_at(&lab.hosts.pls, client(20_000), RULE.into()));
    check(kept.echo(b"hello", LIMIT));
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows", "--rule", "echo-udp"]));
    assert_eq!(flows.len(), 4, "{flows:#?}");
    assert!(flows.iter().all(|flow| (1024..=32_767).contains(&flow.snat.port())), "{flows:#?}");
    assert!(flows.iter().any(|flow| flow.snat == SocketAddr::new(flow.snat.ip(), 20_000)), "{flows:#?}");
    assert_eq!(reserved(lab), "");
}

/// The ports that the router's kernel does not give out.
fn reserved(lab: &Lab) -> String {
    let text = lab.hosts.router.run("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"]);
    check(text).trim().to_owned()
}

/// The ports that rules and sessions have are reserved beside what others have reserved, as long as
/// they have them.
#[test]
fn overlapping_ports_are_reserved_and_given_back() {
    let mut lab = without_router();
    check(lab.hosts.router.sysctl("net/ipv4/ip_local_reserved_ports", "33000,61000"));
    let rules = lab.options.rules.clone();
    lab.set_rules(format!("{rules}[snat]\nports = \"1024-50000\"\n"));
    check(lab.start_router());
    assert_eq!(reserved(&lab), "32768-50000,61000");
    // A crash takes nothing back, and what is reserved already is no obstacle.
    check(lab.stop_router(Signal::SIGKILL));
    assert_eq!(reserved(&lab), "32768-50000,61000");
    check(lab.start_router());
    assert_eq!(reserved(&lab), "32768-50000,61000");
    assert!(overlaps(&lab).is_empty());
    // An operator sets the list from a file.
    check(lab.hosts.router.sysctl("net/ipv4/ip_local_reserved_ports", "33000,61000"));
    check(wait::until("the ports to be reserved again", LIMIT, || {
        ensure!(reserved(&lab) == "32768-50000,61000", "{}", reserved(&lab));
        Ok(())
    }));
    // A port that a later configuration does not need any more.
    check(lab.stop_router(Signal::SIGKILL));
    lab.set_rules(format!(
        "{rules}[[forward]]\nname = \"rtp\"\nprotocol = \"udp\"\nlisten = \"40000-40100\"\n\
         target = \"{TOOLS}\"\nsources = [\"{PLS_SUBNET}\"]\n"
    ));
    check(lab.start_router());
    assert_eq!(reserved(&lab), "33000,40000-40100,61000");
    check(lab.stop_router(Signal::SIGTERM));
    assert_eq!(reserved(&lab), "33000,40000-40100,61000");
    check(lab.detach_router());
    assert_eq!(reserved(&lab), "33000,61000");
}

/// The warnings of `check` about ports. There are others in a lab, whose interfaces are virtual.
#[track_caller]
fn overlaps(lab: &Lab) -> Vec<String> {
    let found: Check = check(lab.pls_router_json(&["check"]));
    assert!(found.ok, "{found:#?}");
    found.findings.into_iter().map(|finding| finding.text).filter(|text| text.contains("ports")).collect()
}

/// The kernel keeps all ports, and a finding reports that, if it would be left with too few.
#[test]
fn ports_that_cannot_be_reserved_are_reported() {
    let mut lab = without_router();
    lab.set_rules(format!("{}[snat]\nports = \"1024-65535\"\n", lab.options.rules));
    check(lab.start_router());
    assert_eq!(reserved(&lab), "");
    let is_named = |text: &str| text.contains("32768-60999") && text.contains("`ports` of [snat]");
    let named = overlaps(&lab);
    assert!(matches!(&named[..], [text] if is_named(text)), "{named:?}");
    check(wait::until("the status to say it", LIMIT, || {
        let status: Status = lab.pls_router_json(&["status"])?;
        ensure!(status.healthy && status.degraded.iter().any(|text| is_named(text)), "{status:#?}");
        Ok(())
    }));
    // An operator gives the kernel other ports.
    check(lab.hosts.router.sysctl("net/ipv4/ip_local_port_range", "1024 1100"));
    check(wait::until("the status to follow", LIMIT, || {
        let status: Status = lab.pls_router_json(&["status"])?;
        ensure!(status.degraded.iter().any(|text| text.contains("1024-1100")), "{status:#?}");
        Ok(())
    }));
}

/// A UDP socket of the router's that is bound to this port and not connected, as those of name
/// servers and time daemons are.
fn unconnected(lab: &Lab, port: u16) -> UdpSocket {
    let socket =
        check(lab.hosts.router.inside(|| UdpSocket::bind(any(port)))).expect("a port of the router's");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    socket
}

/// Sends a datagram from such a socket, and reads its echo.
#[track_caller]
fn asks(socket: &UdpSocket, target: SocketAddrV4, text: &str) {
    socket.send_to(text.as_bytes(), target).expect("it is sent");
    let mut answer = [0; 99];
    let (length, from) = socket.recv_from(&mut answer).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!((&answer[..length], from), (text.as_bytes(), target.into()));
}

/// The answer comes from an address that may use rules, and reaches nothing else here.
fn answers_to_unconnected_sockets_pass(lab: &mut Lab) {
    let peer = SocketAddrV4::new(PLS_NAT[1], 9999);
    let mut echo = check(lab.options.helper.udp_echo(lab.state(), &lab.hosts.pls, "peer", peer.into()));
    check(echo.wait_until(LIMIT, || lab.hosts.pls.listens_udp_at(peer)));
    for port in [123, 5353, 40_000] {
        asks(&unconnected(lab, port), peer, "a question");
    }
    // A server on a port that the kernel might have given it is not reached, nor is a client by
    // another source.
    let server = unconnected(lab, 51_820);
    let client = unconnected(lab, 40_100);
    asks(&client, peer, "a question");
    for port in [51_820, 40_100] {
        let target = SocketAddr::from((ROUTER, port));
        let udp = check(Udp::open_at(&lab.hosts.pls, self::client(1234), target));
        check(udp.send(b"let me in"));
    }
    for socket in [server, client] {
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let got = socket.recv_from(&mut [0; 99]);
        assert!(got.is_err(), "{got:?}");
    }
}

/// A port that sessions get: nothing keeps a socket that asks for it from having it.
const SNAT_PORT: u16 = 20_001;

fn a_session_gives_way_to_a_datagram_of_the_router(lab: &mut Lab) {
    let session = check(Udp::open_at(&lab.hosts.pls, client(SNAT_PORT), RULE.into()));
    check(session.echo(b"before", LIMIT));
    let own = unconnected(lab, SNAT_PORT);
    for _ in 0..3 {
        asks(&own, TARGET, "the router's");
        check(session.echo(b"the client's", LIMIT));
    }
}

fn a_session_gives_way_to_a_ping_of_the_router(lab: &mut Lab) {
    let ping = |from| check(client::ping(from, TOOLS, 3, &["-e", "4711"]));
    for _ in 0..2 {
        assert_eq!(ping(&lab.hosts.vm), 3, "answers to the client");
        assert_eq!(ping(&lab.hosts.router), 3, "answers to the router");
    }
}

fn an_ended_session_gives_way_to_a_connection_of_the_router(lab: &mut Lab) {
    let mut session = check(Tcp::connect_between(&lab.hosts.pls, client(SNAT_PORT), RULE, LIMIT));
    check(session.echo(b"the client's", LIMIT));
    check(session.close());
    let mut own = check(Tcp::connect_between(&lab.hosts.router, any(SNAT_PORT), TARGET, LIMIT));
    check(own.echo(b"the router's", LIMIT));
}

/// Both cannot be told apart. The one that is there goes on, and the other is told at once.
fn a_connection_of_the_router_from_a_live_sessions_port_is_refused(lab: &mut Lab) {
    let mut session = check(Tcp::connect_between(&lab.hosts.pls, client(SNAT_PORT), RULE, LIMIT));
    check(session.echo(b"the client's", LIMIT));
    let start = Instant::now();
    let refused =
        Tcp::connect_between(&lab.hosts.router, any(SNAT_PORT), TARGET, LIMIT).expect_err("it is connected");
    assert_eq!(refused.downcast_ref(), Some(&nix::Error::ECONNREFUSED), "{refused:#}");
    assert!(start.elapsed() < Duration::from_millis(500), "after {:?}", start.elapsed());
    check(session.echo(b"the client's", LIMIT));
    assert_eq!(counters(lab).own_traffic.connections_refused, 1);
    // From another port it gets through.
    let mut own = check(Tcp::connect_between(&lab.hosts.router, any(SNAT_PORT + 1), TARGET, LIMIT));
    check(own.echo(b"the router's", LIMIT));
}

/// The number of our programs on the way out of a device.
fn watchers(lab: &Lab, device: &str) -> usize {
    let query = || SchedClassifier::query_tcx(device, TcAttachType::Egress);
    let (_, programs) = check(lab.hosts.router.inside(query)).expect("the kernel has tcx");
    programs.iter().filter(|program| program.name_as_str() == Some("own_traffic")).count()
}

fn the_classifier_is_attached_while_the_router_is_on(lab: &mut Lab) {
    let devices: &[&str] = match lab.options.nics {
        Nics::One => &["eth0"],
        Nics::Two => &["eth0", "eth1"],
    };
    let all = |lab: &Lab| devices.iter().map(|device| watchers(lab, device)).collect::<Vec<_>>();
    assert_eq!(all(lab), vec![1; devices.len()]);
    check(lab.stop_router(Signal::SIGKILL));
    assert_eq!(all(lab), vec![1; devices.len()]);
    check(lab.start_router());
    assert_eq!(all(lab), vec![1; devices.len()]);
    // No other process holds the link, so it goes away with its pin.
    let pin = lab.state().path("bpf/pls-router").join(format!("v{LAYOUT}/links/own-eth0"));
    fs::remove_file(pin).expect("a pin");
    check(wait::until("what leaves to be seen again", LIMIT, || {
        ensure!(all(lab) == vec![1; devices.len()], "{:?}", all(lab));
        Ok(())
    }));
    check(wait::until("the log to say so", LIMIT, || {
        let said = lab.router()?.output().matches("own traffic is seen").count();
        ensure!(said > devices.len(), "{said} times");
        Ok(())
    }));
    check(lab.stop_router(Signal::SIGTERM));
    check(lab.detach_router());
    assert_eq!(all(lab), vec![0; devices.len()]);
    let qdiscs = check(lab.hosts.router.run("tc", &["qdisc", "show"]));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}
