//! Packets that are not for sessions or rules pass unchanged, each kind with its reason.

use router_common::reason::Reason;

use crate::{
    packets::{PLATFORM, PLS, ROUTER, STRANGER, Spec, TARGET, fix_ip_checksum, tcp, tcp_packet, udp_packet},
    world::{Verdict, World},
};

fn passes(world: &mut World, frame: &[u8], reason: Reason) {
    let ran = world.run(frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, reason));
    assert_eq!(ran.frame, frame, "untouched");
    assert_eq!(world.entries(), 0);
}

fn syn() -> Spec {
    tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN)
}

/// The same from a source that no rule names.
fn strangers_syn() -> Spec {
    tcp_packet((STRANGER, 40_000), (ROUTER, 443), tcp::SYN)
}

#[test]
fn packets_with_ip_options_pass() {
    let world = &mut World::new();
    let mut frame = strangers_syn().build();
    frame[14] = 0x46;
    passes(world, &frame, Reason::IpOptions);
}

#[test]
fn other_protocols_pass() {
    let world = &mut World::new();
    for protocol in [0, 2, 4, 41, 47, 50, 132, 255] {
        let mut frame = strangers_syn().build();
        frame[23] = protocol;
        fix_ip_checksum(&mut frame);
        passes(world, &frame, Reason::UnsupportedProtocol);
    }
}

#[test]
fn other_icmp_messages_pass() {
    let world = &mut World::new();
    for kind in [3, 4, 5, 11, 12, 13, 17] {
        let mut frame = crate::packets::echo_request(STRANGER, ROUTER, 7).build();
        frame[34] = kind;
        passes(world, &frame, Reason::IcmpOther);
    }
}

#[test]
fn malformed_headers_pass() {
    let world = &mut World::new();
    for first in [0x44, 0x40, 0x65, 0x05, 0xff] {
        let mut frame = strangers_syn().build();
        frame[14] = first;
        passes(world, &frame, Reason::Malformed);
    }
    // An IP length too small for the transport header.
    for (mut frame, length) in [
        (strangers_syn().build(), 39_u16),
        (udp_packet((STRANGER, 1), (ROUTER, 53), b"").build(), 27),
        (strangers_syn().build(), 0),
    ] {
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        fix_ip_checksum(&mut frame);
        passes(world, &frame, Reason::Malformed);
    }
}

#[test]
fn truncated_frames_pass() {
    let world = &mut World::new();
    let whole = strangers_syn().payload(&[7; 100]).build();
    for length in [14, 20, 33, 41, 53, whole.len() - 1] {
        passes(world, &whole[..length], Reason::Truncated);
    }
}

#[test]
fn a_padded_frame_is_forwarded() {
    let world = &mut World::new();
    let mut frame = syn().build();
    frame.resize(80, 0xaa);
    let ran = world.run(&frame);
    assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::Opened));
    assert_eq!(ran.frame.len(), 80);
    assert_eq!(crate::packets::read(&ran.frame).destination, (TARGET, 8443));
}

#[test]
fn the_platform_address_passes_on_every_port() {
    let world = &mut World::new();
    passes(world, &tcp_packet((PLATFORM, 50_000), (ROUTER, 443), tcp::SYN).build(), Reason::Platform);
    passes(world, &tcp_packet((PLATFORM, 50_000), (ROUTER, 8082), tcp::SYN).build(), Reason::Platform);
    passes(world, &udp_packet((PLATFORM, 53), (ROUTER, 33_000), b"answer").build(), Reason::Platform);
    passes(world, &udp_packet((PLS, 5000), (PLATFORM, 53), b"query").build(), Reason::Platform);
}

#[test]
fn services_of_this_machine_pass() {
    let world = &mut World::new();
    passes(world, &tcp_packet((STRANGER, 40_000), (ROUTER, 22), tcp::SYN).build(), Reason::NotMatched);
    passes(world, &tcp_packet((STRANGER, 40_000), (ROUTER, 8082), tcp::SYN).build(), Reason::NotMatched);
    passes(world, &udp_packet((STRANGER, 5000), (ROUTER, 443), b"udp").build(), Reason::NotMatched);
    passes(world, &udp_packet(([0; 4], 68), ([255; 4], 67), b"dhcp").build(), Reason::NotMatched);
}

#[test]
fn everything_passes_before_rules_are_loaded() {
    let world = &mut World::new();
    world.dataplane.settings.set_version(0).expect("settings");
    passes(world, &syn().build(), Reason::NotConfigured);
}
