//! The real program as people run it: its output, word for word, and its exit codes. Its daemon is
//! a stand-in with fixed answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod golden;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use router_user::model::{
    Audit, AuditFinding, AuditKind, ChangeKind, CheckFinding, CheckHealth, CheckResult, CheckStatus,
    ContestedNextHop, Counters, Drain, Flow, FlowTableStatus, Health, InterfaceCounters, InterfaceStatus,
    KeyChange, NameStatus, NextHopStatus, OwnTrafficCounters, PendingAnswer, PortHolder, ProbeStatus,
    PuntStatus, ReasonCounter, Reload, Repairs, Rule, RuleChange, RuleCheckStatus, RuleCounters, RuleKind,
    RuleSessions, SelfTestStatus, SnatPortStatus, Status, TargetStatus,
};
use tempfile::TempDir;

/// A temporary directory with a configuration, and perhaps a daemon's socket.
struct Place {
    directory: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Place {
    /// A socket path without a listener.
    fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), asked: Arc::default() }
    }

    /// A daemon listens that answers each request line's path with the text beside it.
    fn with_daemon(answers: Vec<(&'static str, String)>) -> Self {
        let place = Self::empty();
        let listener = UnixListener::bind(place.socket()).unwrap();
        let asked = Arc::clone(&place.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &answers, &asked);
            }
        });
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// The file named, with this text.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// `pls-router` with these arguments, in this directory, with its socket.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pls-router"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PLS_ROUTER_SOCKET", "api.sock")
            .env("PLS_ROUTER_CONFIG", "config.toml")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&self.command(arguments).output().unwrap())
    }
}

/// Answers one request.
fn serve(mut stream: UnixStream, answers: &[(&str, String)], asked: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend(buffer.iter().take(length)),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let line = request.lines().next().unwrap_or_default().to_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    let (status, body) = match answers.iter().find(|(known, _)| *known == path) {
        Some((_, body)) => ("200 OK", body.as_str()),
        None => ("404 Not Found", "no such path"),
    };
    asked.lock().unwrap().push(line);
    // The client may be gone already; then it fails, not this.
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Everything there is to see, for a golden file.
    fn shown(&self) -> String {
        let mut text = self.out.clone();
        if !self.err.is_empty() {
            text.push_str(&format!("--- standard error\n{}", self.err));
        }
        text.push_str(&format!("--- exit code {:?}\n", self.code.unwrap()));
        text
    }
}

fn golden(name: &str, ran: &Ran) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(format!("{name}.txt"));
    golden::check(&path, &ran.shown());
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        healthy: true,
        reasons: Vec::new(),
        probe: ProbeStatus {
            answer: 200,
            since: "2026-11-30T14:00:05Z".to_owned(),
            since_seconds: 3700,
            changes: 2,
            live: true,
            reasons: Vec::new(),
            pending: None,
        },
        degraded: Vec::new(),
        conditions: Vec::new(),
        uptime_seconds: 270_000,
        config: "/etc/pls-router/config.toml".to_owned(),
        interfaces: vec![InterfaceStatus {
            name: "eth0".to_owned(),
            index: 2,
            roles: vec!["pls".to_owned(), "firewall".to_owned()],
            attached: true,
            mode: "native".to_owned(),
            program_id: Some(41),
        }],
        snat_addresses: vec!["10.0.2.68".parse().unwrap()],
        next_hops: vec![NextHopStatus {
            rules: vec!["https".to_owned(), "mssql".to_owned()],
            target: "203.0.113.10".parse().unwrap(),
            via: Some("10.0.2.65".parse().unwrap()),
            interface: Some("eth0".to_owned()),
            mac: Some("12:34:56:78:9a:bc".to_owned()),
            source: Some("10.0.2.68".parse().unwrap()),
            resolved: true,
            problem: String::new(),
        }],
        contested_next_hops: vec![ContestedNextHop {
            address: [10, 0, 2, 66].into(),
            interface: "eth0".to_owned(),
            macs: vec!["12:34:56:78:9a:bc".to_owned(), "aa:00:00:00:00:01".to_owned()],
            others: false,
            changes: 3,
            since_seconds: 12,
        }],
        next_hop_invalidations: 7,
        names: vec![NameStatus {
            name: "db.example.com".to_owned(),
            addresses: vec!["198.51.100.7".parse().unwrap()],
            age_seconds: 31,
            ttl_seconds: Some(60),
            next_seconds: 30,
            problem: String::new(),
            left_out: String::new(),
        }],
        targets: Vec::new(),
        checks: Vec::new(),
        flows: FlowTableStatus { sessions: 12_345, capacity: 1_048_576, sweep_seconds: 0.002 },
        punts: PuntStatus { sent: 1_204, waiting: 2, unanswered: 3, ..PuntStatus::default() },
        snat_ports: vec![
            ports("203.0.113.10:443", "tcp", 9_000, 55_512),
            ports("198.51.100.7:0", "icmp", 3, 64_509),
        ],
        repairs: vec![
            Repairs {
                what: "sysctl".to_owned(),
                name: "net.ipv4.conf.lo.forwarding".to_owned(),
                count: 2,
                last_seconds: Some(61),
                problem: String::new(),
            },
            Repairs {
                what: "attachment".to_owned(),
                name: "eth0".to_owned(),
                count: 0,
                last_seconds: None,
                problem: String::new(),
            },
        ],
        draining: None,
        self_test: SelfTestStatus {
            enabled: true,
            sessions: 540,
            packets: 3240,
            failures: 1,
            last_seconds: Some(3),
            untested: String::new(),
            problem: String::new(),
        },
    }
}

fn ports(target: &str, protocol: &str, used: u32, free: u32) -> SnatPortStatus {
    SnatPortStatus {
        snat: "10.0.2.68".parse().unwrap(),
        target: target.parse().unwrap(),
        protocol: protocol.to_owned(),
        used,
        free,
        most: None,
    }
}

fn broken_status() -> Status {
    let mut broken = status();
    broken.healthy = false;
    broken.reasons =
        vec!["eth0: the program is not attached".to_owned(), "no route to 203.0.113.10".to_owned()];
    broken.probe.answer = 503;
    broken.probe.reasons.clone_from(&broken.reasons);
    broken.interfaces[0].attached = false;
    broken.interfaces[0].program_id = None;
    broken.next_hops[0] = NextHopStatus {
        via: None,
        interface: None,
        mac: None,
        source: None,
        resolved: false,
        problem: "no route to host".to_owned(),
        ..broken.next_hops[0].clone()
    };
    broken.names[0].problem = "the server does not answer".to_owned();
    broken
}

/// One that forwards, though not everything.
fn degraded_status() -> Status {
    let target = |target: &str, health: Health, since_seconds, reason: &str| TargetStatus {
        rules: vec!["https".to_owned()],
        protocol: "tcp".to_owned(),
        target: target.parse().unwrap(),
        health,
        since_seconds,
        reason: reason.to_owned(),
    };
    let mut degraded = status();
    degraded.degraded =
        vec!["target db.example.com: no address: there is no such name (NXDOMAIN)".to_owned()];
    degraded.degraded.push(
        "80 % of the SNAT ports of 10.0.2.68 to 203.0.113.10:443/tcp are in use: add to snat.addresses"
            .to_owned(),
    );
    let most = PortHolder { source: "10.0.2.4".parse().unwrap(), used: 50_321 };
    degraded.snat_ports =
        vec![SnatPortStatus { most: Some(most), ..ports("203.0.113.10:443", "tcp", 60_123, 4_389) }];
    degraded.names[0].addresses.clear();
    degraded.names[0].ttl_seconds = None;
    degraded.names[0].problem = "there is no such name (NXDOMAIN)".to_owned();
    degraded.targets = vec![
        target("10.1.0.4:8443", Health::Good, None, ""),
        target(
            "10.1.0.5:8443",
            Health::Avoided,
            Some(7),
            "3 new sessions without an answer in 3 s, and none with one",
        ),
    ];
    degraded.checks = vec![
        check("https", "203.0.113.10:443", CheckHealth::Good),
        check("https", "203.0.113.11:443", CheckHealth::Failed),
        CheckStatus {
            port: 853,
            kind: "tcp".to_owned(),
            sni: None,
            last: None,
            last_seconds: None,
            latency_seconds: None,
            ..check("dns", "10.1.0.4:53", CheckHealth::Unknown)
        },
    ];
    degraded
}

/// The check of a target.
fn check(rule: &str, target: &str, health: CheckHealth) -> CheckStatus {
    let target: std::net::SocketAddr = target.parse().unwrap();
    let is_good = health == CheckHealth::Good;
    CheckStatus {
        rule: rule.to_owned(),
        target,
        port: target.port(),
        kind: "tls".to_owned(),
        sni: Some("www.example.com".to_owned()),
        health,
        since_seconds: 3600,
        last: Some(if is_good { CheckResult::Good } else { CheckResult::Failed }),
        last_seconds: Some(3),
        latency_seconds: is_good.then_some(0.0123),
        reason: if health == CheckHealth::Failed {
            "it accepts connections and does not answer a TLS hello in 2s".to_owned()
        } else {
            String::new()
        },
    }
}

/// One whose probe does not answer yet what the router does.
fn pending_status(answer: u16, for_seconds: f64, after_seconds: f64) -> Status {
    let mut pending = status();
    let reasons = vec!["no route to 203.0.113.10".to_owned()];
    pending.probe.pending = Some(PendingAnswer { answer, for_seconds, after_seconds });
    if answer == 200 {
        pending.healthy = false;
        pending.probe.answer = 503;
        pending.probe.reasons = reasons;
    } else {
        pending.reasons = reasons;
    }
    pending
}

fn rule_counters(name: &str) -> RuleCounters {
    RuleCounters {
        name: name.to_owned(),
        sessions_opened: 4_321,
        forward_packets: 1_234_567,
        forward_bytes: 987_654_321,
        reply_packets: 2_345_678,
        reply_bytes: 3_456_789_012,
        denied_packets: 17,
    }
}

fn counters() -> Counters {
    let reason = |number, reason: &str, action: &str, packets, description: &str| ReasonCounter {
        number,
        reason: reason.to_owned(),
        action: action.to_owned(),
        packets,
        bytes: packets * 100,
        description: description.to_owned(),
    };
    Counters {
        reasons: vec![
            reason(0, "forwarded", "forward", 3_580_245, "Packet of a known session, translated and sent."),
            reason(2, "resolving", "punt", 3, "Waits for the neighbour."),
            reason(11, "not_matched", "pass", 120, "No session and no rule."),
            reason(14, "source_not_allowed", "drop", 17, "To a rule's port from outside its sources."),
            reason(22, "table_full", "drop", 0, "The flow table is full."),
        ],
        interfaces: vec![InterfaceCounters {
            name: "eth0".to_owned(),
            rx_packets: 3_580_385,
            rx_bytes: 358_038_500,
            tx_packets: 3_580_245,
            tx_bytes: 358_024_500,
        }],
        rules: vec![rule_counters("https"), rule_counters("vnet")],
        own_traffic: OwnTrafficCounters { sessions_ended: 3, connections_refused: 1 },
    }
}

fn rules() -> Vec<Rule> {
    let forward = Rule {
        name: "https".to_owned(),
        kind: RuleKind::Forward,
        protocol: Some("tcp".to_owned()),
        listen: Some("443".to_owned()),
        targets: vec!["203.0.113.10:443".to_owned()],
        addresses: vec!["203.0.113.10:443".parse().unwrap()],
        sources: vec!["10.0.2.64/26".to_owned()],
        destinations: Vec::new(),
        sessions: 12_000,
        counters: rule_counters("https"),
        check: Some(RuleCheckStatus {
            healthy: true,
            targets: vec![check("https", "203.0.113.10:443", CheckHealth::Good)],
            good: 740,
            failed: 2,
            not_made: 0,
        }),
    };
    let named = Rule {
        name: "db".to_owned(),
        listen: Some("5432".to_owned()),
        targets: vec!["db.example.com:5432".to_owned()],
        addresses: vec!["198.51.100.7:5432".parse().unwrap(), "198.51.100.8:5432".parse().unwrap()],
        counters: rule_counters("db"),
        check: Some(RuleCheckStatus {
            healthy: false,
            targets: vec![
                check("db", "198.51.100.7:5432", CheckHealth::Good),
                check("db", "198.51.100.8:5432", CheckHealth::Failed),
            ],
            good: 1480,
            failed: 20,
            not_made: 1,
        }),
        ..forward.clone()
    };
    let unresolved = Rule {
        name: "old".to_owned(),
        listen: Some("10.0.2.68:8000-8010".to_owned()),
        targets: vec!["gone.example.com".to_owned()],
        addresses: Vec::new(),
        counters: rule_counters("old"),
        check: None,
        ..forward.clone()
    };
    let masquerade = Rule {
        name: "vnet".to_owned(),
        kind: RuleKind::Masquerade,
        protocol: None,
        listen: None,
        targets: Vec::new(),
        addresses: Vec::new(),
        sources: vec!["10.0.2.0/24".to_owned(), "10.0.3.0/24".to_owned()],
        destinations: vec!["0.0.0.0/0".to_owned()],
        sessions: 345,
        counters: rule_counters("vnet"),
        check: None,
    };
    vec![forward, named, unresolved, masquerade]
}

fn flows() -> Vec<Flow> {
    let flow = Flow {
        rule: "https".to_owned(),
        protocol: "tcp".to_owned(),
        client: "10.0.2.70:50123".parse().unwrap(),
        listen: "10.0.2.68:443".parse().unwrap(),
        snat: "10.0.2.68:50123".parse().unwrap(),
        target: "203.0.113.10:443".parse().unwrap(),
        state: "established".to_owned(),
        age_seconds: 3_700,
        idle_seconds: 5,
        expires_seconds: 7_435,
        forward_packets: 1_200,
        forward_bytes: 340_000,
        reply_packets: 2_400,
        reply_bytes: 3_000_000,
    };
    let second = Flow {
        rule: "vnet".to_owned(),
        protocol: "udp".to_owned(),
        client: "10.0.2.7:53".parse().unwrap(),
        state: "opening".to_owned(),
        age_seconds: 0,
        ..flow.clone()
    };
    vec![flow, second]
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap()
}

fn daemon() -> Place {
    Place::with_daemon(vec![
        ("/v1/status", json(&status())),
        ("/v1/counters", json(&counters())),
        ("/v1/rules", json(&rules())),
        ("/v1/flows", json(&flows())),
    ])
}

#[test]
fn answers_as_text() {
    let place = daemon();
    golden("status", &place.run(&["status"]));
    golden("counters", &place.run(&["counters"]));
    golden("counters-all", &place.run(&["counters", "--all"]));
    golden("rules", &place.run(&["rules"]));
    golden("flows", &place.run(&["flows"]));
}

#[test]
fn answers_as_json_are_the_model() {
    let place = daemon();
    assert_eq!(serde_json::from_str::<Status>(&place.run(&["status", "-o", "json"]).out).unwrap(), status());
    assert_eq!(
        serde_json::from_str::<Counters>(&place.run(&["counters", "-o", "json"]).out).unwrap(),
        counters()
    );
    assert_eq!(serde_json::from_str::<Vec<Rule>>(&place.run(&["rules", "-o", "json"]).out).unwrap(), rules());
    assert_eq!(serde_json::from_str::<Vec<Flow>>(&place.run(&["flows", "-o", "json"]).out).unwrap(), flows());
    let all = place.run(&["flows", "-o", "json", "--limit", "0"]);
    assert_eq!((all.out.as_str(), all.code), (json(&flows()).as_str(), Some(0)), "as the daemon writes it");
    golden("status-json", &place.run(&["status", "-o", "json"]));
}

#[test]
fn an_unhealthy_router_is_exit_code_1() {
    let place = Place::with_daemon(vec![("/v1/status", json(&broken_status()))]);
    golden("status-unhealthy", &place.run(&["status"]));
    assert_eq!(place.run(&["status", "-o", "json"]).code, Some(1));
}

#[test]
fn a_degraded_router_exits_with_0_and_lists_the_conditions() {
    let place = Place::with_daemon(vec![("/v1/status", json(&degraded_status()))]);
    golden("status-degraded", &place.run(&["status"]));
}

fn drained(sessions: &[(&str, u64)]) -> Drain {
    let rules = sessions
        .iter()
        .map(|(rule, sessions)| RuleSessions { rule: (*rule).to_owned(), sessions: *sessions });
    Drain {
        draining: true,
        since: Some("2026-03-14T15:09:26Z".to_owned()),
        since_seconds: Some(200),
        sessions: sessions.iter().map(|(_, sessions)| sessions).sum(),
        rules: rules.collect(),
    }
}

#[test]
fn a_drain_shows_what_is_left() {
    let some = drained(&[("https", 1_204), ("dns", 3)]);
    let draining = Status {
        healthy: false,
        reasons: vec!["draining since 2026-03-14T15:09:26Z; fix: pls-router undrain".to_owned()],
        probe: ProbeStatus { answer: 503, ..status().probe },
        draining: Some(some.clone()),
        ..status()
    };
    let place = Place::with_daemon(vec![
        ("/v1/status", json(&draining)),
        ("/v1/drain", json(&some)),
        ("/v1/undrain", json(&some)),
    ]);
    golden("drain", &place.run(&["drain"]));
    golden("drain-json", &place.run(&["drain", "-o", "json"]));
    golden("drain-in-time", &place.run(&["drain", "--wait", "0s"]));
    golden("undrain", &place.run(&["undrain"]));
    golden("status-draining", &place.run(&["status"]));
    let asked = place.asked.lock().unwrap();
    assert_eq!(asked[0], "POST /v1/drain HTTP/1.1");
    assert_eq!(asked[3], "POST /v1/undrain HTTP/1.1");
    let place = Place::with_daemon(vec![("/v1/drain", json(&drained(&[])))]);
    golden("drain-empty", &place.run(&["drain", "--wait", "1m"]));
}

fn reloaded() -> Reload {
    let change = |key: &str, from: serde_json::Value, to: serde_json::Value| KeyChange {
        key: key.to_owned(),
        from,
        to,
    };
    let rule = |rule: &str, kind, change, keys| RuleChange { rule: rule.to_owned(), kind, change, keys };
    let null = serde_json::Value::Null;
    Reload {
        ok: true,
        dry_run: false,
        config: "/etc/pls-router/config.toml".to_owned(),
        changed: true,
        rules: vec![
            rule(
                "https",
                RuleKind::Forward,
                ChangeKind::Changed,
                vec![
                    change(
                        "target",
                        "203.0.113.10:443".into(),
                        vec!["203.0.113.10:443", "203.0.113.11:443"].into(),
                    ),
                    change("mss", null.clone(), "pmtu".into()),
                ],
            ),
            rule(
                "db",
                RuleKind::Forward,
                ChangeKind::Added,
                vec![change("listen", null.clone(), "5432".into())],
            ),
            rule(
                "vnet",
                RuleKind::Masquerade,
                ChangeKind::Removed,
                vec![change("sources", vec!["10.0.2.0/24"].into(), null)],
            ),
        ],
        keys: vec![change("limits.flows", 1_048_576.into(), 65_536.into())],
        findings: Vec::new(),
        problem: String::new(),
        old_sessions: 3,
        cut_sessions: 0,
    }
}

#[test]
fn a_reload_shows_what_has_changed() {
    let answer = |reload: &Reload| Place::with_daemon(vec![("/v1/reload", json(reload))]);
    let place = answer(&reloaded());
    golden("reload", &place.run(&["reload"]));
    golden("reload-json", &place.run(&["reload", "-o", "json"]));
    golden("reload-dry-run", &answer(&Reload { dry_run: true, ..reloaded() }).run(&["reload", "--dry-run"]));
    golden("reload-cut", &answer(&Reload { cut_sessions: 3, ..reloaded() }).run(&["reload", "--cut"]));
    place.run(&["reload", "--dry-run", "--cut"]);
    let asked = place.asked.lock().unwrap();
    assert_eq!(asked[0], "POST /v1/reload?dry_run=false&cut=false HTTP/1.1");
    assert_eq!(asked[2], "POST /v1/reload?dry_run=true&cut=true HTTP/1.1");
    let nothing =
        Reload { changed: false, rules: Vec::new(), keys: Vec::new(), old_sessions: 0, ..reloaded() };
    golden("reload-nothing", &answer(&nothing).run(&["reload"]));
    let bad = Reload {
        ok: false,
        findings: vec![CheckFinding {
            severity: "error".to_owned(),
            id: None,
            text: "unknown key `lisen` in [[forward]]".to_owned(),
            place: Some("/etc/pls-router/config.toml:7:1".to_owned()),
            fix: "did you mean `listen`?".to_owned(),
        }],
        problem: "the file is no configuration\n  fix: what `pls-router check` says".to_owned(),
        ..nothing
    };
    golden("reload-bad", &answer(&bad).run(&["reload"]));
}

#[test]
fn the_socket_is_that_of_a_damaged_configuration() {
    let place = Place::with_daemon(vec![("/v1/reload", json(&reloaded()))]);
    let text = format!("[admin]\nsocket = \"{}\"\n[[forward]\nlisen = 7\n", place.socket().display());
    let config = place.file("bad.toml", &text);
    let mut command = place.command(&["reload"]);
    let ran = command.env_remove("PLS_ROUTER_SOCKET").env("PLS_ROUTER_CONFIG", config).output().unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn a_probe_that_is_about_to_change_says_so() {
    let place = Place::with_daemon(vec![("/v1/status", json(&pending_status(503, 0.75, 2.0)))]);
    let ran = place.run(&["status"]);
    assert_eq!(ran.code, Some(0), "as the load balancer sees it");
    golden("status-going-down", &ran);
    let place = Place::with_daemon(vec![("/v1/status", json(&pending_status(200, 3.125, 5.0)))]);
    let ran = place.run(&["status"]);
    assert_eq!(ran.code, Some(1));
    golden("status-coming-up", &ran);
}

#[test]
fn flows_pass_their_filters_to_the_daemon() {
    let place = daemon();
    place.run(&["flows"]);
    place.run(&["flows", "--rule", "a b", "--protocol", "udp", "--client", "10.0.2.70", "--limit", "5"]);
    place.run(&["flows", "--limit", "0"]);
    let asked = place.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            "GET /v1/flows?limit=1000 HTTP/1.1",
            "GET /v1/flows?rule=a+b&protocol=udp&client=10.0.2.70&limit=5 HTTP/1.1",
            "GET /v1/flows? HTTP/1.1",
        ]
    );
    let cut = place.run(&["flows", "--limit", "2"]);
    assert_eq!(cut.err, "(2 sessions shown; there may be more: --limit 0 shows all)\n");
}

#[test]
fn colour_is_for_terminals_or_on_request() {
    let place = daemon();
    assert!(!place.run(&["status"]).out.contains('\x1b'));
    let forced = Ran::of(&place.command(&["status"]).env("CLICOLOR_FORCE", "1").output().unwrap());
    assert!(forced.out.contains("\x1b[32myes\x1b[0m"), "{}", forced.out);
}

#[test]
fn no_daemon() {
    let place = Place::empty();
    golden("no-daemon", &place.run(&["status"]));
    drop(UnixListener::bind(place.socket()).unwrap());
    golden("no-daemon", &place.run(&["counters"]));
}

#[test]
fn a_nonsensical_answer_of_the_daemon_is_an_error() {
    let place = Place::with_daemon(vec![("/v1/status", "{}".to_owned())]);
    golden("nonsense", &place.run(&["status"]));
    golden("refused", &place.run(&["rules"]));
}

#[test]
fn the_socket_is_that_of_the_configuration() {
    let place = daemon();
    let config = format!(
        "interfaces.pls = \"eth0\"\nadmin.socket = {:?}\n\
         masquerade = [{{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }}]\n",
        place.socket()
    );
    place.file("config.toml", &config);
    let ran = Ran::of(&place.command(&["status"]).env_remove("PLS_ROUTER_SOCKET").output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = daemon();
    let mut child = place
        .command(&["counters", "--watch", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"REASON");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

const GOOD: &str = "[interfaces]\npls = \"no-such-if\"\n\n[[forward]]\nname = \"https\"\nprotocol = \"tcp\"\n\
    listen = \"443\"\ntarget = \"203.0.113.10:443\"\nsources = [\"0.0.0.0/0\"]\n";

#[test]
fn check_of_a_file_alone() {
    let place = Place::empty();
    golden("check-no-file", &place.run(&["check"]));
    place.file("config.toml", GOOD);
    golden("check-good", &place.run(&["check", "--config-only"]));
    place.file("config.toml", &GOOD.replace("sources", "sorces").replace("443\"\n", "44x\"\n"));
    golden("check-bad", &place.run(&["check", "--config-only"]));
    golden("check-bad-json", &place.run(&["check", "--config-only", "-o", "json"]));
}

#[test]
fn check_inspects_the_machine() {
    let place = Place::empty();
    place.file("config.toml", GOOD);
    let ran = place.run(&["check"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("error: there is no interface `no-such-if`; this machine has "), "{}", ran.out);
    let ran = place.run(&["check", "-o", "json"]);
    let check: router_user::model::Check = serde_json::from_str(&ran.out).unwrap();
    assert!(!check.ok);
    assert!(
        check.findings.iter().any(|finding| finding.place.as_deref() == Some("config.toml:9:12")),
        "{check:?}"
    );
    assert!(check.findings.iter().any(|finding| finding.place.is_none()), "{check:?}");
}

fn good_audit() -> Audit {
    Audit {
        ok: true,
        sessions: 1_204,
        flows: 2_408,
        half_sessions: 0,
        duplicates: 0,
        leaked_ports: 0,
        held_ports: 3,
        miscounted_sessions: 0,
        findings: Vec::new(),
    }
}

fn bad_audit() -> Audit {
    let finding = |kind: AuditKind, rule: Option<&str>, port: u16| AuditFinding {
        kind,
        rule: rule.map(str::to_owned),
        protocol: "tcp".to_owned(),
        source: "203.0.113.10:443".parse().unwrap(),
        destination: std::net::SocketAddr::from(([10, 0, 2, 68], port)),
    };
    let half = [finding(AuditKind::HalfSession, Some("https"), 50_123)];
    let lost = (1..=22).map(|port| finding(AuditKind::LeakedPort, None, port));
    Audit {
        ok: false,
        half_sessions: 1,
        leaked_ports: 1_022,
        miscounted_sessions: -2,
        findings: half.into_iter().chain(lost).collect(),
        ..good_audit()
    }
}

#[test]
fn check_of_live_sessions() {
    let good = Place::with_daemon(vec![("/v1/audit", json(&good_audit()))]);
    golden("check-live", &good.run(&["check", "--live"]));
    golden("check-live-json", &good.run(&["check", "--live", "-o", "json"]));
    let bad = Place::with_daemon(vec![("/v1/audit", json(&bad_audit()))]);
    golden("check-live-bad", &bad.run(&["check", "--live"]));
    let as_json = bad.run(&["check", "--live", "-o", "json"]);
    assert_eq!(as_json.code, Some(1));
    assert_eq!(serde_json::from_str::<Audit>(&as_json.out).unwrap(), bad_audit());
    golden("no-daemon", &Place::empty().run(&["check", "--live"]));
}

/// sudo takes `SSH_CONNECTION` away; so does `env` here.
#[test]
fn check_warns_about_its_own_ssh_session() {
    let place = Place::empty();
    place.file("config.toml", &GOOD.replace("0.0.0.0/0", "192.0.2.0/24"));
    let script = "env -u SSH_CONNECTION \"$0\" check; exit $?";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_pls-router")])
        .current_dir(place.directory.path())
        .env("PLS_ROUTER_CONFIG", "config.toml")
        .env("SSH_CONNECTION", "192.0.2.7 50714 10.0.2.68 22")
        .output()
        .unwrap();
    let ran = Ran::of(&output);
    assert!(
        ran.out.contains("fix: write allow = [\"tcp/22 from 192.0.2.7/32\"] in [local]\n"),
        "{}{}",
        ran.out,
        ran.err
    );
}

const SIZED: &str = "interfaces.pls = \"eth0\"\n[snat]\naddresses = [\"10.0.2.68\"]\nports = \"1024-32767\"\n\
    [[forward]]\nname = \"https\"\nprotocol = \"tcp\"\nlisten = \"443\"\ntarget = \"203.0.113.10:443\"\n\
    sources = [\"10.0.2.64/26\"]\n\
    [[masquerade]]\nname = \"vnet\"\nsources = [\"10.0.2.0/24\"]\ndestinations = [\"0.0.0.0/0\"]\n";

#[test]
fn capacity_of_a_configuration_and_of_a_router() {
    let options = ["capacity", "--cores", "2", "--pls-addresses", "2"];
    let place = Place::empty();
    place.file("config.toml", SIZED);
    golden("capacity-configured", &place.run(&options));
    let place = daemon();
    place.file("config.toml", &SIZED.replace("32767", "65535"));
    golden("capacity", &place.run(&options));
    let ran = place.run(&[&options[..], &["--bandwidth", "12500", "-o", "json"]].concat());
    let capacity: router_user::model::Capacity = serde_json::from_str(&ran.out).unwrap();
    assert!(capacity.measured && capacity.ok && ran.code == Some(0), "{capacity:#?}");
    let mut full = status();
    full.flows.sessions = 1_000_000;
    let answers =
        [("/v1/status", json(&full)), ("/v1/counters", json(&counters())), ("/v1/rules", json(&rules()))];
    let place = Place::with_daemon(answers.to_vec());
    place.file("config.toml", SIZED);
    let ran = place.run(&options);
    assert!(ran.code == Some(1) && ran.out.contains("now: raise `flows` of [limits]"), "{ran:?}");
}

#[test]
fn import_of_iptables_rules() {
    let place = Place::empty();
    let rules = "*nat\n-A PREROUTING -p tcp -m tcp --dport 443 -j DNAT --to-destination 203.0.113.10:443\n\
                 -A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080\n\
                 -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
    place.file("rules.v4", rules);
    golden("import", &place.run(&["import", "iptables-save", "rules.v4"]));
    let options = ["import", "iptables-save", "-", "--sources", "10.0.2.65/26", "--firewall", "eth1"];
    let mut child = place.command(&options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(rules.replace("REDIRECT --to-ports 8080", "LOG").as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("sources = [\"10.0.2.64/26\"]") && text.contains("pls = \"eth1\""), "{text}");
    // MASQUERADE on another interface than the one that is wanted.
    assert_eq!(output.status.code(), Some(1));
    place.file("config.toml", &text);
    assert_eq!(place.run(&["check", "--config-only"]).code, Some(0));
    place.file("empty", "*filter\nCOMMIT\n");
    golden("import-nothing", &place.run(&["import", "iptables-save", "empty"]));
    golden("import-no-file", &place.run(&["import", "iptables-save", "missing"]));
}

/// The files of a bundle, by their names below its directory.
fn unpacked(path: &Path) -> std::collections::BTreeMap<String, String> {
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let name = path.components().skip(1).collect::<PathBuf>().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    files.collect()
}

/// Every address of this machine: IPv4, IPv6 and MAC.
fn own_addresses() -> Vec<String> {
    let trie = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    let local = lines.windows(2).filter(|two| two[1] == "/32 host LOCAL");
    let ipv4 =
        local.filter_map(|two| two[0].strip_prefix("|-- ")).filter(|address| !address.starts_with("127."));
    let inet6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let ipv6 = inet6.lines().filter_map(|line| {
        let address = u128::from_str_radix(line.split(' ').next()?, 16).ok()?;
        Some(std::net::Ipv6Addr::from(address))
            .filter(|address| !address.is_loopback())
            .map(|address| address.to_string())
    });
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let macs = links.filter_map(|link| std::fs::read_to_string(link.path().join("address")).ok());
    let macs =
        macs.map(|mac| mac.trim().to_owned()).filter(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00");
    ipv4.map(str::to_owned).chain(ipv6).chain(macs).collect()
}

#[test]
fn a_support_bundle_has_everything_but_secrets_and_unwanted_addresses() {
    let place = daemon();
    let config = format!(
        "# password = hunter2\n# AccountKey=hunter2;\nadmin.pins = {:?}\nhealth.listen = \"127.0.0.1:9\"\n\
         admin.listen = \"127.0.0.1:10\"\n{}",
        place.path("pins"),
        SIZED.replace("203.0.113.10:443", "db.example.com:443"),
    );
    place.file("config.toml", &config);
    let ran = place.run(&["support-bundle", "--file", "all.tar.gz"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let all = unpacked(&place.path("all.tar.gz"));
    for name in [
        "CONTENTS.txt",
        "version.txt",
        "config.toml",
        "check.json",
        "status.json",
        "counters.json",
        "rules.json",
        "machine/settings.txt",
    ] {
        assert!(all.contains_key(name), "no {name} in {:?}", all.keys());
        assert!(name == "CONTENTS.txt" || ran.out.contains(name), "{}", ran.out);
    }
    assert!(all["config.toml"].contains("10.0.2.68") && all["rules.json"].contains("203.0.113.10"));
    let shown: Status = serde_json::from_str(&all["status.json"]).unwrap();
    assert_eq!(shown, status());
    // What it could not get is said, here and there: no one listens on these ports.
    for missing in ["probe/answer.txt", "metrics.txt", "audit.json", "bpf/pins.txt"] {
        assert!(!all.contains_key(missing) && all["CONTENTS.txt"].contains(missing), "{missing}");
        assert!(ran.out.contains(missing), "{}", ran.out);
    }
    for (name, text) in &all {
        assert!(!text.contains("hunter2"), "{name} has a secret: {text}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(place.path("all.tar.gz")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);

    let ran = place.run(&["support-bundle", "--no-addresses", "--file", "none.tar.gz", "-o", "json"]);
    let bundle: router_user::model::SupportBundle = serde_json::from_str(&ran.out).unwrap();
    assert!(!bundle.addresses && bundle.contents.len() > 8, "{bundle:#?}");
    let none = unpacked(&place.path("none.tar.gz"));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut wrong = own_addresses();
    assert!(!wrong.is_empty(), "this machine has no address to look for");
    wrong.extend(
        ["10.0.2.68", "10.0.2.64", "203.0.113.10", "198.51.100.7", "db.example.com"].map(str::to_owned),
    );
    if hostname.trim().len() > 3 && hostname.trim() != "localhost" {
        wrong.push(hostname.trim().to_owned());
    }
    let is_word = |text: &str, address: &str| {
        text.match_indices(address).any(|(place, _)| {
            let is_part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            !is_part(text[..place].chars().next_back())
                && !is_part(text[place + address.len()..].chars().next())
        })
    };
    for (name, text) in &none {
        for address in &wrong {
            assert!(!is_word(text, address), "{name} has {address}: {text}");
        }
    }
    // The same word for the same address.
    assert!(none["config.toml"].contains("listen = \"443\"") && none["status.json"].contains("ipv4-"));
}

#[test]
fn a_support_bundle_needs_no_daemon_and_no_configuration() {
    let place = Place::empty();
    let ran = place.run(&["support-bundle", "--file", "bundle.tar.gz"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let files = unpacked(&place.path("bundle.tar.gz"));
    assert!(files.contains_key("version.txt") && files["check.json"].contains("\"ok\": false"), "{files:?}");
    for missing in ["config.toml", "status.json"] {
        assert!(
            files["CONTENTS.txt"].lines().any(|line| line.trim_start().starts_with(missing)),
            "{}",
            files["CONTENTS.txt"]
        );
    }
    golden("support-bundle-exists", &place.run(&["support-bundle", "--file", "bundle.tar.gz"]));
    golden("support-bundle-no-directory", &place.run(&["support-bundle", "--file", "missing/bundle.tar.gz"]));
}

#[test]
fn run_refuses_a_bad_configuration() {
    let place = Place::empty();
    place.file("config.toml", "[interfaces]\n");
    golden("run-bad", &place.run(&["run"]));
}

#[test]
fn detach_is_refused_while_a_daemon_runs() {
    golden("detach-refused", &daemon().run(&["detach"]));
}

#[test]
fn detach_without_a_daemon() {
    let place = Place::empty();
    let config = format!(
        "admin.pins = {:?}\n{}",
        place.path("pins"),
        GOOD.replace("[interfaces]\npls", "interfaces.pls")
    );
    place.file("config.toml", &config);
    let ran = place.run(&["detach"]);
    let expected =
        format!("no program was attached, and no pins are left at {}\n", place.path("pins").display());
    assert_eq!((ran.code, ran.out, ran.err), (Some(0), expected, String::new()));
    let ran = place.run(&["detach", "-o", "json"]);
    let detached: router_user::model::Detached = serde_json::from_str(&ran.out).unwrap();
    assert!(detached.interfaces.is_empty());
}

#[test]
fn usage() {
    let place = Place::empty();
    let cases: &[&[&str]] = &[
        &[],
        &["stauts"],
        &["status", "-o", "yaml"],
        &["flows", "--client", "x"],
        &["counters", "--watch", "0"],
        &["check", "--live", "--config-only"],
        &["drain", "--wait", "soon"],
    ];
    for arguments in cases {
        assert_eq!(place.run(arguments).code, Some(2), "{arguments:?}");
    }
    golden("usage", &place.run(&["stauts"]));
    let version = place.run(&["--version"]);
    assert_eq!((version.code, version.out), (Some(0), format!("pls-router {}\n", router_user::VERSION)));
}

#[test]
fn help() {
    let place = Place::empty();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help-run", &["run", "--help"]),
        ("help-check", &["check", "--help"]),
        ("help-status", &["status", "--help"]),
        ("help-counters", &["counters", "--help"]),
        ("help-flows", &["flows", "--help"]),
        ("help-rules", &["rules", "--help"]),
        ("help-reload", &["reload", "--help"]),
        ("help-drain", &["drain", "--help"]),
        ("help-undrain", &["undrain", "--help"]),
        ("help-detach", &["detach", "--help"]),
        ("help-capacity", &["capacity", "--help"]),
        ("help-import", &["import", "--help"]),
        ("help-import-iptables-save", &["import", "iptables-save", "--help"]),
        ("help-support-bundle", &["support-bundle", "--help"]),
    ] {
        golden(name, &Ran::of(&place.command(arguments).env("COLUMNS", "100").output().unwrap()));
    }
}
