//! Frames that are no untagged IPv4: an encapsulated packet reaches no more than a plain one.

use router_common::reason::Reason;

use crate::{
    packets::{
        PLATFORM, PLS, ROUTER, ROUTER_SECOND, STRANGER, TARGET, echo_request, fix_ip_checksum, read, tcp,
        tcp_packet, udp_packet,
    },
    world::{Setup, Verdict, World},
};

/// The frame with these 16-bit numbers in front of its EtherType: tags, each an EtherType and what
/// it says.
fn tagged(frame: &[u8], words: &[u16]) -> Vec<u8> {
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&frame[..12], &words, &frame[12..]].concat()
}

/// The frame's packet after these 16-bit numbers instead of its EtherType.
fn wrapped(frame: &[u8], words: &[u16]) -> Vec<u8> {
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&frame[..12], &words, &frame[14..]].concat()
}

#[track_caller]
fn ends(world: &mut World, frame: &[u8], expected: (Verdict, Reason)) {
    let ran = world.run(frame);
    assert_eq!((ran.verdict, ran.reason), expected);
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

const DENIED: (Verdict, Reason) = (Verdict::Drop, Reason::EthernetDenied);
const PASSED: (Verdict, Reason) = (Verdict::Pass, Reason::NotIpv4);

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Tags that name no VLAN, of any priority.
const PRIORITY_TAGS: [&[u16]; 5] = [
    &[VLAN, 0],
    &[VLAN, 0xa000],
    &[SERVICE_VLAN, 0x1000],
    &[VLAN, 0xf000, VLAN, 0],
    &[SERVICE_VLAN, 0, VLAN, 0xe000],
];

#[test]
fn a_priority_tag_comes_off_and_changes_nothing() {
    let world = &mut World::new();
    for tags in PRIORITY_TAGS {
        for (frame, verdict, reason) in [
            (tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build(), Verdict::Drop, Reason::LocalDenied),
            (tcp_packet((PLS, 40_000), (ROUTER, 8082), tcp::SYN).build(), Verdict::Pass, Reason::NotMatched),
            (
                tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build(),
                Verdict::Pass,
                Reason::NotMatched,
            ),
            (
                tcp_packet((STRANGER, 40_000), (ROUTER, 443), tcp::SYN).build(),
                Verdict::Drop,
                Reason::SourceNotAllowed,
            ),
            (
                tcp_packet(([127, 0, 0, 1], 40_000), (ROUTER, 22), tcp::SYN).build(),
                Verdict::Drop,
                Reason::Martian,
            ),
            (tcp_packet((ROUTER, 40_000), (ROUTER, 22), tcp::SYN).build(), Verdict::Drop, Reason::Martian),
            (tcp_packet((PLATFORM, 40_000), (ROUTER, 22), tcp::SYN).build(), Verdict::Pass, Reason::Platform),
            (echo_request(PLS, ROUTER, 7).build(), Verdict::Drop, Reason::LocalDenied),
            (
                udp_packet((PLS, 5000), (ROUTER, 161), b"x").unpadded().build(),
                Verdict::Drop,
                Reason::LocalDenied,
            ),
        ] {
            let ran = world.run(&tagged(&frame, tags));
            assert_eq!((ran.verdict, ran.reason), (verdict, reason), "{tags:04x?}");
            assert_eq!(ran.frame, frame, "without the tags, and nothing else is changed");
            assert_eq!(world.entries(), 0);
        }
    }
}

#[test]
fn a_priority_tag_does_not_make_another_session() {
    let world = &mut World::new();
    for (number, tags) in (0..).zip(PRIORITY_TAGS) {
        let port = 40_000 + number;
        let opened = world.run(&tagged(&tcp_packet((PLS, port), (ROUTER, 443), tcp::SYN).build(), tags));
        assert_eq!((opened.verdict, opened.reason), (Verdict::Tx, Reason::Opened));
        let seen = read(&opened.frame);
        assert_eq!(seen.destination, (TARGET, 8443));
        let answer = tcp_packet((TARGET, 8443), seen.source, tcp::SYN | tcp::ACK).build();
        let answered = world.run(&tagged(&answer, tags));
        assert_eq!((answered.verdict, answered.reason), (Verdict::Tx, Reason::Forwarded));
        assert_eq!(read(&answered.frame).destination, (PLS, port));
        let more = tcp_packet((PLS, port), (ROUTER, 443), tcp::ACK).payload(b"with and without").build();
        let [with, without] = [tagged(&more, tags), more].map(|frame| world.run(&frame));
        assert_eq!((with.verdict, with.reason), (Verdict::Tx, Reason::Forwarded));
        assert_eq!(with.frame, without.frame);
    }
    assert_eq!(world.sessions(), PRIORITY_TAGS.len());
}

#[test]
fn a_closed_out_source_is_dropped_in_a_vlan() {
    let world = &mut World::new();
    let from = |source| tcp_packet((source, 40_000), (ROUTER, 22), tcp::SYN).build();
    for tags in [
        &[VLAN, 5][..],
        &[SERVICE_VLAN, 0xe005],
        &[SERVICE_VLAN, 5, VLAN, 0],
        &[SERVICE_VLAN, 5, VLAN, 6],
        &[VLAN, 5, VLAN, 0, VLAN, 0],
    ] {
        ends(world, &tagged(&from(PLS), tags), DENIED);
        // The machine's own VLAN device goes on working for others.
        ends(world, &tagged(&from(STRANGER), tags), PASSED);
        for martian in [[127, 0, 0, 1], [0; 4], ROUTER, [224, 0, 0, 1]] {
            ends(world, &tagged(&from(martian), tags), (Verdict::Drop, Reason::Martian));
        }
    }
    // By way of a priority tag.
    let ran = world.run(&tagged(&from(PLS), &[VLAN, 0, VLAN, 5]));
    assert_eq!((ran.verdict, ran.reason), DENIED);
    world.set_rules(|spec| spec.local.others_are_closed = true);
    ends(world, &tagged(&from(STRANGER), &[VLAN, 5]), DENIED);
}

#[test]
fn too_many_and_truncated_tags_are_dropped() {
    let world = &mut World::new();
    let frame = tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build();
    for tags in [[VLAN, 5].repeat(4), [VLAN, 0].repeat(4), [VLAN, 0].repeat(40)] {
        let ran = world.run(&tagged(&frame, &tags));
        assert_eq!((ran.verdict, ran.reason), DENIED, "{} tags", tags.len() / 2);
    }
    let whole = tagged(&frame, &[VLAN, 5, VLAN, 6]);
    for length in 14..14 + 4 + 4 + 20 {
        ends(world, &whole[..length], DENIED);
    }
    // A priority tag comes off, and nothing is left of what it is for.
    let whole = tagged(&frame, &[VLAN, 0]);
    for length in 14..18 {
        ends(world, &whole[..length], DENIED);
    }
    for length in 18..18 + 20 {
        let ran = world.run(&whole[..length]);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, Reason::Truncated), "{length}");
    }
}

/// Encapsulations that Linux or a module could unwrap.
fn wrappings() -> Vec<Vec<u8>> {
    let frame = tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build();
    let length = (frame.len() - 14) as u16;
    [
        // LLC and SNAP, NetWare, and Ethernet in SNAP.
        &[length + 8, 0xaaaa, 0x0300, 0, 0x0800][..],
        &[length + 3, 0x0606, 0x0345],
        &[length, 0xffff],
        &[0x05ff, 0xaaaa, 0x0300, 0x00f8, 0x0800],
        // MPLS, PPPoE, MACsec, BATMAN, TIPC, QinQ by older numbers, NSH, Ethernet in Ethernet.
        &[0x8847, 0, 0x1ff],
        &[0x8848, 0, 0x1ff],
        &[0x8863, 0x1100, 0, length],
        &[0x8864, 0x1100, 1, length + 2, 0x0021],
        &[0x88e5, 0, 0, 1],
        &[0x4305],
        &[0x88ca],
        &[0x9100, 0, 0x0800],
        &[0x894f],
        &[0x6558],
        &[0x0801],
        &[0xffff],
    ]
    .iter()
    .map(|words| wrapped(&frame, words))
    .collect()
}

#[test]
fn ethertypes_that_carry_ip_are_dropped_on_the_clients_side() {
    let world = &mut World::new();
    for frame in wrappings() {
        ends(world, &frame, DENIED);
        ends(world, &tagged(&frame, &[VLAN, 5]), DENIED);
    }
    let two = &mut World::with(Setup { nics: 2, snat: vec![ROUTER_SECOND], ..Setup::default() });
    for (others_are_closed, expected) in [(false, PASSED), (true, DENIED)] {
        two.set_rules(|spec| spec.local.others_are_closed = others_are_closed);
        for frame in wrappings() {
            for (slot, expected) in [(0, DENIED), (1, expected)] {
                let ran = two.run_on(slot, &frame);
                assert_eq!((ran.verdict, ran.reason), expected, "{slot}");
                assert_eq!(ran.frame, frame, "untouched");
            }
        }
    }
}

#[test]
fn link_control_protocols_reach_the_stack() {
    let world =
        &mut World::with(Setup { rules: |spec| spec.local.others_are_closed = true, ..Setup::default() });
    let frame = tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build();
    // ARP, RARP, EAPOL, LLDP, LACP, CFM, PTP.
    for ethertype in [0x0806, 0x8035, 0x888e, 0x88cc, 0x8809, 0x8902, 0x88f7] {
        ends(world, &wrapped(&frame, &[ethertype]), PASSED);
        ends(world, &wrapped(&frame, &[VLAN, 5, ethertype]), PASSED);
    }
    // Spanning tree.
    let mut bpdu = wrapped(&frame, &[38, 0x4242, 0x0300]);
    ends(world, &bpdu, DENIED);
    bpdu[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0]);
    ends(world, &bpdu, PASSED);
    bpdu[14..16].copy_from_slice(&[0xaa; 2]);
    ends(world, &bpdu, DENIED);
}

/// Not of IPv4: its version says something else than its EtherType, or its header is too short.
#[test]
fn a_header_of_another_version_is_dropped() {
    let world = &mut World::new();
    for first in [0x65, 0x60, 0x44, 0x40, 0x05, 0xf5] {
        let mut frame = tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build();
        frame[14] = first;
        fix_ip_checksum(&mut frame);
        ends(world, &frame, (Verdict::Drop, Reason::LocalDenied));
    }
}

#[test]
fn everything_passes_before_rules_are_loaded() {
    let world = &mut World::new();
    world.dataplane.settings.set_version(0).expect("settings");
    let frame = tcp_packet((PLS, 40_000), (ROUTER, 22), tcp::SYN).build();
    for frame in [tagged(&frame, &[VLAN, 0]), tagged(&frame, &[VLAN, 5]), wrapped(&frame, &[0x86dd])] {
        ends(world, &frame, (Verdict::Pass, Reason::NotConfigured));
    }
}
