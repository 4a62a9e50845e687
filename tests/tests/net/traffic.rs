//! Real clients through the whole lab, with tcpdump as an independent witness on every wire.

use std::time::Duration;

use anyhow::Context as _;
use lab::{
    Lab, Nics, Options, PlsPorts,
    addresses::{ALLOWED_NAME, DENIED_NAME, ECHO_PORT, ENDPOINT, IPERF_PORT, TOOLS},
    client::{self, Direction, Tcp, Udp},
    front_page, rules, wait,
    witness::Witness,
};

use crate::common::{ECHO, LIMIT, check, helper, only_pls_router, router};

lab_tests! {
    any: [
        names_are_let_through_or_refused,
        downloads_and_uploads_arrive_whole,
        datagrams_of_every_length_come_back,
        datagrams_without_checksum_stay_without,
        pings_are_masqueraded,
        direct_connections_are_masqueraded,
        iperf3_runs_both_ways,
        many_connections_are_kept_apart,
    ],
    pls_router: [],
}

/// The witness saw packets on both sides, and nothing wrong.
fn finish(witness: Witness) {
    let seen = check(witness.finish());
    assert!(seen.pls > 0 && seen.firewall > 0, "the witness saw nothing on a wire: {seen:?}");
}

fn names_are_let_through_or_refused(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    for scheme in ["https", "http"] {
        let fetched = check(client::curl(lab, &format!("{scheme}://{ALLOWED_NAME}/"), &[]));
        assert_eq!(
            (fetched.status, fetched.body),
            (200, front_page(ALLOWED_NAME)),
            "{scheme}: {}",
            fetched.error
        );
    }
    let fetched = check(client::curl(lab, &format!("http://{DENIED_NAME}/"), &[]));
    assert_eq!(fetched.status, 470, "{}", fetched.error);
    let fetched = check(client::curl(lab, &format!("https://{DENIED_NAME}/"), &[]));
    // 35: the TLS handshake failed, because the firewall closed the connection.
    assert_eq!((fetched.exit, fetched.status), (35, 0), "{} {}", fetched.body, fetched.error);
    check(wait::until("the firewall's log", LIMIT, || {
        let denied = format!("deny tls name={DENIED_NAME}");
        anyhow::ensure!(lab.firewall_log().contains(&denied), "no \"{denied}\" in {}", lab.firewall_log());
        Ok(())
    }));
    finish(witness);
}

fn downloads_and_uploads_arrive_whole(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let (original, copy) = (lab.large_file(), lab.state().path("tmp/copy"));
    let fetched = check(client::download(lab, &format!("https://{ALLOWED_NAME}/large.bin"), &copy));
    assert_eq!(fetched.status, 200, "{}", fetched.error);
    let wanted = check(client::sha256(&original));
    assert_eq!(check(client::sha256(&copy)), wanted, "the download differs");

    let fetched = check(client::upload(lab, &original, &format!("https://{ALLOWED_NAME}/upload/copy")));
    assert_eq!(fetched.status, 201, "{} {}", fetched.body, fetched.error);
    assert_eq!(check(client::sha256(&lab.uploaded(ALLOWED_NAME, "copy"))), wanted, "the upload differs");
    finish(witness);
}

/// Up to what fits into one packet: 1500 bytes less 20 of IPv4 and 8 of UDP.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=64).chain([255, 256, 257, 511, 512, 513, 1023, 1024, 1025]).chain(1465..=1472)
}

/// Bytes that differ from datagram to datagram, ones too, so that every kind of checksum comes up.
fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index * 31 + length * 7) as u8 | if length.is_multiple_of(5) { 0xf0 } else { 0 })
        .collect()
}

fn datagrams_of_every_length_come_back(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    for length in lengths() {
        check(udp.echo(&payload(length), LIMIT));
    }
    // Each socket is a separate session.
    for number in 0..50 {
        let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
        check(udp.echo(&[number], LIMIT));
    }
    finish(witness);
}

fn datagrams_without_checksum_stay_without(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO).and_then(Udp::without_checksum));
    let lengths: Vec<usize> = lengths().collect();
    for length in &lengths {
        check(udp.echo(&payload(*length), LIMIT));
    }
    let towards = format!("udp dst port {ECHO_PORT}");
    let without = check(witness.finish_listing("firewall", &format!("{towards} and udp[6:2] = 0"))).len();
    assert_eq!(without, lengths.len(), "datagrams towards the firewall that have no checksum");
}

fn pings_are_masqueraded(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    for size in ["0", "1", "56", "1471", "1472"] {
        let answers = check(client::ping(&lab.hosts.vm, TOOLS, 5, &["-s", size]));
        assert_eq!(answers, 5, "answers to echo requests with {size} bytes");
    }
    finish(witness);
}

fn direct_connections_are_masqueraded(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let target = (TOOLS, ECHO_PORT).into();
    let mut tcp = check(Tcp::connect(&lab.hosts.vm, target, LIMIT));
    check(tcp.echo(&payload(100_001), LIMIT));
    let udp = check(Udp::open(&lab.hosts.vm, target));
    check(udp.echo(&payload(1001), LIMIT));
    finish(witness);
}

fn iperf3_runs_both_ways(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let target = (ENDPOINT, IPERF_PORT).into();
    for direction in [Direction::Up, Direction::Down] {
        let rate = check(client::iperf3(
            &lab.hosts.serverless,
            target,
            direction,
            &["--bytes", "16M", "--parallel", "4"],
        ));
        assert!(rate > 0.0, "{direction:?}: nothing arrived");
    }
    finish(witness);
    // At full speed tcpdump loses packets, so there is no witness here.
    let options = ["--time", "1"];
    let rate = check(client::iperf3(&lab.hosts.serverless, target, Direction::Down, &options));
    assert!(rate > 1e6, "only {rate} bit/s");
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(b"afterwards", Duration::from_secs(1)));
}

/// A hundred connections at a time, each with different bytes.
fn many_connections_are_kept_apart(lab: &mut Lab) {
    const CONNECTIONS: u8 = 100;
    let witness = check(Witness::start(lab));
    let connect = |_| check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let mut connections: Vec<Tcp> = (0..CONNECTIONS).map(connect).collect();
    for round in 0..3 {
        for (number, tcp) in (0..CONNECTIONS).zip(&mut connections) {
            check(
                tcp.echo(&[number; 100], LIMIT)
                    .with_context(|| format!("round {round}, connection {number}")),
            );
        }
    }
    for tcp in connections {
        check(tcp.close());
    }
    finish(witness);
}

/// Nothing says that the Private Link Service keeps the client's port.
#[test]
fn the_private_link_service_may_choose_any_port() {
    let options = Options { pls_ports: PlsPorts::Random, ..Options::new(Nics::One, router(), helper()) };
    many_connections_are_kept_apart(&mut check(Lab::up(options)));
}

/// Both ends of a connection get the segment size of a rule, and keep to it.
#[test]
fn segment_sizes_are_kept_to_the_rule() {
    const SIZE: u16 = 1000;
    only_pls_router();
    let mut options = Options::new(Nics::One, router(), helper());
    let rule = "name = \"echo-tcp\"\n";
    options.rules = rules().replace(rule, &format!("{rule}mss = {SIZE}\n"));
    let lab = check(Lab::up(options));
    for (wire, flags) in [("firewall", "tcp-syn"), ("pls", "tcp-syn|tcp-ack")] {
        let witness = check(Witness::start(&lab));
        let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
        check(tcp.echo(&payload(100_001), LIMIT));
        let announcements =
            check(witness.finish_listing(wire, &format!("port {ECHO_PORT} and tcp[tcpflags] = {flags}")));
        assert!(!announcements.is_empty(), "no connection on the wire {wire}");
        let size = format!("mss {SIZE},");
        assert!(announcements.iter().all(|packet| packet.contains(&size)), "{wire}: {announcements:#?}");
    }
    let witness = check(Witness::start(&lab));
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    check(tcp.echo(&payload(100_001), LIMIT));
    let larger = format!("tcp and ip[2:2] > {}", 40 + SIZE);
    let larger = check(witness.finish_listing("firewall", &larger));
    assert!(larger.is_empty(), "{larger:#?}");
}
