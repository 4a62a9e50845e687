//! Frames that mean something: what clients, targets and others on the wire send, well formed.

use crate::{
    closed::OWN_IPV6,
    model::{BROADCAST, CLIENTS, Model, NARROW, NOWHERE, PENDING},
    packets::{FIREWALL, OTHER, PLATFORM, PLS, ROUTER, ROUTER_SECOND, STRANGER, TARGET},
    random::{Draw as _, Random},
    wire::{ICMP, TCP, Tuple, UDP, repair_header, repair_transport, word},
};

/// The MAC address of the router's interfaces.
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The limit of `BPF_PROG_TEST_RUN`: a page without headroom and without the kernel's own record at
/// its end.
pub(crate) const LONGEST: usize = 3400;
/// A frame without more than its Ethernet header: less is not taken.
pub(crate) const SHORTEST: usize = 14;

/// The number of kinds that [`of_kind`] makes.
pub(crate) const KINDS: usize = 14;

/// A frame of any kind, the more usual ones more often.
pub(crate) fn any(random: &mut Random, model: &Model) -> Vec<u8> {
    let kind = random.pick(&[
        0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12,
        12, 12, 13,
    ]);
    of_kind(kind, random, model)
}

/// A frame of one of [`KINDS`] kinds.
pub(crate) fn of_kind(kind: usize, random: &mut Random, model: &Model) -> Vec<u8> {
    let packet = match kind {
        0 => {
            let tuple = opening(random);
            transport(random, tuple)
        }
        1 => {
            let tuple = live(random, model);
            transport(random, tuple)
        }
        2 => {
            let tuple = nearly_live(random, model);
            transport(random, tuple)
        }
        3 => icmp_error(random, model),
        4 => {
            let tuple = if random.percent(30) { live(random, model) } else { of_datagram(random, model) };
            fragment(random, model, tuple)
        }
        5 => {
            let tuple = opening(random);
            fragment(random, model, tuple)
        }
        6 => {
            let tuple = if random.percent(50) { live(random, model) } else { opening(random) };
            let packet = transport(random, tuple);
            with_options(random, packet)
        }
        7 => {
            let tuple = anybody(random);
            transport(random, tuple)
        }
        8 => {
            let tuple = if random.percent(50) { live(random, model) } else { anybody(random) };
            let payload = random.usize(0..=60);
            let protocol = random.pick(&[0, 2, 4, 41, 47, 50, 51, 89, 132, 255]);
            datagram(random, protocol, (tuple.source.0, tuple.destination.0), payload)
        }
        9 => return not_ipv4(random),
        10 => martian(random),
        12 => return ipv6(random),
        13 => return carried(random),
        _ => {
            // With the platform, on any port.
            let mut tuple = if random.percent(50) { live(random, model) } else { opening(random) };
            if random.percent(70) {
                tuple.source.0 = PLATFORM;
            } else {
                tuple.destination.0 = PLATFORM;
            }
            transport(random, tuple)
        }
    };
    let to = match random.usize(..150) {
        0 => [0xff; 6],
        1 => [1, 0, 0x5e, 0, 0, 1],
        2 => [2, 0, 0, 0, 0, 3],
        _ => ROUTER_MAC,
    };
    let mut frame = [&to[..], &SENDER_MAC, &[0x08, 0x00], &packet].concat();
    if random.percent(10) {
        // Ethernet's shortest frame.
        frame.resize(frame.len().max(60), 0);
    }
    frame.truncate(LONGEST);
    frame
}

fn port(random: &mut Random) -> u16 {
    match random.usize(..8) {
        0 => random.pick(&[0, 1, 53, 67, 68, 443, 1023, 8082, 0xffff]),
        1..4 => random.u16(30_000..=30_040),
        _ => random.u16(..),
    }
}

/// An address behind the firewall, each kind of route among them.
fn outside(random: &mut Random) -> [u8; 4] {
    let host = random.u8(1..=4);
    let network = |[a, b, c]: [u8; 3]| [a, b, c, host];
    match random.usize(..16) {
        0 => network(PENDING),
        1 | 2 => network(NARROW),
        3 => network(NOWHERE),
        4 => STRANGER,
        5 => random.pick(&CLIENTS),
        6 => FIREWALL,
        7 => network([10, 0, 2]),
        8 => [10, 0, 2, random.u8(64..=127)],
        9..12 => TARGET,
        _ => OTHER,
    }
}

/// The tuple of a packet that a rule may open a session by.
fn opening(random: &mut Random) -> Tuple {
    let source = (random.pick(&CLIENTS), port(random));
    match random.usize(..8) {
        0 | 1 => Tuple { protocol: TCP, source, destination: (ROUTER, 443) },
        2 => Tuple { protocol: TCP, source, destination: (ROUTER, random.u16(7999..=8011)) },
        3 => Tuple { protocol: UDP, source, destination: (ROUTER, 53) },
        4 => {
            let destination = (outside(random), 0);
            Tuple { protocol: ICMP, source, destination }
        }
        _ => {
            let destination = (outside(random), random.pick(&[53, 80, 443]));
            Tuple { protocol: random.pick(&[TCP, UDP]), source, destination }
        }
    }
}

/// The tuple of a live session's packets in either direction.
fn live(random: &mut Random, model: &Model) -> Tuple {
    if model.sessions().is_empty() {
        return opening(random);
    }
    let forward = random.pick(model.sessions());
    match model.translated(&forward) {
        Some(to) if random.percent(50) => to.reversed(),
        _ => forward,
    }
}

/// The tuple of the live session whose datagram comes in fragments now.
fn of_datagram(random: &mut Random, model: &Model) -> Tuple {
    let at = usize::from(model.datagram);
    match model.sessions().get(at / 2 % model.sessions().len().max(1)) {
        Some(forward) if at % 2 == 0 => *forward,
        Some(forward) => model.translated(forward).map_or(*forward, Tuple::reversed),
        None => opening(random),
    }
}

/// One that differs from a live one in one place.
fn nearly_live(random: &mut Random, model: &Model) -> Tuple {
    let mut tuple = live(random, model);
    match random.usize(..6) {
        0 => tuple.source.1 ^= 1,
        1 => tuple.destination.1 ^= 1,
        2 => tuple.source.0[3] ^= 1,
        3 => tuple.destination.0[3] ^= 1,
        4 => tuple.protocol = random.pick(&[TCP, UDP, ICMP]),
        _ => tuple = tuple.reversed(),
    }
    tuple
}

/// A tuple from any address to any address.
fn anybody(random: &mut Random) -> Tuple {
    let address = |random: &mut Random| match random.usize(..10) {
        0 => outside(random),
        1 => PLS,
        2 => STRANGER,
        3 => ROUTER,
        4 => ROUTER_SECOND,
        5 => TARGET,
        6 => BROADCAST,
        7 => random.pick(&[[224, 0, 0, 1], [239, 1, 2, 3], [255; 4], [0; 4], [240, 0, 0, 1]]),
        8 => PLATFORM,
        _ => random.u32(..).to_be_bytes(),
    };
    let destination_port =
        if random.percent(50) { random.pick(&[22, 53, 443, 8005, 8082]) } else { port(random) };
    Tuple {
        protocol: random.pick(&[TCP, UDP, ICMP]),
        source: (address(random), port(random)),
        destination: (address(random), destination_port),
    }
}

fn payload(random: &mut Random) -> usize {
    match random.usize(..40) {
        0 => random.usize(1000..=LONGEST),
        1 => random.pick(&[1458, 1459, 1460, 1461, 1472, 1473, 560, 561, 572, 573]),
        2..12 => 0,
        _ => random.usize(..64),
    }
}

/// A packet of TCP, UDP or echo, with right checksums.
fn transport(random: &mut Random, tuple: Tuple) -> Vec<u8> {
    let length = payload(random);
    let body = random.bytes(length);
    let mut l4 = Vec::with_capacity(60 + length);
    let (mut protocol, mut has_checksum) = (tuple.protocol, true);
    match tuple.protocol {
        TCP => {
            let flags = random
                .pick(&[0x02, 0x02, 0x02, 0x12, 0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0x00, 0xff, 0x03, 0xc2]);
            let options: &[u8] = match random.usize(..4) {
                0 => &[2, 4, 0x05, 0xb4],
                1 => &[2, 4, 0xff, 0xff, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
                2 => random.pick(&[
                    &[1, 1, 2, 4][..],
                    &[2, 0, 0, 0],
                    &[2, 3, 1, 0],
                    &[0, 2, 4, 1],
                    &[8, 10, 0, 0],
                ]),
                _ => &[],
            };
            l4.extend(tuple.source.1.to_be_bytes());
            l4.extend(tuple.destination.1.to_be_bytes());
            // Few numbers, so that a reset is at just the one after a SYN now and then, where it
            // counts.
            let mut number = || random.u32(..4) * 1000 + random.u32(..2);
            l4.extend(number().to_be_bytes());
            l4.extend(number().to_be_bytes());
            l4.extend([((5 + options.len() / 4) as u8) << 4, flags, 0xfa, 0, 0, 0, 0, 0]);
            l4.extend(options);
        }
        UDP => {
            l4.extend(tuple.source.1.to_be_bytes());
            l4.extend(tuple.destination.1.to_be_bytes());
            l4.extend(((8 + length) as u16).to_be_bytes());
            l4.extend([0, 0]);
            has_checksum = random.percent(85);
        }
        _ => {
            protocol = ICMP;
            // A live reply's identifier is its destination port.
            let is_reply = tuple.source.1 == 0 && tuple.destination.1 != 0;
            let identifier = if is_reply { tuple.destination.1 } else { tuple.source.1 };
            l4.extend([if is_reply { 0 } else { 8 }, 0, 0, 0]);
            l4.extend(identifier.to_be_bytes());
            l4.extend([0, 1]);
        }
    }
    l4.extend(body);
    let mut packet = around(random, protocol, (tuple.source.0, tuple.destination.0), &l4);
    if has_checksum {
        repair_transport(&mut packet);
    }
    packet
}

/// An IP packet around a transport segment, with a right header checksum.
fn around(
    random: &mut Random,
    protocol: u8,
    (source, destination): ([u8; 4], [u8; 4]),
    l4: &[u8],
) -> Vec<u8> {
    let ttl = match random.usize(..30) {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 255,
        _ => 64,
    };
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + l4.len()) as u16).to_be_bytes());
    // Few identifications, so that they meet others.
    packet.extend([0, random.u8(..8), if random.percent(50) { 0x40 } else { 0 }, 0, ttl, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(l4);
    repair_header(&mut packet);
    packet
}

/// A packet of a protocol whose contents are anything.
fn datagram(random: &mut Random, protocol: u8, ends: ([u8; 4], [u8; 4]), length: usize) -> Vec<u8> {
    let body = random.bytes(length);
    around(random, protocol, ends, &body)
}

/// Any fragment of a packet: the first, one in the middle or the last, also overlapping, far out or
/// tiny.
fn fragment(random: &mut Random, model: &Model, tuple: Tuple) -> Vec<u8> {
    let mut packet = transport(random, tuple);
    let (offset, more) = match random.usize(..8) {
        0..3 => (0, true),
        3 => (random.pick(&[1, 2, 3]), random.percent(50)),
        4 => (0x1fff, random.percent(50)),
        5 => (random.u16(1..=0x1fff), random.percent(50)),
        _ => (random.pick(&[3, 5, 10, 185]), random.percent(50)),
    };
    let field = offset | if more { 0x2000 } else { 0 } | if random.percent(5) { 0x4000 } else { 0 };
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    if random.percent(80) {
        packet[4..6].copy_from_slice(&model.datagram.to_be_bytes());
    }
    if random.percent(20) {
        let length = random.usize(20..=packet.len());
        packet.truncate(length);
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    }
    repair_header(&mut packet);
    packet
}

/// Puts IP options into a packet.
fn with_options(random: &mut Random, mut packet: Vec<u8>) -> Vec<u8> {
    let words = random.usize(1..=10);
    let options = match random.usize(..3) {
        0 => vec![1; words * 4],
        // Router alert, then the end.
        1 => [&[0x94, 4, 0, 0][..], &vec![0; words * 4 - 4]].concat(),
        _ => random.bytes(words * 4),
    };
    let total = usize::from(word(&packet, 2)) + options.len();
    packet.splice(20..20, options);
    packet[0] = 0x45 + words as u8;
    packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    repair_header(&mut packet);
    packet
}

/// An ICMP error of any type about a packet that went out in either direction, or never did.
fn icmp_error(random: &mut Random, model: &Model) -> Vec<u8> {
    // The packet that the sender of the error got: one of a session as the router sent it, or a
    // made-up one.
    let quoted = match random.usize(..10) {
        0..7 => {
            let tuple = live(random, model);
            model.translated(&tuple).unwrap_or(tuple)
        }
        7 => nearly_live(random, model),
        8 => live(random, model),
        _ => anybody(random),
    };
    let mut quote = match random.usize(..12) {
        0 => fragment(random, model, quoted),
        1 => {
            let protocol = random.pick(&[4, 41, 47, 50]);
            datagram(random, protocol, (quoted.source.0, quoted.destination.0), 30)
        }
        2 => {
            let body = [3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 40];
            let mut inner = around(random, ICMP, (quoted.source.0, quoted.destination.0), &body);
            repair_transport(&mut inner);
            inner
        }
        _ => transport(random, quoted),
    };
    if random.percent(15) {
        quote = with_options(random, quote);
    }
    let header = usize::from(quote[0] & 0x0f) * 4;
    match random.usize(..6) {
        0 | 1 => quote.truncate(header + 8),
        2 => {
            let length = random.usize(0..=header + 8);
            quote.truncate(length);
        }
        3 => quote.truncate(548),
        4 => quote.truncate(header + 20),
        _ => {}
    }
    let kind = random.pick(&[3, 3, 3, 3, 11, 11, 12, 4, 5]);
    let code = if kind == 3 { random.pick(&[0, 1, 2, 3, 4, 4, 9, 13, 15, 200]) } else { random.u8(..3) };
    let mtu = random.pick(&[0_u16, 68, 576, 600, 1400, 1500, 0xffff]);
    let mut l4 = vec![kind, code, 0, 0, 0, 0];
    l4.extend(mtu.to_be_bytes());
    l4.extend(quote);
    let sender = match random.usize(..4) {
        0 => quoted.destination.0,
        1 => FIREWALL,
        2 => outside(random),
        _ => random.pick(&CLIENTS),
    };
    let mut packet = around(random, ICMP, (sender, quoted.source.0), &l4);
    repair_transport(&mut packet);
    packet
}

/// Frames that no wire carries.
fn martian(random: &mut Random) -> Vec<u8> {
    let mut tuple = opening(random);
    let address = random.pick(&[
        [127, 0, 0, 1],
        [0, 1, 2, 3],
        [0; 4],
        [255; 4],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
        ROUTER,
        BROADCAST,
    ]);
    match random.usize(..3) {
        0 => tuple.source.0 = address,
        1 => tuple.destination.0 = address,
        // LAND: from its own destination.
        _ => tuple.source = tuple.destination,
    }
    transport(random, tuple)
}

/// The frame with tags in front: with a priority alone, of a VLAN, several, and too many.
pub(crate) fn tagged(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    for _ in 0..random.pick(&[1, 1, 1, 1, 2, 2, 3, 4, 5]) {
        tags.extend(random.pick(&[[0x81, 0x00], [0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]]));
        tags.extend(random.pick(&[[0, 0], [0xe0, 0], [0x10, 0], [0, 5], [0xa0, 5], [0x0f, 0xff]]));
    }
    let mut tagged = [&frame[..12], &tags, &frame[12..]].concat();
    tagged.truncate(LONGEST);
    if random.percent(5) {
        tagged.truncate(random.usize(SHORTEST..=tagged.len()));
    }
    tagged
}

/// A packet in an encapsulation that Linux, or a module, can unwrap: SNAP, PPPoE, MPLS, MACsec and
/// so on.
fn carried(random: &mut Random) -> Vec<u8> {
    let tuple = if random.percent(50) { anybody(random) } else { opening(random) };
    let mut packet = transport(random, tuple);
    packet.truncate(1400);
    let length = (packet.len() as u16).to_be_bytes();
    let around: &[u8] = random.pick(&[
        &[0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x00][..],
        &[0xaa, 0xaa, 3, 0, 0, 0xf8, 0x81, 0x00, 0, 0, 0x08, 0x00],
        &[0x06, 0x06, 3],
        &[0x42, 0x42, 3],
        &[0xff, 0xff],
    ]);
    let to = random.pick(&[ROUTER_MAC, ROUTER_MAC, [0xff; 6], [1, 0x80, 0xc2, 0, 0, 0]]);
    let start = [&to[..], &SENDER_MAC].concat();
    match random.usize(..3) {
        0 => [&start[..], &length, around, &packet].concat(),
        1 => [&start[..], &[0x88, 0x64, 0x11, 0, 0, 1], &length, &[0, 0x21], &packet].concat(),
        _ => {
            let ethertype = random.pick(&[
                [0x88, 0x47],
                [0x88, 0xe5],
                [0x43, 0x05],
                [0x89, 0x4f],
                [0x88, 0xcc],
                [0x65, 0x58],
            ]);
            [&start[..], &ethertype, &[0, 1, 1, 64], &packet].concat()
        }
    }
}

/// IPv6 to this machine or a group, with extension headers now and then, as often as not well
/// formed.
fn ipv6(random: &mut Random) -> Vec<u8> {
    const NEAR: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x69];
    const FAR: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x69];
    const ADMIN: [u8; 16] = [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 2, 69];
    const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let source = random.pick(&[NEAR, NEAR, FAR, FAR, ADMIN, ADMIN, [0; 16], MAPPED, LOOPBACK, GROUP]);
    let [near, far] = OWN_IPV6.map(|address| address.octets());
    let destination = random.pick(&[near, far, far, far, NEAR, FAR, GROUP, LOOPBACK]);
    let mut payload = Vec::new();
    let mut next =
        random.pick(&[6, 6, 6, 17, 17, 17, 58, 58, 58, 58, 58, 1, 2, 4, 41, 47, 50, 89, 112, 132, 136]);
    match next {
        58 => {
            let kind = random.pick(&[
                1, 2, 4, 5, 0, 127, 128, 128, 129, 130, 131, 132, 133, 134, 135, 135, 136, 137, 139, 143, 155,
            ]);
            payload.extend([kind, random.pick(&[0, 0, 0, 1, 4]), 0, 0]);
        }
        _ => {
            payload.extend(random.pick(&[53_u16, 123, 547, 40_000, 67]).to_be_bytes());
            payload.extend(random.pick(&[22_u16, 22, 8082, 443, 53, 546, 161, 30_003, 30_005]).to_be_bytes());
        }
    }
    let rest = random.pick(&[0, 4, 8, 16, 16, 20, 60]);
    payload.extend(random.bytes(rest));
    for _ in 0..random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 9]) {
        let kind = random.pick(&[0, 0, 0, 43, 44, 51, 60, 60, 135, 139, 140, 253]);
        let router_alert = [next, 0, 5, 2, 0, 0, 1, 0];
        let fragment = [next, 0, random.pick(&[0, 0, 1]), random.pick(&[0, 1, 8]), 0, 0, 0, 7];
        payload.splice(0..0, if kind == 44 { fragment } else { router_alert });
        next = kind;
    }
    let length = if random.percent(90) { payload.len() as u16 } else { random.u16(..100) };
    let start = [0x60 ^ if random.percent(2) { 0x20 } else { 0 }, 0, 0, 0];
    let hop_limit = random.pick(&[0, 1, 1, 64, 254, 255, 255]);
    let to = random.pick(&[ROUTER_MAC, ROUTER_MAC, ROUTER_MAC, [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]]);
    let ends = [&to[..], &SENDER_MAC, &[0x86, 0xdd]].concat();
    let header = [&start[..], &length.to_be_bytes(), &[next, hop_limit], &source, &destination].concat();
    [ends, header, payload].concat()
}

fn not_ipv4(random: &mut Random) -> Vec<u8> {
    let ethertype =
        random.pick(&[[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x08, 0x01], [0, 46]]);
    let length = random.pick(&[0, 4, 28, 46, 60, 100]);
    [&ROUTER_MAC[..], &SENDER_MAC, &ethertype, &random.bytes(length)].concat()
}
