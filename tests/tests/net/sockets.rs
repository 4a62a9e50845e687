//! Sockets that a socket unit has opened, as `pls-router.socket` does.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use harness::{packages, skip};
use lab::{
    Lab, Process,
    addresses::{HEALTH_PORT, ROUTER},
    wait,
};

use crate::{
    common::{LIMIT, check, router},
    lifecycle::{REFUSAL_LIMIT, without_router},
};

/// Starts the router as systemd does for a socket unit with this address: at the first connection,
/// with the socket in the unit's name.
fn start_by_socket(lab: &Lab, address: SocketAddrV4) -> Result<Process> {
    let lab::Router::PlsRouter(binary) = router() else { skip("a socket unit is pls-router's") };
    let Some(activate) = packages::find_program("systemd-socket-activate") else {
        skip("there is no systemd-socket-activate here");
    };
    let configuration: PathBuf = lab.state().path("config.toml");
    lab.state().write("config.toml", lab.configuration(&lab.options.rules))?;
    let mut command = lab.hosts.router.command(activate)?;
    command.arg(format!("--listen={address}")).arg("--fdname=pls-router.socket");
    command.arg("-E").arg(format!("PLS_ROUTER_CONFIG={}", configuration.display())).arg(binary).arg("run");
    Process::spawn(lab.state(), "pls-router", command)
}

/// Connects on the router VM itself, and keeps the connection open.
fn connect(lab: &Lab, port: u16) -> TcpStream {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    check(wait::until("somebody to listen", LIMIT, || {
        lab.hosts.router.inside(|| TcpStream::connect_timeout(&address, LIMIT))?.context("refused")
    }))
}

#[test]
fn a_probe_waits_at_the_socket_of_a_unit() {
    let lab = without_router();
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, HEALTH_PORT);
    let mut daemon = check(start_by_socket(&lab, address));
    // It was there before the daemon, which it starts.
    let early = connect(&lab, HEALTH_PORT);
    check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
    drop(early);
    // Had the daemon not taken it, it could not have listened there itself.
    let listeners = check(lab.hosts.router.run("ss", &["-Htln", &format!("sport = :{HEALTH_PORT}")]));
    assert_eq!(listeners.lines().count(), 1, "{listeners}");
    assert!(!daemon.output().contains("waits in vain"), "{}", daemon.output());
    check(daemon.terminate(REFUSAL_LIMIT));
}

#[test]
fn a_socket_of_a_unit_that_does_not_fit_is_said() {
    const OTHER_PORT: u16 = 8083;
    let lab = without_router();
    let mut daemon = check(start_by_socket(&lab, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OTHER_PORT)));
    let _early = connect(&lab, OTHER_PORT);
    check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
    let said = daemon.output();
    assert!(said.contains("pls-router.socket listens on 0.0.0.0:8083"), "{said}");
    check(daemon.terminate(REFUSAL_LIMIT));
}

#[test]
fn a_socket_of_a_unit_in_the_way_is_named() {
    let lab = without_router();
    // Covered by what the configuration names.
    let mut daemon = check(start_by_socket(&lab, SocketAddrV4::new(ROUTER, HEALTH_PORT)));
    let _early = check(wait::until("systemd to listen", LIMIT, || {
        let address = SocketAddrV4::new(ROUTER, HEALTH_PORT).into();
        lab.hosts.router.inside(|| TcpStream::connect_timeout(&address, LIMIT))?.context("refused")
    }));
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let said = daemon.output();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("health.listen") && said.contains("socket unit"), "{said}");
}
