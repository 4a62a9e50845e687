//! Starts that are broken off or cannot succeed, and what they leave.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Process,
    addresses::{ECHO_PORT, TOOLS},
    client::Udp,
    wait,
};
use nix::sys::signal::Signal;

use crate::{
    common::{ECHO, LIMIT, check},
    lifecycle::{REFUSAL_LIMIT, attached, pins, refuses, without_router},
};

/// An unused address of the router's network.
const UNUSED: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

/// Waits until the process would hear SIGTERM.
#[track_caller]
fn wait_for_handler(process: &Process) {
    let path = format!("/proc/{}/status", process.pid());
    check(wait::until("the daemon to listen for SIGTERM", LIMIT, || {
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no SigCgt")?;
        let caught = u64::from_str_radix(caught.trim(), 16)?;
        ensure!(caught & (1 << (Signal::SIGTERM as u32 - 1)) != 0, "{caught:x}");
        Ok(())
    }));
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let mut lab = without_router();
    // A name server that does not answer holds the start up.
    let resolv_conf = lab.state().path("etc/router/resolv.conf");
    check(fs::write(resolv_conf, format!("nameserver {UNUSED}\noptions timeout:5\n")).context("resolv.conf"));
    let rules = lab.options.rules.clone();
    lab.set_rules(rules.replacen(&format!("\"{TOOLS}:{ECHO_PORT}\""), "\"echo.lab.example:7007\"", 1));
    assert_ne!(lab.options.rules, rules);
    let mut daemon = check(lab.spawn_router());
    wait_for_handler(&daemon);
    check(wait::until("something to leave behind", LIMIT, || {
        ensure!(lab.state().path("api.sock").exists(), "there is no socket");
        Ok(())
    }));
    check(daemon.signal(Signal::SIGTERM));
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("stopped before it had started"), "{output}");
    assert_eq!(attached(&lab, "eth0"), None);
    assert_eq!(pins(&lab), [""; 0]);
    assert!(!lab.state().path("api.sock").exists(), "the socket is still there");
    let forwarding = check(lab.hosts.router.run("cat", &["/proc/sys/net/ipv4/conf/lo/forwarding"]));
    assert_eq!(forwarding.trim(), "0");

    lab.set_rules(rules);
    check(lab.start_router());
}

/// The verifier takes a while for each program, and the daemon hears a signal meanwhile.
#[test]
fn a_start_that_is_stopped_while_programs_are_loaded_leaves_nothing() {
    let mut lab = without_router();
    let mut daemon = check(lab.spawn_router());
    check(wait::until("the first maps to be pinned", LIMIT, || {
        ensure!(!pins(&lab).is_empty());
        Ok(())
    }));
    assert_eq!(attached(&lab, "eth0"), None, "the programs are loaded already: this test tests nothing");
    check(daemon.signal(Signal::SIGTERM));
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("stopped before it had started"), "{output}");
    assert!(!output.contains("attached"), "{output}");
    assert_eq!((attached(&lab, "eth0"), pins(&lab)), (None, Vec::new()));
    assert!(!lab.state().path("api.sock").exists(), "the socket is still there");
    check(lab.start_router());
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let mut lab = without_router();
    let path = lab.state().path("api.sock");
    check(fs::write(&path, "precious").context("a file"));
    refuses(&lab, "a file", &["api.sock", "exists and is not a socket"]);
    assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
    check(fs::remove_file(&path).context("the file"));
    check(lab.start_router());
}

/// Starts pls-router with another configuration.
pub(crate) fn start_with(lab: &Lab, name: &str, configuration: String) -> anyhow::Result<Process> {
    lab.state().write(name, configuration)?;
    let command = lab.pls_router_command(&["run"], &lab.state().path(name))?;
    Process::spawn(lab.state(), name, command)
}

#[test]
fn a_refused_mode_leaves_the_present_one() {
    let lab = without_router();
    let native = lab.configuration(&lab.options.rules);
    let generic = native.replacen("mode = \"native\"", "mode = \"generic\"", 1);
    assert_ne!(generic, native);
    let mut daemon = check(start_with(&lab, "generic.toml", generic.clone()));
    check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"before", LIMIT));
    check(daemon.kill());

    // veth_xdp_set, drivers/net/veth.c: "Peer MTU is too large to set XDP". The router cannot see
    // that before it tries.
    check(lab.hosts.vnet.ip("link set router mtu 9000"));
    let mut daemon = check(start_with(&lab, "native.toml", native));
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("eth0: cannot attach the program in native mode"), "{output}");
    let shown = check(lab.hosts.router.run("ip", &["link", "show", "dev", "eth0"]));
    assert!(shown.contains("xdpgeneric"), "{shown}");
    check(udp.echo(b"after", LIMIT));

    // And the daemon that fits comes back to it, with its sessions.
    let mut daemon = check(start_with(&lab, "generic-again.toml", generic));
    check(daemon.wait_for_log("running config=", LIMIT * 2));
    check(udp.echo(b"again", LIMIT));
    let status = check(daemon.terminate(Duration::from_secs(10)));
    assert!(status.success(), "{status}");
    check(udp.echo(b"without a daemon", LIMIT));
}
