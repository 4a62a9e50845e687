//! The daemon's upkeep: what it changes, and what it leaves alone.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::net::UnixStream,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{
    Lab, Nics, Options,
    addresses::{FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, HEALTH_PORT, PLATFORM, PLS_NAT, ROUTER, ROUTER_SECOND},
    client::{self, Tcp},
    wait,
};
use nix::sys::signal::Signal;
use router_user::model::{Flow, Status};

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::without_router,
};

/// A lab that is up.
fn lab(nics: Nics) -> Lab {
    only_pls_router();
    check(Lab::up(Options::new(nics, router(), helper())))
}

/// Requests in any order never wait for each other.
#[test]
fn many_requests_at_once_are_all_answered() {
    const EACH: usize = 400;
    const PATIENCE: Duration = Duration::from_secs(20);
    let lab = lab(Nics::One);
    let socket = lab.state().path("api.sock");
    let ask = |path: &str| -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(&socket).context("cannot reach the daemon")?;
        stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| format!("{path} is not answered"))?;
        let is_whole = answer.ends_with(b"}") || answer.ends_with(b"]") || answer.ends_with(b"\r\n0\r\n\r\n");
        ensure!(
            answer.starts_with(b"HTTP/1.1 200 ") && is_whole,
            "{path}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    };
    thread::scope(|scope| {
        let questions = ["/v1/status", "/v1/status", "/v1/rules", "/v1/counters", "/v1/flows"];
        let all = questions.map(|path| scope.spawn(move || (0..EACH).try_for_each(|_| ask(path))));
        for _ in 0..EACH {
            check(lab.health());
        }
        for asked in all {
            check(asked.join().expect("no panic"));
        }
    });
}

/// A journal on a disk that hangs reads nothing any more. The daemon starts, forwards, answers and
/// ends all the same.
#[test]
fn an_unread_log_does_not_block_the_daemon() {
    let lab = without_router();
    let configuration = check(lab.state().write("config.toml", lab.configuration(&lab.options.rules)));
    let (_reader, full) = std::io::pipe().expect("a pipe");
    fill(&full);
    let mut command = check(lab.pls_router_command(&["run"], &configuration));
    let mut daemon = command.stdin(Stdio::null()).stderr(full).spawn().expect("pls-router starts");
    let healthy = wait::until("the router to be healthy", LIMIT, || {
        let (status, text) = lab.health()?;
        ensure!(status == 200, "{status}: {text}");
        Ok(())
    });
    let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    let ended = wait::until("the router to end", LIMIT, || daemon.try_wait()?.context("it still runs"));
    if ended.is_err() {
        daemon.kill().and_then(|()| daemon.wait()).expect("it ends");
    }
    check(healthy);
    assert!(check(ended).success());
}

/// Writes to a pipe until it takes no more.
fn fill(mut pipe: &std::io::PipeWriter) {
    let set = |pipe, flags| nix::fcntl::fcntl(pipe, nix::fcntl::F_SETFL(flags)).expect("flags of a pipe");
    set(pipe, nix::fcntl::OFlag::O_NONBLOCK);
    while pipe.write(&[0; 4096]).is_ok() {}
    set(pipe, nix::fcntl::OFlag::empty());
}

/// A permanent neighbour has no state that the daemon may change: a probe would make it a learnt
/// one.
#[test]
fn a_permanent_neighbour_stays_permanent() {
    /// The daemon confirms neighbours every 2 s.
    const TWO_ROUNDS: Duration = Duration::from_millis(4500);
    let lab = lab(Nics::One);
    let neighbour = || check(lab.hosts.router.ip(&format!("neigh show to {FIREWALL_ONE_NIC} dev eth0")));
    let learnt = neighbour();
    let mac = learnt.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).expect("a MAC address");
    let set = format!("neigh replace {FIREWALL_ONE_NIC} lladdr {mac} dev eth0 nud permanent");
    check(lab.hosts.router.ip(&set));
    let start = Instant::now();
    while start.elapsed() < TWO_ROUNDS {
        let now = neighbour();
        assert!(now.contains("PERMANENT"), "{now}");
        thread::sleep(Duration::from_millis(100));
    }
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
}

/// Returns the answer to a request to the health port, from this source.
fn ask(lab: &Lab, source: Ipv4Addr) -> anyhow::Result<String> {
    let target = SocketAddrV4::new(ROUTER, HEALTH_PORT);
    let mut stream = lab.hosts.pls.inside(|| client::connect_from(source, target, LIMIT))??;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: router\r\n\r\n").context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

#[test]
fn idle_connections_do_not_starve_the_load_balancers_probe() {
    /// More than the daemon has places for. They end by themselves after 2 s.
    const CONNECTIONS: usize = 200;
    let lab = lab(Nics::One);
    let target = SocketAddrV4::new(ROUTER, HEALTH_PORT);
    let connect = |_| check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], target, LIMIT));
    let _idle: Vec<Tcp> = (0..CONNECTIONS).map(connect).collect();
    for _ in 0..3 {
        let answer = check(ask(&lab, PLATFORM));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(check(lab.in_service()), "{}", lab.probe_log());
    // And when they have ended, any client has an answer again.
    check(wait::until("a place for others", LIMIT * 2, || {
        let answer = ask(&lab, PLS_NAT[1])?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    }));
}

#[test]
fn sighup_does_not_end_the_daemon() {
    let mut lab = lab(Nics::One);
    let daemon = check(lab.router());
    check(daemon.signal(Signal::SIGHUP));
    check(daemon.wait_for_log("reload: nothing has changed", LIMIT));
    let status: Status = check(lab.pls_router_json(&["status"]));
    assert!(status.healthy, "{status:#?}");
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"hello", LIMIT));
}

#[test]
fn new_sessions_follow_the_firewall_nics_address() {
    /// In the same network.
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 5);
    let lab = lab(Nics::Two);
    let sources = |lab: &Lab| lab.pls_router_json::<Status>(&["status"]).map(|status| status.snat_addresses);
    assert_eq!(check(sources(&lab)), [ROUTER_SECOND]);
    let _old = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(lab.hosts.router.ip(&format!(
        "addr del {ROUTER_SECOND}/26 dev eth1\n\
         addr add {NEW}/26 dev eth1\n\
         route add default via {FIREWALL_TWO_NICS}"
    )));
    check(wait::until("the router to notice", LIMIT, || {
        let sources = sources(&lab)?;
        ensure!(sources == [NEW], "{sources:?}");
        Ok(())
    }));
    check(lab.wait_in_service(LIMIT * 2));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"hello", LIMIT));
    let from = |address: Ipv4Addr| -> anyhow::Result<usize> {
        let flows: Vec<Flow> = lab.pls_router_json(&["flows", "--rule", "echo-tcp"])?;
        Ok(flows.iter().filter(|flow| flow.snat.ip() == address).count())
    };
    assert_eq!(check(from(NEW)), 1);
    // Replies to sessions of the old address cannot arrive, so these sessions do not wait for their
    // timeout.
    check(wait::until("the old address's session to go", LIMIT * 6, || {
        ensure!(from(ROUTER_SECOND)? == 0, "it is still there");
        Ok(())
    }));
    check(tcp.echo(b"hello", LIMIT));
}
