//! The machine changes under the running router, with traffic: the router follows within a second,
//! and no packet leaves by a way, or from an address, that is neither the old one nor the new one.
//!
//! Repairs of settings and programs are in `repairs.rs`, names and probes elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options, Process,
    addresses::{
        ECHO_PORT, FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, PLATFORM, PLS_GATEWAY, ROUTER, ROUTER_SECOND, TOOLS,
        VNET,
    },
    client::Udp,
    link::{self, XdpPass},
    wait,
};
use nix::sys::signal::Signal;

use crate::common::{ECHO, LIMIT, check, helper, in_lab, only_pls_router, router};

/// The bound within which the router follows.
const FOLLOWS: Duration = Duration::from_secs(1);
/// The time that traffic goes on after a change.
const AFTER: Duration = Duration::from_millis(2500);
/// The time that an answer may take.
const PATIENCE: Duration = Duration::from_millis(100);
/// A second gateway, with another MAC address.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 90);
const SECOND_MAC: &str = "02:00:00:00:02:90";

/// A datagram on its way to the target, as it left the router.
#[derive(Debug)]
struct Frame {
    /// Seconds since the change.
    at: f64,
    /// The next hop's MAC address.
    mac: String,
    source: SocketAddrV4,
    /// The length of the frame.
    length: usize,
}

/// What came of a change.
#[derive(Debug)]
struct Outcome {
    frames: Vec<Frame>,
    /// The longest time without an answer, of a known session and of new ones.
    outages: [Duration; 2],
}

impl Outcome {
    /// Returns how long frames left that are not as they should be from now on.
    #[track_caller]
    fn settled(&self, what: &str, is_right: impl Fn(&Frame) -> bool) -> Duration {
        let last: Vec<&Frame> = self.frames.iter().rev().take(3).collect();
        let is_there = self.frames.iter().any(|frame| frame.at > 0.0 && is_right(frame));
        assert!(is_there, "{what}: none is right: {last:?}, silence {:?}", self.outages);
        let late = self.frames.iter().filter(|frame| frame.at > 0.0 && !is_right(frame));
        let settled = Duration::from_secs_f64(late.map(|frame| frame.at).fold(0.0, f64::max));
        let [known, new] = self.outages;
        eprintln!("{what}: settled after {settled:?}; longest silence {known:?} (known), {new:?} (new)");
        assert!(settled < FOLLOWS, "{what}: {settled:?}");
        settled
    }

    /// Checks that answers came all the time, but for less than this.
    #[track_caller]
    fn answered(&self, what: &str, most: Duration) {
        assert!(self.outages.iter().all(|outage| *outage < most), "{what}: silence of {:?}", self.outages);
    }

    /// The MAC addresses that frames went to.
    fn macs(&self) -> BTreeSet<&str> {
        self.frames.iter().map(|frame| frame.mac.as_str()).collect()
    }
}

/// Records what leaves the router, on the other end of its wire.
struct Recorder {
    tcpdump: Process,
}

impl Recorder {
    fn start(lab: &Lab) -> Result<Self> {
        let device = match lab.options.nics {
            Nics::One => "router",
            Nics::Two => "router1",
        };
        let mut command = lab.hosts.vnet.command("tcpdump")?;
        command.args([
            "-i",
            device,
            "-e",
            "-n",
            "-tt",
            "-l",
            "--immediate-mode",
            "-B",
            "16384",
            "-Z",
            "root",
        ]);
        command.arg(format!("udp and dst host {TOOLS} and dst port {ECHO_PORT}"));
        let mut tcpdump = Process::spawn(lab.state(), "recorder", command)?;
        tcpdump.wait_for_log("listening on", LIMIT)?;
        Ok(Self { tcpdump })
    }

    /// Returns the frames, with their times since `change`.
    fn finish(mut self, change: SystemTime) -> Result<Vec<Frame>> {
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(LIMIT)?;
        let change = change.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        // 1.5 02:..:01 > 02:..:02, ethertype IPv4 (0x0800), length 60: 10.0.2.68.5 >
        // 203.0.113.20...
        let frame = |line: &str| {
            let mut words = line.split_whitespace();
            let at: f64 = words.next()?.parse().ok()?;
            let mac = words.nth(2)?.trim_end_matches(',').to_owned();
            let length = line.split("length ").nth(1)?.split(':').next()?.parse().ok()?;
            let source = line.split(": ").nth(1)?.split(" > ").next()?;
            let (address, port) = source.rsplit_once('.')?;
            let source = SocketAddrV4::new(address.parse().ok()?, port.parse().ok()?);
            Some(Frame { at: at - change, mac, source, length })
        };
        Ok(self.tcpdump.output().lines().filter_map(frame).collect())
    }
}

/// Returns the longest time without a success.
fn silence(successes: &[Instant], from: Instant, to: Instant) -> Duration {
    let times: Vec<Instant> = std::iter::once(from).chain(successes.iter().copied()).chain([to]).collect();
    times.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).max().unwrap_or_default()
}

/// Makes a change in the middle of traffic: one session that goes on, and many new ones. Each
/// datagram has this many bytes.
#[track_caller]
fn under_traffic(lab: &Lab, bytes: usize, change: impl FnOnce() -> Result<String>) -> Outcome {
    let client = &lab.hosts.serverless;
    let recorder = check(Recorder::start(lab));
    let payload = vec![b'x'; bytes];
    let is_over = AtomicBool::new(false);
    let talk = |once: &dyn Fn() -> Result<Duration>| {
        let mut successes = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            if once().is_ok() {
                successes.push(Instant::now());
            }
            thread::sleep(Duration::from_millis(2));
        }
        successes
    };
    let open = || Udp::open(client, ECHO)?.fragmentable();
    let known = SocketAddrV4::new(lab::addresses::SERVERLESS, 41_000);
    let one = check(Udp::open_at(client, known, ECHO).and_then(Udp::fragmentable));
    check(one.echo(&payload, LIMIT));
    let (start, changed, done, sessions) = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| talk(&|| one.echo(&payload, PATIENCE))),
            scope.spawn(|| talk(&|| open()?.echo(&payload, PATIENCE))),
        ];
        thread::sleep(Duration::from_millis(300));
        let (start, changed) = (Instant::now(), SystemTime::now());
        let done = change();
        thread::sleep(AFTER);
        is_over.store(true, Ordering::Relaxed);
        (start, changed, done, threads.map(|thread| thread.join().expect("no panic")))
    });
    check(done);
    let end = Instant::now();
    let outages = sessions.map(|successes| silence(&successes, start, end));
    let frames = check(recorder.finish(changed));
    assert!(frames.len() > 50, "too few packets to say anything: {}", frames.len());
    Outcome { frames, outages }
}

fn mac(namespace: &Namespace, device: &str) -> String {
    check(namespace.run("cat", &[&format!("/sys/class/net/{device}/address")])).trim().to_owned()
}

/// Gives the firewall a second address, with another MAC address. Returns the first MAC address.
fn second_gateway(lab: &Lab) -> String {
    let firewall = &lab.hosts.firewall;
    for name in ["arp_ignore", "arp_announce"] {
        let value = if name == "arp_ignore" { "1" } else { "2" };
        check(firewall.sysctl(&format!("net/ipv4/conf/all/{name}"), value));
    }
    check(firewall.ip(&format!(
        "link add gw2 link vnet address {SECOND_MAC} type macvlan mode bridge\n\
         addr add {SECOND}/32 dev gw2\n\
         link set gw2 up"
    )));
    check(
        firewall.nft(&format!("add rule ip firewall network_rules iifname gw2 udp dport {ECHO_PORT} accept")),
    );
    // Known before the change: to resolve it is another test's business.
    check(lab.hosts.router.run("ping", &["-c", "1", "-W", "2", &SECOND.to_string()]));
    mac(firewall, "vnet")
}

#[test]
fn routes_and_rules_by_port_are_followed() {
    in_lab(Nics::One, true, |lab| {
        let first = second_gateway(lab);
        let router = &lab.hosts.router;
        let only = BTreeSet::from([first.as_str(), SECOND_MAC]);
        let go = |what: &str, commands: String, wanted: &str| {
            let outcome = under_traffic(lab, 20, || router.ip(&commands));
            outcome.settled(what, |frame| frame.mac == wanted);
            outcome.answered(what, FOLLOWS);
            assert!(outcome.macs().is_subset(&only), "{what}: {:?}", outcome.macs());
            assert!(outcome.frames.iter().all(|frame| *frame.source.ip() == ROUTER), "{what}");
        };
        go("route", format!("route replace default via {SECOND}"), SECOND_MAC);
        go("route back", format!("route replace default via {FIREWALL_ONE_NIC}"), &first);
        let rule = format!("ipproto udp dport {ECHO_PORT} lookup 100");
        check(router.ip(&format!("route add default via {SECOND} table 100")));
        go("ip rule add", format!("rule add {rule}"), SECOND_MAC);
        go("ip rule del", format!("rule del {rule}"), &first);
    });
}

#[test]
fn multipath_routes_are_followed() {
    in_lab(Nics::One, true, |lab| {
        let first = second_gateway(lab);
        let router = &lab.hosts.router;
        check(router.sysctl("net/ipv4/fib_multipath_hash_policy", "1"));
        check(router.ip(&format!(
            "nexthop add id 1 via {FIREWALL_ONE_NIC} dev eth0\nnexthop add id 2 via {SECOND} dev eth0\n\
             nexthop add id 3 group 1/2"
        )));
        let only = BTreeSet::from([first.as_str(), SECOND_MAC]);
        let outcome = under_traffic(lab, 20, || router.ip("route replace default nhid 3"));
        outcome.answered("multipath", FOLLOWS);
        assert_eq!(outcome.macs(), only, "new sessions are spread");
        let outcome = under_traffic(lab, 20, || router.ip("nexthop replace id 3 group 2"));
        outcome.settled("multipath without the first", |frame| frame.mac == SECOND_MAC);
        outcome.answered("multipath without the first", FOLLOWS);
        assert!(outcome.macs().is_subset(&only), "{:?}", outcome.macs());
    });
}

#[test]
fn a_neighbour_s_address_is_followed() {
    in_lab(Nics::One, true, |lab| {
        let first = second_gateway(lab);
        let only = BTreeSet::from([first.as_str(), SECOND_MAC]);
        let set = format!("neigh replace {FIREWALL_ONE_NIC} lladdr {SECOND_MAC} dev eth0 nud permanent");
        let outcome = under_traffic(lab, 20, || lab.hosts.router.ip(&set));
        outcome.settled("neighbour", |frame| frame.mac == SECOND_MAC);
        outcome.answered("neighbour", FOLLOWS);
        assert!(outcome.macs().is_subset(&only), "{:?}", outcome.macs());
    });
}

/// `snat.addresses` is not given: new sessions come from the primary address.
#[test]
fn the_primary_address_is_followed() {
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 5);
    in_lab(Nics::Two, true, |lab| {
        let router = &lab.hosts.router;
        check(router.sysctl("net/ipv4/conf/eth1/promote_secondaries", "1"));
        check(router.ip(&format!("addr add {NEW}/26 dev eth1")));
        // The old one stays this machine's, or the known session would rightly go.
        let change = format!(
            "addr add {ROUTER_SECOND}/32 dev lo\naddr del {ROUTER_SECOND}/26 dev eth1\n\
             route replace default via {FIREWALL_TWO_NICS}"
        );
        let outcome = under_traffic(lab, 20, || router.ip(&change));
        let known = *outcome.frames.first().expect("a frame").source.ip();
        assert_eq!(known, ROUTER_SECOND);
        // A session keeps the address that it begins with, also where a later client gets the port
        // of an earlier one, and with it the session. By their ports they can be told apart.
        let mut began = BTreeMap::new();
        for frame in &outcome.frames {
            began.entry(frame.source.port()).or_insert(frame.at);
        }
        outcome.settled("primary address", |frame| {
            *frame.source.ip() == NEW || frame.at > began[&frame.source.port()]
        });
        let sources: BTreeSet<Ipv4Addr> = outcome.frames.iter().map(|frame| *frame.source.ip()).collect();
        assert_eq!(sources, BTreeSet::from([ROUTER_SECOND, NEW]));
        assert!(outcome.outages[1] < FOLLOWS, "{:?}", outcome.outages);
    });
}

/// Datagrams that may be fragmented are, as soon as they have to be. (The kernel forwards by a
/// route's MTU only if that is locked, `ip_mtu_from_fib_result`, and so does the router.)
#[test]
fn the_mtu_is_followed_down_and_up() {
    const LARGE: usize = 1400;
    const SMALL_MTU: usize = 1300;
    const WHOLE: usize = 14 + 20 + 8 + LARGE;
    in_lab(Nics::Two, true, |lab| {
        let router = &lab.hosts.router;
        let is_small = |frame: &Frame| frame.length <= SMALL_MTU + 14;
        let route = |mtu: &str| router.ip(&format!("route replace default via {FIREWALL_TWO_NICS} {mtu}"));
        let outcome = under_traffic(lab, LARGE, || route("mtu lock 1300"));
        outcome.settled("a route's smaller MTU", is_small);
        outcome.answered("a route's smaller MTU", FOLLOWS);
        let outcome = under_traffic(lab, LARGE, || route(""));
        outcome.settled("a route's larger MTU", |frame| frame.length == WHOLE);
        outcome.answered("a route's larger MTU", FOLLOWS);
        // Of the interface: then answers of this size do not come in any more, either.
        let outcome = under_traffic(lab, LARGE, || router.ip(&format!("link set eth1 mtu {SMALL_MTU}")));
        outcome.settled("an interface's smaller MTU", is_small);
        check(router.ip("link set eth1 mtu 1500"));
        let start = Instant::now();
        check(wait::until("an answer", LIMIT, || {
            Udp::open(&lab.hosts.serverless, ECHO)?.fragmentable()?.echo(&[b'x'; LARGE], PATIENCE)
        }));
        eprintln!("an interface's larger MTU: an answer after {:?}", start.elapsed());
        assert!(start.elapsed() < FOLLOWS, "{:?}", start.elapsed());
    });
}

#[test]
fn a_carrier_that_goes_and_comes_is_followed() {
    in_lab(Nics::Two, true, |lab| {
        let vnet = &lab.hosts.vnet;
        check(vnet.ip("link set router1 down"));
        check(lab.wait_out_of_service(LIMIT * 2));
        // The worst moment: the kernel has asked for the last time (ucast_solicit and mcast_solicit
        // count together), and gives up within a second.
        check(wait::until("the last request", LIMIT, || {
            let shown = lab.hosts.router.run("ip", &["-statistics", "neighbour", "show", "dev", "eth1"])?;
            ensure!(shown.contains("probes 6 INCOMPLETE"), "{shown}");
            Ok(())
        }));
        check(vnet.ip("link set router1 up"));
        let start = Instant::now();
        check(wait::until("a session", LIMIT, || {
            Udp::open(&lab.hosts.serverless, ECHO)?.echo(b"back", PATIENCE)
        }));
        let took = start.elapsed();
        eprintln!("carrier: a session after {took:?}");
        assert!(took < FOLLOWS, "{took:?}");
        check(lab.wait_in_service(LIMIT * 2));
    });
}

/// The kernel lets an interface that is up be renamed (Linux 6.2).
#[test]
fn a_name_that_changes_under_traffic_is_followed() {
    in_lab(Nics::Two, true, |lab| {
        let router = &lab.hosts.router;
        let outcome = under_traffic(lab, 20, || router.ip("link set eth1 name ens5"));
        outcome.settled("rename", |_| true);
        outcome.answered("rename", Duration::from_millis(300));
        check(wait::until("the condition", LIMIT, || {
            let status = lab.pls_router_status()?;
            let is_told = status.conditions.iter().any(|condition| condition.id == "interface_renamed");
            ensure!(status.healthy && is_told, "{status:#?}");
            Ok(())
        }));
        let outcome = under_traffic(lab, 20, || router.ip("link set ens5 name eth1"));
        outcome.answered("renamed back", Duration::from_millis(300));
    });
}

#[test]
fn another_number_of_channels_is_followed() {
    only_pls_router();
    let lab =
        &mut check(Lab::up(Options { start_router: false, ..Options::new(Nics::One, router(), helper()) }));
    let (hosts, vnet) = (&lab.hosts, &lab.hosts.vnet);
    // The probe knows the address already, and would go on to the old MAC address for a while.
    let mac = check(hosts.router.run("cat", &["/sys/class/net/eth0/address"]));
    check(hosts.router.ip("link del eth0"));
    check(link::wire_with_queues((&hosts.router, "eth0"), (vnet, "router"), 4));
    check(hosts.router.ip(&format!("link set eth0 address {}", mac.trim())));
    check(check(XdpPass::load(lab.state())).attach(vnet, "router"));
    check(vnet.ip("link set router master br0"));
    check(hosts.router.ip(&format!(
        "addr add {ROUTER}/26 dev eth0\nroute add {VNET} via {PLS_GATEWAY}\nroute add {PLATFORM} via {PLS_GATEWAY}\n\
         route add default via {FIREWALL_ONE_NIC}"
    )));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT * 2));
    // A veth with a program has as many queues to receive by as the other end has to send by, at
    // least.
    check(lab.hosts.vnet.run("ethtool", &["-L", "router", "tx", "1"]));
    for channels in ["2", "4"] {
        let set = || lab.hosts.router.run("ethtool", &["-L", "eth0", "rx", channels, "tx", channels]);
        let outcome = under_traffic(lab, 20, set);
        outcome.settled("channels", |_| true);
        outcome.answered("channels", FOLLOWS);
    }
    assert!(check(lab.pls_router_status()).healthy);
}

/// An interface that is made again has the program within a second, and no packet passes it by.
#[test]
fn an_interface_that_is_made_again_has_its_program_within_a_second() {
    in_lab(Nics::Two, true, |lab| {
        check(lab.hosts.router.ip("link del eth1"));
        let vnet = &lab.hosts.vnet;
        check(link::wire((&lab.hosts.router, "eth1"), (vnet, "router1")));
        let start = Instant::now();
        check(check(XdpPass::load(lab.state())).attach(vnet, "router1"));
        check(vnet.ip("link set router1 master br1"));
        check(wait::until("the program", LIMIT, || {
            crate::lifecycle::attached(lab, "eth1").context("nothing is attached")
        }));
        let took = start.elapsed();
        assert!(took < FOLLOWS, "{took:?}");
        let configure =
            format!("addr add {ROUTER_SECOND}/26 dev eth1\nroute add default via {FIREWALL_TWO_NICS}");
        check(lab.hosts.router.ip(&configure));
        let start = Instant::now();
        check(wait::until("a session", LIMIT, || {
            Udp::open(&lab.hosts.serverless, ECHO)?.echo(b"back", PATIENCE)
        }));
        let session = start.elapsed();
        eprintln!("made again: attached after {took:?}, a session {session:?} after its address");
        assert!(session < FOLLOWS, "{session:?}");
    });
}
