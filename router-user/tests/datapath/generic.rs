//! Generic mode: unfinished checksums and packets that are larger than any wire takes.

use router_common::reason::Reason;

use crate::{
    packets::{PLS, ROUTER, Spec, TARGET, read, tcp, tcp_packet, udp_packet},
    world::{Setup, Verdict, World},
};

fn world(generic: bool) -> World {
    World::with(Setup { generic, ..Setup::default() })
}

/// The offset of a frame's transport checksum.
fn checksum_at(frame: &[u8]) -> usize {
    if frame[23] == 6 { 34 + 16 } else { 34 + 6 }
}

/// The sum of a frame's pseudo header, as a sender leaves it for hardware.
fn pseudo_header_sum(frame: &[u8]) -> [u8; 2] {
    let length = u16::from_be_bytes([frame[16], frame[17]]) - 20;
    let words = frame[26..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + u32::from(frame[23]) + u32::from(length);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_be_bytes()
}

/// The frame as a virtual NIC hands it over.
fn unfinished(spec: &Spec) -> Vec<u8> {
    let mut frame = spec.build();
    let (at, sum) = (checksum_at(&frame), pseudo_header_sum(&frame));
    frame[at..at + 2].copy_from_slice(&sum);
    frame
}

/// Returns the frame as the kernel finishes it when it leaves.
fn finished(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (at, end) = (checksum_at(&frame), 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])));
    assert_eq!(frame[at..at + 2], pseudo_header_sum(&frame), "the pseudo header's sum is not of this packet");
    let sum = crate::packets::internet_checksum(&frame[34..end]);
    frame[at..at + 2].copy_from_slice(&sum);
    frame
}

fn syn() -> Spec {
    tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN)
}

#[test]
fn an_unfinished_checksum_stays_one_that_the_kernel_can_finish() {
    let world = &mut world(true);
    let opened = world.run(&unfinished(&syn()));
    assert_eq!((opened.verdict, opened.reason), (Verdict::Tx, Reason::Opened));
    // Reading verifies the checksums.
    let port = read(&finished(&opened.frame)).source.1;
    let reply = world.run(&unfinished(&tcp_packet((TARGET, 8443), (ROUTER, port), tcp::SYN | tcp::ACK)));
    assert_eq!((reply.verdict, reply.reason), (Verdict::Tx, Reason::Forwarded));
    read(&finished(&reply.frame));
    for payload in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"odd"] {
        let data = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK | tcp::PSH).payload(payload);
        let ran = world.run(&unfinished(&data));
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded));
        read(&finished(&ran.frame));
        // From a wire, on the same session.
        let ran = world.run(&data.build());
        read(&ran.frame);
    }
    let query = world.run(&unfinished(&udp_packet((PLS, 5000), (ROUTER, 53), b"query")));
    assert_eq!((query.verdict, query.reason), (Verdict::Tx, Reason::Opened));
    read(&finished(&query.frame));
}

/// One in 65,536 packets has a right checksum that is the pseudo header's sum.
#[test]
fn a_right_checksum_is_never_taken_for_an_unfinished_one() {
    let world = &mut world(true);
    assert_eq!(world.run(&syn().build()).reason, Reason::Opened);
    let alike = (0..=u16::MAX).find_map(|number| {
        let payload = [&number.to_be_bytes()[..], &[7; 199]].concat();
        let frame = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).payload(&payload).build();
        let at = checksum_at(&frame);
        (frame[at..at + 2] == pseudo_header_sum(&frame)).then_some(frame)
    });
    let ran = world.run(&alike.expect("one of all sums"));
    assert_eq!(ran.reason, Reason::Forwarded);
    read(&ran.frame);
}

/// 64 KB by TSO or GRO: the kernel cuts it when it leaves. Nothing of that size comes by a wire.
#[test]
fn super_frames_are_segmented_after_the_program() {
    let world = &mut world(true);
    assert_eq!(world.run(&unfinished(&syn())).reason, Reason::Opened);
    for length in [1461, 2000, 3000] {
        let data = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).payload(&vec![7; length]);
        let ran = world.run(&unfinished(&data));
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Forwarded), "{length}");
        read(&finished(&ran.frame));
    }
}

#[test]
fn native_mode_does_not_accept_unfinished_checksums() {
    let world = &mut world(false);
    let ran = world.run(&unfinished(&syn()));
    assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::BadChecksum));
    // Wrong, and not the pseudo header's sum: in neither mode.
    for generic in [false, true] {
        let world = &mut self::world(generic);
        let mut frame = syn().build();
        frame[50] ^= 1;
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::BadChecksum), "{generic}");
    }
}
