//! `pls-router drain`: the load balancer sends no new connections, and the rest goes on.

use std::{fs, net::SocketAddrV4, process::Command, time::Duration};

use anyhow::ensure;
use lab::{
    Lab,
    addresses::{ECHO_PORT, PLS_NAT, ROUTER},
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Drain, Severity};

use crate::common::{ECHO, LIMIT, check};

lab_tests! {
    any: [],
    pls_router: [
        a_drain_stops_new_connections_and_nothing_else,
        drain_waits_for_the_last_session,
        a_drain_outlives_the_daemon,
        a_drain_that_cannot_be_noted_is_none,
    ],
}

/// The router, as a client reaches it that does not go by the load balancer.
const DIRECT: SocketAddrV4 = SocketAddrV4::new(ROUTER, ECHO_PORT);

/// Runs a command of pls-router. Returns its exit code and its output.
fn run(lab: &Lab, args: &[&str]) -> (Option<i32>, String, String) {
    let output = check(lab.pls_router(args));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Waits until the probe says since when the router drains: it may give an answer of a moment ago.
/// Returns what it says.
#[track_caller]
fn drains(lab: &Lab) -> String {
    check(wait::until("the probe to say so", LIMIT, || {
        let (code, body) = lab.health()?;
        ensure!(code == 503 && body.starts_with("draining since 20"), "{code} {body}");
        Ok(body)
    }))
}

fn a_drain_stops_new_connections_and_nothing_else(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(tcp.echo(b"before", LIMIT));
    check(udp.echo(b"before", LIMIT));

    let drain: Drain = check(lab.pls_router_json(&["drain"]));
    assert!(drain.draining && drain.sessions >= 2, "{drain:#?}");
    let rules: Vec<_> = drain.rules.iter().map(|rule| rule.rule.as_str()).collect();
    assert!(rules.contains(&"echo-tcp") && rules.contains(&"echo-udp"), "{drain:#?}");
    let said = drains(lab);
    check(lab.wait_out_of_service(LIMIT));
    check(tcp.echo(&[7; 20_000], LIMIT));
    check(udp.echo(b"meanwhile", LIMIT));
    // Who still comes is served.
    let mut late = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(late.echo(b"late", LIMIT));

    let status = check(lab.pls_router_status());
    assert!(!status.healthy);
    let [condition] = status.conditions.as_slice() else { panic!("{:#?}", status.conditions) };
    assert_eq!((condition.id.as_str(), condition.severity), ("draining", Severity::Down));
    let reported = status.draining.expect("a drain");
    assert_eq!(reported.since, drain.since);
    let (code, out, _) = run(lab, &["status"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("yes, draining") && out.contains("sessions left"), "{out}");
    let metrics = check(lab.hosts.router.run("curl", &["-sS", "http://127.0.0.1:9090/metrics"]));
    assert!(metrics.contains("pls_router_draining 1\n"), "{metrics}");
    assert!(metrics.contains("pls_router_conditions{id=\"draining\",severity=\"down\"} 1\n"), "{metrics}");

    // A second one changes nothing.
    let again: Drain = check(lab.pls_router_json(&["drain"]));
    assert_eq!((again.since, drains(lab)), (drain.since, said));

    let (code, out, _) = run(lab, &["undrain"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("no longer draining (since 20"), "{out}");
    check(lab.wait_in_service(LIMIT));
    assert_eq!(check(lab.health()).0, 200);
    check(tcp.echo(b"after", LIMIT));
    let (code, out, _) = run(lab, &["undrain"]);
    assert_eq!((code, out.as_str()), (Some(0), "this router was not draining\n"));
}

fn drain_waits_for_the_last_session(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let (code, out, _) = run(lab, &["drain", "--wait", "100ms"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.starts_with("not drained in 100ms: draining since 20"), "{out}");
    assert!(out.contains("1 session left\n") && out.contains("echo-tcp"), "{out}");

    let command =
        || check(lab.pls_router_command(&["drain", "--wait", "60s"], &lab.state().path("config.toml")));
    let waiting = spawn(command());
    check(tcp.echo(b"it waits", LIMIT));
    check(tcp.close());
    let (code, out) = ended(waiting);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("drained: draining since 20") && out.ends_with("no session is left\n"), "{out}");
    check(wait::until("the log to say so", LIMIT, || {
        ensure!(lab.router_log().contains("drained: no session is left"), "{}", lab.router_log());
        Ok(())
    }));

    // Taken back meanwhile.
    let mut tcp = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], DIRECT, LIMIT));
    check(tcp.echo(b"another", LIMIT));
    let waiting = spawn(command());
    check(lab.pls_router(&["undrain"]));
    let (code, out) = ended(waiting);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.starts_with("no longer draining"), "{out}");
}

fn spawn(mut command: Command) -> std::process::Child {
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
    check(child.map_err(Into::into))
}

/// Returns the exit code of a command that was started, and its output.
fn ended(child: std::process::Child) -> (Option<i32>, String) {
    let output = check(child.wait_with_output().map_err(Into::into));
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn a_drain_outlives_the_daemon(lab: &mut Lab) {
    let drain: Drain = check(lab.pls_router_json(&["drain"]));
    check(lab.wait_out_of_service(LIMIT));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        check(lab.stop_router(signal));
        let mut process = check(lab.spawn_router());
        check(process.wait_until(Duration::from_secs(20), || {
            let (code, body) = lab.health()?;
            ensure!(code == 503 && body.starts_with("draining since"), "{code} {body}");
            Ok(())
        }));
        let again: Drain = check(lab.pls_router_json(&["drain"]));
        assert_eq!(again.since, drain.since, "{signal}");
        assert!(process.output().contains("still draining"), "{}", process.output());
        check(lab.pls_router(&["status"]));
        lab.set_router(process);
    }
    check(lab.pls_router(&["undrain"]));
    check(lab.stop_router(Signal::SIGKILL));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
}

fn a_drain_that_cannot_be_noted_is_none(lab: &mut Lab) {
    // A directory in the way of the file.
    let note = lab.state().path("draining.json");
    check(fs::create_dir_all(note.join("in the way")).map_err(Into::into));
    let (code, _, err) = run(lab, &["drain"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("this router does not drain") && err.contains("draining.json"), "{err}");
    assert!(err.contains("fix: "), "{err}");
    assert_eq!(check(lab.health()).0, 200);
    check(fs::remove_dir_all(&note).map_err(Into::into));
    check(lab.pls_router_json::<Drain>(&["drain"]));
    drains(lab);
}
