//! What the router says itself: time exceeded, fragmentation needed, and that no port is free.

use std::time::{Duration, Instant};

use router_common::{answer::Bucket, ports::PortRange, reason::Reason};

use crate::{
    packets::{
        FIREWALL_MAC, IcmpError, OTHER, PLS, PLS_MAC, ROUTER, Spec, TARGET, echo_reply, echo_request, read,
        tcp, tcp_packet, udp_packet,
    },
    world::{Ran, Setup, Verdict, World, ip, mac, network, next},
};

const CLIENT: ([u8; 4], u16) = (PLS, 40_000);

fn syn() -> Spec {
    tcp_packet(CLIENT, (ROUTER, 443), tcp::SYN)
}

fn data() -> Spec {
    tcp_packet(CLIENT, (ROUTER, 443), tcp::ACK)
}

/// The router has told who sent `asked`, from this address and to this next hop.
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
        // As it was received.
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
fn time_to_live_ends_here_and_the_sender_is_told() {
    let mut world = World::new();
    // To the router itself by a rule, and through it; before there is a session and when there is one.
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
fn time_to_live_ends_here_on_the_way_back() {
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

/// Where the packet is for somebody else, the answer comes from the interface that it came in on.
#[test]
fn the_answer_leaves_where_the_packet_came_in() {
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
fn larger_than_the_route_and_the_sender_is_told() {
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
fn a_route_that_becomes_narrow_is_noticed_by_known_sessions() {
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

/// Not for ever: who may be fragmented is not told to send less.
#[test]
fn larger_than_the_route_and_may_be_fragmented() {
    let mut world = World::new();
    ip("route change default via 10.0.2.65 mtu lock 1000");
    let frame = udp_packet((PLS, 5000), (OTHER, 53), &[7; 1200]).may_be_fragmented().build();
    silent(&mut world, &frame, Reason::TooBig, "there is no fragmentation yet");
}

/// A router whose 16 ports towards `OTHER`'s port 53 and 443 are taken.
fn exhausted(reject: bool) -> World {
    let ports = PortRange { first: 30_000, last: 30_015 };
    let rules = |reject| -> fn(&mut _) {
        if reject {
            |spec: &mut router_user::dataplane::RuleSetSpec| spec.reject_exhausted = true
        } else {
            |_| {}
        }
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
fn no_free_port_is_told_by_icmp_for_udp_and_echo() {
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
fn no_free_port_is_told_by_a_reset_for_tcp() {
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
fn no_free_port_is_silent_if_that_is_configured() {
    let mut world = exhausted(false);
    let syn = tcp_packet((PLS, 2000), (OTHER, 443), tcp::SYN).build();
    silent(&mut world, &syn, Reason::PortsExhausted, "drop");
}

#[test]
fn some_are_never_answered() {
    let mut world = World::with(Setup {
        rules: |spec| {
            spec.masquerades[0].sources = vec![network([0; 4], 0)];
            spec.forwards[0].sources = vec![network([0; 4], 0)];
        },
        ..Setup::default()
    });
    for source in [[0, 0, 0, 1], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], ROUTER] {
        let frame = tcp_packet((source, 40_000), (OTHER, 443), tcp::SYN).ttl(1).build();
        silent(&mut world, &frame, Reason::Martian, "from nobody who could be told");
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
fn who_is_to_be_told_may_be_a_cold_neighbour() {
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

/// Has this thread stay on one CPU: each has a rate of its own.
fn stay_on_one_cpu() {
    // SAFETY: a plain set of bits, whose size is said; concerns this thread only.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).expect("a CPU"), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn answers_come_at_a_rate_and_the_others_are_silent() {
    stay_on_one_cpu();
    let mut world = World::new();
    let frame = syn().ttl(1).build();
    let start = Instant::now();
    let asked = 20 * Bucket::BURST;
    let answered = (0..asked).filter(|_| world.run_uncounted(0, &frame).0 == Verdict::Tx).count() as u64;
    let most = Bucket::BURST + start.elapsed().as_nanos() as u64 / Bucket::INTERVAL + 1;
    assert!((Bucket::BURST..=most).contains(&answered), "{answered} of {most}");
    let wanted = [(Reason::TtlExpired, asked - answered), (Reason::TtlExceeded, answered)];
    let counted: Vec<_> = wanted.into_iter().filter(|(_, packets)| *packets > 0).collect();
    assert_eq!(world.moved().reasons, counted);

    // Then there are answers again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.run_uncounted(0, &frame).0 != Verdict::Tx {
        assert!(Instant::now() < deadline, "no answer any more");
    }
}
