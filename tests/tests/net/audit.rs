//! `check --live`, and what the command line says of a running router.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use lab::{
    Lab, Namespace,
    addresses::{ECHO_PORT, TOOLS},
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;
use router_common::limits::LAYOUT;
use router_user::model::{Audit, Status};

use crate::common::{ECHO, LIMIT, check};

lab_tests! {
    any: [],
    pls_router: [
        sessions_are_whole_while_they_come_and_go,
        ports_in_use_are_reported_and_unknown_rules_are_refused,
        sessions_that_a_killed_daemon_did_not_count_are_counted_later,
    ],
}

/// Opens and closes sessions until it is told to stop; how many.
fn churn(from: &Namespace, stop: &AtomicBool) -> usize {
    let mut sessions = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut tcp = check(Tcp::connect(from, ECHO, LIMIT));
        check(tcp.echo(b"hello", LIMIT));
        check(tcp.close());
        check(check(Udp::open(from, ECHO)).echo(b"hello", LIMIT));
        sessions += 2;
    }
    sessions
}

fn sessions_are_whole_while_they_come_and_go(lab: &mut Lab) {
    let stop = AtomicBool::new(false);
    let churned = thread::scope(|scope| {
        let client = scope.spawn(|| churn(&lab.hosts.serverless, &stop));
        let audits: Vec<anyhow::Result<Audit>> =
            (0..10).map(|_| lab.pls_router_json(&["check", "--live"])).collect();
        stop.store(true, Ordering::Relaxed);
        for audit in audits {
            let audit = check(audit);
            assert!(audit.ok, "{audit:#?}");
        }
        client.join().expect("the client works")
    });
    let output = check(lab.pls_router(&["check", "--live"]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.ends_with(" sessions: all complete, no lost ports\n"), "{said}");
    // Closed ones are there still, but for those whose port was used again: none of this was about
    // an empty table.
    let audit: Audit = check(lab.pls_router_json(&["check", "--live"]));
    assert!(
        audit.sessions as usize > churned / 2 && audit.flows == 2 * audit.sessions,
        "{churned}: {audit:?}"
    );
}

fn ports_in_use_are_reported_and_unknown_rules_are_refused(lab: &mut Lab) {
    const SOCKETS: u32 = 5;
    let sockets: Vec<Udp> = (0..SOCKETS).map(|_| check(Udp::open(&lab.hosts.serverless, ECHO))).collect();
    for udp in &sockets {
        check(udp.echo(b"hello", LIMIT));
    }
    let row = check(wait::until("a sweep to count the ports", LIMIT, || {
        let status: Status = lab.pls_router_json(&["status"])?;
        anyhow::ensure!(status.flows.sweep_seconds > 0.0, "{status:#?}");
        let row = status.snat_ports.iter().find(|row| {
            row.protocol == "udp" && row.target == (TOOLS, ECHO_PORT).into() && row.used == SOCKETS
        });
        row.cloned().ok_or_else(|| anyhow::anyhow!("{:#?}", status.snat_ports))
    }));
    // Ports that the kernel does not give to the router's own sockets.
    assert_eq!(row.free, 32_767 - 1024 + 1 - SOCKETS, "{row:?}");
    let metrics = check(lab.hosts.router.run("curl", &["--silent", "http://127.0.0.1:9090/metrics"]));
    let labels = format!("{{snat=\"{}\",target=\"{TOOLS}:{ECHO_PORT}\",protocol=\"udp\"}}", row.snat);
    for line in [
        format!("pls_router_snat_ports_used{labels} {SOCKETS}"),
        format!("pls_router_snat_ports_free{labels} {}", row.free),
    ] {
        assert!(metrics.lines().any(|known| known == line), "no {line} in\n{metrics}");
    }
    let sweep = metrics.lines().find_map(|line| line.strip_prefix("pls_router_sweep_seconds "));
    let sweep: f64 = sweep.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("{metrics}"));
    assert!(sweep > 0.0 && sweep < LIMIT.as_secs_f64(), "{sweep}");

    let output = check(lab.pls_router(&["flows", "--rule", "nope"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "error: there is no rule `nope`; `pls-router rules` lists them\n";
    assert_eq!((output.status.code(), said.as_str()), (Some(1), expected));
    assert_eq!(check(lab.pls_router(&["flows", "--rule", "https"])).status.code(), Some(0));
}

/// A session that was retired and not counted any more: the count of sessions is one ahead.
fn sessions_that_a_killed_daemon_did_not_count_are_counted_later(lab: &mut Lab) {
    /// Looks, one a sweep, and some time for a machine that is busy.
    const RECOUNT: Duration = Duration::from_secs(60);
    let mut session = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(session.echo(b"hello", LIMIT));
    check(lab.stop_router(Signal::SIGKILL));
    let pin = lab.state().path("bpf/pls-router").join(format!("v{LAYOUT}/OCCUPANCY"));
    let map = Map::Array(MapData::from_pin(pin).expect("a pinned map"));
    let mut occupancy: Array<_, [u32; 16]> = map.try_into().expect("an array of records");
    let mut record = occupancy.get(&0, 0).expect("the record");
    record[0] += 1;
    occupancy.set(0, record, 0).expect("a count that is one ahead");

    check(lab.start_router());
    let audit = || -> anyhow::Result<Audit> {
        // Any fault makes it fail.
        Ok(serde_json::from_slice(&lab.pls_router(&["check", "--live", "-o", "json"])?.stdout)?)
    };
    let before = check(audit());
    assert_eq!((before.ok, before.miscounted_sessions), (false, 1), "{before:#?}");
    check(wait::until("the sessions to be counted again", RECOUNT, || {
        let now = audit()?;
        anyhow::ensure!(now.ok, "{now:#?}");
        Ok(())
    }));
    check(session.echo(b"and on", LIMIT));
}
