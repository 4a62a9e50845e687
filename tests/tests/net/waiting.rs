//! A start before the router's interfaces are there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics, Options,
    client::Tcp,
    link::{self, XdpPass},
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Severity, Status};

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::attached,
};

/// The time in which the daemon starts once nothing is missing any more.
const START: Duration = Duration::from_secs(20);

fn lab(nics: Nics) -> Lab {
    only_pls_router();
    check(Lab::up(Options { start_router: false, ..Options::new(nics, router(), helper()) }))
}

/// Returns `status` of a daemon that waits for this condition, and checks its other answers.
#[track_caller]
fn waits_for(lab: &Lab, id: &str, subject: &str) -> Status {
    let status = check(wait::until("the condition", LIMIT, || {
        let status = lab.pls_router_status()?;
        let found = status.conditions.iter().find(|condition| condition.id == id);
        let found = found.with_context(|| format!("{status:#?}"))?;
        ensure!(found.subject == subject && found.severity == Severity::Down, "{found:?}");
        Ok(status)
    }));
    assert!(
        !status.healthy && status.reasons.iter().all(|reason| reason.starts_with("waiting: ")),
        "{status:#?}"
    );
    let (code, body) = check(lab.health());
    assert!(code == 503 && body.contains("waiting: "), "{code}: {body}");
    // Its programs are not attached.
    assert_eq!(check(lab.live()).0, 503);
    let metrics = check(lab.hosts.router.run("curl", &["-s", "http://127.0.0.1:9090/metrics"]));
    let metric = format!("pls_router_conditions{{id=\"{id}\",severity=\"down\"}} 1");
    assert!(metrics.contains(&metric) && metrics.contains("pls_router_healthy 0"), "{metrics}");
    status
}

/// Waits until the router forwards.
#[track_caller]
fn forwards(lab: &Lab) {
    check(lab.wait_in_service(START));
    check(wait::until("a session", LIMIT, || {
        Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)?.echo(b"hello", LIMIT)
    }));
}

/// Returns the routes that vanish with an interface.
fn routes(lab: &Lab, device: &str) -> Result<Vec<String>> {
    let shown = lab.hosts.router.run("ip", &["route", "show", "dev", device])?;
    let gateways = shown.lines().filter(|line| line.contains(" via "));
    Ok(gateways.map(|line| format!("route replace {} dev {device}", line.trim())).collect())
}

#[test]
fn an_interface_that_comes_late_is_waited_for() {
    let lab = lab(Nics::Two);
    let kept = check(routes(&lab, "eth1"));
    let address = lab::addresses::ROUTER_SECOND;
    check(lab.hosts.router.ip("link del eth1"));
    let mut daemon = check(lab.spawn_router());
    let status = waits_for(&lab, "interface_missing", "eth1");
    assert!(status.reasons[0].contains("there is no interface `eth1`; this machine has eth0"), "{status:#?}");
    // `check` does not wait, and other questions are answered.
    let output = check(lab.pls_router(&["check"]));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let output = check(lab.pls_router(&["rules"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("has not started yet"), "{said}");
    assert_eq!(attached(&lab, "eth0"), None);

    // It appears, then comes up, then has an address.
    let vnet = &lab.hosts.vnet;
    check(link::wire((&lab.hosts.router, "eth1"), (vnet, "router1")));
    check(lab.hosts.router.ip("link set eth1 down"));
    check(check(XdpPass::load(lab.state())).attach(vnet, "router1"));
    check(vnet.ip("link set router1 master br1"));
    waits_for(&lab, "interface_down", "eth1");
    check(lab.hosts.router.ip("link set eth1 up"));
    let start = Instant::now();
    waits_for(&lab, "source_address_missing", "eth1");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    check(lab.hosts.router.ip(&format!("addr add {address}/26 dev eth1\n{}", kept.join("\n"))));
    forwards(&lab);
    let log = daemon.output();
    for said in [
        "waiting: there is no interface `eth1`",
        "waiting: interface `eth1` is down",
        "the interfaces are there after",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    assert!(check(daemon.terminate(LIMIT * 2)).success());
}

#[test]
fn a_misspelt_name_is_named_and_the_wait_can_be_ended() {
    let lab = lab(Nics::One);
    let configuration = lab.configuration(&lab.options.rules).replace("\"eth0\"", "\"etho\"");
    let mut daemon = check(crate::starts::start_with(&lab, "config.toml", configuration));
    let status = waits_for(&lab, "interface_missing", "etho");
    assert!(status.reasons[0].contains("did you mean `eth0`?"), "{status:#?}");
    check(daemon.signal(Signal::SIGTERM));
    let status = check(daemon.wait(LIMIT));
    assert!(status.success(), "{}", daemon.output());
    assert!(!lab.state().path("api.sock").exists(), "the socket is still there");
}

/// What time does not mend is an error at once, whatever else is missing.
#[test]
fn other_errors_are_not_waited_out() {
    let lab = lab(Nics::One);
    let configuration = lab.configuration(&lab.options.rules);
    let configuration =
        configuration.replace("\"eth0\"", "\"etho\"").replace("pls = \"etho\"", "pls = \"lo\"");
    let mut daemon = check(crate::starts::start_with(&lab, "config.toml", configuration));
    let status = check(daemon.wait(LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("there is no interface `etho`") && output.contains("loopback"), "{output}");
}
