//! Clients whose packets go nowhere: each is told, and none waits for what will not come.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lab::{
    Lab, Namespace, Nics,
    addresses::{ECHO_PORT, ENDPOINT, PLS_SUBNET, TOOLS},
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;

use crate::common::{ECHO, LIMIT, check, counters, reason};

lab_tests! {
    any: [a_dead_next_hop_is_reported_to_the_client],
    // The kernel's own router tells each only once a second (`ip_error`, net/ipv4/route.c).
    pls_router: [
        an_unreachable_target_is_reported_to_the_client_at_once,
        a_next_hop_that_comes_back_is_found,
        a_connection_of_a_masquerade_is_reset_after_a_detach,
        a_rule_without_a_target_refuses_new_sessions,
        clients_are_not_told_if_so_configured,
    ],
}

/// The echo server, as a machine reaches it whose packets are masqueraded.
const DIRECT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(TOOLS), ECHO_PORT);
/// At once: without a SYN that is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);
/// The network that the echo server is in.
const BEHIND: &str = "203.0.113.0/24";

/// The error of a connection that has to fail, and the time until then.
#[track_caller]
fn refusal(from: &Namespace, target: SocketAddr) -> (ErrorKind, Duration) {
    let start = Instant::now();
    match Tcp::connect(from, target, LIMIT) {
        Ok(_) => panic!("{} is connected to {target}", from.name()),
        Err(error) => {
            let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
            (kind.unwrap_or_else(|| panic!("{error:#}")), start.elapsed())
        }
    }
}

/// A forward's client gets each kind of failure at once.
#[track_caller]
fn a_forwards_client_fails_at_once(lab: &Lab, why: &str) {
    const TOLD: [ErrorKind; 3] =
        [ErrorKind::ConnectionRefused, ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
    let (kind, took) = refusal(&lab.hosts.serverless, ECHO);
    assert!(TOLD.contains(&kind) && took < AT_ONCE, "{why}: {kind} after {took:?}");
}

fn an_unreachable_target_is_reported_to_the_client_at_once(lab: &mut Lab) {
    // It would take the router out.
    check(lab.stop_probe());
    let router = &lab.hosts.router;
    let default = check(router.ip("route show default"));
    for (by, kind, said) in [
        ("route del default", ErrorKind::NetworkUnreachable, "Destination Net Unreachable"),
        ("route add unreachable BEHIND", ErrorKind::HostUnreachable, "Destination Host Unreachable"),
        ("route add prohibit BEHIND", ErrorKind::HostUnreachable, "Packet filtered"),
    ] {
        check(router.ip(&by.replace("BEHIND", BEHIND)));
        a_forwards_client_fails_at_once(lab, by);
        let (told, took) = refusal(&lab.hosts.vm, DIRECT);
        assert!(told == kind && took < AT_ONCE, "{by}: {told} after {took:?}");
        let mut ping = check(lab.hosts.vm.command("ping"));
        let ping = ping.args(["-n", "-c", "1", "-W", "2", &TOOLS.to_string()]);
        let output = check(lab::command::output(ping));
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains(said), "{by}: {output}");
        if by.contains("BEHIND") {
            check(router.ip(&by.replace("add", "del").replace("BEHIND", BEHIND)));
        } else {
            check(router.ip(&format!("route add {}", default.trim())));
        }
        check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"again", LIMIT));
        check(check(Tcp::connect(&lab.hosts.vm, DIRECT, LIMIT)).echo(b"again", LIMIT));
    }
}

/// An unused address beside the firewall.
fn unused(lab: &Lab) -> Ipv4Addr {
    match lab.options.nics {
        Nics::One => Ipv4Addr::new(10, 0, 2, 99),
        Nics::Two => Ipv4Addr::new(10, 0, 3, 9),
    }
}

fn a_dead_next_hop_is_reported_to_the_client(lab: &mut Lab) {
    check(lab.stop_probe());
    check(lab.hosts.router.ip(&format!("route add {BEHIND} via {}", unused(lab))));
    for (from, target) in [(&lab.hosts.serverless, ECHO), (&lab.hosts.vm, DIRECT)] {
        let (kind, took) = refusal(from, target);
        assert!(kind != ErrorKind::TimedOut && took < LIMIT, "{kind} after {took:?}");
    }
}

fn a_next_hop_that_comes_back_is_found(lab: &mut Lab) {
    check(lab.stop_probe());
    let unused = unused(lab);
    check(lab.hosts.router.ip(&format!("route add {BEHIND} via {unused}")));
    let (kind, took) = refusal(&lab.hosts.vm, DIRECT);
    assert!(kind == ErrorKind::HostUnreachable && took < LIMIT, "{kind} after {took:?}");
    // The others need not wait for the kernel to find the same again.
    for _ in 0..5 {
        a_forwards_client_fails_at_once(lab, "a dead next hop");
        let (kind, took) = refusal(&lab.hosts.vm, DIRECT);
        assert!(kind == ErrorKind::HostUnreachable && took < AT_ONCE, "{kind} after {took:?}");
    }
    let counted = counters(lab);
    assert!(reason(&counted, "host_unreachable") >= 11, "{counted:?}");
    assert_eq!(check(lab.pls_router_json::<Vec<router_user::model::Flow>>(&["flows"])).len(), 0);
    check(lab.hosts.firewall.ip(&format!("addr add {unused}/26 dev vnet")));
    check(wait::until("the next hop to be found", LIMIT, || {
        Tcp::connect(&lab.hosts.vm, DIRECT, AT_ONCE)?.echo(b"there", LIMIT)
    }));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, AT_ONCE)).echo(b"there", LIMIT));
}

fn a_connection_of_a_masquerade_is_reset_after_a_detach(lab: &mut Lab) {
    let mut idle = check(Tcp::connect(&lab.hosts.vm, DIRECT, LIMIT));
    check(idle.echo(b"before", LIMIT));
    let udp = check(Udp::open(&lab.hosts.vm, DIRECT));
    check(udp.echo(b"before", LIMIT));
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    check(lab.detach_router());
    check(lab.start_router());
    let start = Instant::now();
    let Err(error) = idle.echo(b"after", LIMIT) else { panic!("the connection is unknown") };
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:#}");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert!(reason(&counters(lab), "session_unknown") > 0);
    // Traffic without connections goes on, and clients can connect again.
    check(udp.echo(b"after", LIMIT));
    check(check(Tcp::connect(&lab.hosts.vm, DIRECT, LIMIT)).echo(b"again", LIMIT));
}

fn a_rule_without_a_target_refuses_new_sessions(lab: &mut Lab) {
    check(lab.stop_probe());
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    lab.set_rules(format!(
        "{}\n[[forward]]\nname = \"nowhere\"\nprotocol = \"tcp\"\nlisten = \"9001\"\n\
         target = \"no-such-name.example.:80\"\nsources = [\"{PLS_SUBNET}\"]\n",
        lab.options.rules
    ));
    check(lab.start_router());
    let (kind, took) = refusal(&lab.hosts.serverless, (ENDPOINT, 9001).into());
    assert!(kind == ErrorKind::ConnectionRefused && took < AT_ONCE, "{kind} after {took:?}");
    assert!(reason(&counters(lab), "refused") > 0);
}

fn clients_are_not_told_if_so_configured(lab: &mut Lab) {
    check(lab.stop_probe());
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    lab.set_rules(format!("{}\n[answers]\nunreachable = \"drop\"\n", lab.options.rules));
    check(lab.start_router());
    check(lab.hosts.router.ip(&format!("route add unreachable {BEHIND}")));
    let before = counters(lab);
    for (from, target) in [(&lab.hosts.serverless, ECHO), (&lab.hosts.vm, DIRECT)] {
        let connected = Tcp::connect(from, target, AT_ONCE);
        let error = connected.err().context("connected").unwrap_or_else(|error| panic!("{error:#}"));
        let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(ErrorKind::TimedOut), "{error:#}");
    }
    let after = counters(lab);
    assert!(reason(&after, "route_unreachable") - reason(&before, "route_unreachable") >= 2);
    assert_eq!(reason(&after, "host_unreachable"), reason(&before, "host_unreachable"));
}
