//! The self-test: programs that are attached and do not forward are found, and nothing else is
//! touched.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, LpmTrie, Map, MapData, ProgramArray};
use lab::{
    Lab, Nics, Options,
    client::{Tcp, Udp},
    link::XdpPass,
    wait,
    witness::Witness,
};
use nix::sys::signal::Signal;
use router_common::{
    limits::LAYOUT,
    maps::{rules::ListenKey, settings::Settings, stages::Stage},
};
use router_user::model::{Flow, SelfTestStatus, Severity, Status};

use crate::common::{ECHO, LIMIT, check, counters, helper, only_pls_router, router, rule};

/// The bound within which the probe fails.
const FOUND: Duration = Duration::from_secs(10);

fn lab(nics: Nics, self_test: &str) -> Lab {
    only_pls_router();
    let mut options = Options::new(nics, router(), helper());
    options.self_test = self_test.to_owned();
    // As by default: the bound holds with the time that a fault has to last.
    options.health = "down_after = \"2s\"\nup_after = \"0s\"".to_owned();
    check(Lab::up(options))
}

fn self_test(lab: &Lab) -> Result<SelfTestStatus> {
    Ok(lab.pls_router_json::<Status>(&["status"])?.self_test)
}

/// Waits until so many sessions have been tested.
#[track_caller]
fn wait_for_sessions(lab: &Lab, sessions: u64) -> SelfTestStatus {
    check(wait::until("self-tests", LIMIT * 4, || {
        let tested = self_test(lab)?;
        ensure!(tested.sessions >= sessions, "{tested:?}");
        Ok(tested)
    }))
}

/// Opens a map of the router by its pin.
#[track_caller]
fn map(lab: &Lab, name: &str) -> MapData {
    let pin = lab.state().path(&format!("bpf/pls-router/v{LAYOUT}/{name}"));
    check(MapData::from_pin(pin).context("cannot open a pin"))
}

fn passes_and_leaves_nothing_behind(nics: Nics) {
    let mut lab = lab(nics, "1s");
    // Neighbours of the clients' side are known from now on.
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
    let witness = check(Witness::start(&lab));
    let before = (check(self_test(&lab)), counters(&lab));
    let after = wait_for_sessions(&lab, before.0.sessions + 12);
    assert!(after.enabled && after.problem.is_empty() && after.untested.is_empty(), "{after:?}");
    assert_eq!(after.failures, 0, "{after:?}");
    // All of its packets are known, and counted as what they are.
    let now = counters(&lab);
    let after = check(self_test(&lab));
    let opened = |counters: &router_user::model::Counters| -> u64 {
        counters.rules.iter().map(|rule| rule.sessions_opened).sum()
    };
    let sessions = after.sessions - before.0.sessions;
    // A test may have run between two questions.
    let counted = opened(&now) - opened(&before.1);
    assert!(counted.abs_diff(sessions) <= 8, "{counted} are counted, {sessions} were tested");
    assert!(after.packets > after.sessions * 4, "both directions are tested: {after:?}");
    let echo = rule(&now, "echo-tcp");
    assert!(echo.reply_packets > 0 && rule(&now, "echo-udp").reply_packets > 0, "{now:#?}");
    // Nothing is left, in the table or on a wire.
    let flows: Vec<Flow> = check(lab.pls_router_json(&["flows"]));
    let left: Vec<&Flow> = flows.iter().filter(|flow| flow.client.port() == 0).collect();
    assert!(left.is_empty(), "{left:#?}");
    let audit = check(lab.pls_router(&["check", "--live"]));
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
    let wires = check(witness.finish_listing("pls", "(tcp or udp) and port 0"));
    assert!(wires.is_empty(), "{wires:#?}");
    let status = check(lab.pls_router_status());
    assert!(status.healthy && status.degraded.is_empty(), "{status:#?}");
    let log = check(lab.router()).output();
    assert!(!log.contains("self_test"), "{log}");
    // The next daemon tests the programs that are attached already.
    check(lab.stop_router(Signal::SIGKILL));
    check(lab.start_router());
    assert!(lab.state().path(&format!("bpf/pls-router/v{LAYOUT}/root-eth0")).exists());
    let after = wait_for_sessions(&lab, 4);
    assert_eq!((after.failures, after.problem.as_str()), (0, ""), "{after:?}");
}

#[test]
fn a_router_that_forwards_passes_and_nothing_is_left_of_it() {
    passes_and_leaves_nothing_behind(Nics::One);
}

#[test]
fn a_router_of_two_nics_passes_and_nothing_is_left_of_it() {
    passes_and_leaves_nothing_behind(Nics::Two);
}

/// In generic mode the programs expect packets as the kernel keeps them.
#[test]
fn it_passes_in_generic_mode() {
    only_pls_router();
    for nics in [Nics::One, Nics::Two] {
        let mut options = Options { start_router: false, ..Options::new(nics, router(), helper()) };
        options.self_test = "1s".to_owned();
        let lab = check(Lab::up(options));
        let configuration = lab.configuration(&lab.options.rules).replace("\"native\"", "\"generic\"");
        let mut daemon = check(crate::starts::start_with(&lab, "config.toml", configuration));
        check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
        let tested = wait_for_sessions(&lab, 8);
        assert_eq!((tested.failures, tested.untested.as_str()), (0, ""), "{tested:?}");
        assert!(tested.packets > tested.sessions * 3, "both directions are tested: {tested:?}");
    }
}

#[test]
fn it_can_be_switched_off() {
    let lab = lab(Nics::One, "off");
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
    let tested = check(self_test(&lab));
    assert_eq!(tested, SelfTestStatus::default());
}

/// Makes a fault, again and again until it is found, since the daemon repairs some. Returns the
/// answer of the probe.
#[track_caller]
fn is_found(lab: &Lab, fault: impl Fn() -> Result<()> + Send) -> String {
    is_found_as(lab, "self_test_failed", fault)
}

#[track_caller]
fn is_found_as(lab: &Lab, id: &str, fault: impl Fn() -> Result<()> + Send) -> String {
    wait_for_sessions(lab, 1);
    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let found = thread::scope(|scope| {
        let is_over = &is_over;
        let faults = scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                fault()?;
                thread::sleep(Duration::from_millis(2));
            }
            Ok::<(), anyhow::Error>(())
        });
        // The probe alone is asked: `status` is a process each time, and would take the CPU from
        // the daemon that is measured.
        let found = wait::until("the probe to fail", FOUND, || {
            let (code, body) = lab.health()?;
            ensure!(code == 503, "{code}: {body}");
            Ok((start.elapsed(), body))
        });
        let found = found.and_then(|(took, body)| {
            let conditions = lab.pls_router_status()?.conditions;
            let condition = conditions.into_iter().find(|condition| condition.id == id);
            Ok((took, condition.with_context(|| format!("not found: {body}"))?))
        });
        let found = found.with_context(|| match self_test(lab) {
            Ok(tested) => format!("{tested:#?}"),
            Err(error) => format!("{error:#}"),
        });
        is_over.store(true, Ordering::Relaxed);
        check(faults.join().expect("no panic"));
        found
    });
    let (took, found) = check(found);
    assert!(took < FOUND, "{took:?}");
    eprintln!("found after {:.1} s: {}", took.as_secs_f64(), found.detail);
    assert_eq!(found.severity, Severity::Down);
    found.detail
}

#[test]
fn a_root_without_a_program_is_found() {
    let lab = lab(Nics::One, "5s");
    let body = is_found(&lab, || {
        let mut root = ProgramArray::try_from(Map::ProgramArray(map(&lab, "ROOT")))?;
        match root.clear_index(&0) {
            // It is empty already.
            Ok(()) | Err(_) => Ok(()),
        }
    });
    assert!(body.contains("was passed to this machine's own network stack"), "{body}");
    assert!(body.contains("not_configured"), "{body}");
}

#[test]
fn a_root_that_leads_to_another_program_is_found() {
    let lab = lab(Nics::Two, "5s");
    let pass = check(check(XdpPass::load(lab.state())).program());
    let body = is_found(&lab, || {
        let mut root = ProgramArray::try_from(Map::ProgramArray(map(&lab, "ROOT")))?;
        root.set(0, &pass, 0).context("cannot write to the slot")
    });
    assert!(body.contains("was passed to this machine's own network stack"), "{body}");
}

#[test]
fn stages_without_programs_are_found() {
    let lab = lab(Nics::One, "5s");
    let body = is_found(&lab, || {
        let mut stages = ProgramArray::try_from(Map::ProgramArray(map(&lab, "stages")))?;
        for (stage, _) in Stage::ALL {
            let _ = stages.clear_index(&(stage as u32));
        }
        Ok(())
    });
    assert!(body.contains("stage_missing"), "{body}");
    assert!(body.contains("an answer of ARP to this machine was dropped"), "{body}");
}

#[test]
fn zeroed_settings_are_found_and_so_is_their_return() {
    let lab = lab(Nics::Two, "5s");
    is_found(&lab, || {
        let mut settings: Array<_, Settings> = Map::Array(map(&lab, "SETTINGS")).try_into()?;
        settings.set(0, Settings::default(), 0).context("cannot write the settings")
    });
    // The daemon writes them every second.
    check(wait::until("the probe to be good again", FOUND, || {
        let (status, body) = lab.health()?;
        ensure!(status == 200, "{body}");
        Ok(())
    }));
}

#[test]
fn missing_listeners_are_found() {
    let lab = lab(Nics::One, "5s");
    let body = is_found(&lab, || {
        let mut listeners: LpmTrie<_, ListenKey, u32> = Map::LpmTrie(map(&lab, "LISTENERS")).try_into()?;
        let keys = listeners.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            let _ = listeners.remove(&key);
        }
        Ok(())
    });
    assert!(body.contains("of a test session from"), "{body}");
}

#[test]
fn a_table_without_room_for_any_session_is_found() {
    let lab = lab(Nics::One, "5s");
    let body = is_found(&lab, || {
        // The counters, the room among them.
        let mut occupancy: Array<_, [u32; 16]> = Map::Array(map(&lab, "OCCUPANCY")).try_into()?;
        occupancy.set(0, [0; 16], 0).context("cannot write the counters")
    });
    assert!(body.contains("table_full"), "{body}");
}

#[test]
fn route_lookups_that_are_switched_off_are_found() {
    let lab = lab(Nics::One, "5s");
    is_found_as(&lab, "route_lookups_off", || lab.hosts.router.sysctl("net/ipv4/conf/lo/forwarding", "0"));
}

/// Without a self-test, too: packets come in, and no program counts one.
#[test]
fn packets_that_no_program_sees_are_found() {
    let lab = lab(Nics::One, "off");
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"hello", LIMIT));
    let root = ProgramArray::try_from(Map::ProgramArray(map(&lab, "ROOT")));
    let mut root = check(root.context("no program array"));
    check(root.clear_index(&0).context("cannot empty the slot"));
    let start = Instant::now();
    check(wait::until("the condition", FOUND, || {
        udp.send(b"lost")?;
        let status = lab.pls_router_status()?;
        let condition = status.conditions.iter().find(|condition| condition.id == "packets_unseen");
        ensure!(condition.is_some_and(|condition| condition.subject == "eth0"), "{status:#?}");
        Ok(())
    }));
    check(wait::until("the probe to fail", FOUND.saturating_sub(start.elapsed()), || {
        let (code, body) = lab.health()?;
        ensure!(code == 503, "{code}: {body}");
        Ok(())
    }));
}

/// What routes and neighbours lack is not the programs' fault.
#[test]
fn a_dead_gateway_is_no_failure_of_the_programs() {
    let mut lab = lab(Nics::One, "1s");
    wait_for_sessions(&lab, 1);
    check(lab.hosts.firewall.ip("link set vnet down"));
    let status = check(wait::until("the next hop to be missed", LIMIT * 4, || {
        let status = lab.pls_router_status()?;
        ensure!(!status.healthy && !status.self_test.untested.is_empty(), "{status:#?}");
        Ok(status)
    }));
    assert!(status.self_test.untested.contains("a next hop is not there"), "{status:#?}");
    assert!(status.self_test.problem.is_empty(), "{status:#?}");
    let log = check(lab.router()).output();
    assert!(!log.contains("self_test_failed"), "{log}");
}
