//! The probe's answer: how long a state has to last before it changes, the active checks of
//! targets, and what the probe makes of rules.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options, Process,
    addresses::{
        ALLOWED_NAME, ANYWHERE, DENIED_NAME, ECHO_PORT, FIREWALL_ONE_NIC, INTERNET, PLS_NAT, PLS_SUBNET,
        ROUTER, TOOLS,
    },
    client::Tcp,
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{CheckHealth, CheckResult, CheckStatus, Rule, Status};

use crate::common::{ECHO, LIMIT, check, counters, helper, only_pls_router, router, rule};

/// An unused address beyond the firewall.
const UNUSED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
/// An address of the router that only sessions have.
const SNAT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 71);
/// The time until a target is found to have failed, or to be good again, with the checks here:
/// three of them, a second apart.
const FOUND_OUT: Duration = Duration::from_secs(15);
/// The defaults of `[health]`.
const DOWN_AFTER: Duration = Duration::from_secs(2);
const UP_AFTER: Duration = Duration::from_secs(5);
/// The time that a busy machine may take beyond these.
const SLACK: Duration = Duration::from_millis(1500);

/// A lab whose probe has these settings, with these rules, if any, in place of the lab's.
fn lab_with(nics: Nics, health: &str, rules: Option<&str>) -> Lab {
    only_pls_router();
    let mut options =
        Options { health: health.to_owned(), start_router: false, ..Options::new(nics, router(), helper()) };
    if let Some(rules) = rules {
        options.rules = rules.to_owned();
    }
    check(Lab::up(options))
}

/// A rule, by its port, target and further keys.
fn forward(name: &str, port: u16, target: &str, more: &str) -> String {
    format!(
        "[[forward]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"{port}\"\ntarget = {target}\n\
         sources = [\"{PLS_SUBNET}\"]\n{more}\n"
    )
}

#[track_caller]
fn status(lab: &Lab) -> Status {
    check(lab.pls_router_status())
}

/// Waits for the answer `code`. Returns what it says, and how long it took.
#[track_caller]
fn answers(lab: &Lab, code: u16, limit: Duration) -> (String, Duration) {
    let start = Instant::now();
    let body = check(wait::until(&format!("the probe to answer {code}"), limit, || {
        let (status, body) = lab.health()?;
        ensure!(status == code, "{status}: {body}");
        Ok(body)
    }));
    (body, start.elapsed())
}

/// What the probe has answered while something was done: the codes and texts, each once.
fn answers_during(lab: &Lab, lasts: Duration) -> Vec<(u16, String)> {
    let (start, mut all) = (Instant::now(), Vec::new());
    while start.elapsed() < lasts {
        let answer = check(lab.health());
        if all.last() != Some(&answer) {
            all.push(answer);
        }
    }
    all
}

fn default_route(lab: &Lab, is_there: bool) {
    let change = if is_there { "add" } else { "del" };
    check(lab.hosts.router.ip(&format!("route {change} default via {FIREWALL_ONE_NIC}")));
}

#[test]
fn a_fault_counts_when_it_has_lasted_and_so_does_its_end() {
    let mut lab = lab_with(Nics::One, "", None);
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    assert_eq!(status(&lab).probe.changes, 0, "a start that is good has no other answer first");
    let (body, _) = answers(&lab, 200, LIMIT);
    assert!(body.starts_with("forwarding since 20") && body.ends_with("Z\n"), "{body}");

    // Half of the time that counts.
    default_route(&lab, false);
    let mut blip = answers_during(&lab, DOWN_AFTER / 2);
    default_route(&lab, true);
    blip.extend(answers_during(&lab, DOWN_AFTER * 2));
    assert!(blip.iter().all(|(code, _)| *code == 200), "{blip:#?}");
    let is_noticed = |body: &str| body.contains("; down for ") && body.contains("no next hop to");
    assert!(blip.iter().any(|(_, body)| is_noticed(body)), "it was not seen at all: {blip:#?}");
    let (_, last) = blip.last().expect("answers");
    assert_eq!(last, &body, "it has forwarded since the start");
    assert!(check(lab.in_service()), "{}", lab.probe_log());

    // And one that lasts.
    default_route(&lab, false);
    let pending = check(wait::until("the status to say so", DOWN_AFTER, || {
        let status = lab.pls_router_status()?;
        ensure!(status.probe.pending.is_some(), "{status:#?}");
        Ok(status)
    }));
    assert!(pending.healthy && !pending.reasons.is_empty() && pending.probe.answer == 200, "{pending:#?}");
    let change = pending.probe.pending.expect("a change");
    assert!(change.answer == 503 && change.after_seconds == 2.0 && change.for_seconds < 2.0, "{change:?}");
    let left = DOWN_AFTER.saturating_sub(Duration::from_secs_f64(change.for_seconds));
    let (body, took) = answers(&lab, 503, LIMIT);
    println!("503 after {took:?}, {left:?} were left");
    assert!(took + Duration::from_millis(500) >= left && took <= left + SLACK, "{took:?}, {left:?}");
    assert!(body.starts_with("not forwarding since 20") && body.contains("Z: rule "), "{body}");
    check(lab.wait_out_of_service(LIMIT));

    let back = Instant::now();
    default_route(&lab, true);
    let recovering = check(wait::until("the answer to say so", UP_AFTER, || {
        let (code, body) = lab.health()?;
        ensure!(code == 503 && body.contains("; forwarding again for "), "{code}: {body}");
        Ok(body)
    }));
    assert!(recovering.contains("no next hop to"), "the reason is still said: {recovering}");
    let output = check(lab.pls_router(&["status"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && text.contains(", 200 in "), "{text}");
    answers(&lab, 200, UP_AFTER + SLACK + LIMIT);
    let took = back.elapsed();
    println!("200 after {took:?}");
    assert!(took >= UP_AFTER && took <= UP_AFTER + SLACK, "{took:?}");
    check(lab.wait_in_service(LIMIT));
    let now = status(&lab);
    assert_eq!((now.probe.answer, now.probe.changes, now.probe.pending), (200, 2, None));
    let metrics = check(lab.hosts.router.run("curl", &["-sS", "http://127.0.0.1:9090/metrics"]));
    assert!(metrics.contains("pls_router_probe_changes_total 2\n"), "{metrics}");
    let log = lab.router_log();
    assert_eq!(log.matches("the probe answers 503").count(), 1, "{log}");
}

/// The time passes also when nobody asks.
#[test]
fn the_answer_changes_while_nobody_probes() {
    let mut lab = lab_with(Nics::One, "", None);
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(lab.stop_probe());
    default_route(&lab, false);
    let start = Instant::now();
    check(check(lab.router()).wait_for_log("the probe answers 503", LIMIT));
    let took = start.elapsed();
    assert!(took >= DOWN_AFTER && took <= DOWN_AFTER + SLACK, "{took:?}");
    // The first question of the next load balancer.
    let (code, body) = check(lab.health());
    assert_eq!(code, 503, "{body}");
}

#[test]
fn what_an_operator_does_and_a_lost_interface_count_at_once() {
    let slow = "down_after = \"1m\"\nup_after = \"1m\"";
    let mut lab = lab_with(Nics::One, slow, None);
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(lab.pls_router(&["drain"]));
    // An answer may be a few milliseconds old.
    let (body, _) = answers(&lab, 503, LIMIT);
    assert!(body.starts_with("draining since 20"), "{body}");
    check(lab.pls_router(&["undrain"]));
    answers(&lab, 200, LIMIT);
    check(lab.wait_in_service(LIMIT));

    check(lab.hosts.router.ip("link del eth0"));
    let start = Instant::now();
    check(check(lab.router()).wait_for_log("the probe answers 503", LIMIT));
    println!("503 after {:?}", start.elapsed());

    check(lab.stop_router(Signal::SIGTERM));
    let mut lab = lab_with(Nics::One, slow, None);
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(lab.pls_router(&["detach", "--force"]));
    let (body, _) = answers(&lab, 503, LIMIT);
    assert!(body.contains("detach --force"), "{body}");
}

/// The answer to the question by which machines are replaced: every fault of the targets, every
/// route and every drain leaves it alone, and a program that is taken off does not.
#[test]
fn liveness_is_about_the_programs_alone() {
    #[track_caller]
    fn lives(lab: &Lab) {
        let (code, body) = check(lab.live());
        assert!(code == 200 && body.starts_with("live: "), "{code}: {body}");
        assert!(status(lab).probe.live);
    }
    let mut lab = lab_with(Nics::One, "down_after = \"0s\"\nup_after = \"0s\"", None);
    // Also of a start, which has no other answer at first.
    default_route(&lab, false);
    let daemon = check(lab.spawn_router());
    lab.set_router(daemon);
    answers(&lab, 503, LIMIT * 4);
    lives(&lab);
    default_route(&lab, true);
    answers(&lab, 200, LIMIT);
    lives(&lab);

    // The firewall is dead: nobody answers at the next hop's address.
    check(lab.hosts.firewall.ip("link set vnet down"));
    let (body, _) = answers(&lab, 503, LIMIT * 4);
    assert!(body.contains("next hop"), "{body}");
    lives(&lab);
    check(lab.hosts.firewall.ip("link set vnet up"));
    answers(&lab, 200, LIMIT * 2);

    check(lab.pls_router(&["drain"]));
    answers(&lab, 503, LIMIT);
    lives(&lab);
    check(lab.pls_router(&["undrain"]));
    answers(&lab, 200, LIMIT);

    check(lab.pls_router(&["detach", "--force"]));
    answers(&lab, 503, LIMIT);
    let (code, body) = check(lab.live());
    assert!(code == 503 && body.starts_with("not live: ") && body.contains("detach --force"), "{body}");
    assert!(!status(&lab).probe.live);
}

/// A load balancer does not wait for a router that starts.
#[test]
fn a_start_does_not_wait() {
    let slow = "down_after = \"1m\"\nup_after = \"1m\"";
    let mut lab = lab_with(Nics::One, slow, None);
    default_route(&lab, false);
    let daemon = check(lab.spawn_router());
    lab.set_router(daemon);
    let (body, _) = answers(&lab, 503, LIMIT * 4);
    assert!(body.contains("no next hop to"), "{body}");
    default_route(&lab, true);
    answers(&lab, 200, LIMIT);
    // And a restart does not take it out of service.
    check(lab.wait_in_service(LIMIT));
    check(lab.stop_router(Signal::SIGTERM));
    check(lab.start_router());
    assert_eq!(status(&lab).probe.changes, 0);
}

/// A server that accepts connections and does no more: its kernel accepts them.
fn mute(host: &Namespace, address: Ipv4Addr, port: u16) -> TcpListener {
    check(check(host.inside(|| TcpListener::bind(SocketAddrV4::new(address, port)).context("cannot listen"))))
}

fn echo_server(lab: &Lab, address: Ipv4Addr, port: u16) -> Process {
    let name = format!("echo-{address}-{port}");
    let mut server =
        check(helper().tcp_echo(lab.state(), &lab.hosts.internet, &name, (address, port).into()));
    check(server.wait_until(LIMIT, || lab.hosts.internet.listens_tcp(port)));
    server
}

/// Returns the checks of a rule, in the order of its targets.
fn checks(lab: &Lab, rule: &str) -> Result<Vec<CheckStatus>> {
    let rules: Vec<Rule> = lab.pls_router_json(&["rules"])?;
    let rule = rules.into_iter().find(|known| known.name == rule).context("no such rule")?;
    Ok(rule.check.context("it has no check")?.targets)
}

/// Waits until the targets of a rule are in these states. Returns the checks.
#[track_caller]
fn wait_for(lab: &Lab, rule: &str, states: &[CheckHealth]) -> Vec<CheckStatus> {
    check(wait::until(&format!("the checks of {rule}"), FOUND_OUT, || {
        let checks = checks(lab, rule)?;
        let now: Vec<CheckHealth> = checks.iter().map(|check| check.health).collect();
        ensure!(now == states, "{checks:#?}");
        Ok(checks)
    }))
}

fn attempt(lab: &Lab) -> Result<Duration> {
    Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT).and_then(|mut tcp| tcp.echo(b"hello", LIMIT))
}

const QUICK: &str = "interval = \"1s\", timeout = \"500ms\", fall = 2, rise = 2";

/// Returns the number of SYNs to this port that have passed the firewall from this source.
fn syns(lab: &Lab, source: Ipv4Addr) -> u64 {
    let table = check(lab.hosts.firewall.run("nft", &["list", "chain", "ip", "seen", "forward"]));
    let line = table.lines().find(|line| line.contains(&format!("ip saddr {source} ")));
    let line = line.unwrap_or_else(|| panic!("{source} is not counted: {table}"));
    let packets = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    packets.and_then(|packets| packets.parse().ok()).expect("a number")
}

fn checks_find_a_dead_target_before_sessions_do(nics: Nics) {
    let check_keys = format!("check = {{ type = \"tcp\", {QUICK} }}");
    let targets = format!("[\"{TOOLS}:{ECHO_PORT}\", \"{UNUSED}:{ECHO_PORT}\"]");
    let rules = format!(
        "{}[snat]\naddresses = [\"{SNAT}\"]\n",
        forward("echo-tcp", ECHO_PORT, &targets, &check_keys)
    );
    let mut lab = lab_with(nics, "", Some(&rules));
    let device = match nics {
        Nics::One => "eth0",
        Nics::Two => "eth1",
    };
    // On the firewall's side, where answers come back.
    let address = match nics {
        Nics::One => SNAT,
        Nics::Two => Ipv4Addr::new(10, 0, 3, 5),
    };
    lab.set_rules(rules.replace(&SNAT.to_string(), &address.to_string()));
    check(lab.hosts.router.ip(&format!("addr add {address}/26 dev {device}")));
    check(lab.hosts.firewall.nft(&format!(
        "table ip seen {{
            chain forward {{
                type filter hook forward priority -10;
                ip saddr {address} tcp dport {ECHO_PORT} tcp flags syn / syn,ack counter
                ip saddr != {address} ip daddr {{ {TOOLS}, {UNUSED} }} counter
            }}
        }}"
    )));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let found = wait_for(&lab, "echo-tcp", &[CheckHealth::Good, CheckHealth::Failed]);
    assert!(found[0].latency_seconds.is_some_and(|latency| latency < 0.5), "{found:#?}");
    assert_eq!((found[1].last, found[1].latency_seconds), (Some(CheckResult::Failed), None));
    assert!(found[1].reason.contains("no answer in 500ms"), "{found:#?}");
    // From the address of sessions, and as none of them.
    assert!(syns(&lab, address) >= 3, "checks come from another address");
    assert_eq!(rule(&counters(&lab), "echo-tcp").sessions_opened, 0);
    let now = status(&lab);
    assert!(now.healthy && now.flows.sessions == 0, "{now:#?}");
    let ids: Vec<(&str, &str)> =
        now.conditions.iter().map(|condition| (condition.id.as_str(), condition.subject.as_str())).collect();
    assert!(ids.contains(&("target_failed", &format!("echo-tcp {UNUSED}:{ECHO_PORT}"))), "{ids:?}");
    assert!(ids.iter().all(|(id, _)| *id != "rule_unhealthy"), "{ids:?}");
    // The server keeps nothing of them.
    let kept = check(lab.hosts.internet.run("ss", &["-Htan", "sport", &format!(":{ECHO_PORT}")]));
    let kept: Vec<&str> = kept.lines().filter(|line| !line.starts_with("LISTEN")).collect();
    assert!(kept.len() <= 1, "{kept:#?}");
    // No session has to find out.
    for number in 0..10 {
        attempt(&lab).unwrap_or_else(|error| panic!("connection {number}: {error:#}"));
    }
    let output = check(lab.pls_router(&["status"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("CHECK") && text.contains("no answer in 500ms"), "{text}");
    let metrics = check(lab.hosts.router.run("curl", &["-sS", "http://127.0.0.1:9090/metrics"]));
    for line in [
        "pls_router_check_healthy{rule=\"echo-tcp\"} 1\n",
        "pls_router_check_targets{rule=\"echo-tcp\",state=\"failed\"} 1\n",
        "pls_router_check_targets{rule=\"echo-tcp\",state=\"good\"} 1\n",
        "pls_router_check_latency_seconds{rule=\"echo-tcp\"} 0.0",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }

    // Nobody listens, then somebody does.
    check(lab.hosts.internet.ip(&format!("addr add {UNUSED}/32 dev lo")));
    check(wait::until("another reason", FOUND_OUT, || {
        let checks = checks(&lab, "echo-tcp")?;
        ensure!(checks[1].reason == "it refuses connections", "{checks:#?}");
        Ok(())
    }));
    let _server = echo_server(&lab, UNUSED, ECHO_PORT);
    wait_for(&lab, "echo-tcp", &[CheckHealth::Good; 2]);
    check(wait::until("new sessions there", LIMIT, || {
        attempt(&lab)?;
        let rules: Vec<Rule> = lab.pls_router_json(&["rules"])?;
        ensure!(rules[0].addresses.len() == 2, "{rules:#?}");
        Ok(())
    }));
    assert!(!status(&lab).conditions.iter().any(|condition| condition.id == "target_failed"));
}

#[test]
fn checks_find_a_dead_target_with_one_nic() {
    checks_find_a_dead_target_before_sessions_do(Nics::One);
}

#[test]
fn checks_find_a_dead_target_with_two_nics() {
    checks_find_a_dead_target_before_sessions_do(Nics::Two);
}

/// The firewall accepts every connection itself, and decides by the name in the hello.
#[test]
fn a_tls_hello_finds_out_what_a_tcp_connection_does_not() {
    const SERVERS: [(&str, u16); 2] = [("-tls1_2", 9012), ("-tls1_3", 9013)];
    const MUTE: u16 = 9001;
    const OTHER: u16 = 9002;
    const ALERTS: u16 = 9003;
    let tls = |sni: &str| format!("check = {{ type = \"tls\", sni = \"{sni}\", {QUICK} }}");
    let tcp = format!("check = {{ type = \"tcp\", {QUICK} }}");
    let anywhere = format!("\"{ANYWHERE}:443\"");
    let at = |port: u16| format!("\"{INTERNET}:{port}\"");
    let mut rules = [
        forward("allowed", 443, &anywhere, &tls(ALLOWED_NAME)),
        forward("denied", 444, &anywhere, &tls(DENIED_NAME)),
        forward("denied-tcp", 445, &anywhere, &tcp),
        forward("mute", MUTE, &at(MUTE), &tls(ALLOWED_NAME)),
        forward("mute-tcp", MUTE + 1000, &at(MUTE), &tcp),
        forward("echo", OTHER, &at(OTHER), &tls(ALLOWED_NAME)),
        forward("alerts", ALERTS, &at(ALERTS), &tls("unknown.example")),
    ]
    .concat();
    for (version, port) in SERVERS {
        rules.push_str(&forward(&version[1..].replace('_', "-"), port, &at(port), &tls(ALLOWED_NAME)));
    }
    let mut lab = lab_with(Nics::One, "", Some(&rules));
    // Let these through; the servers are the firewall's neighbour.
    check(lab.hosts.firewall.run(
        "nft",
        &["insert", "rule", "ip", "firewall", "network_rules", "tcp", "dport", "9001-9013", "accept"],
    ));
    let internet = &lab.hosts.internet;
    let _mute = mute(internet, INTERNET, MUTE);
    let _echo = echo_server(&lab, INTERNET, OTHER);
    let key = |name: &str| lab.state().path("conf").join(name).display().to_string();
    let server = |name: &str, port: u16, options: &[&str]| {
        let mut command = check(internet.command("openssl"));
        command.args(["s_server", "-quiet", "-accept", &format!("{INTERNET}:{port}")]);
        command.args(["-cert", &key("server.pem"), "-key", &key("server.key")]).args(options);
        let mut process = check(Process::spawn(lab.state(), name, command));
        check(process.wait_until(LIMIT, || internet.listens_tcp(port)));
        process
    };
    let mut servers: Vec<Process> =
        SERVERS.into_iter().map(|(version, port)| server(version, port, &[version])).collect();
    // Knows no other name, and says so by an alert.
    let (cert, private) = (key("server.pem"), key("server.key"));
    servers.push(server(
        "alerts",
        ALERTS,
        &["-servername", ALLOWED_NAME, "-servername_fatal", "-cert2", &cert, "-key2", &private],
    ));
    check(lab.start_router());
    use CheckHealth::{Failed, Good};
    for name in ["allowed", "denied-tcp", "mute-tcp", "tls1-2", "tls1-3"] {
        let found = wait_for(&lab, name, &[Good]);
        assert!(found[0].latency_seconds.is_some() && found[0].reason.is_empty(), "{found:#?}");
    }
    for (name, reason) in [
        ("denied", "it closes the connection after a TLS hello for evil.example.net"),
        ("mute", "it accepts connections and does not answer a TLS hello in 500ms"),
        ("echo", "it does not speak TLS"),
        ("alerts", "it refuses a TLS hello for unknown.example: alert 112 (unrecognized_name)"),
    ] {
        let found = wait_for(&lab, name, &[Failed]);
        assert_eq!(found[0].reason, reason, "{name}: {found:#?}");
    }
    let now = status(&lab);
    assert!(now.healthy, "other rules are healthy: {now:#?}");
    let unhealthy: Vec<&str> = now
        .conditions
        .iter()
        .filter(|condition| condition.id == "rule_unhealthy")
        .map(|condition| condition.subject.as_str())
        .collect();
    assert_eq!(unhealthy, ["denied", "mute", "echo", "alerts"]);
    let log = lab.firewall_log();
    assert!(log.contains(&format!("deny tls name={DENIED_NAME}")), "{log}");
    drop(servers);
}

/// A rule that needs all of its targets, and a probe that needs this rule.
#[test]
fn the_probe_follows_the_rules_that_it_requires() {
    const PORT: u16 = ECHO_PORT + 1;
    let targets = format!("[\"{TOOLS}:{ECHO_PORT}\", \"{INTERNET}:{ECHO_PORT}\"]");
    let all = format!("check = {{ type = \"tcp\", require = \"all\", {QUICK} }}");
    let any = format!("check = {{ type = \"tcp\", {QUICK} }}");
    let rules = [
        forward("needed", ECHO_PORT, &targets, &all),
        forward("other", PORT, &format!("\"{UNUSED}:{ECHO_PORT}\""), &any),
    ]
    .concat();
    let health = "down_after = \"0s\"\nup_after = \"0s\"\nrequire = [\"needed\"]";
    let mut lab = lab_with(Nics::One, health, Some(&rules));
    let second = echo_server(&lab, INTERNET, ECHO_PORT);
    check(lab.start_router());
    wait_for(&lab, "needed", &[CheckHealth::Good; 2]);
    wait_for(&lab, "other", &[CheckHealth::Failed]);
    let (code, body) = check(lab.health());
    assert_eq!(code, 200, "the other rule is not required: {body}");
    check(lab.wait_in_service(LIMIT));
    drop(second);
    let (body, took) = answers(&lab, 503, FOUND_OUT);
    println!("503 after {took:?}");
    let reason = format!(
        "rule needed: 1 of its 2 targets fail their check; {INTERNET}:{ECHO_PORT}: it refuses connections"
    );
    assert!(body.contains(&reason), "{body}");
    // Its sessions go on, with the other target.
    let direct = SocketAddrV4::new(ROUTER, ECHO_PORT);
    check(check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], direct, LIMIT)).echo(b"hello", LIMIT));
    check(lab.wait_out_of_service(LIMIT));
    let _second = echo_server(&lab, INTERNET, ECHO_PORT);
    answers(&lab, 200, FOUND_OUT);
    check(lab.wait_in_service(LIMIT));

    // By default, one healthy forward is enough, and none is not.
    check(lab.stop_router(Signal::SIGTERM));
    lab.options.health = "down_after = \"0s\"\nup_after = \"0s\"".to_owned();
    lab.set_rules(forward("other", PORT, &format!("\"{UNUSED}:{ECHO_PORT}\""), &any));
    check(lab.start_router());
    let (body, _) = answers(&lab, 503, FOUND_OUT);
    assert!(body.contains("rule other: its target") && body.contains("no answer in 500ms"), "{body}");
}

/// Checks, and what the probe makes of them, change while the router runs.
#[test]
fn a_reload_changes_checks() {
    let target = format!("\"{UNUSED}:{ECHO_PORT}\"");
    let without = forward("echo-tcp", ECHO_PORT, &target, "");
    let with = forward("echo-tcp", ECHO_PORT, &target, &format!("check = {{ type = \"tcp\", {QUICK} }}"));
    let mut lab = lab_with(Nics::One, "down_after = \"0s\"\nup_after = \"0s\"", Some(&without));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let reload = |lab: &Lab, rules: &str| {
        check(lab.state().write("config.toml", lab.configuration(rules)));
        let output = check(lab.pls_router(&["reload"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    reload(&lab, &with);
    wait_for(&lab, "echo-tcp", &[CheckHealth::Failed]);
    let (body, _) = answers(&lab, 503, LIMIT);
    assert!(body.contains("rule echo-tcp: its target"), "{body}");
    // Times, too.
    lab.options.health = "down_after = \"0s\"\nup_after = \"1s\"".to_owned();
    let start = Instant::now();
    reload(&lab, &without);
    answers(&lab, 200, LIMIT);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let rules: Vec<Rule> = check(lab.pls_router_json(&["rules"]));
    assert_eq!((rules.len(), &rules[0].check), (1, &None));
    check(wait::until("the checks to end", LIMIT, || {
        let status = lab.pls_router_status()?;
        ensure!(status.checks.is_empty() && status.conditions.is_empty(), "{status:#?}");
        Ok(())
    }));
}
