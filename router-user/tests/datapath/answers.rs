//! The router's own answers: time exceeded, fragmentation needed, exhausted ports, and unreachable
//! targets.

use std::time::{Duration, Instant};

use router_common::{answer::Limited, ports::PortRange, rate::Rate, reason::Reason};
use router_user::dataplane::RuleSetSpec;

use crate::{
    packets::{
        FIREWALL_MAC, IcmpError, OTHER, PLS, PLS_MAC, ROUTER, Spec, TARGET, echo_reply, echo_request, read,
        tcp, tcp_packet, udp_packet,
    },
    world::{Ran, Setup, Verdict, World, ip, mac, network, next, stay_on},
};

const CLIENT: ([u8; 4], u16) = (PLS, 40_000);

fn syn() -> Spec {
    tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN)
}

fn data() -> Spec {
    tcp_packet(CLIENT, (ROUTER, 443), tcp::ACK)
}

/// The router has told the sender of `asked`, from this address and to this next hop.
fn told(ran: &Ran, asked: &[u8], from: [u8; 4], next_hop: [u8; 6], kind: (u8, u8), mtu: u16) {
    assert_eq!(ran.verdict, Verdict::Tx, "{:?}", ran.reason);
    assert_eq!(ran.frame[..6], next_hop);
    assert_eq!(ran.frame[6..12], mac("eth0"));
    // Internetwork control, no identification, not to be fragmented.
    assert_eq!((ran.frame[15], &ran.frame[18..22]), (0xc0, &[0, 0, 0x40, 0][..]));
    let [high, low] = mtu.to_be_bytes();
    let wanted = IcmpError {
        source: from,
        destination: asked[26..30].try_into().expect("four bytes"),
        ttl: 64,
        kind,
        rest: [0, 0, high, low],
        // The packet as received.
        quote: asked[14..42].to_vec(),
    };
    assert_eq!(IcmpError::read(&ran.frame), wanted);
    assert_eq!(ran.frame.len(), 70, "nothing of the packet is left behind the answer");
}

fn silent(world: &mut World, frame: &[u8], reason: Reason, why: &str) {
    let ran = world.run(frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, reason), "{why}");
}

#[test]
fn an_expired_ttl_is_answered_with_time_exceeded() {
    let mut world = World::new();
    // To the router itself by a rule, and through it; before there is a session and when there is
    // one.
    let packets = [
        (syn(), ROUTER),
        (udp_packet((PLS, 5000), (ROUTER, 53), b""), ROUTER),
        (udp_packet((PLS, 5000), (OTHER, 33_434), &[7; 1000]), ROUTER),
        (echo_request(PLS, OTHER, 77), ROUTER),
        (tcp_packet(CLIENT, (OTHER, 80), tcp::SYN), ROUTER),
    ];
    for known in [false, true] {
        for (packet, from) in &packets {
            for ttl in [0, 1] {
                let frame = packet.clone().ttl(ttl).build();
                let ran = world.run(&frame);
                assert_eq!(ran.reason, Reason::TtlExceeded);
                told(&ran, &frame, *from, PLS_MAC, (11, 0), 0);
            }
            if known {
                let ran = world.run(&packet.clone().ttl(2).build());
                assert_eq!((ran.reason, read(&ran.frame).ttl), (Reason::Forwarded, 1));
            }
        }
        if !known {
            assert_eq!(world.entries(), 0, "no session for a packet that goes nowhere");
            for (packet, _) in &packets {
                assert_eq!(world.run(&packet.build()).reason, Reason::Opened);
            }
        }
    }
}

#[test]
fn an_expired_ttl_of_a_reply_is_answered_with_time_exceeded() {
    let mut world = World::new();
    world.run(&syn().build());
    world.run(&echo_request(PLS, OTHER, 7777).build());
    let replies =
        [tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK), echo_reply(OTHER, ROUTER, 7777)];
    for reply in replies {
        let frame = reply.ttl(1).build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, Reason::TtlExceeded);
        told(&ran, &frame, ROUTER, FIREWALL_MAC, (11, 0), 0);
    }
}

/// If the packet is for another host, the answer comes from the interface that the packet came in
/// on.
#[test]
fn an_icmp_error_leaves_by_the_ingress_interface() {
    let mut world = World::with(Setup { nics: 2, snat: vec![[10, 0, 3, 4]], ..Setup::default() });
    let own = [ROUTER, [10, 0, 3, 4]].map(Into::into);
    world.dataplane.local_addresses.set(&own.into(), &[].into()).expect("addresses");
    let frame = udp_packet((PLS, 5000), (OTHER, 33_434), b"").ttl(1).build();
    let ran = world.run_on(0, &frame);
    told(&ran, &frame, ROUTER, PLS_MAC, (11, 0), 0);
    world.dataplane.set_egress(1, "eth1").expect("egress");
    assert_eq!(world.run(&syn().build()).verdict, Verdict::Redirect);
    let frame = tcp_packet((TARGET, 8443), ([10, 0, 3, 4], 40_000), tcp::SYN | tcp::ACK).ttl(1).build();
    let ran = world.run_on(1, &frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::TtlExceeded));
    let error = IcmpError::read(&ran.frame);
    assert_eq!((error.source, error.destination), ([10, 0, 3, 4], TARGET));
    assert_eq!(ran.frame[6..12], mac("eth1"));
}

#[test]
fn a_packet_above_the_mtu_with_df_is_answered_with_fragmentation_needed() {
    let mut world = World::new();
    ip("route change default via 10.0.2.65 mtu lock 1000");
    let new = syn().payload(&[7; 961]).build();
    let ran = world.run(&new);
    assert_eq!(ran.reason, Reason::FragmentationNeeded);
    told(&ran, &new, ROUTER, PLS_MAC, (3, 4), 1000);
    assert_eq!(world.entries(), 0);

    assert_eq!(world.run(&syn().build()).reason, Reason::Opened);
    assert_eq!(world.run(&data().payload(&[7; 960]).build()).reason, Reason::Forwarded);
    let known = data().payload(&[7; 961]).build();
    let ran = world.run(&known);
    assert_eq!(ran.reason, Reason::FragmentationNeeded);
    told(&ran, &known, ROUTER, PLS_MAC, (3, 4), 1000);
    let ran = world.run(&udp_packet((PLS, 5000), (OTHER, 53), &[7; 1200]).build());
    assert_eq!(ran.reason, Reason::FragmentationNeeded);
}

/// The daemon says so when a link or a route changes.
#[test]
fn a_reduced_mtu_applies_to_known_sessions() {
    let mut world = World::new();
    world.run(&syn().build());
    world.run(&tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).build());
    let frame = data().payload(&[7; 1400]).build();
    for _ in 0..2 {
        assert_eq!(world.run(&frame).reason, Reason::Forwarded);
    }
    ip("link set eth0 mtu 1300");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::FragmentationNeeded);
    told(&ran, &frame, ROUTER, PLS_MAC, (3, 4), 1300);
}

/// The sender of a packet without DF is not told to send less.
#[test]
fn a_packet_above_the_mtu_without_df_is_not_answered() {
    let mut world = World::new();
    ip("route change default via 10.0.2.65 mtu lock 1000");
    let frame = udp_packet((PLS, 5000), (OTHER, 53), &[7; 1200]).may_be_fragmented().build();
    silent(&mut world, &frame, Reason::TooBig, "there is no fragmentation yet");
}

/// A router whose 16 ports to `OTHER`'s port 53 and 443 are taken.
fn exhausted(reject: bool) -> World {
    let ports = PortRange { first: 30_000, last: 30_015 };
    let rules = |reject| -> fn(&mut _) {
        if reject { |spec: &mut RuleSetSpec| spec.reject_exhausted = true } else { |_| {} }
    };
    let mut world = World::with(Setup { ports, rules: rules(reject), ..Setup::default() });
    for client in 0..16 {
        let opened = [
            udp_packet((PLS, 1000 + client), (OTHER, 53), b"x"),
            tcp_packet((PLS, 1000 + client), (OTHER, 443), tcp::SYN),
            echo_request(PLS, OTHER, 1000 + client),
        ];
        for packet in opened {
            assert_eq!(world.run(&packet.build()).reason, Reason::Opened);
        }
    }
    world
}

#[test]
fn exhausted_ports_are_answered_with_icmp_for_udp_and_echo() {
    let mut world = exhausted(true);
    for packet in [udp_packet((PLS, 2000), (OTHER, 53), b"x"), echo_request(PLS, OTHER, 2000)] {
        let frame = packet.build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, Reason::Rejected);
        told(&ran, &frame, ROUTER, PLS_MAC, (3, 13), 0);
    }
    assert_eq!(world.entries(), 96, "nothing half made");
}

#[test]
fn exhausted_ports_are_answered_with_a_reset_for_tcp() {
    let mut world = exhausted(true);
    for (options, payload) in
        [(&[][..], &[][..]), (&[2, 4, 5, 180], b""), (&[1; 40], b"early"), (&[], &[7; 1000])]
    {
        let syn = tcp_packet((PLS, 2000), (OTHER, 443), tcp::SYN).tcp_options(options).payload(payload);
        let ran = world.run(&syn.build());
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Rejected));
        let seen = read(&ran.frame);
        assert_eq!((seen.source, seen.destination), ((OTHER, 443), (PLS, 2000)), "as if from the target");
        assert_eq!((seen.destination_mac, seen.ttl, &*seen.payload), (PLS_MAC, 64, &[][..]));
        let segment = &ran.frame[34..];
        assert_eq!(segment[4..8], [0; 4], "sequence");
        let acknowledged = 1000 + 1 + payload.len() as u32;
        assert_eq!(segment[8..12], acknowledged.to_be_bytes());
        assert_eq!(segment[12..14], [0x50, tcp::RST | tcp::ACK]);
        assert_eq!(segment[20..], [0; 6], "padding, and nothing of the packet");
    }
}

#[test]
fn exhausted_ports_are_silent_if_so_configured() {
    let mut world = exhausted(false);
    let syn = tcp_packet((PLS, 2000), (OTHER, 443), tcp::SYN).build();
    silent(&mut world, &syn, Reason::PortsExhausted, "drop");
}

#[test]
fn martians_and_broadcasts_are_never_answered() {
    let mut world = World::with(Setup {
        rules: |spec| {
            spec.masquerades[0].sources = vec![network([0; 4], 0)];
            spec.forwards[0].sources = vec![network([0; 4], 0)];
        },
        ..Setup::default()
    });
    for source in [[0, 0, 0, 1], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], ROUTER] {
        let frame = tcp_packet((source, 40_000), (OTHER, 443), tcp::SYN).ttl(1).build();
        silent(&mut world, &frame, Reason::Martian, "an invalid source");
    }
    let to_all = world.run(&syn().ttl(1).build_between([2, 0, 0, 0, 0, 1], [0xff; 6]));
    assert_eq!((to_all.verdict, to_all.reason), (Verdict::Drop, Reason::LocalDenied));
    let to_another = world.run(&syn().ttl(1).build_between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]));
    assert_eq!((to_another.verdict, to_another.reason), (Verdict::Pass, Reason::OtherHost));
    let frame = tcp_packet(CLIENT, ([127, 0, 0, 1], 80), tcp::SYN).ttl(1).build();
    silent(&mut world, &frame, Reason::Martian, "to a loopback address");
    let frame = tcp_packet(([192, 0, 2, 1], 40_000), (ROUTER, 443), tcp::SYN).ttl(1).build();
    assert_eq!(world.run(&frame).reason, Reason::TtlExceeded, "from somewhere behind the firewall");
    ip("route add blackhole 192.0.2.0/24");
    silent(&mut world, &frame, Reason::TtlExpired, "there is no way back");
}

/// Nor of the session that was opened last, which the slow path finds without a look at the table.
#[test]
fn frames_for_other_machines_are_never_answered() {
    let mut world = World::new();
    assert_eq!(world.run(&syn().build()).reason, Reason::Opened);
    let expired = world.run(&syn().ttl(1).build_between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]));
    assert_eq!((expired.verdict, expired.reason), (Verdict::Pass, Reason::OtherHost));
}

#[test]
fn an_answer_waits_for_an_unresolved_neighbour() {
    let mut world = World::new();
    let mut punts = world.dataplane.take_punts().expect("ring");
    ip("neigh del 10.0.2.69 dev eth0");
    let frame = syn().ttl(1).build();
    silent(&mut world, &frame, Reason::TtlExpired, "there is no daemon");
    world.dataplane.settings.show_presence().expect("settings");
    silent(&mut world, &frame, Reason::Resolving, "the packet waits");
    let waiting = next(&mut punts).expect("a packet in the ring");
    assert_eq!(waiting.packet, frame[14..54], "as it came");
    ip("neigh replace 10.0.2.69 lladdr 02:00:00:00:00:69 dev eth0 nud reachable");
    let sent = world.replay(&waiting).expect("to be sent").frame;
    assert_eq!(world.moved().reasons, [(Reason::TtlExceeded, 1)]);
    let error = IcmpError::read(&sent);
    assert_eq!((error.source, error.destination, error.kind), (ROUTER, PLS, (11, 0)));
    assert_eq!((&error.quote[..], sent.len()), (&frame[14..42], 70));
}

#[test]
fn icmp_errors_are_rate_limited() {
    let mut world = World::new();
    let frame = syn().ttl(1).build();
    let start = Instant::now();
    let asked = 20 * Rate::PER_SOURCE.burst;
    let answered = (0..asked).filter(|_| world.run_uncounted(0, &frame).0 == Verdict::Tx).count() as u64;
    let most = Rate::PER_SOURCE.burst + start.elapsed().as_nanos() as u64 / Rate::PER_SOURCE.interval + 1;
    assert!((Rate::PER_SOURCE.burst..=most).contains(&answered), "{answered} of {most}");
    let wanted = [(Reason::TtlExpired, asked - answered), (Reason::TtlExceeded, answered)];
    let counted: Vec<_> = wanted.into_iter().filter(|(_, packets)| *packets > 0).collect();
    assert_eq!(world.moved().reasons, counted);

    // Then there are answers again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.run_uncounted(0, &frame).0 != Verdict::Tx {
        assert!(Instant::now() < deadline, "no answer any more");
    }
}

/// The sources of the rules of [`many_sources`].
const SOURCES: [u8; 4] = [100, 64, 0, 0];

fn many_sources(spec: &mut RuleSetSpec) {
    let all = network(SOURCES, 10);
    spec.forwards.iter_mut().for_each(|rule| rule.sources.push(all));
    spec.masquerades.iter_mut().for_each(|rule| rule.sources.push(all));
    spec.reject_unreachable = true;
}

/// The address of this number.
fn source(number: u32) -> [u8; 4] {
    (u32::from_be_bytes(SOURCES) + 1 + number).to_be_bytes()
}

/// Returns how many of these frames are answered, given to the router on each CPU in turn: rates
/// are not per CPU.
fn answered(world: &mut World, frames: impl Iterator<Item = Vec<u8>>) -> u64 {
    const TURN: usize = 500;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut answered = 0;
    for (number, frame) in frames.enumerate() {
        if number % TURN == 0 {
            stay_on(number / TURN % cpus);
        }
        answered += u64::from(world.run_quietly(&frame).0 == Verdict::Tx);
    }
    answered
}

/// By a source: time exceeded, unreachable, a reset, and fragmentation needed.
fn questions(source: [u8; 4]) -> [Vec<u8>; 4] {
    let old = udp_packet((source, 5000), (OTHER, 33_434), b"").ttl(1).build();
    let nowhere = udp_packet((source, 5000), ([192, 0, 2, 9], 53), b"").build();
    let unknown = tcp_packet((source, 5000), (OTHER, 443), tcp::ACK).build();
    let large = udp_packet((source, 5000), (OTHER, 53), &[7; 1200]).build();
    [old, nowhere, unknown, large]
}

fn asked_by_many() -> World {
    let world = World::with(Setup { rules: many_sources, ..Setup::default() });
    ip("route add unreachable 192.0.2.0/24");
    ip("route change default via 10.0.2.65 mtu lock 1000");
    world
}

#[test]
fn rate_limits_are_separate_by_kind_and_source() {
    const FLOOD: usize = 3000;
    let mut world = asked_by_many();
    let (flooder, other) = (questions(source(0)), questions(source(1)));
    for (kind, question) in flooder.iter().enumerate() {
        let start = Instant::now();
        let told = answered(&mut world, std::iter::repeat_n(question.clone(), FLOOD));
        if kind == 3 {
            assert_eq!(told, FLOOD as u64, "fragmentation needed: always");
        } else {
            let rate = Rate::PER_SOURCE;
            let most = rate.burst + start.elapsed().as_nanos() as u64 / rate.interval + 1;
            assert!((rate.burst..=most).contains(&told), "{kind}: {told} of {most}");
        }
        for (kind, question) in other.iter().enumerate() {
            let told = answered(&mut world, std::iter::repeat_n(question.clone(), 5));
            assert_eq!(told, 5, "{kind}: another source");
        }
        for (later, question) in flooder.iter().enumerate().skip(kind + 1) {
            assert_eq!(answered(&mut world, [question.clone()].into_iter()), 1, "{later}: another kind");
        }
    }
}

/// A flood with many source addresses does not make the router flood those addresses. Other sources
/// still get their answers.
#[test]
fn a_flood_from_many_sources_is_bounded_and_leaves_each_source_its_share() {
    const FLOODERS: u32 = 64;
    const FLOOD: usize = 64_000;
    let mut world = asked_by_many();
    for kind in 0..Limited::KINDS {
        let frames: Vec<_> = (0..FLOODERS).map(|number| questions(source(number))[kind].clone()).collect();
        let start = Instant::now();
        let told = answered(&mut world, frames.iter().cycle().take(FLOOD).cloned());
        let elapsed = start.elapsed().as_nanos() as u64;
        let most_at = |rate: Rate| rate.burst + elapsed / rate.interval + 1;
        let most = u64::from(FLOODERS) * most_at(Rate::GUARANTEED) + most_at(Rate::SHARED);
        println!("{kind}: {told} of {FLOOD} in {} ms, at most {most}", elapsed / 1_000_000);
        assert!(told <= most, "{kind}: {told} of {most}");
        // But for sources that share a flooder's place by chance: one in 64.
        let other = |number: u32| questions(source(1000 + number));
        let others = answered(&mut world, (0..200).map(|number| other(number)[kind].clone()));
        assert!(others >= 180, "{kind}: {others} of 200 others");
        let large = answered(&mut world, (0..200).map(|number| other(number)[3].clone()));
        assert_eq!(large, 200, "{kind}: fragmentation needed");
    }
}

/// A router that tells clients what cannot be forwarded.
fn rejecting() -> World {
    World::with(Setup { rules: |spec| spec.reject_unreachable = true, ..Setup::default() })
}

/// A reset to `asked`'s sender, as if from the destination of `asked`, with these sequence and
/// acknowledgement numbers.
fn reset(ran: &Ran, asked: &[u8], next_hop: [u8; 6], numbers: (u32, u32), flags: u8) {
    assert_eq!(ran.verdict, Verdict::Tx, "{:?}", ran.reason);
    let (seen, was) = (read(&ran.frame), read(asked));
    assert_eq!((seen.source, seen.destination), (was.destination, was.source));
    assert_eq!((seen.destination_mac, seen.ttl, &*seen.payload), (next_hop, 64, &[][..]));
    assert_eq!(ran.frame[6..12], mac("eth0"));
    let segment = &ran.frame[34..];
    assert_eq!(
        (&segment[4..8], &segment[8..12]),
        (&numbers.0.to_be_bytes()[..], &numbers.1.to_be_bytes()[..])
    );
    assert_eq!(segment[12..14], [0x50, flags]);
    assert_eq!(segment[20..], [0; 6], "padding, and nothing of the packet");
}

/// By a masquerade: TCP, UDP and echo.
fn masqueraded() -> [Spec; 3] {
    [
        tcp_packet(CLIENT, (OTHER, 80), tcp::SYN),
        udp_packet((PLS, 5000), (OTHER, 53), b"query"),
        echo_request(PLS, OTHER, 77),
    ]
}

/// The kernel's own router sends the same codes (`ip_error`, net/ipv4/route.c; `fib_props`,
/// net/ipv4/fib_semantics.c), RFC 1812 5.2.7.1.
const NO_WAYS: [(&str, u8, Reason, Reason); 4] = [
    ("route del default", 0, Reason::NetworkUnreachable, Reason::NoRoute),
    ("route add throw 0.0.0.0/1", 0, Reason::NetworkUnreachable, Reason::NoRoute),
    ("route replace unreachable default", 1, Reason::HostUnreachable, Reason::RouteUnreachable),
    ("route replace prohibit default", 13, Reason::Prohibited, Reason::RouteProhibited),
];

/// Has no route lead to the targets any more.
fn take_way_away(by: &str) {
    if by.starts_with("route del") || by.starts_with("route add throw") {
        ip("route del default");
    } else {
        ip("route del default");
        ip(&by.replace("replace", "add"));
    }
}

#[test]
fn an_unreachable_route_is_answered_with_its_icmp_code() {
    for (by, code, told_as, _) in NO_WAYS {
        let mut world = rejecting();
        take_way_away(by);
        for packet in masqueraded() {
            let frame = packet.build();
            let ran = world.run(&frame);
            assert_eq!(ran.reason, told_as, "{by}");
            told(&ran, &frame, ROUTER, PLS_MAC, (3, code), 0);
        }
        // A forward's UDP: from the address that the client knows.
        let frame = udp_packet((PLS, 5000), (ROUTER, 53), b"query").build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, told_as, "{by}");
        told(&ran, &frame, ROUTER, PLS_MAC, (3, code), 0);
        // A forward's TCP: an ICMP error would not get through a Private Link Service.
        let frame = syn().payload(b"early").build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, told_as, "{by}");
        reset(&ran, &frame, PLS_MAC, (0, 1006), tcp::RST | tcp::ACK);
        assert_eq!(world.entries(), 0, "{by}: no session for a packet that goes nowhere");
    }
}

#[test]
fn an_unreachable_route_is_silent_if_so_configured() {
    for (by, .., silently) in NO_WAYS {
        let mut world = World::new();
        take_way_away(by);
        for packet in masqueraded().into_iter().chain([syn()]) {
            silent(&mut world, &packet.build(), silently, by);
        }
        assert_eq!(world.entries(), 0);
    }
}

/// As the name says, and as in the kernel.
#[test]
fn a_blackhole_route_is_silent() {
    let mut world = rejecting();
    take_way_away("route replace blackhole default");
    for packet in masqueraded().into_iter().chain([syn()]) {
        silent(&mut world, &packet.build(), Reason::RouteBlackhole, "a blackhole");
    }
}

#[test]
fn a_route_by_an_unattached_interface_is_answered() {
    let mut world = rejecting();
    for command in [
        "link add other type veth peer name wire9",
        "link set other up",
        "link set wire9 up",
        "addr add 10.9.0.1/24 dev other",
        "route add 198.51.100.0/24 via 10.9.0.2",
        "neigh replace 10.9.0.2 lladdr 02:00:00:00:00:09 dev other nud permanent",
    ] {
        ip(command);
    }
    let frame = masqueraded()[1].build();
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::NetworkUnreachable);
    told(&ran, &frame, ROUTER, PLS_MAC, (3, 0), 0);
}

/// A connection may outlive what is wrong now, so it is not reset: ICMP errors are soft errors to
/// it (RFC 1122 4.2.3.9).
#[test]
fn known_sessions_are_answered_and_stay() {
    let mut world = rejecting();
    let query = udp_packet((PLS, 5000), (ROUTER, 53), b"query");
    let answer = tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::SYN | tcp::ACK).numbers(5000, 1001);
    for packet in [&syn(), &query] {
        assert_eq!(world.run(&packet.build()).reason, Reason::Opened);
    }
    assert_eq!(world.run(&answer.build()).reason, Reason::Forwarded);
    assert_eq!(world.run(&data().numbers(1001, 5001).build()).reason, Reason::Forwarded);
    let sessions = |world: &World| {
        let mut flows: Vec<_> = world.dataplane.flows.flows().map(|flow| format!("{flow:?}")).collect();
        flows.sort();
        flows
    };
    let before = sessions(&world);
    ip("route del default");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    for packet in [data().numbers(1001, 5001).payload(b"more"), query.clone()] {
        let frame = packet.build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, Reason::NetworkUnreachable);
        told(&ran, &frame, ROUTER, PLS_MAC, (3, 0), 0);
    }
    // And back: the server is told by the address that it knows.
    ip("route add default via 10.0.2.65");
    ip("route add unreachable 10.0.2.69/32");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    let frame = tcp_packet((TARGET, 8443), (ROUTER, 40_000), tcp::ACK).numbers(5001, 1001).build();
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::HostUnreachable);
    told(&ran, &frame, ROUTER, FIREWALL_MAC, (3, 1), 0);
    assert_eq!(sessions(&world), before, "nothing was changed");
    ip("route del unreachable 10.0.2.69/32");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    assert_eq!(world.run(&frame).reason, Reason::Forwarded);
    assert_eq!(world.run(&query.build()).reason, Reason::Forwarded);
}

#[test]
fn a_next_hop_that_does_not_answer_is_reported_to_the_client() {
    let mut world = rejecting();
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    ip("neigh del 10.0.2.65 dev eth0");
    let [connect, query, ping] = masqueraded();
    let frames = [syn(), connect, query, ping].map(|packet| packet.build());
    for frame in &frames {
        silent(&mut world, frame, Reason::Resolving, "the neighbour is unresolved");
    }
    let waiting: Vec<_> = std::iter::from_fn(|| next(&mut punts)).collect();
    assert_eq!(waiting.len(), frames.len());
    let neighbour = waiting[0].neighbour;
    world.dataplane.failed_neighbours.add(&neighbour, Duration::from_secs(60)).expect("the map");
    // The packets that have waited, and new ones.
    for (record, frame) in waiting.iter().zip(&frames) {
        let sent = world.replay(record).expect("an answer");
        assert_eq!(world.moved().reasons, [(Reason::HostUnreachable, 1)]);
        let ran = world.run(frame);
        assert_eq!(ran.reason, Reason::HostUnreachable);
        assert_eq!(sent.frame, ran.frame);
        if *frame == frames[0] {
            reset(&ran, frame, PLS_MAC, (0, 1001), tcp::RST | tcp::ACK);
        } else {
            told(&ran, frame, ROUTER, PLS_MAC, (3, 1), 0);
        }
    }
    assert_eq!((world.entries(), next(&mut punts)), (0, None), "nothing was opened, nothing waits");
    // A known neighbour is used in spite of the note.
    ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
    assert_eq!(world.run(&frames[0]).reason, Reason::Opened);
    // The note ends after its time, or when the daemon removes it.
    ip("neigh del 10.0.2.65 dev eth0");
    assert_eq!(world.run(&frames[1]).reason, Reason::HostUnreachable);
    world.dataplane.failed_neighbours.add(&neighbour, Duration::ZERO).expect("the map");
    assert_eq!(world.run(&frames[1]).reason, Reason::Resolving);
    world.dataplane.failed_neighbours.add(&neighbour, Duration::from_secs(60)).expect("the map");
    assert_eq!(world.run(&frames[1]).reason, Reason::HostUnreachable);
    world.dataplane.failed_neighbours.remove(&neighbour).expect("the map");
    world.dataplane.failed_neighbours.remove(&neighbour).expect("it is gone already");
    assert_eq!(world.run(&frames[1]).reason, Reason::Resolving);
}

#[test]
fn a_next_hop_that_does_not_answer_is_silent_if_so_configured() {
    let mut world = World::new();
    let mut punts = world.dataplane.take_punts().expect("ring");
    world.dataplane.settings.show_presence().expect("settings");
    ip("neigh del 10.0.2.65 dev eth0");
    silent(&mut world, &syn().build(), Reason::Resolving, "the neighbour is unresolved");
    let neighbour = next(&mut punts).expect("a packet in the ring").neighbour;
    world.dataplane.failed_neighbours.add(&neighbour, Duration::from_secs(60)).expect("the map");
    silent(&mut world, &syn().build(), Reason::NeighbourFailed, "drop");
}

fn without_targets(spec: &mut RuleSetSpec) {
    spec.reject_unreachable = true;
    for forward in &mut spec.forwards {
        forward.targets.clear();
    }
}

/// Like a port without a listener (RFC 1122 3.2.2.1, RFC 9293 3.10.7.1).
#[test]
fn a_rule_without_a_target_refuses_new_sessions() {
    let mut world = World::with(Setup { rules: without_targets, ..Setup::default() });
    let frame = syn().build();
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::Refused);
    reset(&ran, &frame, PLS_MAC, (0, 1001), tcp::RST | tcp::ACK);
    let frame = udp_packet((PLS, 5000), (ROUTER, 53), b"query").build();
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::Refused);
    told(&ran, &frame, ROUTER, PLS_MAC, (3, 3), 0);
    let to_another = tcp_packet(([10, 0, 2, 100], 40_000), (ROUTER, 443), tcp::SYN).build();
    silent(&mut world, &to_another, Reason::SourceNotAllowed, "who may not use it learns nothing");
}

#[test]
fn a_rule_without_a_target_is_silent_if_so_configured() {
    let mut world = World::with(Setup {
        rules: |spec| {
            without_targets(spec);
            spec.reject_unreachable = false;
        },
        ..Setup::default()
    });
    silent(&mut world, &syn().build(), Reason::NoTarget, "drop");
}

/// After a restart, say. RFC 9293 3.10.7.1: where the segment acknowledges something, the reset
/// begins there; else it acknowledges the segment.
#[test]
fn an_unknown_connection_of_a_masquerade_is_reset() {
    let mut world = rejecting();
    let segment = |flags| tcp_packet(CLIENT, (OTHER, 443), flags).numbers(7000, 9000);
    let with_acknowledgement = [
        segment(tcp::ACK),
        segment(tcp::ACK | tcp::PSH).payload(b"more of it"),
        segment(tcp::ACK).payload(&[7; 1400]),
        segment(tcp::FIN | tcp::ACK),
        segment(tcp::SYN | tcp::ACK),
    ];
    for packet in with_acknowledgement {
        let frame = packet.build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, Reason::SessionUnknown);
        reset(&ran, &frame, PLS_MAC, (9000, 0), tcp::RST);
    }
    for (packet, end) in [
        (segment(tcp::FIN), 7001),
        (segment(tcp::SYN | tcp::FIN).payload(b"four"), 7006),
        (segment(tcp::PSH).payload(b"data"), 7004),
    ] {
        let frame = packet.build();
        let ran = world.run(&frame);
        assert_eq!(ran.reason, Reason::SessionUnknown);
        reset(&ran, &frame, PLS_MAC, (0, end), tcp::RST | tcp::ACK);
    }
    let frame = segment(tcp::ACK).ttl(1).build();
    let ran = world.run(&frame);
    assert_eq!(ran.reason, Reason::TtlExceeded, "who traces it is told that first");
    told(&ran, &frame, ROUTER, PLS_MAC, (11, 0), 0);
    assert_eq!(world.entries(), 0);
    // Then it can connect again.
    assert_eq!(world.run(&segment(tcp::SYN).build()).reason, Reason::Opened);
}

#[test]
fn resets_and_fragments_are_not_answered_with_a_reset() {
    let mut world = rejecting();
    let passes = |world: &mut World, frame: &[u8], why: &str| {
        let ran = world.run(frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NoSession), "{why}");
        assert_eq!(ran.frame, frame, "{why}: untouched");
    };
    let segment = |flags| tcp_packet(CLIENT, (OTHER, 443), flags);
    for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::RST | tcp::SYN] {
        passes(&mut world, &segment(flags).build(), "a reset");
    }
    let mut first = segment(tcp::ACK).payload(&[7; 804]).may_be_fragmented().build();
    first[20] = 0x20;
    crate::packets::fix_ip_checksum(&mut first);
    let ran = world.run(&first);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NoSession), "a first fragment");
    passes(&mut world, &echo_reply(PLS, OTHER, 5).build(), "an echo reply");
    passes(&mut world, &data().build(), "to this machine itself: its kernel resets it");
    let from_unused = tcp_packet(([10, 0, 2, 100], 40_000), (OTHER, 443), tcp::ACK).build();
    let ran = world.run(&from_unused);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::NotMatched), "no masquerade's");
    let mut silent_world = World::new();
    passes(&mut silent_world, &segment(tcp::ACK).build(), "drop");
}

/// One rate for all answers of a kind to a source.
#[test]
fn unreachable_errors_are_rate_limited() {
    let mut world = rejecting();
    ip("route del default");
    let frame = masqueraded()[1].build();
    let start = Instant::now();
    let asked = 10 * Rate::PER_SOURCE.burst;
    let answered = (0..asked).filter(|_| world.run_uncounted(0, &frame).0 == Verdict::Tx).count() as u64;
    let most = Rate::PER_SOURCE.burst + start.elapsed().as_nanos() as u64 / Rate::PER_SOURCE.interval + 1;
    assert!((Rate::PER_SOURCE.burst..=most).contains(&answered), "{answered} of {most}");
    let wanted = [(Reason::NoRoute, asked - answered), (Reason::NetworkUnreachable, answered)];
    let counted: Vec<_> = wanted.into_iter().filter(|(_, packets)| *packets > 0).collect();
    assert_eq!(world.moved().reasons, counted);
}

/// Errors are not answered by errors, and later fragments by nothing.
#[test]
fn icmp_errors_and_later_fragments_are_not_answered() {
    let mut world = rejecting();
    let opened = world.run(&syn().build());
    ip("route add unreachable 10.0.2.69/32");
    world.dataplane.settings.invalidate_next_hops().expect("settings");
    let error = IcmpError {
        source: [192, 0, 2, 9],
        destination: ROUTER,
        ttl: 60,
        kind: (3, 1),
        rest: [0; 4],
        quote: opened.frame[14..42].to_vec(),
    };
    silent(&mut world, &error.build(), Reason::RouteUnreachable, "an ICMP error");
}
