//! A second daemon takes the place of the running one.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab,
    addresses::{HEALTH_PORT, ROUTER},
    client::{Tcp, Udp},
    wait,
};
use nix::sys::signal::Signal;

use crate::{
    common::{ECHO, LIMIT, check},
    lifecycle::attached,
};

lab_tests! {
    any: [],
    pls_router: [
        a_successor_takes_over_without_a_lost_packet,
        a_daemon_whose_successor_fails_goes_on,
    ],
}

/// The interval of the probes.
const INTERVAL: Duration = Duration::from_millis(5);

/// The least number of probes and of datagrams, also if what happens meanwhile is over sooner.
const LEAST: u32 = 20;

/// Probes the router until `is_over`, as a load balancer does. Returns the number of probes and the
/// slowest one. Every probe has to be answered by 200.
fn probe(lab: &Lab, is_over: &AtomicBool) -> Result<(u32, Duration)> {
    let address = SocketAddrV4::new(ROUTER, HEALTH_PORT).into();
    let (mut probes, mut slowest) = (0, Duration::ZERO);
    while !is_over.load(Relaxed) || probes < LEAST {
        let start = Instant::now();
        let mut stream = lab.hosts.pls.inside(|| TcpStream::connect_timeout(&address, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT)).context("a timeout")?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("the request")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("the answer")?;
        ensure!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
        probes += 1;
        slowest = slowest.max(start.elapsed());
        thread::sleep(INTERVAL);
    }
    Ok((probes, slowest))
}

/// Sends datagrams, each after the answer to the one before, until `is_over`. Returns their number.
fn echo(udp: &Udp, is_over: &AtomicBool) -> Result<u32> {
    let mut number = 0_u32;
    while !is_over.load(Relaxed) || number < LEAST {
        udp.echo(&number.to_be_bytes(), LIMIT).with_context(|| format!("datagram {number}"))?;
        number += 1;
    }
    Ok(number)
}

/// Does `work` while the router is probed and forwards the datagrams of one session, and checks
/// that each is answered.
fn without_a_loss<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> T {
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"first", LIMIT));
    let is_over = AtomicBool::new(false);
    let (done, echoed, probed) = thread::scope(|scope| {
        let echoes = scope.spawn(|| echo(&udp, &is_over));
        let probes = scope.spawn(|| probe(lab, &is_over));
        let done = work();
        is_over.store(true, Relaxed);
        (done, echoes.join().expect("no panic"), probes.join().expect("no panic"))
    });
    let done = check(done);
    let (echoed, (probes, slowest)) = (check(echoed), check(probed));
    println!("{echoed} datagrams, {probes} probes, the slowest in {} ms", slowest.as_millis());
    done
}

fn a_successor_takes_over_without_a_lost_packet(lab: &mut Lab) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"before", LIMIT));
    let program = attached(lab, "eth0");
    let first = check(lab.router()).pid();
    for _ in 0..3 {
        let successor = without_a_loss(lab, || {
            let mut successor = lab.spawn_successor()?;
            successor.wait_for_log("running config=", LIMIT * 4)?;
            Ok(successor)
        });
        let ended = check(lab.succeed_router(successor));
        assert!(ended.success(), "{ended}");
        check(tcp.echo(&[7; 20_000], LIMIT));
    }
    assert_ne!(check(lab.router()).pid(), first);
    assert_eq!(attached(lab, "eth0"), program, "the attached program is not the one from before");
    let log = check(lab.router()).output();
    assert!(log.contains("asking the running daemon to hand over"), "{log}");
    check(lab.wait_in_service(LIMIT));
    // The last one is a daemon like any other: it answers, and can be stopped.
    assert_eq!(check(lab.pls_router(&["status"])).status.code(), Some(0));
    assert!(check(lab.stop_router(Signal::SIGTERM)).success());
    check(lab.start_router());
}

/// A successor of this test's, which is at the point where the running daemon has paused for it.
fn successor_to_be(lab: &Lab) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(lab.state().path("api.hand-over")).context("the daemon")?;
    stream.set_read_timeout(Some(LIMIT)).context("a timeout")?;
    stream.write_all(b"{\"version\":1,\"program\":\"a test\"}\n").context("the question")?;
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    // The sockets that come with it are closed by that.
    reader.read_line(&mut answer).context("the answer")?;
    ensure!(answer.contains("Granted"), "{answer}");
    Ok(reader)
}

fn a_daemon_whose_successor_fails_goes_on(lab: &mut Lab) {
    let before = check(lab.router()).pid();
    without_a_loss(lab, || {
        for _ in 0..3 {
            drop(successor_to_be(lab)?);
            wait::until("the daemon to go on", LIMIT, || {
                ensure!(lab.pls_router_status()?.healthy);
                Ok(())
            })?;
        }
        Ok(())
    });
    // It keeps the rules true as before, and forwards new connections.
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
    let log = check(lab.router()).output();
    assert_eq!(log.matches("the other daemon has failed, so this one goes on").count(), 3, "{log}");
    // One that really fails, after the running daemon has paused.
    let configuration = lab.configuration(&lab.options.rules);
    let refused = configuration.replace("127.0.0.1:9090", "192.0.2.1:9090");
    check(lab.state().write("refused.toml", refused));
    let command = check(lab.pls_router_command(&["run", "--take-over"], &lab.state().path("refused.toml")));
    let mut successor = check(lab::Process::spawn(lab.state(), "refused", command));
    let status = check(successor.wait(LIMIT * 4));
    let said = successor.output();
    assert!(status.code() == Some(1) && said.contains("cannot listen on 192.0.2.1:9090"), "{said}");
    assert_eq!(check(lab.router()).pid(), before);
    check(lab.wait_in_service(LIMIT));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"again", LIMIT));
    // And then one that is good.
    let mut successor = check(lab.spawn_successor());
    check(successor.wait_for_log("running config=", LIMIT * 4));
    assert!(check(lab.succeed_router(successor)).success());
    check(lab.wait_in_service(LIMIT));
}
