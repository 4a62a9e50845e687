//! Datagrams in fragments.

use std::time::Instant;

use aya::maps::{MapData, RingBuf};
use router_common::{
    fragment::{DATAGRAMS_PER_SOURCE, EARLY_RATE, split},
    maps::punt::Kind,
    reason::Reason,
};

use crate::{
    packets::{
        FIREWALL_MAC, OTHER, PLATFORM, PLS, ROUTER, STRANGER, Seen, Spec, TARGET, echo_reply, echo_request,
        read, tcp, tcp_packet, udp_packet,
    },
    world::{Ran, Setup, Verdict, World, ip, network, next},
};

const CLIENT: ([u8; 4], u16) = (PLS, 5000);
const LISTEN: ([u8; 4], u16) = (ROUTER, 53);

/// A packet in fragments, each a frame, for links that take this much; all with this
/// identification.
fn fragments(packet: &Spec, id: u16, mtu: u16) -> Vec<Vec<u8>> {
    let mut frame = packet.build();
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    // May be fragmented.
    frame[20] = 0;
    let (ethernet, ip) = frame.split_at(14);
    let pieces = split(ip, mtu).expect("a packet");
    pieces.map(|(header, data)| [ethernet, &header, data].concat()).collect()
}

fn place(frame: &[u8]) -> (usize, bool) {
    let place = u16::from_be_bytes([frame[20], frame[21]]);
    (usize::from(place & 0x1fff) * 8, place & 0x2000 != 0)
}

/// Returns the reassembled content of fragments, in any order. Panics unless they are one whole
/// packet with right checksums.
fn assemble(frames: &[Vec<u8>]) -> Seen {
    let mut frames = frames.to_vec();
    frames.sort_by_key(|frame| place(frame));
    let mut whole = frames[0][..34].to_vec();
    for (index, frame) in frames.iter().enumerate() {
        assert_eq!(place(frame), (whole.len() - 34, index + 1 < frames.len()), "offset and more fragments");
        assert_eq!(frame[14..16], whole[14..16]);
        assert_eq!(frame[18..20], whole[18..20], "identification");
        assert_eq!(frame[22..24], whole[22..24], "time to live and protocol");
        assert_eq!(frame[26..34], whole[26..34], "addresses");
        let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).expect("IPv4");
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        whole.extend_from_slice(&frame[34..]);
    }
    let length = (whole.len() - 14) as u16;
    read(&changed(&whole, |whole| {
        whole[16..18].copy_from_slice(&length.to_be_bytes());
        whole[20..22].fill(0);
    }))
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

fn query(length: usize) -> Spec {
    udp_packet(CLIENT, LISTEN, &payload(length))
}

/// Gives fragments to the router, which is to send them all: what they become.
fn forwarded(world: &mut World, frames: &[Vec<u8>], first: Reason) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (index, frame) in frames.iter().enumerate() {
        let ran = world.run(frame);
        let reason = if index == 0 { first } else { Reason::Forwarded };
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, reason), "fragment {index}");
        out.push(ran.frame);
    }
    out
}

fn is(ran: &Ran, verdict: Verdict, reason: Reason) {
    assert_eq!((ran.verdict, ran.reason), (verdict, reason));
}

/// A world with a daemon, whose part the test plays.
fn with_daemon() -> (World, RingBuf<MapData>) {
    let mut world = World::new();
    world.dataplane.settings.show_presence().expect("settings");
    let ring = world.dataplane.take_punts().expect("ring");
    (world, ring)
}

#[test]
fn udp_in_order_both_ways() {
    let mut world = World::new();
    for length in [1473, 5000, 65_507] {
        let first = if length == 1473 { Reason::Opened } else { Reason::Forwarded };
        let out = forwarded(&mut world, &fragments(&query(length), length as u16, 1500), first);
        let seen = assemble(&out);
        assert_eq!((seen.source, seen.destination, seen.ttl), ((ROUTER, 5000), (TARGET, 53), 63));
        assert!(seen.payload == payload(length));
        let reply = udp_packet((TARGET, 53), (ROUTER, 5000), &payload(length));
        let seen =
            assemble(&forwarded(&mut world, &fragments(&reply, length as u16, 1500), Reason::Forwarded));
        assert_eq!((seen.source, seen.destination, seen.ttl), (LISTEN, CLIENT, 63));
        assert!(seen.payload == payload(length));
    }
    assert_eq!(world.sessions(), 1);
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut world = World::new();
    let out = forwarded(&mut world, &fragments(&query(3000).without_checksum(), 1, 1500), Reason::Opened);
    assert_eq!(out[0][40..42], [0, 0]);
    assert!(assemble(&out).payload == payload(3000));
}

#[test]
fn tcp_and_echo() {
    let mut world = World::new();
    let (client, listen) = ((PLS, 40_000), (ROUTER, 443));
    is(&world.run(&tcp_packet(client, listen, tcp::SYN).build()), Verdict::Tx, Reason::Opened);
    let data = tcp_packet(client, listen, tcp::ACK).payload(&payload(2000));
    let seen = assemble(&forwarded(&mut world, &fragments(&data, 1, 576), Reason::Forwarded));
    assert_eq!((seen.source, seen.destination), ((ROUTER, 40_000), (TARGET, 8443)));
    assert!(seen.payload == payload(2000));

    let request = echo_request(PLS, OTHER, 5077).payload(&payload(4000));
    let seen = assemble(&forwarded(&mut world, &fragments(&request, 2, 1500), Reason::Opened));
    assert_eq!((seen.source, seen.destination), ((ROUTER, 5077), (OTHER, 0)));
    let reply = echo_reply(OTHER, ROUTER, 5077).payload(&payload(4000));
    let seen = assemble(&forwarded(&mut world, &fragments(&reply, 2, 1500), Reason::Forwarded));
    assert_eq!((seen.source, seen.destination), ((OTHER, 0), (PLS, 5077)));
    assert!(seen.payload == payload(4000));
}

/// A rule whose target is on the clients' side.
#[test]
fn a_target_on_the_clients_side_gets_fragments() {
    let mut world = World::with(Setup {
        rules: |spec| spec.forwards[1].targets = vec![(STRANGER.into(), None)],
        ..Setup::default()
    });
    let seen = assemble(&forwarded(&mut world, &fragments(&query(5000), 1, 1500), Reason::Opened));
    assert_eq!((seen.source, seen.destination), ((ROUTER, 5000), (STRANGER, 53)));
    assert!(seen.payload == payload(5000));
    let reply = udp_packet((STRANGER, 53), (ROUTER, 5000), &payload(4000));
    let seen = assemble(&forwarded(&mut world, &fragments(&reply, 1, 1500), Reason::Forwarded));
    assert_eq!((seen.source, seen.destination), (LISTEN, CLIENT));
    assert!(seen.payload == payload(4000));
}

#[test]
fn rule_and_session_count_each_fragment() {
    let mut world = World::new();
    let frames = fragments(&query(5000), 1, 1500);
    forwarded(&mut world, &frames, Reason::Opened);
    let bytes: usize = frames.iter().map(Vec::len).sum();
    let number = world.dataplane.rules.number("dns").expect("a rule");
    let rule = world.dataplane.counters.read().expect("counters").rule(number);
    assert_eq!((rule.forward.packets, rule.forward.bytes), (frames.len() as u64, bytes as u64));
    let mut entries = Vec::new();
    world.dataplane.flows.for_each(|session| {
        entries.push((session.forward.entry.packets, session.forward.entry.bytes));
        true
    });
    assert_eq!(entries, [(frames.len() as u64, bytes as u64)]);
}

/// The daemon holds early fragments, is told when the first one has come, and gives them to the
/// program again.
#[test]
fn early_fragments_go_through_the_daemon() {
    let (mut world, mut ring) = with_daemon();
    // A packet to this machine's address passes to the kernel, too, if its source may reach it; a
    // masqueraded one is for no host here.
    let to = |source, destination| udp_packet(source, destination, &payload(5000));
    let own = (Verdict::Pass, Reason::Fragment);
    let others = (Verdict::Drop, Reason::FragmentEarly);
    for (packet, (verdict, reason), first_reason, source, destination) in [
        (to(CLIENT, LISTEN), others, Reason::Opened, (ROUTER, 5000), (TARGET, 53)),
        (to((TARGET, 53), (ROUTER, 5000)), own, Reason::Forwarded, LISTEN, CLIENT),
        (to(CLIENT, (OTHER, 99)), others, Reason::Opened, (ROUTER, 5000), (OTHER, 99)),
    ] {
        let mut frames = fragments(&packet, 9, 1500);
        let first = frames.remove(0);
        let mut held = Vec::new();
        for frame in frames.iter().rev() {
            let ran = world.run(frame);
            is(&ran, verdict, reason);
            assert_eq!(&ran.frame, frame, "untouched");
            let record = next(&mut ring).expect("a copy in the ring");
            assert_eq!((record.kind, &record.packet[..]), (Kind::EarlyFragment, &frame[14..]));
            held.push(record);
        }
        let ran = world.run(&first);
        is(&ran, Verdict::Tx, first_reason);
        let notice = next(&mut ring).expect("a notice");
        assert_eq!((notice.kind, &notice.packet[..]), (Kind::FirstFragment, &first[14..34]));
        assert!(next(&mut ring).is_none());

        let mut out = vec![ran.frame];
        for record in held {
            let sent = world.replay(&record).expect("to be sent");
            assert_eq!((sent.interface, &sent.frame[..14]), (world.interface(0), &out[0][..14]));
            out.push(sent.frame);
            let moved = world.moved();
            assert_eq!((&moved.reasons[..], moved.transmitted), (&[(Reason::Forwarded, 1)][..], [1, 0]));
        }
        let seen = assemble(&out);
        assert_eq!((seen.source, seen.destination), (source, destination));
        assert!(seen.payload == payload(5000));

        // The datagram is complete: its identification is free again, and no fragment waits.
        is(&world.run(&first), Verdict::Tx, Reason::Forwarded);
        assert!(next(&mut ring).is_none());
    }
}

/// The first has come, but the daemon has not looked yet: what comes meanwhile goes straight on.
#[test]
fn fragments_after_the_first_do_not_wait_for_early_ones() {
    let (mut world, mut ring) = with_daemon();
    let frames = fragments(&query(5000), 9, 1500);
    world.run(&frames[2]);
    world.run(&frames[0]);
    is(&world.run(&frames[1]), Verdict::Tx, Reason::Forwarded);
    is(&world.run(&frames[3]), Verdict::Tx, Reason::Forwarded);
    let kinds: Vec<_> = std::iter::from_fn(|| next(&mut ring)).map(|record| record.kind).collect();
    assert_eq!(kinds, [Kind::EarlyFragment, Kind::FirstFragment]);
}

#[test]
fn without_a_daemon_early_fragments_are_dropped() {
    let mut world = World::new();
    let frames = fragments(&query(3000), 9, 1500);
    is(&world.run(&frames[1]), Verdict::Drop, Reason::FragmentEarly);
    let frames = fragments(&udp_packet((STRANGER, 5000), LISTEN, &payload(3000)), 9, 1500);
    is(&world.run(&frames[1]), Verdict::Pass, Reason::Fragment);
    let frames = fragments(&udp_packet(CLIENT, (OTHER, 99), &payload(3000)), 9, 1500);
    is(&world.run(&frames[1]), Verdict::Drop, Reason::FragmentEarly);
    assert!(next(&mut world.dataplane.take_punts().expect("ring")).is_none());
}

/// A frame with another IP header, whose checksum is right again.
fn changed(frame: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame);
    let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).expect("IPv4").to_header();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

/// Changes where a fragment says that it is.
fn moved(frame: &[u8], offset: usize, more: bool) -> Vec<u8> {
    let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    changed(frame, |frame| frame[20..22].copy_from_slice(&place.to_be_bytes()))
}

#[test]
fn overlaps_are_dropped() {
    let (mut world, mut ring) = with_daemon();
    let frames = fragments(&query(5000), 9, 1500);
    is(&world.run(&frames[0]), Verdict::Tx, Reason::Opened);
    is(&world.run(&frames[1]), Verdict::Tx, Reason::Forwarded);
    let bad = [
        // Twice the same; another first; from within the first into the second; into what has come;
        // beyond the end.
        frames[0].clone(),
        frames[1].clone(),
        moved(&frames[1], 0, true),
        moved(&frames[1], 8, true),
        moved(&frames[2], 2952, true),
    ];
    for (index, frame) in bad.iter().enumerate() {
        let ran = world.run(frame);
        is(&ran, Verdict::Drop, Reason::FragmentBad);
        assert_eq!(&ran.frame, frame, "{index}: untouched");
    }
    let last = &frames[frames.len() - 1];
    is(&world.run(last), Verdict::Tx, Reason::Forwarded);
    is(&world.run(&moved(&frames[2], 8000, true)), Verdict::Drop, Reason::FragmentBad);
    assert!(next(&mut ring).is_none(), "nothing bad is held");
}

#[test]
fn malformed_fragments_are_dropped() {
    let (mut world, mut ring) = with_daemon();
    let frame = &fragments(&query(3000), 9, 1500)[1];
    let of_length = |frame: &[u8], length: u16| {
        changed(frame, |frame| {
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame.truncate(14 + usize::from(length));
        })
    };
    let segment = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN).payload(&payload(100));
    let [tiny, rest, ..] = &fragments(&segment, 9, 36)[..] else { panic!("two fragments") };
    for (what, frame) in [
        ("longer than any packet", moved(frame, 65_528, false)),
        ("no whole units, and not the last", of_length(&moved(frame, 800, true), 27)),
        ("nothing", of_length(&moved(frame, 800, false), 20)),
        ("16 bytes of a TCP header", tiny.clone()),
        ("the rest of a TCP header", rest.clone()),
        ("over the flags of a TCP header", moved(rest, 8, true)),
    ] {
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::FragmentBad), "{what}");
        assert_eq!(ran.frame, frame, "{what}: untouched");
    }
    assert!(next(&mut ring).is_none());
    assert_eq!(world.entries(), 0);
}

#[test]
fn a_reused_identification_belongs_to_the_new_datagram() {
    let mut world = World::new();
    let one = fragments(&query(3000), 9, 1500);
    forwarded(&mut world, &one, Reason::Opened);
    // Of another session: it must not be taken for the one before.
    let other = udp_packet((PLS, 5001), LISTEN, &payload(2000));
    let out = forwarded(&mut world, &fragments(&other, 9, 1500), Reason::Opened);
    assert_eq!(assemble(&out).source, (ROUTER, 5001));
}

/// The later fragments get the first one's reason.
#[test]
fn later_fragments_get_the_verdict_of_the_first() {
    let (mut world, mut ring) = with_daemon();
    let mut id = 0;
    for (packet, verdict, reason) in [
        (udp_packet((STRANGER, 1), (ROUTER, 443), &payload(5000)), Verdict::Pass, Reason::NotMatched),
        (udp_packet(CLIENT, (ROUTER, 443), &payload(5000)), Verdict::Drop, Reason::LocalDenied),
        (
            tcp_packet(CLIENT, (ROUTER, 443), tcp::ACK).payload(&payload(5000)),
            Verdict::Pass,
            Reason::NoSession,
        ),
        (udp_packet((STRANGER, 1), LISTEN, &payload(5000)), Verdict::Drop, Reason::SourceNotAllowed),
    ] {
        id += 1;
        for frame in fragments(&packet, id, 1500) {
            let ran = world.run(&frame);
            is(&ran, verdict, reason);
            assert_eq!(ran.frame, frame, "untouched");
        }
    }
    assert_eq!(world.entries(), 0);
    assert!(next(&mut ring).is_none());
}

#[test]
fn fragments_that_are_never_translated_pass_one_by_one() {
    let (mut world, mut ring) = with_daemon();
    let strangers = fragments(&udp_packet((STRANGER, 1), LISTEN, &payload(5000)), 9, 1500);
    let gre: Vec<_> = strangers.iter().map(|frame| changed(frame, |frame| frame[23] = 47)).collect();
    let mut error = fragments(&echo_request(PLS, ROUTER, 7).payload(&payload(2000)), 9, 1500);
    error[0][34] = 3;
    for (frames, reason) in [
        (fragments(&udp_packet((PLATFORM, 53), (ROUTER, 53), &payload(5000)), 9, 1500), Reason::Platform),
        (gre[..1].to_vec(), Reason::UnsupportedProtocol),
        (gre[1..].to_vec(), Reason::Fragment),
        (error[..1].to_vec(), Reason::IcmpOther),
    ] {
        // Latest first: it takes no other to know.
        for frame in frames.iter().rev() {
            let ran = world.run(frame);
            is(&ran, Verdict::Pass, reason);
            assert_eq!(&ran.frame, frame, "untouched");
        }
    }
    assert!(next(&mut ring).is_none());
    assert_eq!(world.entries(), 0);
}

/// The oldest are forgotten, the latest are not, and the first fragments of all of them are sent.
#[test]
fn the_oldest_datagrams_are_forgotten_first() {
    let mut world = World::new();
    let frames = fragments(&query(1473), 0, 1500);
    let with_id =
        |frame: &[u8], id: u16| changed(frame, |frame| frame[18..20].copy_from_slice(&id.to_be_bytes()));
    for id in 0..10_000 {
        let reason = if id == 0 { Reason::Opened } else { Reason::Forwarded };
        is(&world.run(&with_id(&frames[0], id)), Verdict::Tx, reason);
    }
    is(&world.run(&with_id(&frames[1], 9_999)), Verdict::Tx, Reason::Forwarded);
    is(&world.run(&with_id(&frames[1], 0)), Verdict::Drop, Reason::FragmentEarly);
}

#[test]
fn an_expired_ttl_drops_each_fragment() {
    let mut world = World::new();
    let frames = fragments(&query(3000), 9, 1500);
    is(&world.run(&frames[0]), Verdict::Tx, Reason::Opened);
    is(&world.run(&changed(&frames[1], |frame| frame[22] = 1)), Verdict::Drop, Reason::TtlExpired);
}

/// The link to the firewall takes 1400 bytes.
fn narrow() {
    ip("route replace default via 10.0.2.65 mtu lock 1400");
}

#[test]
fn fragments_above_the_mtu_are_punted() {
    let (mut world, mut ring) = with_daemon();
    narrow();
    // A whole packet, that opens and that is known; then one that comes in fragments.
    for (id, length, first) in
        [(0, 1472, Reason::Opened), (1, 1472, Reason::Forwarded), (2, 3000, Reason::Forwarded)]
    {
        for frame in fragments(&query(length), id, 1500) {
            let ran = world.run(&frame);
            if frame.len() <= 1414 {
                is(&ran, Verdict::Tx, first);
                continue;
            }
            is(&ran, Verdict::Drop, Reason::Fragmenting);
            let record = next(&mut ring).expect("a packet in the ring");
            assert_eq!((record.kind, record.mtu), (Kind::Split, 1400));
            assert_eq!((record.interface, record.mac), (world.interface(0), FIREWALL_MAC));
            assert_eq!(record.packet.len(), frame.len() - 14);
            assert_eq!(record.packet[12..20], [ROUTER, TARGET].concat(), "translated");
        }
    }
    assert_eq!(world.sessions(), 1);
    // Fragments that fit take the fast path.
    is(&world.run(&query(1372).build()), Verdict::Tx, Reason::Forwarded);
}

#[test]
fn fragments_above_the_mtu_are_dropped_with_df_or_without_a_daemon() {
    let (mut world, mut ring) = with_daemon();
    narrow();
    let frames = fragments(&query(3000), 9, 1500);
    world.run(&frames[0]);
    assert_eq!(next(&mut ring).map(|record| record.kind), Some(Kind::Split));
    let dont_fragment = |frame: &[u8]| changed(frame, |frame| frame[20] |= 0x40);
    is(&world.run(&dont_fragment(&frames[1])), Verdict::Drop, Reason::TooBig);
    let whole = &fragments(&query(1472), 10, 1500)[0];
    is(&world.run(&dont_fragment(whole)), Verdict::Tx, Reason::FragmentationNeeded);

    let mut world = World::new();
    narrow();
    let ran = world.run(whole);
    is(&ran, Verdict::Drop, Reason::TooBig);
    assert_eq!(&ran.frame, whole, "untouched");
    assert_eq!(world.entries(), 0, "nothing is opened that cannot leave");
    assert!(next(&mut ring).is_none());
}

#[test]
fn fragments_wait_for_an_unresolved_neighbour() {
    let (mut world, mut ring) = with_daemon();
    ip("neigh del 10.0.2.65 dev eth0");
    // Of a datagram that opens a session, and of one of a session that is there.
    for (id, opens) in [(9, true), (10, false)] {
        let frames = fragments(&query(3000), id, 1500);
        let mut waiting = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            // The session of the later ones is not known before the first has left.
            let reason = if index == 0 { Reason::Resolving } else { Reason::FragmentEarly };
            is(&world.run(frame), Verdict::Drop, reason);
            let record = next(&mut ring).expect("a packet in the ring");
            let kind = if index == 0 { Kind::Wait } else { Kind::EarlyFragment };
            assert_eq!((record.kind, &record.packet[..]), (kind, &frame[14..]));
            waiting.push(record);
        }
        ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
        let mut out = vec![world.replay(&waiting[0]).expect("to be sent").frame];
        let first = if opens { Reason::Opened } else { Reason::Forwarded };
        assert_eq!(world.moved().reasons, [(first, 1)]);
        assert_eq!(next(&mut ring).map(|record| record.kind), Some(Kind::FirstFragment));
        // One that comes while the neighbour has gone again waits, and is entered once.
        ip("neigh del 10.0.2.65 dev eth0");
        world.dataplane.settings.invalidate_next_hops().expect("settings");
        assert_eq!(world.replay(&waiting[1]), None);
        assert_eq!(world.moved().reasons, [(Reason::Resolving, 1)]);
        assert_eq!(next(&mut ring).map(|record| record.kind), Some(Kind::Wait));
        ip("neigh replace 10.0.2.65 lladdr 02:00:00:00:00:65 dev eth0 nud reachable");
        for record in &waiting[1..] {
            out.push(world.replay(record).expect("to be sent").frame);
        }
        let seen = assemble(&out);
        assert_eq!((seen.source, seen.destination), ((ROUTER, 5000), (TARGET, 53)));
        world.moved();
        ip("neigh del 10.0.2.65 dev eth0");
        world.dataplane.settings.invalidate_next_hops().expect("settings");
    }
}

/// A router that every host of the link may use, with a daemon, whose part the test plays.
fn shared() -> (World, RingBuf<MapData>) {
    let mut world = World::with(Setup {
        rules: |spec| {
            let link = vec![network([10, 0, 2, 64], 26)];
            spec.forwards[1].sources.clone_from(&link);
            spec.masquerades[0].sources = link;
        },
        ..Setup::default()
    });
    world.dataplane.settings.show_presence().expect("settings");
    let ring = world.dataplane.take_punts().expect("ring");
    (world, ring)
}

fn with_id(frame: &[u8], id: u16) -> Vec<u8> {
    changed(frame, |frame| frame[18..20].copy_from_slice(&id.to_be_bytes()))
}

fn with_source(frame: &[u8], host: u8) -> Vec<u8> {
    changed(frame, |frame| frame[29] = host)
}

fn kinds(ring: &mut RingBuf<MapData>) -> Vec<Kind> {
    std::iter::from_fn(|| next(ring)).map(|record| record.kind).collect()
}

/// The ring is not read: half of it stays free of packets that anyone can send.
#[test]
fn early_fragments_leave_room_in_the_ring() {
    let (mut world, mut ring) = shared();
    let frames = fragments(&udp_packet(CLIENT, (OTHER, 99), &payload(1473)), 0, 1500);
    for id in 0..1000_u16 {
        let early = with_source(&with_id(&frames[1], id), 70 + (id % 40) as u8);
        is(&world.run(&early), Verdict::Drop, Reason::FragmentEarly);
    }
    ip("neigh del 10.0.2.65 dev eth0");
    for _ in 0..100 {
        is(&world.run(&query(10).build()), Verdict::Drop, Reason::Resolving);
    }
    let kinds = kinds(&mut ring);
    let held = kinds.iter().filter(|kind| **kind == Kind::EarlyFragment).count();
    assert!((100..=150).contains(&held), "{held} of 1000 are held");
    assert_eq!(kinds.len() - held, 100);
}

/// No more than a source's share of a flood is held, and others' fragments still are.
#[test]
fn a_flood_of_early_fragments_leaves_room_for_other_sources() {
    const FLOOD: u16 = 5000;
    let (mut world, mut ring) = shared();
    let frames = fragments(&udp_packet(CLIENT, (OTHER, 99), &payload(1473)), 0, 1500);
    let start = Instant::now();
    let mut held = 0;
    for id in 0..FLOOD {
        world.run_quietly(&with_id(&frames[1], id));
        // It is read meanwhile, but not before there is a share of it.
        if u64::from(id) > EARLY_RATE.burst {
            held += kinds(&mut ring).len() as u64;
        }
    }
    let most = EARLY_RATE.burst + start.elapsed().as_nanos() as u64 / EARLY_RATE.interval + 1;
    assert!((EARLY_RATE.burst..=most).contains(&held), "{held} of {most}");
    world.moved();
    for host in 71..=90 {
        is(&world.run(&with_source(&frames[1], host)), Verdict::Drop, Reason::FragmentEarly);
        assert_eq!(kinds(&mut ring), [Kind::EarlyFragment], "{host}");
    }
}

/// Fragments that are held of one source do not have the daemon forget another's.
#[test]
fn early_fragments_of_one_source_do_not_displace_anothers() {
    let (mut world, mut ring) = shared();
    let frames = fragments(&udp_packet(CLIENT, (OTHER, 99), &payload(1473)), 0, 1500);
    let other = |frame: &[u8]| with_source(&with_id(frame, 7), 71);
    world.run(&other(&frames[1]));
    // More of one source than there is room for in all, each as soon as it may be held.
    let mut held = kinds(&mut ring).len() - 1;
    let mut id = 0;
    while held < 2 * DATAGRAMS_PER_SOURCE as usize {
        world.run_quietly(&with_id(&frames[1], id));
        if kinds(&mut ring) == [Kind::EarlyFragment] {
            held += 1;
            id += 1;
        }
    }
    world.moved();
    is(&world.run(&with_id(&frames[0], id - 1)), Verdict::Tx, Reason::Opened);
    assert_eq!(kinds(&mut ring), [Kind::FirstFragment], "its last");
    is(&world.run(&with_id(&frames[0], 0)), Verdict::Tx, Reason::Forwarded);
    assert_eq!(kinds(&mut ring), [], "its oldest is forgotten");
    is(&world.run(&other(&frames[0])), Verdict::Tx, Reason::Opened);
    assert_eq!(kinds(&mut ring), [Kind::FirstFragment], "another's is not");
}

/// First fragments, of sessions and of others, do not displace another source's datagram.
#[test]
fn a_flood_of_first_fragments_displaces_only_its_own() {
    const FLOOD: u16 = 5000;
    let (mut world, _ring) = shared();
    let frames = fragments(&query(1473), 0, 1500);
    let other = fragments(&udp_packet(([10, 0, 2, 71], 5000), LISTEN, &payload(1473)), 0, 1500);
    let unmatched = fragments(&udp_packet(([10, 0, 2, 72], 1), (ROUTER, 443), &payload(1473)), 0, 1500);
    is(&world.run(&other[0]), Verdict::Tx, Reason::Opened);
    for id in 0..FLOOD {
        for flood in [&unmatched, &frames] {
            world.run_quietly(&with_id(&flood[0], id));
        }
    }
    world.moved();
    is(&world.run(&with_id(&frames[1], FLOOD - 1)), Verdict::Tx, Reason::Forwarded);
    is(
        &world.run(&with_id(&frames[1], FLOOD - 1 - DATAGRAMS_PER_SOURCE as u16)),
        Verdict::Drop,
        Reason::FragmentEarly,
    );
    is(&world.run(&other[1]), Verdict::Tx, Reason::Forwarded);
}

/// Complete datagrams are forgotten before incomplete ones.
#[test]
fn complete_datagrams_are_forgotten_before_incomplete_ones() {
    let mut world = World::new();
    let frames = fragments(&query(1473), 0, 1500);
    let slow: Vec<u16> = (0..4).collect();
    for id in &slow {
        let reason = if *id == 0 { Reason::Opened } else { Reason::Forwarded };
        is(&world.run(&with_id(&frames[0], *id)), Verdict::Tx, reason);
    }
    for id in 1000..1000 + 4 * DATAGRAMS_PER_SOURCE as u16 {
        for frame in &frames {
            is(&world.run(&with_id(frame, id)), Verdict::Tx, Reason::Forwarded);
        }
    }
    for id in &slow {
        is(&world.run(&with_id(&frames[1], *id)), Verdict::Tx, Reason::Forwarded);
    }
}

/// Early fragments of sources without any rule or session take no room from others.
#[test]
fn early_fragments_of_strangers_are_not_held() {
    let (mut world, mut ring) = with_daemon();
    let to_router =
        |source| fragments(&udp_packet(source, (ROUTER, 5000), &payload(3000)), 9, 1500).remove(1);
    for frame in [to_router((STRANGER, 1)), to_router((TARGET, 53))] {
        is(&world.run(&frame), Verdict::Pass, Reason::Fragment);
        assert!(next(&mut ring).is_none(), "no session");
    }
    is(&world.run(&query(10).build()), Verdict::Tx, Reason::Opened);
    is(&world.run(&to_router((STRANGER, 1))), Verdict::Pass, Reason::Fragment);
    assert!(next(&mut ring).is_none(), "another's session");
    is(&world.run(&to_router((TARGET, 53))), Verdict::Pass, Reason::Fragment);
    assert_eq!(next(&mut ring).map(|record| record.kind), Some(Kind::EarlyFragment), "the session's target");
    let elsewhere = fragments(&udp_packet((TARGET, 53), (OTHER, 5000), &payload(3000)), 9, 1500).remove(1);
    world.run(&elsewhere);
    assert!(next(&mut ring).is_none(), "to another machine");
}

/// The sweep keeps in mind the targets of sessions, for as long as there is one.
#[test]
fn early_fragments_of_an_old_sessions_replies_are_held() {
    let (mut world, mut ring) = with_daemon();
    is(&world.run(&query(10).build()), Verdict::Tx, Reason::Opened);
    let early = fragments(&udp_packet((TARGET, 53), (ROUTER, 5000), &payload(3000)), 9, 1500).remove(1);
    world.dataplane.flows.forget_peers();
    is(&world.run(&early), Verdict::Pass, Reason::Fragment);
    assert!(next(&mut ring).is_none());
    world.dataplane.flows.sweep(1, 0, |_| router_user::dataplane::Verdict::Keep).expect("a sweep");
    is(&world.run(&early), Verdict::Pass, Reason::Fragment);
    assert_eq!(next(&mut ring).map(|record| record.kind), Some(Kind::EarlyFragment));
}

/// The first fragment of the first answer ends here, and its later ones do not: the next answer
/// still counts as the first.
#[test]
fn a_reply_whose_first_fragment_is_dropped_does_not_count() {
    let mut world = World::new();
    is(&world.run(&udp_packet(CLIENT, LISTEN, b"x").build()), Verdict::Tx, Reason::Opened);
    let reply = udp_packet((TARGET, 53), (ROUTER, 5000), &payload(3000));
    let mut frames = fragments(&reply, 7, 1500);
    frames[0] = changed(&frames[0], |frame| frame[22] = 1);
    for frame in &frames {
        world.run(frame);
    }
    is(&world.run(&udp_packet((TARGET, 53), (ROUTER, 5000), b"y").build()), Verdict::Tx, Reason::Forwarded);
    let mut opening = Vec::new();
    world.dataplane.flows.for_each(|session| {
        opening.push(session.forward.is_opening());
        true
    });
    assert_eq!(opening, [false]);
}
