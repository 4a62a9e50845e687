//! The daemon's life: start, stop, crash, and what remains afterwards.

use std::{fs, net::SocketAddrV4, time::Duration};

use anyhow::Context as _;
use lab::{
    Lab, Nics, Options,
    addresses::{ECHO_PORT, PLS_NAT, ROUTER},
    client::{Tcp, Udp},
    link::XdpPass,
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Flow, NoDaemon, Status};

use crate::common::{ECHO, LIMIT, check, counters, helper, only_pls_router, reason, router, rule};

lab_tests! {
    any: [],
    pls_router: [
        a_stop_leaves_the_data_plane_forwarding,
        detach_takes_the_router_off,
        a_crash_loses_no_connection,
        counters_and_flows_add_up,
        the_probe_tells_the_truth,
    ],
}

/// The time that a daemon that has nothing to wait for may take to give up.
pub(crate) const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// Returns the program on one of the router's devices as `ip` prints it: the words after
/// `prog/xdp`.
pub(crate) fn attached(lab: &Lab, device: &str) -> Option<String> {
    let shown = check(lab.hosts.router.run("ip", &["-details", "link", "show", "dev", device]));
    shown.lines().find_map(|line| line.trim().strip_prefix("prog/xdp ").map(str::to_owned))
}

fn devices(lab: &Lab) -> &'static [&'static str] {
    match lab.options.nics {
        Nics::One => &["eth0"],
        Nics::Two => &["eth0", "eth1"],
    }
}

/// The pins of the lab's router.
pub(crate) fn pins(lab: &Lab) -> Vec<String> {
    let directory = lab.state().path("bpf/pls-router");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

fn a_stop_leaves_the_data_plane_forwarding(lab: &mut Lab) {
    let router = check(lab.router());
    let (log, before) = (router.log().to_owned(), router.output().len());
    loses_no_connection(lab, Signal::SIGTERM);
    let said = check(fs::read_to_string(&log).context("its log")).split_off(before);
    assert!(said.contains("go on forwarding on eth0"), "{said}");
}

fn a_crash_loses_no_connection(lab: &mut Lab) {
    loses_no_connection(lab, Signal::SIGKILL);
}

/// `detach` takes off what a stop leaves.
fn detach_takes_the_router_off(lab: &mut Lab) {
    for device in devices(lab) {
        assert!(attached(lab, device).is_some(), "nothing is attached to {device}");
    }
    assert!(!pins(lab).is_empty(), "nothing is pinned");
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    check(lab.detach_router());
    for device in devices(lab) {
        assert_eq!(attached(lab, device), None, "on {device}");
    }
    assert_eq!(pins(lab), [""; 0]);
    let output = check(lab.pls_router(&["status"]));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));

    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"again", LIMIT));
}

/// Ends the router by this signal while connections use it, and starts it again.
fn loses_no_connection(lab: &mut Lab, signal: Signal) {
    let direct = SocketAddrV4::new(ROUTER, ECHO_PORT);
    // Without the daemon, unresolved neighbours are not asked for, so have them resolved before.
    for source in PLS_NAT {
        check(check(Tcp::connect_from(&lab.hosts.pls, source, direct, LIMIT)).close());
    }
    let mut old = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(old.echo(b"before", LIMIT));
    check(udp.echo(b"before", LIMIT));
    let programs: Vec<_> = devices(lab).iter().map(|device| attached(lab, device)).collect();

    let status = check(lab.stop_router(signal));
    assert!(status.success() || signal == Signal::SIGKILL, "{status}");
    check(old.echo(&[7; 20_000], LIMIT));
    check(udp.echo(b"meanwhile", LIMIT));
    // New connections too, for clients that do not go by the load balancer.
    let mut meanwhile = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], direct, LIMIT));
    check(meanwhile.echo(b"meanwhile", LIMIT));
    check(lab.wait_out_of_service(LIMIT));

    let output = check(lab.pls_router(&["status"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let wanted = format!(", on {} (", devices(lab).join(", "));
    assert!(text.contains("forwarding without a daemon since ") && text.contains(&wanted), "{text}");
    let output = check(lab.pls_router(&["status", "-o", "json"]));
    let told: NoDaemon = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (told.healthy, told.unattended.interfaces),
        (false, devices(lab).iter().map(|&it| it.to_owned()).collect())
    );
    assert!(told.unattended.seconds < 60, "{}", told.unattended.seconds);

    check(lab.start_router());
    let adopted: Vec<_> = devices(lab).iter().map(|device| attached(lab, device)).collect();
    assert_eq!(adopted, programs, "the attached program is not the one from before");
    check(lab.wait_in_service(LIMIT));
    for tcp in [&mut old, &mut meanwhile] {
        check(tcp.echo(&[8; 20_000], LIMIT));
    }
    check(udp.echo(b"after", LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows", "--rule", "echo-tcp"]));
    assert!(flows.len() >= 3, "the old sessions are not listed: {flows:#?}");
}

/// The router's numbers equal those of the traffic that was sent.
fn counters_and_flows_add_up(lab: &mut Lab) {
    const CONNECTIONS: u64 = 5;
    const DATAGRAMS: u64 = 10;
    const PAYLOAD: u64 = 333;
    // The first packets to a cold neighbour go by way of the daemon, which is another reason.
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"warm", LIMIT));
    let before = counters(lab);

    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    for number in 0..DATAGRAMS {
        check(udp.echo(&[number as u8; PAYLOAD as usize], LIMIT));
    }
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
        check(tcp.echo(b"hello", LIMIT));
        connections.push(tcp);
    }

    let after = counters(lab);
    let (old, new) = (rule(&before, "echo-udp"), rule(&after, "echo-udp"));
    // Ethernet, IPv4 and UDP in front of the payload.
    let bytes = DATAGRAMS * (14 + 20 + 8 + PAYLOAD);
    assert_eq!(new.sessions_opened - old.sessions_opened, 1);
    assert_eq!(new.forward_packets - old.forward_packets, DATAGRAMS);
    assert_eq!(new.forward_bytes - old.forward_bytes, bytes);
    assert_eq!(new.reply_packets - old.reply_packets, DATAGRAMS);
    assert_eq!(new.reply_bytes - old.reply_bytes, bytes);
    let (old, new) = (rule(&before, "echo-tcp"), rule(&after, "echo-tcp"));
    assert_eq!(new.sessions_opened - old.sessions_opened, CONNECTIONS);
    // SYN, ACK and data at least one way; SYN-ACK and data the other.
    assert!(new.forward_packets - old.forward_packets >= 3 * CONNECTIONS, "{new:?}");
    assert!(new.reply_packets - old.reply_packets >= 2 * CONNECTIONS, "{new:?}");
    assert_eq!(reason(&after, "opened") - reason(&before, "opened"), 1 + CONNECTIONS);
    let dropped: Vec<_> = after
        .reasons
        .iter()
        .filter(|row| row.action == "drop" && row.packets > 0)
        .map(|row| &row.reason)
        .collect();
    assert!(dropped.is_empty(), "packets were dropped: {dropped:?}");
    // Everything that the rules count went out for one of the reasons that forward, and the other
    // way round. A packet that has waited for its neighbour (`resolving`) is counted once more when
    // it leaves.
    let by_reason: u64 = after
        .reasons
        .iter()
        .filter(|row| row.action == "forward" || row.reason == "fragmenting")
        .map(|row| row.packets)
        .sum();
    let by_rule: u64 = after.rules.iter().map(|row| row.forward_packets + row.reply_packets).sum();
    assert_eq!(by_reason, by_rule, "packets forwarded by reason and by rule: {after:#?}");
    for interface in &after.interfaces {
        assert!(interface.rx_packets > 0 && interface.tx_packets > 0, "{interface:?}");
    }

    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows"]));
    let udp: Vec<_> = flows.iter().filter(|flow| flow.rule == "echo-udp").collect();
    let [udp] = udp.as_slice() else { panic!("not one UDP session: {flows:#?}") };
    assert_eq!((udp.forward_packets, udp.reply_packets), (DATAGRAMS, DATAGRAMS), "{udp:?}");
    assert_eq!((udp.forward_bytes, udp.reply_bytes), (bytes, bytes), "{udp:?}");
    assert!(PLS_NAT.map(Into::into).contains(&udp.client.ip()), "{udp:?}");
    let established = |flow: &&Flow| flow.rule == "echo-tcp" && flow.state == "established";
    let count = flows.iter().filter(established).count();
    assert!(count as u64 >= CONNECTIONS, "{flows:#?}");
    for tcp in connections {
        check(tcp.close());
    }
    check(wait::until("closed connections to be no longer established", LIMIT, || {
        let flows: Vec<Flow> = lab.pls_router_json(&["flows", "--rule", "echo-tcp"])?;
        anyhow::ensure!(!flows.iter().any(|flow| established(&flow)), "{flows:#?}");
        Ok(())
    }));
}

/// The health endpoint fails when forwarding would.
fn the_probe_tells_the_truth(lab: &mut Lab) {
    let status: Status = check(lab.pls_router_json(&["status"]));
    assert!(status.healthy && status.reasons.is_empty(), "{status:#?}");
    check(lab.hosts.router.ip("route del default"));
    check(lab.wait_out_of_service(LIMIT));
    let (code, body) = check(lab.health());
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("route"), "the reason does not name the route: {body}");
    // `status` says the same, with exit status 1.
    let output = check(lab.pls_router(&["status"]));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A lab whose router a test starts itself.
pub(crate) fn without_router() -> Lab {
    only_pls_router();
    check(Lab::up(Options { start_router: false, ..Options::new(Nics::One, router(), helper()) }))
}

/// Starts the router, which must refuse: exit status 1, and this text on standard error.
#[track_caller]
pub(crate) fn refuses(lab: &Lab, what: &str, texts: &[&str]) {
    let mut process = check(lab.spawn_router());
    let before = process.output().len();
    let status = check(process.wait(REFUSAL_LIMIT));
    let output = process.output();
    // The log is one for all starts; only what this one wrote counts.
    let said = output.get(before..).filter(|said| !said.is_empty()).unwrap_or(&output);
    assert_eq!(status.code(), Some(1), "{what}: {said}");
    for text in texts {
        assert!(said.contains(text), "{what}: nothing about \"{text}\" in: {said}");
    }
}

#[test]
fn another_program_is_left_where_it_is() {
    let mut lab = without_router();
    let pass = check(XdpPass::load(lab.state()));
    check(pass.attach(&lab.hosts.router, "eth0"));
    let before = attached(&lab, "eth0");
    refuses(&lab, "another program", &["eth0", "xdp_pass"]);
    assert_eq!(attached(&lab, "eth0"), before);
    assert_eq!(pins(&lab), [""; 0]);

    check(lab.hosts.router.ip("link set dev eth0 xdpdrv off"));
    check(lab.start_router());
}

#[test]
fn bad_configurations_are_refused() {
    let mut lab = without_router();
    let good = lab.options.rules.clone();
    let cases: [(&str, String, &[&str]); 10] = [
        ("no TOML", format!("{good}\n[[forward]\n"), &["config.toml:"]),
        ("an unknown key", good.replacen("listen =", "lisen =", 1), &["lisen", "listen"]),
        ("a missing key", good.replacen("sources =", "#sources =", 1), &["sources"]),
        ("a port that is none", good.replacen("\"443\"", "\"70000\"", 1), &["70000"]),
        ("an unknown protocol", good.replacen("\"tcp\"", "\"sctp\"", 1), &["sctp"]),
        ("a network that is none", good.replacen("10.0.2.64/26", "10.0.2.64/36", 1), &["10.0.2.64/36"]),
        (
            "two rules for one port",
            good.replacen("listen = \"80\"", "listen = \"443\"", 1),
            &["https", "http"],
        ),
        ("the probe's port", good.replacen("listen = \"80\"", "listen = \"8082\"", 1), &["8082"]),
        (
            "somebody else's address",
            format!("{good}[snat]\naddresses = [\"10.9.9.9\"]\n"),
            &["10.9.9.9, which is not an address of this machine"],
        ),
        ("a timeout that is none", format!("{good}\n[timeouts]\nudp = \"soon\"\n"), &["soon"]),
    ];
    for (what, rules, texts) in cases {
        assert_ne!(rules, good, "{what}");
        lab.set_rules(rules);
        refuses(&lab, what, texts);
        assert_eq!(attached(&lab, "eth0"), None, "{what}");
        assert_eq!(pins(&lab), [""; 0], "{what}");
    }
    lab.set_rules(good);
    check(lab.start_router());
}
