//! Sessions end when they have been idle for as long as the configuration says, each kind after its
//! own time.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use lab::{
    Lab, Nics, Options,
    addresses::{ECHO_PORT, TOOLS},
    client::{self, Tcp, Udp},
    rules, wait,
};
use router_user::model::{Flow, Status};

use crate::common::{ECHO, LIMIT, check, helper, only_pls_router, router};

/// The short timeouts, in seconds: the sweep keeps them to within 2 s and a tick of 1 s.
const SHORT: u64 = 5;
/// By when a session is gone that has just become idle, on a busy machine.
const GONE: Duration = Duration::from_secs(SHORT + 15);

/// An unused address beyond the firewall.
const UNUSED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
/// An attempt that gets no answer is given up after this time.
const NO_ANSWER: Duration = Duration::from_millis(300);

/// A lab whose router has these timeouts.
fn lab_with(timeouts: &str) -> Lab {
    only_pls_router();
    let mut options = Options::new(Nics::One, router(), helper());
    options.rules = format!("{}\n[timeouts]\n{timeouts}\n", rules());
    check(Lab::up(options))
}

fn flows(lab: &Lab, protocol: &str) -> anyhow::Result<Vec<Flow>> {
    lab.pls_router_json(&["flows", "--protocol", protocol])
}

/// Waits until no session of this protocol is left.
#[track_caller]
fn gone(lab: &Lab, protocol: &str) {
    check(wait::until(&format!("the {protocol} sessions to end"), GONE, || {
        let flows = flows(lab, protocol)?;
        ensure!(flows.is_empty(), "{flows:#?}");
        Ok(())
    }));
}

/// Waits until there is a session of this protocol in this state.
#[track_caller]
fn appears(lab: &Lab, protocol: &str, state: &str) {
    check(wait::until(&format!("a {protocol} session that is {state}"), LIMIT, || {
        let flows = flows(lab, protocol)?;
        ensure!(flows.iter().any(|flow| flow.state == state), "{flows:#?}");
        Ok(())
    }));
}

/// The one session of this protocol: its state, and how many seconds it may still be idle.
#[track_caller]
fn only(lab: &Lab, protocol: &str) -> (String, u64) {
    let flows = check(flows(lab, protocol));
    let [flow] = &flows[..] else { panic!("not one session: {flows:#?}") };
    (flow.state.clone(), flow.expires_seconds)
}

#[test]
fn udp_and_ping_sessions_end_and_open_connections_stay() {
    let lab = lab_with(&format!("udp = \"{SHORT}s\"\nicmp = \"{SHORT}s\""));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"hello", LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"hello", LIMIT));
    assert_eq!(check(client::ping(&lab.hosts.vm, TOOLS, 1, &[])), 1);
    gone(&lab, "udp");
    gone(&lab, "icmp");
    // RFC 5382 REQ-5: two hours and four minutes.
    let (state, seconds) = only(&lab, "tcp");
    assert_eq!(state, "established");
    assert!((7440 - 120..=7440).contains(&seconds), "{seconds} s");
    check(tcp.echo(b"still there", LIMIT));
    // The next datagram of the same socket opens another session.
    check(udp.echo(b"hello again", LIMIT));
    assert_eq!(only(&lab, "udp").0, "established");
    let status: Status = check(lab.pls_router_json(&["status"]));
    assert!(status.healthy, "{status:#?}");
}

/// RFC 4787 REQ-6: packets in either direction refresh a session.
#[test]
fn an_answer_makes_a_udp_session_last_longer() {
    let lab = lab_with(&format!("udp_unreplied = \"{SHORT}s\""));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"hello", LIMIT));
    let (state, seconds) = only(&lab, "udp");
    assert_eq!(state, "established");
    // RFC 4787 REQ-5 c: five minutes.
    assert!((300 - 120..=300).contains(&seconds), "{seconds} s");

    let unused = check(Udp::open(&lab.hosts.vm, (UNUSED, ECHO_PORT).into()));
    check(unused.send(b"is anybody there"));
    appears(&lab, "udp", "opening");
    check(wait::until("the unanswered session to end, and only that", GONE, || {
        let flows = flows(&lab, "udp")?;
        ensure!(flows.len() == 1 && flows[0].state == "established", "{flows:#?}");
        Ok(())
    }));
}

/// RFC 5382 REQ-5, RFC 7857 section 2.1: what is over, or never began, goes after the shorter time.
#[test]
fn closed_and_unanswered_connections_end_early() {
    let lab = lab_with(&format!("tcp_transitory = \"{SHORT}s\""));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"hello", LIMIT));
    assert_eq!(only(&lab, "tcp").0, "established");
    check(tcp.close());
    gone(&lab, "tcp");
    let unused = Tcp::connect(&lab.hosts.vm, (UNUSED, ECHO_PORT).into(), NO_ANSWER);
    assert!(unused.is_err(), "an answer came: {unused:?}");
    appears(&lab, "tcp", "opening");
    gone(&lab, "tcp");
}
