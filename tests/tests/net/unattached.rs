//! No program is attached for a moment: the mode changes, or somebody has taken the program off.
//! Packets of sessions then reach the router's own network stack, which knows nothing of them. They
//! are lost, and no connection is.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab,
    addresses::{ECHO_PORT, PLS_NAT, ROUTER},
    client::{Tcp, Udp, connect_from},
    link, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::{ECHO, LIMIT, check, counters, reason},
    lifecycle::{attached, pins},
    reload,
};

lab_tests! {
    any: [],
    pls_router: [
        connections_outlive_a_program_that_is_taken_off,
        clients_that_connect_meanwhile_try_again,
        changes_of_the_mode_reset_no_connection,
    ],
}

/// The router, as a client reaches it that does not go by the load balancer.
const DIRECT: SocketAddrV4 = SocketAddrV4::new(ROUTER, ECHO_PORT);

/// Takes the program off every interface, and has the daemon stand still. Returns the daemon.
#[track_caller]
fn take_off(lab: &mut Lab) -> Pid {
    let router = check(lab.router());
    let daemon = Pid::from_raw(router.pid().cast_signed());
    check(router.suspend());
    for layout in pins(lab) {
        for device in ["eth0", "eth1"] {
            let pin = Path::new(&layout).join(format!("links/native-{device}"));
            if pin.exists() {
                check(link::detach(&pin));
            }
        }
    }
    assert_eq!(attached(lab, "eth0"), None);
    daemon
}

/// Has the daemon go on, which puts the program back.
#[track_caller]
fn put_back(lab: &Lab, daemon: Pid) {
    check(kill(daemon, Signal::SIGCONT).map_err(Into::into));
    check(wait::until("the program", LIMIT, || attached(lab, "eth0").context("it is not attached")));
}

/// Returns the number of resets and of ICMP errors that the router's stack has made.
fn answers(lab: &Lab) -> Result<[u64; 2]> {
    let text = lab.hosts.router.run("cat", &["/proc/net/snmp"])?;
    let count = |protocol: &str, name: &str| {
        let mut lines = text.lines().filter(|line| line.starts_with(protocol));
        let (names, counts) = lines.next().zip(lines.next())?;
        let at = names.split_whitespace().position(|word| word == name)?;
        counts.split_whitespace().nth(at)?.parse().ok()
    };
    let counts = count("Tcp:", "OutRsts").zip(count("Icmp:", "OutDestUnreachs"));
    counts.map(<[u64; 2]>::from).with_context(|| text.clone())
}

/// Waits until the router's stack has made so many resets and ICMP errors more than `before`.
#[track_caller]
fn wait_for_answers(lab: &Lab, before: [u64; 2], more: [u64; 2]) {
    check(wait::until("the stack's answers", LIMIT, || {
        let now = answers(lab)?;
        ensure!(now[0] >= before[0] + more[0] && now[1] >= before[1] + more[1], "{before:?}, {now:?}");
        Ok(())
    }));
}

/// Both ends send at that moment.
fn connections_outlive_a_program_that_is_taken_off(lab: &mut Lab) {
    reload::lead_to_second_target(lab);
    let listener = reload::listen(lab);
    let mut client =
        check(lab.hosts.pls.inside(|| connect_from(PLS_NAT[0], DIRECT, LIMIT)).and_then(|stream| stream));
    let (mut server, _) = check(listener.accept().map_err(Into::into));
    check(server.set_read_timeout(Some(LIMIT)).map_err(Into::into));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.echo(b"before", LIMIT));
    exchange(&mut client, &mut server, b"before");

    let daemon = take_off(lab);
    let before = check(answers(lab));
    check(client.write_all(b"from the client").map_err(Into::into));
    check(server.write_all(b"from the server").map_err(Into::into));
    check(udp.send(b"lost"));
    wait_for_answers(lab, before, [2, 1]);
    put_back(lab, daemon);
    for (stream, text) in [(&mut client, b"from the server"), (&mut server, b"from the client")] {
        let mut got = [0; 15];
        check(stream.read_exact(&mut got).map_err(Into::into));
        assert_eq!(&got, text);
    }
    exchange(&mut client, &mut server, b"after");
    check(udp.echo(b"after", LIMIT));
    assert!(reason(&counters(lab), "answer_withheld") >= 3);
    check(check(lab.router()).wait_for_log("reason=\"answer_withheld\"", LIMIT * 3));
}

/// Sends bytes to and fro.
#[track_caller]
fn exchange(client: &mut TcpStream, server: &mut TcpStream, bytes: &[u8]) {
    let pass = |from: &mut TcpStream, to: &mut TcpStream| {
        let mut got = vec![0; bytes.len()];
        check(from.write_all(bytes).map_err(Into::into));
        check(to.read_exact(&mut got).map_err(Into::into));
        assert_eq!(got, bytes);
    };
    pass(client, server);
    pass(server, client);
}

/// What opens a session is lost as well, and not refused.
fn clients_that_connect_meanwhile_try_again(lab: &mut Lab) {
    let daemon = take_off(lab);
    let before = check(answers(lab));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    check(udp.send(b"lost"));
    let connected = thread::scope(|scope| {
        let pls = &lab.hosts.pls;
        let client = scope.spawn(|| Tcp::connect_from(pls, PLS_NAT[0], DIRECT, LIMIT));
        wait_for_answers(lab, before, [1, 1]);
        put_back(lab, daemon);
        client.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    });
    check(check(connected).echo(b"connected", LIMIT));
    check(udp.echo(b"after", LIMIT));
    assert!(reason(&counters(lab), "answer_withheld") >= 2);
}

/// Connections that are busy all the time.
fn changes_of_the_mode_reset_no_connection(lab: &mut Lab) {
    const CLIENTS: usize = 8;
    const CHANGES: usize = 4;
    let connections: Vec<_> = (0..CLIENTS)
        .map(|number| check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[number % 2], DIRECT, LIMIT)))
        .collect();
    let done = AtomicBool::new(false);
    let native = lab.configuration(&lab.options.rules);
    let generic = native.replacen("\"native\"", "\"generic\"", 1);
    assert_ne!(native, generic);
    let rounds = thread::scope(|scope| {
        let talking: Vec<_> = connections
            .into_iter()
            .map(|mut tcp| {
                let done = &done;
                scope.spawn(move || {
                    let mut rounds = 0_u32;
                    while !done.load(Ordering::Relaxed) {
                        check(tcp.echo(&[7; 5_000], LIMIT));
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for change in 0..CHANGES {
            let text = if change % 2 == 0 { &generic } else { &native };
            check(lab.state().write("config.toml", text));
            let changed = reload::reload(lab, &[]);
            assert_eq!(changed.keys.len(), 1, "{changed:#?}");
        }
        done.store(true, Ordering::Relaxed);
        let join = |client: thread::ScopedJoinHandle<'_, u32>| {
            client.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
        };
        talking.into_iter().map(join).collect::<Vec<_>>()
    });
    assert!(rounds.iter().all(|rounds| *rounds > 10), "{rounds:?}");
    eprintln!("{} answers withheld", reason(&counters(lab), "answer_withheld"));
}
