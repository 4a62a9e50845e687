//! Sessions that move to another table: of a version with another layout, or of another size.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics, Options, Process, Router,
    addresses::{PLS_NAT, PLS_SUBNET, ROUTER, TOOLS},
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Audit, CheckFinding, Counters, ReasonCounter, Reload};

use crate::{
    common::{ECHO, LIMIT, check, counters, helper, only_pls_router, reason, router, rule},
    lifecycle::{attached, pins, refuses},
};

/// The ports of the crowd's services, each a target of its own.
const SERVICES: std::ops::Range<u16> = 7101..7106;
/// The ports of the crowd's clients.
const CLIENTS: std::ops::Range<u16> = 20_000..30_000;
/// The number of the crowd's sessions.
const CROWD: u32 = 100_000;

/// The time that a connection may take where its first SYN is lost, and a second one.
const PATIENCE: Duration = Duration::from_secs(15);

/// The time that a successor may take to load its programs and copy sessions, on a busy machine.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(60);

/// The time that a datagram's answer may take. In the lab it takes less than a millisecond.
const ANSWER: Duration = Duration::from_secs(2);

/// A lab whose router has a rule for a crowd, and the servers of the crowd.
fn lab_with_services(nics: Nics, flows: u32) -> (Lab, Vec<Process>) {
    only_pls_router();
    let mut options = Options::new(nics, router(), helper());
    options.limits = limits(flows);
    options.rules = format!(
        "[[forward]]\nname = \"crowd\"\nprotocol = \"udp\"\nlisten = \"{}-{}\"\ntarget = \"{TOOLS}\"\n\
         sources = [\"{PLS_SUBNET}\"]\n{}",
        SERVICES.start,
        SERVICES.end - 1,
        options.rules
    );
    let lab = check(Lab::up(options));
    check(lab.hosts.firewall.nft(&format!(
        "insert rule ip firewall network_rules iifname vnet udp dport {}-{} accept",
        SERVICES.start,
        SERVICES.end - 1
    )));
    let serve = |port| {
        let at = SocketAddr::from((TOOLS, port));
        let helper = &lab.options.helper;
        let mut server =
            check(helper.udp_echo(lab.state(), &lab.hosts.internet, &format!("crowd-{port}"), at));
        check(server.wait_until(LIMIT, || lab.hosts.internet.listens_udp(port)));
        server
    };
    let servers = SERVICES.map(serve).collect();
    (lab, servers)
}

fn limits(flows: u32) -> String {
    format!("flows = {flows}")
}

/// Has every member of a crowd say something, and hear it again: these clients, each to all
/// services.
fn speak(lab: &Lab, clients: std::ops::Range<u16>) {
    speak_up_to(lab, clients, 1);
}

/// Does the same where the sessions are gone and a word opens another one. Two CPUs that open
/// sessions in one place of the table at the same moment can cost the packet of one (`contended`),
/// whose word is said once more. Nothing else may cost one.
fn speak_anew(lab: &Lab, clients: std::ops::Range<u16>) {
    let before = counters(lab);
    let again = speak_up_to(lab, clients, 2);
    let after = counters(lab);
    let contended = reason(&after, "contended") - reason(&before, "contended");
    assert!(again <= contended, "{again} words were said again; {}", counted_since(Some(&before), &after));
}

/// Lists the reasons that packets were counted by in between, or ever.
fn counted_since(before: Option<&Counters>, after: &Counters) -> String {
    let packets = |row: &ReasonCounter| row.packets - before.map_or(0, |old| reason(old, &row.reason));
    let rows = after.reasons.iter().filter(|row| packets(row) > 0);
    let rows: Vec<_> = rows.map(|row| format!("{} {}", row.reason, packets(row))).collect();
    format!("packets by reason: {}", rows.join(", "))
}

/// Has every word said up to so many times. Returns the number of those that were said again.
fn speak_up_to(lab: &Lab, clients: std::ops::Range<u16>, times: u32) -> u64 {
    let again = AtomicU64::new(0);
    let speak = |source: Ipv4Addr| -> Result<()> {
        for port in clients.clone() {
            let socket = UdpSocket::bind(SocketAddrV4::new(source, port)).context("the client")?;
            socket.set_read_timeout(Some(ANSWER)).context("a timeout")?;
            for service in SERVICES {
                let said = [port.to_be_bytes(), service.to_be_bytes()].concat();
                let mut heard = [0; 8];
                let mut ask = || {
                    socket.send_to(&said, SocketAddrV4::new(ROUTER, service))?;
                    socket.recv_from(&mut heard)
                };
                let mut answer = ask();
                for _ in 1..times {
                    answer = answer.or_else(|_| {
                        again.fetch_add(1, Relaxed);
                        ask()
                    });
                }
                let (length, from) = answer.with_context(|| format!("{source}:{port} to {service}"))?;
                ensure!(heard.get(..length) == Some(&said), "another answer");
                ensure!(from == SocketAddr::from((ROUTER, service)), "an answer from {from}");
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let speakers = PLS_NAT.map(|source| scope.spawn(move || lab.hosts.pls.inside(|| speak(source))));
        for speaker in speakers {
            let spoken = check(speaker.join().expect("a speaker"));
            check(spoken.with_context(|| {
                let counted = counted_since(None, &counters(lab));
                format!("a word without an answer; {counted}")
            }));
        }
    });
    again.into_inner()
}

/// The numbers of traffic that goes on while something happens.
#[derive(Debug, Default)]
struct Traffic {
    /// Words on long-lived TCP connections that came back.
    echoes: AtomicU64,
    /// Datagrams of long-lived sessions, and those that did not come back.
    datagrams: AtomicU64,
    lost: AtomicU64,
    /// New connections.
    connections: AtomicU64,
    /// The longest time that a new connection took.
    slowest: Mutex<Duration>,
}

const CONNECTIONS: usize = 20;
const UDP_STREAMS: usize = 4;

/// The pause between two words: the machine has to do the work itself, beside.
const PACE: Duration = Duration::from_millis(2);

/// Sets a flag when it is dropped, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `work` under traffic. Fails if a connection is lost, and if no new one comes about.
fn under_traffic<T>(lab: &mut Lab, work: impl FnOnce(&mut Lab) -> T) -> (T, Traffic) {
    let (stop, traffic) = (AtomicBool::new(false), Traffic::default());
    let connect = |_| check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let connections: Vec<Tcp> = (0..CONNECTIONS).map(connect).collect();
    let streams: Vec<Udp> = (0..UDP_STREAMS).map(|_| check(Udp::open(&lab.hosts.serverless, ECHO))).collect();
    let client = check(lab::Namespace::existing(lab.hosts.serverless.name()));
    let result = thread::scope(|scope| {
        let (stop, traffic, client) = (&stop, &traffic, &client);
        let mut parts = Vec::new();
        for (number, mut tcp) in connections.into_iter().enumerate() {
            parts.push(scope.spawn(move || {
                let mut word = 0_u64;
                while !stop.load(Relaxed) {
                    word += 1;
                    let said = format!("{number} says {word}");
                    tcp.echo(said.as_bytes(), PATIENCE).with_context(|| format!("connection {number}"))?;
                    traffic.echoes.fetch_add(1, Relaxed);
                    thread::sleep(PACE);
                }
                tcp.close()
            }));
        }
        for udp in streams {
            parts.push(scope.spawn(move || {
                let mut word = 0_u64;
                while !stop.load(Relaxed) {
                    word += 1;
                    traffic.datagrams.fetch_add(1, Relaxed);
                    if udp.echo(&word.to_be_bytes(), ANSWER).is_err() {
                        traffic.lost.fetch_add(1, Relaxed);
                    }
                    thread::sleep(PACE);
                }
                Ok(())
            }));
        }
        parts.push(scope.spawn(move || {
            while !stop.load(Relaxed) {
                let began = Instant::now();
                let mut tcp = Tcp::connect(client, ECHO, PATIENCE)?;
                tcp.echo(b"new", PATIENCE)?;
                let took = began.elapsed();
                tcp.close()?;
                traffic.connections.fetch_add(1, Relaxed);
                if let Ok(mut slowest) = traffic.slowest.lock() {
                    *slowest = (*slowest).max(took);
                }
                thread::sleep(PACE);
            }
            Ok(())
        }));
        let enough = |more: u64| {
            let until = traffic.echoes.load(Relaxed) + more;
            let is_over = |parts: &[thread::ScopedJoinHandle<'_, Result<()>>]| {
                parts.iter().any(thread::ScopedJoinHandle::is_finished)
            };
            while traffic.echoes.load(Relaxed) < until && !is_over(&parts) {
                thread::sleep(PACE);
            }
        };
        let stop = Stop(stop);
        enough(200);
        let result = work(lab);
        enough(200);
        drop(stop);
        for part in parts {
            check(part.join().expect("a part of the traffic"));
        }
        result
    });
    (result, traffic)
}

/// Has the router as it is configured now take over from the one that runs. Returns what the new
/// one says.
fn take_over(lab: &mut Lab) -> String {
    let configuration = lab.configuration(&lab.options.rules);
    check(fs::write(lab.state().path("config.toml"), configuration).context("the configuration"));
    let mut successor = check(lab.spawn_successor());
    // The programs are loaded, and sessions copied, while the one before answers.
    check(successor.wait_for_log("running config=", HAND_OVER_LIMIT));
    let status = check(lab.succeed_router(successor));
    assert!(status.success(), "{status}");
    check(lab.wait_in_service(LIMIT));
    lab.router_log()
}

/// Stops the router, and starts it as it is configured now. Returns what the new one says.
fn restart(lab: &mut Lab) -> String {
    check(lab.stop_router(Signal::SIGTERM));
    check(lab.start_router());
    lab.router_log()
}

/// The number in front of some words of a log.
#[track_caller]
fn number_before(log: &str, words: &str) -> u32 {
    let (before, _) = log.rsplit_once(words).unwrap_or_else(|| panic!("nothing about \"{words}\" in {log}"));
    let digits = before.rsplit(|letter: char| !letter.is_ascii_digit()).next().expect("a part");
    digits.parse().unwrap_or_else(|_| panic!("no number before \"{words}\" in {log}"))
}

/// Prints what a move has cost.
fn report(what: &str, log: &str, traffic: &Traffic) {
    let moved = number_before(log, " sessions to the new flow table");
    let paused = number_before(log, " ms, and");
    let refused = number_before(log, " packets that would have opened one");
    println!(
        "{what}: {moved} sessions moved; {refused} packets of new sessions dropped in {paused} ms; of {} datagrams of \
         sessions {} lost; {} words on {CONNECTIONS} connections, all echoed; {} new connections, the slowest in {:?}",
        traffic.datagrams.load(Relaxed),
        traffic.lost.load(Relaxed),
        traffic.echoes.load(Relaxed),
        traffic.connections.load(Relaxed),
        traffic.slowest.lock().map(|slowest| *slowest).unwrap_or_default(),
    );
}

#[track_caller]
fn assert_whole(lab: &Lab) -> Audit {
    let audit: Audit = check(lab.pls_router_json(&["check", "--live"]));
    assert!(audit.ok, "{audit:?}");
    audit
}

/// Waits until there are only the pins of this name: what was before is removed when the router is
/// in service already.
#[track_caller]
fn only_pinned(lab: &Lab, name: &str) {
    check(wait::until("the pins of before to go", LIMIT, || {
        let found = pins(lab);
        ensure!(matches!(&found[..], [one] if one.ends_with(&format!("/{name}"))), "{found:?}");
        Ok(())
    }));
}

fn other_layout() -> Router {
    match check(Router::find_other_layout()) {
        Some(router) => router,
        None => harness::skip(format!("there is no {}: cargo xtask test builds it", lab::OTHER_LAYOUT)),
    }
}

#[test]
fn a_hundred_thousand_sessions_move_to_another_layout() {
    only_pls_router();
    let (this, other) = (router(), other_layout());
    let (mut lab, _servers) = lab_with_services(Nics::Two, 262_144);
    speak(&lab, CLIENTS);
    assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, u64::from(CROWD));
    let programs = ["eth0", "eth1"].map(|device| attached(&lab, device).expect("its program"));

    lab.options.router = other.clone();
    let (log, traffic) = under_traffic(&mut lab, take_over);
    report("another layout", &log, &traffic);
    assert!(number_before(&log, " sessions to the new flow table") >= CROWD, "{log}");
    assert!(!log.contains("are lost"), "{log}");
    assert_eq!(traffic.lost.load(Relaxed), 0, "datagrams of sessions");
    // Every session is what it was: this version's rule has opened none.
    speak(&lab, CLIENTS);
    assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, 0);
    assert_whole(&lab);
    // The interfaces have not noticed.
    assert_eq!(["eth0", "eth1"].map(|device| attached(&lab, device).expect("its program")), programs);
    only_pinned(&lab, "v1009");

    // The way back leads to a version that does not know that layout.
    lab.options.router = this;
    let log = restart(&mut lab);
    assert!(log.contains("its sessions are lost, because this version cannot read layout 1009"), "{log}");
    assert_eq!(["eth0", "eth1"].map(|device| attached(&lab, device).expect("its program")), programs);
    only_pinned(&lab, "v9");
    speak(&lab, CLIENTS.start..CLIENTS.start + 10);
    assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, 100);
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
}

#[test]
fn another_limit_of_flows_keeps_all_sessions() {
    let (mut lab, _servers) = lab_with_services(Nics::One, 65_536);
    let clients = CLIENTS.start..CLIENTS.start + 1000;
    speak(&lab, clients.clone());
    let opened = rule(&counters(&lab), "crowd").sessions_opened;
    assert_eq!(opened, 10_000);
    let program = attached(&lab, "eth0").expect("its program");
    for flows in [131_072, 32_768] {
        lab.options.limits = limits(flows);
        let (log, traffic) = under_traffic(&mut lab, take_over);
        report(&format!("flows = {flows}"), &log, &traffic);
        assert!(number_before(&log, " sessions to the new flow table") >= 10_000, "{log}");
        assert_eq!(traffic.lost.load(Relaxed), 0, "datagrams of sessions");
        speak(&lab, clients.clone());
        assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, opened, "none is new");
        let audit = assert_whole(&lab);
        assert!(audit.sessions >= 10_000, "{audit:?}");
        assert_eq!(attached(&lab, "eth0").expect("its program"), program);
        only_pinned(&lab, "v9");
    }

    // Too few are refused, and nothing is lost.
    check(lab.stop_router(Signal::SIGTERM));
    lab.options.limits = limits(8192);
    refuses(
        &lab,
        "too small a table",
        &["limits.flows = 8192 is less than the ", " sessions that there are; nothing was changed"],
    );
    only_pinned(&lab, "v9");
    assert_eq!(attached(&lab, "eth0").as_ref(), Some(&program));
    speak(&lab, clients.clone());
    lab.options.limits = limits(32_768);
    check(lab.start_router());
    assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, opened, "none is new");
}

#[test]
fn a_reload_changes_the_limit_of_flows_and_keeps_all_sessions() {
    let (mut lab, _servers) = lab_with_services(Nics::One, 65_536);
    let clients = CLIENTS.start..CLIENTS.start + 1000;
    speak(&lab, clients.clone());
    let opened = rule(&counters(&lab), "crowd").sessions_opened;
    assert_eq!(opened, 10_000);
    let program = attached(&lab, "eth0").expect("its program");
    let write = |lab: &Lab| check(lab.state().write("config.toml", lab.configuration(&lab.options.rules)));
    for flows in [131_072, 32_768] {
        lab.options.limits = limits(flows);
        write(&lab);
        let (reloaded, traffic) =
            under_traffic(&mut lab, |lab| check(lab.pls_router_json::<Reload>(&["reload"])));
        report(&format!("reload to flows = {flows}"), &lab.router_log(), &traffic);
        let keys: Vec<_> = reloaded.keys.iter().map(|key| key.key.as_str()).collect();
        let is_about_size = |finding: &CheckFinding| finding.text.contains("flows");
        assert!(reloaded.ok && !reloaded.findings.iter().any(is_about_size), "{reloaded:#?}");
        assert_eq!((keys, reloaded.old_sessions), (vec!["limits.flows"], 0));
        assert_eq!(traffic.lost.load(Relaxed), 0, "datagrams of sessions");
        assert_eq!(check(lab.pls_router_status()).flows.capacity, u64::from(flows));
        speak(&lab, clients.clone());
        assert_eq!(rule(&counters(&lab), "crowd").sessions_opened, opened, "none is new");
        assert_whole(&lab);
        assert_eq!(attached(&lab, "eth0").expect("its program"), program);
        only_pinned(&lab, "v9");
    }

    // Too few are refused, and nothing is lost.
    lab.options.limits = limits(8192);
    write(&lab);
    let output = check(lab.pls_router(&["reload", "-o", "json"]));
    let refused: Reload = check(serde_json::from_slice(&output.stdout).context("an answer"));
    assert!(!refused.ok && output.status.code() == Some(1), "{refused:#?}");
    let said = number_before(&refused.problem, " sessions that there are; nothing was changed");
    assert!(said >= 10_000, "{refused:#?}");
    assert_eq!(check(lab.pls_router_status()).flows.capacity, 32_768);
    only_pinned(&lab, "v9");
    speak(&lab, clients.clone());

    // They are cut in several pieces of work. What they leave is in quarantine for two seconds, so
    // the table has room for as many again at once.
    lab.options.limits = limits(32_768);
    let rules = lab.options.rules.replacen("name = \"crowd\"", "name = \"other\"", 1);
    check(lab.state().write("config.toml", lab.configuration(&rules)));
    let cut: Reload = check(lab.pls_router_json(&["reload", "--cut"]));
    assert_eq!((cut.old_sessions, cut.cut_sessions), (10_000, 10_000), "{cut:#?}");
    assert_whole(&lab);
    speak_anew(&lab, clients);
    assert_eq!(rule(&counters(&lab), "other").sessions_opened, opened);
}
