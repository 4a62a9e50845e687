//! `pls-router reload`: another configuration is put in force while the router runs.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{
    Hosts, Lab, Nics, Options, Process,
    addresses::{
        ECHO_PORT, FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, HEALTH_PORT, PLS_NAT, PLS_SUBNET, ROUTER,
        ROUTER_SECOND, TOOLS, WWW,
    },
    client::{Tcp, Udp, connect_from},
    link::{self, XdpPass},
    wait,
    witness::Witness,
};
use nix::sys::signal::Signal;
use router_user::model::{Audit, ChangeKind, CheckFinding, Drain, Flow, Reload, Rule};

use crate::{
    common::{ECHO, LIMIT, check, counters, helper, only_pls_router, reason, router, rule},
    lifecycle::attached,
};

lab_tests! {
    any: [],
    pls_router: [
        old_sessions_stay_and_new_ones_go_by_the_new_rules,
        a_bad_file_changes_nothing,
        a_dry_run_changes_nothing,
        a_signal_reloads,
        sessions_of_a_removed_rule_go_on_until_they_are_cut,
        a_cut_tells_both_ends_in_the_middle_of_a_transfer,
        new_sessions_get_the_new_ports,
        sessions_keep_their_rules_name,
        listeners_move_under_their_clients,
        programs_and_sizes_change,
        a_drain_goes_on,
        the_pins_move,
        reloads_that_overlap_follow_on_each_other,
        sessions_are_old_after_a_restart_too,
    ],
}

/// The router, as a client reaches it that does not go by the load balancer.
const DIRECT: SocketAddrV4 = SocketAddrV4::new(ROUTER, ECHO_PORT);
/// The second target.
const OTHER: Ipv4Addr = WWW;

/// Writes the configuration with these rules.
fn write(lab: &Lab, rules: &str) {
    let text = lab.configuration(rules);
    check(lab.state().write("config.toml", text).map(drop));
}

/// Reloads. It has to succeed.
#[track_caller]
pub(crate) fn reload(lab: &Lab, args: &[&str]) -> Reload {
    let args: Vec<&str> = ["reload"].into_iter().chain(args.iter().copied()).collect();
    let reload: Reload = check(lab.pls_router_json(&args));
    assert!(reload.ok && reload.problem.is_empty(), "{reload:#?}");
    reload
}

/// Reloads. It has to fail.
#[track_caller]
fn refused(lab: &Lab) -> Reload {
    let output = check(lab.pls_router(&["reload", "-o", "json"]));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let reload: Reload = check(serde_json::from_slice(&output.stdout).map_err(Into::into));
    assert!(!reload.ok && !reload.problem.is_empty(), "{reload:#?}");
    reload
}

/// The rules with another target for the TCP echo.
fn moved(lab: &Lab) -> String {
    let rules = &lab.options.rules;
    let (before, after) = check(rules.split_once("name = \"echo-tcp\"").context("no such rule"));
    let after = after.replacen(&TOOLS.to_string(), &OTHER.to_string(), 1);
    format!("{before}name = \"echo-tcp\"{after}")
}

/// The rules without the one of this name.
fn without(lab: &Lab, name: &str) -> String {
    let rules = &lab.options.rules;
    let (start, rest) =
        check(rules.split_once(&format!("[[forward]]\nname = \"{name}\"")).context("no such rule"));
    let next = check(rest.find("\n[[").context("it is the last table"));
    format!("{start}{}", &rest[next + 1..])
}

fn flows(lab: &Lab, rule: &str) -> Vec<Flow> {
    let all: Vec<Flow> = check(lab.pls_router_json(&["flows"]));
    all.into_iter().filter(|flow| flow.rule == rule && flow.state != "closed").collect()
}

/// Has the TCP echo's rule lead to the second target, where nothing listens yet.
#[track_caller]
pub(crate) fn lead_to_second_target(lab: &Lab) {
    write(lab, &moved(lab));
    reload(lab, &[]);
}

/// Starts an echo server at the second target.
fn second_target(lab: &Lab) -> Process {
    let listen = (OTHER, ECHO_PORT).into();
    let mut server =
        check(lab.options.helper.tcp_echo(lab.state(), &lab.hosts.internet, "second-echo", listen));
    check(server.wait_until(LIMIT, || {
        let sockets = lab.hosts.internet.run("ss", &["-Hltn", "src", &format!("{OTHER}:{ECHO_PORT}")])?;
        ensure!(!sockets.trim().is_empty(), "it does not listen yet");
        Ok(())
    }));
    server
}

fn old_sessions_stay_and_new_ones_go_by_the_new_rules(lab: &mut Lab) {
    let _second = second_target(lab);
    let mut old = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(old.echo(b"before", LIMIT));
    check(udp.echo(b"before", LIMIT));
    write(lab, &moved(lab));
    let changed = reload(lab, &[]);
    let [change] = changed.rules.as_slice() else { panic!("{changed:#?}") };
    assert_eq!(
        (change.rule.as_str(), change.change, change.keys.len()),
        ("echo-tcp", ChangeKind::Changed, 1)
    );
    assert_eq!(change.keys[0].key, "target");
    assert_eq!(change.keys[0].to, format!("{OTHER}:{ECHO_PORT}"));
    assert_eq!((changed.old_sessions, changed.cut_sessions), (1, 0), "{changed:#?}");

    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    check(old.echo(&[7; 20_000], LIMIT));
    check(udp.echo(b"after", LIMIT));
    let targets = |client: Ipv4Addr| -> Vec<_> {
        let flows = flows(lab, "echo-tcp");
        let of_client = flows.iter().filter(|flow| flow.client.ip() == IpAddr::V4(client));
        of_client.map(|flow| flow.target.ip().to_string()).collect()
    };
    assert_eq!(targets(PLS_NAT[0]), [TOOLS.to_string()]);
    assert_eq!(targets(PLS_NAT[1]), [OTHER.to_string()]);

    let again = reload(lab, &[]);
    assert!(!again.changed && again.rules.is_empty() && again.keys.is_empty(), "{again:#?}");
    let output = check(lab.pls_router(&["reload"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("nothing has changed") && text.contains("1 session"), "{text}");

    // Cut later than changed.
    let cut = reload(lab, &["--cut"]);
    assert_eq!((cut.changed, cut.old_sessions, cut.cut_sessions), (false, 1, 1), "{cut:#?}");
    is_reset(&mut old);
    check(new.echo(b"not cut", LIMIT));
}

/// Checks that a connection has been reset, as its client's kernel says.
#[track_caller]
fn is_reset(tcp: &mut Tcp) {
    let error = tcp.echo(b"are you there?", LIMIT).expect_err("the connection goes on");
    let kind =
        error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    let expected = [Some(ErrorKind::ConnectionReset), Some(ErrorKind::BrokenPipe)];
    assert!(expected.contains(&kind), "{error:#}");
}

fn a_bad_file_changes_nothing(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let before: Vec<Rule> = check(lab.pls_router_json(&["rules"]));
    let rules = moved(lab);
    // Two errors, and both are told.
    write(lab, &rules.replacen("listen =", "lisen =", 1).replacen("\"tcp\"", "\"sctp\"", 1));
    let bad = refused(lab);
    let errors = bad.findings.iter().filter(|finding| finding.severity == "error");
    let places: Vec<_> = errors.map(|finding| (finding.text.as_str(), finding.place.as_deref())).collect();
    assert!(places.iter().any(|(text, _)| text.contains("lisen")), "{bad:#?}");
    assert!(places.iter().any(|(text, _)| text.contains("sctp")), "{bad:#?}");
    assert!(
        places.iter().all(|(_, place)| place.is_some_and(|place| place.contains("config.toml:"))),
        "{bad:#?}"
    );
    // A file that this machine cannot run.
    write(lab, &format!("{rules}[snat]\naddresses = [\"10.9.9.9\"]\n"));
    let bad = refused(lab);
    assert!(bad.changed, "{bad:#?}");
    assert!(bad.findings.iter().any(|finding| finding.text.contains("10.9.9.9")), "{bad:#?}");
    let output = check(lab.pls_router(&["reload"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("10.9.9.9") && text.contains("is not in force"), "{text}");
    // No file at all.
    let path = lab.state().path("config.toml");
    check(fs::rename(&path, path.with_extension("away")).map_err(Into::into));
    let socket = lab.state().path("api.sock").display().to_string();
    let output = check(lab.pls_router(&["reload", "--socket", &socket]));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    check(fs::rename(path.with_extension("away"), &path).map_err(Into::into));

    let after: Vec<Rule> = check(lab.pls_router_json(&["rules"]));
    let targets = |rules: &[Rule]| rules.iter().map(|rule| rule.targets.clone()).collect::<Vec<_>>();
    assert_eq!(targets(&after), targets(&before));
    check(tcp.echo(b"after", LIMIT));
    let log = lab.router_log();
    assert!(
        log.contains("not reloaded: ") && log.contains("the configuration of before stays in force"),
        "{log}"
    );
}

fn a_dry_run_changes_nothing(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    write(lab, &moved(lab));
    let dry = reload(lab, &["--dry-run", "--cut"]);
    assert!(dry.dry_run && dry.changed && dry.rules.len() == 1, "{dry:#?}");
    assert_eq!((dry.old_sessions, dry.cut_sessions), (1, 0));
    let again = reload(lab, &["--dry-run"]);
    assert_eq!(again.rules, dry.rules, "it has changed something");
    let output = check(lab.pls_router(&["reload", "--dry-run"]));
    let text = String::from_utf8_lossy(&output.stdout);
    let line = format!("    target: \"{TOOLS}:{ECHO_PORT}\" -> \"{OTHER}:{ECHO_PORT}\"\n");
    assert!(text.contains("~ forward `echo-tcp` is changed\n") && text.contains(&line), "{text}");
    assert!(text.contains("1 session of removed or changed rules would go on"), "{text}");
    check(tcp.echo(b"after", LIMIT));
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    assert!(flows(lab, "echo-tcp").iter().all(|flow| flow.target.ip() == IpAddr::V4(TOOLS)));
}

fn a_signal_reloads(lab: &mut Lab) {
    let _second = second_target(lab);
    write(lab, &moved(lab));
    let process = check(lab.router());
    check(process.signal(Signal::SIGHUP));
    check(process.wait_for_log("reload: ~ forward `echo-tcp` is changed", LIMIT));
    check(
        process.wait_for_log(&format!("target: \"{TOOLS}:{ECHO_PORT}\" -> \"{OTHER}:{ECHO_PORT}\""), LIMIT),
    );
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    assert!(flows(lab, "echo-tcp").iter().all(|flow| flow.target.ip() == IpAddr::V4(OTHER)));
    let process = check(lab.router());
    check(process.signal(Signal::SIGHUP));
    check(process.wait_for_log("reload: nothing has changed", LIMIT));
}

/// A server that keeps its end of a connection, to see what becomes of it.
pub(crate) fn listen(lab: &Lab) -> TcpListener {
    let listen = || TcpListener::bind((OTHER, ECHO_PORT));
    check(lab.hosts.internet.inside(listen).and_then(|listener| Ok(listener?)))
}

fn sessions_of_a_removed_rule_go_on_until_they_are_cut(lab: &mut Lab) {
    const PORT: u16 = 9100;
    let rule = format!(
        "[[forward]]\nname = \"own\"\nprotocol = \"tcp\"\nlisten = \"{PORT}\"\ntarget = \"{OTHER}:{ECHO_PORT}\"\n\
         sources = [\"{PLS_SUBNET}\"]\n"
    );
    let rules = lab.options.rules.clone();
    write(lab, &format!("{rule}{rules}"));
    let added = reload(lab, &[]);
    assert_eq!((added.rules[0].change, added.rules[0].keys.len()), (ChangeKind::Added, 4), "{added:#?}");
    let listener = listen(lab);
    let direct = SocketAddrV4::new(ROUTER, PORT);
    let connect =
        || lab.hosts.pls.inside(|| connect_from(PLS_NAT[0], direct, LIMIT)).and_then(|stream| stream);
    let mut client = check(connect());
    let (mut server, _) = check(listener.accept().map_err(Into::into));
    check(server.set_read_timeout(Some(LIMIT)).map_err(Into::into));
    let exchange = |client: &mut TcpStream, server: &mut TcpStream| -> anyhow::Result<()> {
        let mut got = [0; 4];
        client.write_all(b"ping")?;
        server.read_exact(&mut got)?;
        server.write_all(b"pong")?;
        client.read_exact(&mut got)?;
        ensure!(&got == b"pong", "{got:?}");
        Ok(())
    };
    check(exchange(&mut client, &mut server));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"before", LIMIT));

    write(lab, &without(lab, "echo-udp"));
    let removed = reload(lab, &[]);
    let changes: Vec<_> = removed.rules.iter().map(|rule| (rule.rule.as_str(), rule.change)).collect();
    assert_eq!(changes, [("own", ChangeKind::Removed), ("echo-udp", ChangeKind::Removed)]);
    assert_eq!(removed.old_sessions, 2, "{removed:#?}");
    check(exchange(&mut client, &mut server));
    check(udp.echo(b"meanwhile", LIMIT));
    assert_eq!((flows(lab, "own").len(), flows(lab, "echo-udp").len()), (1, 1), "by their rules' names");
    connect().expect_err("a new session of a removed rule");

    // Both ends are told, with nothing on the way.
    let witness = check(Witness::start(lab));
    let cut = reload(lab, &["--cut"]);
    assert_eq!((cut.changed, cut.old_sessions, cut.cut_sessions), (false, 2, 2), "{cut:#?}");
    for end in [&mut client, &mut server] {
        let error = end.read(&mut [0; 1]).expect_err("the connection goes on");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    check(witness.finish());
    assert_eq!((flows(lab, "own").len(), flows(lab, "echo-udp").len()), (0, 0));
    udp.echo(b"after", Duration::from_millis(300)).expect_err("its session goes on");
    let audit: Audit = check(lab.pls_router_json(&["check", "--live"]));
    assert!(audit.ok, "{audit:#?}");
}

/// Data is on the way in both directions, so the ends expect more than they have acknowledged.
fn a_cut_tells_both_ends_in_the_middle_of_a_transfer(lab: &mut Lab) {
    const CLIENTS: usize = 8;
    let connections: Vec<_> = (0..CLIENTS)
        .map(|number| check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[number % 2], DIRECT, LIMIT)))
        .collect();
    let talking: Vec<_> = connections
        .into_iter()
        .map(|mut tcp| {
            thread::spawn(move || {
                loop {
                    if let Err(error) = tcp.echo(&[7; 50_000], LIMIT) {
                        return error;
                    }
                }
            })
        })
        .collect();
    check(wait::until("data on all connections", LIMIT, || {
        let flows = flows(lab, "echo-tcp");
        let busy = flows.iter().filter(|flow| flow.forward_packets > 50).count();
        ensure!(busy == CLIENTS, "{busy}");
        Ok(())
    }));
    write(lab, &without(lab, "echo-tcp"));
    let cut = reload(lab, &["--cut"]);
    assert_eq!((cut.old_sessions, cut.cut_sessions), (CLIENTS as u64, CLIENTS as u64), "{cut:#?}");
    for client in talking {
        let error = client.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
        let kind =
            error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        assert!(matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)), "{error:#}");
    }
    // The servers' ends are gone as well.
    check(wait::until("the servers' ends to be reset", LIMIT, || {
        let filter = format!("sport = :{ECHO_PORT}");
        let sockets = lab.hosts.internet.run("ss", &["-Htn", "state", "connected", &filter])?;
        ensure!(sockets.trim().is_empty(), "{sockets}");
        Ok(())
    }));
    assert_eq!(flows(lab, "echo-tcp").len(), 0);
}

fn new_sessions_get_the_new_ports(lab: &mut Lab) {
    let mut old = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(old.echo(b"before", LIMIT));
    let rules = lab.options.rules.clone();
    write(lab, &format!("{rules}[snat]\nports = \"2000-2099\"\n"));
    let changed = reload(lab, &[]);
    assert_eq!(changed.keys.len(), 1, "{changed:#?}");
    assert_eq!((changed.keys[0].key.as_str(), changed.old_sessions), ("snat.ports", 0));
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    check(old.echo(b"after", LIMIT));
    let flows = flows(lab, "echo-tcp");
    let is_new = |flow: &&Flow| (2000..=2099).contains(&flow.snat.port());
    assert_eq!((flows.len(), flows.iter().filter(is_new).count()), (2, 1), "{flows:#?}");
    let status = check(lab.pls_router_status());
    assert!(status.snat_ports.iter().all(|row| row.free <= 100), "{:#?}", status.snat_ports);
}

/// Reloads follow on each other while connections are opened and used.
#[test]
fn a_thousand_reloads_lose_nothing() {
    const RELOADS: usize = 1_000;
    only_pls_router();
    // Each reload looks for old sessions in the whole table.
    let options =
        Options { limits: "flows = 2048".to_owned(), ..Options::new(Nics::One, router(), helper()) };
    let lab = &mut check(Lab::up(options));
    let _second = second_target(lab);
    let mut old = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(old.echo(b"before", LIMIT));
    check(udp.echo(b"before", LIMIT));
    let (one, other) = (lab.options.rules.clone(), moved(lab));
    let pid = check(lab.router()).pid();
    let resources = || {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        let memory = status.map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:").map(str::to_owned));
            line.and_then(|line| line.trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or_default()
        });
        check(files.and_then(|files| Ok((files, memory?))).map_err(Into::into))
    };
    let socket = lab.state().path("api.sock");
    let mut before = None;
    for round in 0..RELOADS {
        write(lab, if round % 2 == 0 { &other } else { &one });
        let answer = check(post(&socket, "/v1/reload"));
        assert!(answer.ok && answer.changed, "{round}: {answer:#?}");
        if round % 50 == 0 {
            check(old.echo(&[7; 5_000], LIMIT));
            check(udp.echo(b"meanwhile", LIMIT));
            let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
            check(new.echo(b"new", LIMIT));
            check(new.close());
        }
        if round == 100 {
            before = Some(resources());
        }
    }
    let ((files, memory), (files_now, memory_now)) = (before.unwrap_or_default(), resources());
    assert!(files_now <= files + 5, "{files} descriptors, then {files_now}");
    assert!(memory_now <= memory + 8_192, "{memory} KiB, then {memory_now} KiB");
    let counters = counters(lab);
    for reason in counters.reasons.iter().filter(|row| row.action == "drop") {
        assert_eq!(reason.packets, 0, "{reason:?}");
    }
    let audit: Audit = check(lab.pls_router_json(&["check", "--live"]));
    assert!(audit.ok, "{audit:#?}");
}

/// Asks the API, as fast as that goes.
fn post(socket: &Path, path: &str) -> anyhow::Result<Reload> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    serde_json::from_str(body).with_context(|| answer.clone())
}

/// Rules are found by name, whatever their order, and whatever was removed before them.
fn sessions_keep_their_rules_name(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let before = rule(&counters(lab), "echo-tcp").clone();
    // The first rules go, a new one comes first, and the rest is in another order.
    let rules: Vec<&str> = lab.options.rules.split("[[forward]]\n").collect();
    let of = |name: &str| {
        check(rules.iter().find(|rule| rule.contains(&format!("name = \"{name}\""))).context("no such rule"))
            .to_string()
    };
    let tcp_rule = of("echo-tcp");
    let new = tcp_rule.replace("echo-tcp", "new").replace(&format!("\"{ECHO_PORT}\""), "\"7100\"");
    write(lab, &format!("[[forward]]\n{new}[[forward]]\n{tcp_rule}[[forward]]\n{}", of("echo-udp")));
    reload(lab, &[]);
    check(tcp.echo(b"after", LIMIT));
    assert_eq!(flows(lab, "echo-tcp").len(), 1);
    let counters = counters(lab);
    assert!(rule(&counters, "echo-tcp").forward_packets > before.forward_packets);
    assert_eq!(rule(&counters, "echo-tcp").sessions_opened, before.sessions_opened);
    assert_eq!(rule(&counters, "new").forward_packets, 0);
    assert_eq!(reason(&counters, "no_session"), 0);
}

/// Asks the probe at this port of the router. Returns the status.
fn probe(lab: &Lab, port: u16) -> anyhow::Result<u16> {
    let address = SocketAddrV4::new(ROUTER, port);
    let mut stream = lab.hosts.pls.inside(|| TcpStream::connect_timeout(&address.into(), LIMIT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("not HTTP: {answer}"))
}

fn listeners_move_under_their_clients(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let path = lab.state().path("config.toml");
    let text = lab.configuration(&lab.options.rules);
    let set = |from: &str, to: &str, text: &str| {
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1)
    };
    // A port that another program has: nothing changes.
    let taken =
        check(lab.hosts.router.inside(|| TcpListener::bind("127.0.0.1:9191")).and_then(|socket| Ok(socket?)));
    check(fs::write(&path, set("127.0.0.1:9090", "127.0.0.1:9191", &text)).map_err(Into::into));
    let bad = refused(lab);
    assert!(bad.findings.iter().any(|finding| finding.text.contains("9191")), "{bad:#?}");
    drop(taken);
    assert_eq!(check(probe(lab, HEALTH_PORT)), 200);

    // The load balancer keeps its port, and is never without an answer.
    let done = AtomicBool::new(false);
    let failures = thread::scope(|scope| {
        let prober = scope.spawn(|| {
            let (mut asked, mut failures) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                asked += 1;
                failures.extend(
                    probe(lab, HEALTH_PORT)
                        .and_then(|status| {
                            ensure!(status == 200, "{status}");
                            Ok(())
                        })
                        .err(),
                );
            }
            assert!(asked > 10, "{asked}");
            failures
        });
        let moved = set("127.0.0.1:9090", "127.0.0.1:9191", &text);
        let moved = set("api.sock", "other/api.sock", &moved);
        let moved = set("[health]\n", "[health]\nfrom = [\"10.0.2.0/24\"]\n", &moved);
        check(fs::write(&path, &moved).map_err(Into::into));
        let socket = lab.state().path("api.sock").display().to_string();
        let changed = reload(lab, &["--socket", &socket]);
        let keys: Vec<_> = changed.keys.iter().map(|key| key.key.as_str()).collect();
        assert_eq!(keys, ["health.from", "admin.listen", "admin.socket"]);
        done.store(true, Ordering::Relaxed);
        prober.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    });
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(check(lab.pls_router_status()).healthy, "by the new socket");
    assert!(!lab.state().path("api.sock").exists(), "the old socket is left");
    let metrics =
        |port: u16| lab.hosts.router.run("curl", &["-sSf", &format!("http://127.0.0.1:{port}/metrics")]);
    check(metrics(9191));
    metrics(9090).expect_err("the old port");
    check(tcp.echo(b"after", LIMIT));

    // The probe moves as well, and rules follow: it is reached at the new port alone.
    let text = check(fs::read_to_string(&path).map_err(Into::into));
    check(fs::write(&path, set("0.0.0.0:8082", "0.0.0.0:8083", &text)).map_err(Into::into));
    reload(lab, &[]);
    assert_eq!(check(probe(lab, 8083)), 200);
    probe(lab, HEALTH_PORT).expect_err("the old port");
    check(tcp.echo(b"at last", LIMIT));
}

fn programs_and_sizes_change(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let path = lab.state().path("config.toml");
    let text = lab.configuration(&lab.options.rules);
    let changed = text.replacen("flows = 65536", "flows = 32768", 1).replacen("\"native\"", "\"generic\"", 1);
    check(fs::write(&path, &changed).map_err(Into::into));
    let reloaded = reload(lab, &[]);
    assert_eq!(reloaded.keys.len(), 2, "{reloaded:#?}");
    let warns = |finding: &CheckFinding| {
        finding.severity == "warning"
            && finding.text.contains("interfaces.mode")
            && finding.fix.contains("drain")
    };
    assert!(reloaded.findings.iter().any(warns), "{reloaded:#?}");
    let status = check(lab.pls_router_status());
    assert_eq!((status.flows.capacity, status.interfaces[0].mode.as_str()), (32_768, "generic"));
    check(tcp.echo(b"after", LIMIT));
    // With rules, and a cut, in one.
    let rules = without(lab, "echo-tcp");
    write(lab, &rules);
    let cut = reload(lab, &["--cut"]);
    assert_eq!((cut.rules.len(), cut.keys.len(), cut.cut_sessions), (1, 2, 1), "{cut:#?}");
    is_reset(&mut tcp);
    assert!(!reload(lab, &[]).changed);
}

fn a_drain_goes_on(lab: &mut Lab) {
    let drain: Drain = check(lab.pls_router_json(&["drain"]));
    let path = lab.state().path("config.toml");
    let text = lab.configuration(&lab.options.rules);
    let moved = text.replacen("api.sock", "other/api.sock", 1);
    check(fs::write(&path, &moved).map_err(Into::into));
    let socket = lab.state().path("api.sock").display().to_string();
    reload(lab, &["--socket", &socket]);
    let status = check(lab.pls_router_status());
    assert_eq!(status.draining.and_then(|drain| drain.since), drain.since);
    assert!(!lab.state().path("draining.json").exists() && lab.state().path("other/draining.json").exists());
    check(lab.pls_router(&["undrain"]));
    check(lab.wait_in_service(LIMIT));
}

/// The next daemon finds sessions and programs where the pins are, and nothing is left elsewhere.
fn the_pins_move(lab: &mut Lab) {
    let _second = second_target(lab);
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let path = lab.state().path("config.toml");
    let [here, there] = ["bpf/pls-router", "bpf/other"].map(|root| lab.state().path(root));
    let text = lab.configuration(&moved(lab)).replacen("bpf/pls-router", "bpf/other", 1);
    let write = |text: &str| check(fs::write(&path, text).map_err(Into::into));
    let before = pinned(&here);
    let program = attached(lab, "eth0");

    // With what cannot be had: all is as before.
    let taken =
        check(lab.hosts.router.inside(|| TcpListener::bind("127.0.0.1:9191")).and_then(|socket| Ok(socket?)));
    write(&text.replacen("127.0.0.1:9090", "127.0.0.1:9191", 1));
    refused(lab);
    drop(taken);
    assert_eq!((pinned(&here), there.exists()), (before.clone(), false));

    write(&text);
    let changed = reload(lab, &[]);
    assert_eq!((changed.rules.len(), changed.keys.len()), (1, 1), "{changed:#?}");
    assert_eq!((changed.keys[0].key.as_str(), changed.old_sessions), ("admin.pins", 1));
    assert_eq!((pinned(&there), here.exists()), (before.clone(), false));
    assert_eq!(attached(lab, "eth0"), program, "the program was taken off meanwhile");
    check(tcp.echo(b"after", LIMIT));
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    assert!(check(lab.pls_router_status()).healthy);

    // The next daemon, and the next place together with programs and tables of another kind.
    check(lab.stop_router(Signal::SIGKILL));
    check(tcp.echo(b"without a daemon", LIMIT));
    let command = check(lab.pls_router_command(&["run"], &path));
    let mut next = check(Process::spawn(lab.state(), "pls-router", command));
    // A start loads programs, and the machine may be busy.
    check(next.wait_for_log("running config=", LIMIT * 6));
    lab.set_router(next);
    check(lab.wait_in_service(LIMIT));
    check(tcp.echo(b"found", LIMIT));
    let other = text
        .replacen("bpf/other", "bpf/third", 1)
        .replacen("flows = 65536", "flows = 32768", 1)
        .replacen("\"native\"", "\"generic\"", 1);
    write(&other);
    assert_eq!(reload(lab, &[]).keys.len(), 3);
    check(tcp.echo(b"at last", LIMIT));
    check(new.echo(b"at last", LIMIT));
    assert!(!there.exists(), "{:?}", pinned(&there));
    let detached = check(lab.pls_router(&["detach", "--force"]));
    assert!(detached.status.success() && attached(lab, "eth0").is_none(), "{detached:?}");
    assert!(!lab.state().path("bpf/third").exists());
}

/// Returns everything that is pinned below a directory, by name.
fn pinned(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.extend(path.strip_prefix(root).map(|path| path.display().to_string()));
            }
        }
    }
    found.sort();
    found
}

/// The second one is asked for while the first one makes another instance, and takes it back.
fn reloads_that_overlap_follow_on_each_other(lab: &mut Lab) {
    const PREPARING: &str = "new sessions come from the ports";
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let path = lab.state().path("config.toml");
    let text = lab.configuration(&lab.options.rules);
    let other = lab.configuration(&moved(lab)).replacen("flows = 65536", "flows = 32768", 1);
    check(fs::write(&path, &other).map_err(Into::into));
    let socket = &lab.state().path("api.sock");
    let seen = lab.router_log().matches(PREPARING).count();
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| check(post(socket, "/v1/reload")));
        check(wait::until("the first one to begin", LIMIT, || {
            ensure!(lab.router_log().matches(PREPARING).count() > seen, "{}", lab.router_log());
            Ok(())
        }));
        check(fs::write(&path, &text).map_err(Into::into));
        let second = check(post(socket, "/v1/reload"));
        let first = first.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
        (first, second)
    });
    for reload in [&first, &second] {
        assert!(reload.ok && reload.changed, "{first:#?} {second:#?}");
        assert_eq!((reload.rules.len(), reload.keys.len()), (1, 1), "{first:#?} {second:#?}");
    }
    let capacity = || check(lab.pls_router_status()).flows.capacity;
    assert_eq!(capacity(), 65_536);
    assert!(!reload(lab, &[]).changed);
    check(tcp.echo(b"after", LIMIT));
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    assert!(flows(lab, "echo-tcp").iter().all(|flow| flow.target.ip() == IpAddr::V4(TOOLS)));
}

/// A daemon that has not seen the change finds them by the rules alone.
fn sessions_are_old_after_a_restart_too(lab: &mut Lab) {
    let _second = second_target(lab);
    let mut old = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(old.echo(b"before", LIMIT));
    check(udp.echo(b"before", LIMIT));
    lab.set_rules(moved(lab));
    write(lab, &lab.options.rules);
    assert_eq!(reload(lab, &[]).old_sessions, 1);
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"before", LIMIT));
    check(lab.stop_router(Signal::SIGTERM));
    check(lab.start_router());
    let cut = reload(lab, &["--cut"]);
    assert_eq!((cut.changed, cut.old_sessions, cut.cut_sessions), (false, 1, 1), "{cut:#?}");
    is_reset(&mut old);
    check(new.echo(b"not cut", LIMIT));
    check(udp.echo(b"not cut", LIMIT));
}

/// A second NIC is configured, and left out again.
#[test]
fn a_second_nic_comes_and_goes() {
    only_pls_router();
    let lab = &mut check(Lab::up(Options::new(Nics::One, router(), helper())));
    let Hosts { router, firewall, vnet, .. } = &lab.hosts;
    // Both subnets are behind one switch, and each NIC answers for its own address.
    check(router.sysctl("net/ipv4/conf/all/arp_ignore", "1"));
    check(link::wire((router, "eth1"), (vnet, "router1")));
    check(check(XdpPass::load(lab.state())).attach(vnet, "router1"));
    check(vnet.ip("link set router1 master br0"));
    check(router.ip(&format!("addr add {ROUTER_SECOND}/26 dev eth1")));
    check(firewall.ip(&format!("addr add {FIREWALL_TWO_NICS}/26 dev vnet")));
    let names = |lab: &Lab| -> Vec<_> {
        let status = check(lab.pls_router_status());
        status.interfaces.iter().map(|interface| interface.name.clone()).collect()
    };
    let snat = |lab: &Lab, client: Ipv4Addr| {
        let flows = flows(lab, "echo-tcp");
        let flow = flows.iter().find(|flow| flow.client.ip() == IpAddr::V4(client));
        check(flow.with_context(|| format!("{flows:#?}"))).snat.ip()
    };

    let mut first = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(first.echo(b"before", LIMIT));
    let path = lab.state().path("config.toml");
    let one = lab.configuration(&lab.options.rules);
    let two = one.replacen("firewall = \"eth0\"", "firewall = \"eth1\"", 1);
    check(fs::write(&path, &two).map_err(Into::into));
    let changed = reload(lab, &[]);
    let keys: Vec<_> = changed.keys.iter().map(|key| key.key.as_str()).collect();
    assert_eq!((keys, changed.old_sessions), (vec!["interfaces.firewall"], 0));
    assert!(changed.findings.iter().all(|finding| finding.severity != "error"), "{changed:#?}");
    assert_eq!(names(lab), ["eth0", "eth1"]);
    check(first.echo(b"two NICs", LIMIT));
    check(lab.hosts.router.ip(&format!("route replace default via {FIREWALL_TWO_NICS}")));
    let mut second = check(wait::until("a session by the second NIC", LIMIT, || {
        let mut tcp = Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT)?;
        tcp.echo(b"before", LIMIT)?;
        let flows = flows(lab, "echo-tcp");
        let is_by_it = |flow: &&Flow| flow.snat.ip() == IpAddr::V4(ROUTER_SECOND);
        ensure!(flows.iter().any(|flow| is_by_it(&flow)), "{flows:#?}");
        Ok(tcp)
    }));
    // It keeps its address, whose packets come by the NIC that has it.
    check(first.echo(&[7; 20_000], LIMIT));
    assert_eq!(snat(lab, PLS_NAT[0]), IpAddr::V4(ROUTER));

    check(lab.hosts.router.ip(&format!("route replace default via {FIREWALL_ONE_NIC}")));
    check(second.echo(b"by the other NIC", LIMIT));
    check(fs::write(&path, &one).map_err(Into::into));
    let changed = reload(lab, &[]);
    let warns = |finding: &CheckFinding| finding.severity == "warning" && finding.text.contains("eth1");
    assert!(changed.findings.iter().any(warns), "{changed:#?}");
    assert_eq!(names(lab), ["eth0"]);
    check(first.echo(&[7; 20_000], LIMIT));
    // Answers to the address of the NIC that was left out reach no program.
    second.echo(b"after", Duration::from_secs(1)).expect_err("a session by the NIC that was left out");
    let mut new = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[1], DIRECT, LIMIT));
    check(new.echo(b"new", LIMIT));
    check(lab.wait_in_service(LIMIT));
}
