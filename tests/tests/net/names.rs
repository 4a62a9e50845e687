//! Targets by name, whose addresses move and whose name server dies; lists of targets, one of which
//! is dead.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{
    Lab, Nics, Options, Process,
    addresses::{ECHO_PORT, PLATFORM, PLS_GATEWAY, PLS_NAT, ROUTER, TOOLS, WWW},
    client::Tcp,
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Audit, Flow, Health, Status};

use crate::common::{ECHO, LIMIT, check, helper, only_pls_router, router};

/// The target's name.
pub(crate) const NAME: &str = "echo.lab.example";
/// Another name. It stands for [`UNUSED`].
const OTHER: &str = "other.lab.example";
/// An unknown name.
const UNKNOWN: &str = "nowhere.lab.example";
/// The shortest time that the router relies on an answer for, plus what a busy machine needs.
const TTL_LIMIT: Duration = Duration::from_secs(5 + 10);
/// An unused address beyond the firewall.
const UNUSED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
/// An answer on a wire without delay arrives within this time.
const ANSWER: Duration = Duration::from_millis(200);
/// The time in which a dead target has to be found out: 3 s without an answer, a sweep every 2 s.
const FOUND_OUT: Duration = Duration::from_secs(30);
/// The time in which a target that is back has to be used again: avoided for 10 s, perhaps for 20 s
/// after a trial that came too early.
const FORGIVEN: Duration = Duration::from_secs(60);

/// A name server that knows what its file says, for one second at a time.
pub(crate) struct Dns {
    process: Process,
}

impl Dns {
    pub(crate) fn start(lab: &Lab, addresses: &[Ipv4Addr]) -> Result<Self> {
        let hosts = lab.state().path("dns-hosts");
        Self::write(lab, addresses)?;
        let mut command = lab.hosts.pls.command("dnsmasq")?;
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
        command.args([
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            "--log-facility=-",
            "--local-ttl=1",
        ]);
        // Nothing else is there, and that is an answer: without this it refuses.
        command.arg("--local=/example/");
        command.arg(format!("--listen-address={PLS_GATEWAY}"));
        command.arg(format!("--addn-hosts={}", hosts.display()));
        let mut process = Process::spawn(lab.state(), "name-server", command)?;
        process.wait_until(LIMIT, || answers(lab))?;
        Ok(Self { process })
    }

    fn write(lab: &Lab, addresses: &[Ipv4Addr]) -> Result<()> {
        let mut lines: String = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        lines.push_str(&format!("{UNUSED} {OTHER}\n"));
        lab.state().write("dns-hosts", lines).map(drop)
    }

    /// Has the name stand for other addresses.
    pub(crate) fn change(&self, lab: &Lab, addresses: &[Ipv4Addr]) -> Result<()> {
        Self::write(lab, addresses)?;
        self.process.signal(Signal::SIGHUP)
    }

    fn kill(mut self) -> Result<()> {
        self.process.kill()
    }
}

/// Returns an error unless the name server has its socket; the platform's has another one.
fn answers(lab: &Lab) -> Result<()> {
    let sockets = lab.hosts.pls.run("ss", &["-Hlun", "src", &format!("{PLS_GATEWAY}:53")])?;
    ensure!(!sockets.trim().is_empty(), "no socket listens on {PLS_GATEWAY}:53");
    Ok(())
}

/// A lab whose router has this rule for the echo service besides those of every lab, asks our name
/// server, and is not started yet.
pub(crate) fn lab_with(target: &str) -> Lab {
    only_pls_router();
    let mut options = Options { start_router: false, ..Options::new(Nics::One, router(), helper()) };
    let old = format!("target = \"{TOOLS}:{ECHO_PORT}\"");
    let rules = options.rules.replacen(&old, &format!("target = {target}"), 1);
    assert_ne!(rules, options.rules, "the lab's rules have no {old}");
    options.rules = rules;
    let lab = check(Lab::up(options));
    // In place: the router sees this very file.
    let resolv_conf = lab.state().path("etc/router/resolv.conf");
    check(
        fs::write(resolv_conf, format!("nameserver {PLS_GATEWAY}\noptions timeout:1\n"))
            .context("resolv.conf"),
    );
    lab
}

#[track_caller]
fn status(lab: &Lab) -> Status {
    check(lab.pls_router_json(&["status"]))
}

/// Returns the router's status and log, for a test that timed out.
fn story(lab: &Lab) -> String {
    let say = |args: &[&str]| match lab.pls_router(args) {
        Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        Err(error) => format!("{error:#}"),
    };
    let log = fs::read_to_string(lab.state().log("pls-router")).unwrap_or_default();
    let service = lab.in_service();
    format!("in service: {service:?}\n{}\n{}\nits log:\n{log}", say(&["status"]), say(&["counters"]))
}

/// The targets of the rule's sessions, each once.
fn targets(lab: &Lab) -> Result<Vec<std::net::SocketAddr>> {
    let flows: Vec<Flow> = lab.pls_router_json(&["flows", "--rule", "echo-tcp"])?;
    let mut targets: Vec<_> = flows.iter().map(|flow| flow.target).collect();
    targets.sort_unstable();
    targets.dedup();
    Ok(targets)
}

/// An echo server at another address.
#[track_caller]
fn echo_server(lab: &Lab, address: Ipv4Addr) -> Process {
    let listen = (address, ECHO_PORT).into();
    let mut server = check(helper().tcp_echo(lab.state(), &lab.hosts.internet, "other-echo", listen));
    check(server.wait_until(LIMIT, || {
        let sockets = lab.hosts.internet.run("ss", &["-Hltn", "src", &listen.to_string()])?;
        ensure!(!sockets.trim().is_empty(), "no socket listens on {listen}");
        Ok(())
    }));
    server
}

/// A connection that works.
#[track_caller]
fn connect(lab: &Lab) -> Tcp {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"hello", LIMIT));
    tcp
}

#[test]
fn new_sessions_follow_a_name_and_old_ones_stay() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let _www = echo_server(&lab, WWW);
    let dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let mut old = connect(&lab);
    assert_eq!(check(targets(&lab)), [(TOOLS, ECHO_PORT).into()]);
    let [name] = &status(&lab).names[..] else { panic!("{:#?}", status(&lab)) };
    assert_eq!((name.ttl_seconds, name.addresses.as_slice()), (Some(1), [TOOLS.into()].as_slice()));
    assert!(name.next_seconds <= 5 && name.problem.is_empty(), "{name:?}");

    check(dns.change(&lab, &[WWW]));
    check(wait::until("the name to have moved", TTL_LIMIT, || {
        let addresses = lab.pls_router_json::<Status>(&["status"])?.names.remove(0).addresses;
        ensure!(addresses == [WWW], "{addresses:?}");
        Ok(())
    }));
    let mut new = connect(&lab);
    assert_eq!(check(targets(&lab)), [(WWW, ECHO_PORT).into(), (TOOLS, ECHO_PORT).into()]);
    check(old.echo(&[7; 20_000], LIMIT));
    check(new.echo(&[8; 20_000], LIMIT));
}

/// Behind a Private Link Service all clients share a few addresses, and every port comes again
/// within minutes: what it was used for before says nothing of where its next connection goes.
#[test]
fn reused_client_ports_follow_a_name() {
    const PORTS: std::ops::Range<u16> = 40_000..40_030;
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let _www = echo_server(&lab, WWW);
    let dns = check(Dns::start(&lab, &[TOOLS]));
    // The client's own kernel may use a port again at once.
    check(lab.hosts.pls.sysctl("net/ipv4/tcp_max_tw_buckets", "0"));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let connect = |port: u16| {
        let (client, service) = (SocketAddrV4::new(PLS_NAT[0], port), SocketAddrV4::new(ROUTER, ECHO_PORT));
        let mut tcp = Tcp::connect_between(&lab.hosts.pls, client, service, LIMIT)?;
        tcp.echo(b"hello", LIMIT)?;
        Ok(tcp)
    };
    let end = |port: u16, tcp: Tcp| if port.is_multiple_of(2) { tcp.close() } else { tcp.reset() };
    for port in PORTS {
        check(connect(port).and_then(|tcp| end(port, tcp)));
    }
    assert_eq!(check(targets(&lab)), [(TOOLS, ECHO_PORT).into()]);

    check(dns.change(&lab, &[WWW]));
    check(wait::until("the name to have moved", TTL_LIMIT, || {
        let addresses = lab.pls_router_json::<Status>(&["status"])?.names.remove(0).addresses;
        ensure!(addresses == [WWW], "{addresses:?}");
        Ok(())
    }));
    check(lab.hosts.internet.ip(&format!("addr del {TOOLS}/32 dev lo")));
    for port in PORTS {
        let tcp = check(connect(port).with_context(|| format!("port {port} again: {}", story(&lab))));
        // And once more, to the same server.
        check(end(port, tcp));
        check(connect(port).and_then(|tcp| end(port, tcp)));
    }
    assert_eq!(check(targets(&lab)), [(WWW, ECHO_PORT).into()]);
    let audit: Audit = check(lab.pls_router_json(&["check", "--live"]));
    assert_eq!((audit.ok, audit.held_ports), (true, PORTS.len() as u64), "{audit:#?}");
}

#[test]
fn a_dead_name_server_does_not_remove_targets() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(dns.kill());
    let problem = check(wait::until("the router to notice", TTL_LIMIT, || {
        let name = lab.pls_router_json::<Status>(&["status"])?.names.remove(0);
        ensure!(!name.problem.is_empty(), "{name:?}");
        Ok(name.problem)
    }));
    let now = status(&lab);
    assert_eq!(now.names[0].addresses, [TOOLS]);
    assert!(now.healthy && now.degraded.iter().any(|reason| reason.contains(&problem)), "{now:#?}");
    drop(connect(&lab));

    // The daemon crashes, and comes back while no server knows the name: its file still has the
    // answer.
    check(lab.stop_router(Signal::SIGKILL));
    check(lab.start_router());
    let now = status(&lab);
    assert_eq!(now.names[0].addresses, [TOOLS], "{now:#?}");
    assert!(!now.names[0].problem.is_empty() && now.names[0].ttl_seconds.is_none(), "{now:#?}");
    check(lab.wait_in_service(LIMIT));
    drop(connect(&lab));

    let _dns = check(Dns::start(&lab, &[TOOLS]));
    check(wait::until("the name to be resolved again", Duration::from_secs(30), || {
        let now: Status = lab.pls_router_json(&["status"])?;
        ensure!(now.degraded.is_empty() && now.names.iter().all(|name| name.problem.is_empty()), "{now:#?}");
        Ok(())
    }));
}

/// Any number of names in a rule, among addresses, with a target that is avoided at that time, in
/// several rules, and in any spelling.
#[test]
fn neither_a_crash_nor_a_restart_forgets_a_name() {
    let targets =
        format!("[\"{NAME}:{ECHO_PORT}\", \"Other.Lab.Example.:{ECHO_PORT}\", \"{WWW}:{ECHO_PORT}\"]");
    let mut lab = lab_with(&targets);
    let udp = format!("name = \"echo-udp\"\nprotocol = \"udp\"\nlisten = \"{ECHO_PORT}\"\ntarget = ");
    let rules = lab.options.rules.replacen(&format!("{udp}\"{TOOLS}"), &format!("{udp}\"{OTHER}"), 1);
    assert_ne!(rules, lab.options.rules, "the lab's rules have no {udp}");
    lab.set_rules(rules);
    let _www = echo_server(&lab, WWW);
    let dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    check(wait::until("the dead target to be found out", FOUND_OUT, || {
        let _some_of_them_fail = Tcp::connect(&lab.hosts.serverless, ECHO, ANSWER);
        let targets = lab.pls_router_json::<Status>(&["status"])?.targets;
        let avoided =
            targets.iter().any(|target| target.target.ip() == UNUSED && target.health == Health::Avoided);
        ensure!(avoided, "{targets:?}");
        Ok(())
    }));
    check(dns.kill());
    let known = [(NAME, TOOLS), (OTHER, UNUSED), ("other.lab.example.", UNUSED)];
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        check(lab.stop_router(signal));
        check(lab.start_router());
        let now = status(&lab);
        for (name, address) in known {
            let found = now.names.iter().find(|found| found.name == name);
            let found = found.unwrap_or_else(|| panic!("{name} is not listed after {signal}: {now:#?}"));
            assert_eq!(found.addresses, [address], "{name} after {signal}: {now:#?}");
            assert!(!found.problem.is_empty(), "{found:?}");
        }
        check(lab.wait_in_service(LIMIT));
        assert!(status(&lab).healthy, "{}", story(&lab));
        check(wait::until("a connection", LIMIT, || {
            Tcp::connect(&lab.hosts.serverless, ECHO, ANSWER).and_then(|mut tcp| tcp.echo(b"hello", ANSWER))
        }));
    }
}

/// The load balancer's probe waits as long as a restart takes.
#[test]
fn a_restart_does_not_wait_for_silent_name_servers() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let _dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(wait::until("the answer to be written", LIMIT, || {
        ensure!(fs::read_to_string(lab.state().path("names.json"))?.contains(NAME));
        Ok(())
    }));
    check(lab.stop_router(Signal::SIGTERM));
    let resolv_conf = lab.state().path("etc/router/resolv.conf");
    check(fs::write(resolv_conf, format!("nameserver {UNUSED}\n")).context("resolv.conf"));
    let start = Instant::now();
    check(lab.start_router());
    let took = start.elapsed();
    let now = status(&lab);
    assert_eq!(now.names[0].addresses, [TOOLS], "{now:#?}");
    assert!(now.names[0].problem.contains("no answer in 0.5 s"), "{now:#?}");
    assert!(took < Duration::from_secs(4), "the start took {took:?}");
    drop(connect(&lab));
}

/// `resolv.conf` names two servers, as everywhere, and the first is dead, as some day everywhere.
#[test]
fn a_dead_first_name_server_delays_nothing() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let _www = echo_server(&lab, WWW);
    let dns = check(Dns::start(&lab, &[TOOLS]));
    // The usual five seconds for each.
    let resolv_conf = lab.state().path("etc/router/resolv.conf");
    check(
        fs::write(resolv_conf, format!("nameserver {UNUSED}\nnameserver {PLS_GATEWAY}\n"))
            .context("resolv.conf"),
    );
    let start = Instant::now();
    check(lab.start_router());
    let took = start.elapsed();
    let now = status(&lab);
    let [name] = &now.names[..] else { panic!("{now:#?}") };
    assert_eq!(
        (name.addresses.as_slice(), name.problem.as_str()),
        ([TOOLS.into()].as_slice(), ""),
        "{now:#?}"
    );
    assert!(took < Duration::from_secs(4), "the start took {took:?}");
    check(lab.wait_in_service(LIMIT));
    drop(connect(&lab));
    check(dns.change(&lab, &[WWW]));
    check(wait::until("the name to have moved", TTL_LIMIT, || {
        let name = lab.pls_router_json::<Status>(&["status"])?.names.remove(0);
        ensure!(name.addresses == [WWW] && name.problem.is_empty(), "{name:?}");
        Ok(())
    }));
}

/// The addresses that a rule may not lead to are refused in answers for names, too.
#[test]
fn a_name_leads_neither_to_the_platform_nor_to_the_router_itself() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let dns = check(Dns::start(&lab, &[PLATFORM, Ipv4Addr::LOCALHOST]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let now = status(&lab);
    let [name] = &now.names[..] else { panic!("{now:#?}") };
    assert!(name.addresses.is_empty() && name.problem.contains("its address "), "{name:?}");
    assert!(now.degraded.iter().any(|reason| reason.contains("rule echo-tcp: no target")), "{now:#?}");
    if let Ok(tcp) = Tcp::connect(&lab.hosts.serverless, ECHO, ANSWER) {
        panic!("a rule without a target leads somewhere: {tcp:?}");
    }

    check(dns.change(&lab, &[PLATFORM, TOOLS, Ipv4Addr::LOCALHOST]));
    check(wait::until("the one good address to be used", TTL_LIMIT * 2, || {
        let addresses = lab.pls_router_json::<Status>(&["status"])?.names.remove(0).addresses;
        ensure!(addresses == [TOOLS], "{addresses:?}");
        Ok(())
    }));
    drop(connect(&lab));
    assert_eq!(check(targets(&lab)), [(TOOLS, ECHO_PORT).into()]);
}

/// A name server under another's control, which every router asks. Its answers for one name can
/// make that name's rule keep its last good answer or lose its targets, and the machine stays in
/// service with the other rules.
#[test]
fn a_wrong_answer_for_a_name_affects_only_its_rule() {
    const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 127);
    const DOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 125);
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    let dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let degraded = |lab: &Lab, text: &str| {
        let said = wait::until(text, TTL_LIMIT * 2, || {
            let now: Status = lab.pls_router_json(&["status"])?;
            ensure!(now.degraded.iter().any(|reason| reason.contains(text)), "{now:#?}");
            Ok(now)
        });
        let now = check(said.with_context(|| story(lab)));
        assert!(now.healthy && now.reasons.is_empty(), "{now:#?}");
        assert_eq!(check(lab.health()).0, 200);
        let udp = check(lab::client::Udp::open(&lab.hosts.serverless, ECHO));
        check(udp.echo(b"another rule", LIMIT));
        now
    };
    for lie in [ROUTER, BROADCAST, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        check(dns.change(&lab, &[lie]));
        let now = degraded(&lab, &format!("target {NAME}: cannot be resolved again: its address {lie} is "));
        assert_eq!(now.names[0].addresses, [TOOLS], "{now:#?}");
        drop(connect(&lab));
    }
    // Nor does the next daemon, which has nothing but the file to go by.
    check(lab.stop_router(Signal::SIGKILL));
    check(lab.start_router());
    assert_eq!(status(&lab).names[0].addresses, [TOOLS]);
    check(lab.wait_in_service(LIMIT));
    drop(connect(&lab));

    check(dns.change(&lab, &[DOWN]));
    degraded(&lab, &format!("rule echo-tcp: no next hop to {DOWN}"));
    assert!(Tcp::connect(&lab.hosts.serverless, ECHO, ANSWER).is_err(), "an unused address answered");

    // Some of it is good, and too much: what can be used is.
    check(dns.change(&lab, &[ROUTER, TOOLS, BROADCAST]));
    let now = degraded(
        &lab,
        &format!("target {NAME}: not all of its answer is used: its address {ROUTER} is this machine's own"),
    );
    assert_eq!((now.names[0].addresses.as_slice(), &*now.names[0].problem), ([TOOLS.into()].as_slice(), ""));
    drop(connect(&lab));
    let many: Vec<Ipv4Addr> = (0..100).map(|last| Ipv4Addr::new(10, 9, 0, last)).collect();
    check(dns.change(&lab, &many));
    let now = degraded(&lab, "it has 100 addresses: the lowest 32 are used");
    assert_eq!(now.names[0].addresses, many[..32]);
    let told = wait::until("the log to say so", LIMIT, || {
        let log = fs::read_to_string(lab.state().log("pls-router"))?;
        ensure!(log.contains("it has 100 addresses"), "{log}");
        Ok(log)
    });
    let log = check(told);
    assert_eq!(log.matches("it has 100 addresses").count(), 1, "{log}");
    assert!(!log.contains("10.9.0.32"), "what is not used is not told: {log}");
}

#[test]
fn one_unknown_name_leaves_the_other_rules_alone() {
    let mut lab = lab_with(&format!("\"{UNKNOWN}:{ECHO_PORT}\""));
    let _dns = check(Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let now = status(&lab);
    assert!(now.healthy && now.reasons.is_empty(), "{now:#?}");
    for text in ["rule echo-tcp: no target", "NXDOMAIN"] {
        assert!(now.degraded.iter().any(|reason| reason.contains(text)), "{now:#?}");
    }
    let udp = check(lab::client::Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"another rule", LIMIT));
    if let Ok(tcp) = Tcp::connect(&lab.hosts.serverless, ECHO, ANSWER) {
        panic!("a rule without a target leads somewhere: {tcp:?}");
    }
}

/// A machine on this link that is down, the target of one rule of many.
#[test]
fn a_target_on_the_link_that_is_down_leaves_the_other_rules_alone() {
    let down = Ipv4Addr::new(10, 0, 2, 125);
    let mut lab = lab_with(&format!("\"{down}:{ECHO_PORT}\""));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let text = format!("rule echo-tcp: no next hop to {down}");
    check(wait::until("the router to notice", TTL_LIMIT, || {
        let now: Status = lab.pls_router_json(&["status"])?;
        ensure!(now.degraded.iter().any(|reason| reason.starts_with(&text)), "{now:#?}");
        Ok(())
    }));
    let now = status(&lab);
    assert!(now.healthy && now.reasons.is_empty(), "{now:#?}");
    let udp = check(lab::client::Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"another rule", LIMIT));
}

#[test]
fn without_any_target_the_probe_fails_until_there_is_one() {
    let mut lab = lab_with(&format!("\"{NAME}:{ECHO_PORT}\""));
    // That rule alone.
    let rules = lab.options.rules.clone();
    let tables = rules.split("\n[[").filter(|table| table.contains(NAME) || table.starts_with("masquerade"));
    let tables: Vec<_> = tables.map(|table| format!("[[{}\n", table.trim_start_matches("[["))).collect();
    lab.set_rules(tables.concat());
    let mut daemon = check(lab.spawn_router());
    let body = check(wait::until("the probe to answer", LIMIT * 4, || match lab.health()? {
        (503, body) => Ok(body),
        (status, body) => bail!("{status}: {body}"),
    }));
    assert!(body.contains("no forward rule has a target") && body.contains(NAME), "{body}");
    let _dns = check(Dns::start(&lab, &[TOOLS]));
    check(daemon.wait_until(Duration::from_secs(60), || {
        let (status, body) = lab.health()?;
        ensure!(status == 200, "{status}: {body}");
        Ok(())
    }));
    check(lab.wait_in_service(LIMIT));
    drop(connect(&lab));
}

#[test]
fn new_sessions_avoid_a_dead_target_until_it_answers() {
    let targets = format!("[\"{TOOLS}:{ECHO_PORT}\", \"{UNUSED}:{ECHO_PORT}\"]");
    let mut lab = lab_with(&targets);
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    let health = |lab: &Lab, address: Ipv4Addr| {
        let targets = lab.pls_router_json::<Status>(&["status"])?.targets;
        let target = targets.into_iter().find(|target| target.target == (address, ECHO_PORT).into());
        Ok::<_, anyhow::Error>(target.with_context(|| format!("{address} is not listed"))?.health)
    };
    let attempt = |lab: &Lab, limit| {
        Tcp::connect(&lab.hosts.serverless, ECHO, limit).and_then(|mut tcp| tcp.echo(b"hello", limit))
    };
    assert_eq!(check(health(&lab, UNUSED)), Health::Good);

    check(wait::until("the dead target to be found out", FOUND_OUT, || {
        let _half_of_them_fail = attempt(&lab, ANSWER);
        let health = health(&lab, UNUSED)?;
        ensure!(health == Health::Avoided, "{health:?}");
        Ok(())
    }));
    for number in 0..20 {
        attempt(&lab, LIMIT).unwrap_or_else(|error| panic!("connection {number}: {error:#}"));
    }
    let now = status(&lab);
    assert_eq!(check(health(&lab, TOOLS)), Health::Good, "{now:#?}");
    assert!(now.healthy && now.degraded.is_empty(), "{now:#?}");

    check(lab.hosts.internet.ip(&format!("addr add {UNUSED}/32 dev lo")));
    let _back = echo_server(&lab, UNUSED);
    let again = wait::until("the target to be used again", FORGIVEN, || {
        attempt(&lab, ANSWER)?;
        let health = health(&lab, UNUSED)?;
        ensure!(health == Health::Good, "{health:?}");
        Ok(())
    });
    check(again.with_context(|| story(&lab)));
}
