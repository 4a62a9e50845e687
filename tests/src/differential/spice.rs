//! Additions to a talk: events on the way, and packets of others.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    category::Category,
    maker::Maker,
    plan::{Body, Quote, Session, Step, Wrong},
    topology::{
        CLIENT_SIDE_ROUTER, MTU, NARROW_CLIENT_MTU, NARROW_SERVER_MTU, Network, OPEN_PORT, ROUTER,
        SERVER_SIDE_ROUTER, Side, UNUSED_PORTS,
    },
};
use crate::{
    packet::{
        ACK, Cut, Damage, FIN, ICMP, IP_HEADER, PARAMETER_PROBLEM, PSH, RST, SYN, TCP, TIME_EXCEEDED, UDP,
        UNREACHABLE, URG,
    },
    random::Draw as _,
};

/// A payload to which something can be added.
const ROOMY: usize = 1_100;

/// The categories that add something to a talk, by how often.
const SPICES: &[Category] = &[
    Category::IcmpError,
    Category::IcmpError,
    Category::IcmpError,
    Category::Fragment,
    Category::Fragment,
    Category::Malformed,
    Category::Malformed,
    Category::Ttl,
    Category::Ttl,
    Category::Mtu,
    Category::Mtu,
    Category::Mtu,
    Category::OutOfState,
    Category::Unsolicited,
    Category::Padding,
    Category::IpOptions,
    Category::Local,
    Category::Outsider,
    Category::Protocol,
    Category::Martian,
];

/// Adds one of the categories that there are to a talk.
pub(super) fn add(maker: &mut Maker<'_>, session: usize, mut steps: Vec<Step>) -> Vec<Step> {
    let spices: Vec<_> = SPICES.iter().copied().filter(|spice| maker.has(*spice)).collect();
    if spices.is_empty() || steps.is_empty() {
        return steps;
    }
    let at = maker.random.usize(..steps.len());
    let spice = maker.random.pick(&spices);
    let known: Vec<u16> = steps.iter().map(|step| step.number).collect();
    match spice {
        // The way back to a martian is not the one that it came.
        Category::IcmpError if steps[at].spice == Some(Category::Martian) => {}
        Category::IcmpError => {
            let error = error(maker, session, &steps[at]);
            let is_refused =
                steps.iter().any(|step| matches!(step.body, Body::Tcp { flags, .. } if flags & RST != 0));
            // A packet after a reset is worth a look.
            let later = if is_refused { steps.len() } else { maker.random.usize(at + 1..=steps.len()) };
            steps.insert(later, error);
        }
        // More of what the session is about, not of other things that happened to it.
        Category::Fragment | Category::Mtu if !is_own(maker, session, &steps[at]) => {}
        Category::Fragment => fragment(maker, session, &mut steps, at),
        Category::Malformed => {
            let damage = damage(maker, &steps[at]);
            again(maker, &mut steps, at, |copy| copy.damage = Some(damage));
        }
        Category::Ttl => {
            let ttl = maker.random.pick(&[0, 1, 1, 1, 2]);
            let by = perhaps_outsider(maker, session, &steps[at]);
            again(maker, &mut steps, at, |copy| {
                copy.ttl = ttl;
                (copy.source, copy.destination) = by;
            });
        }
        Category::Mtu => {
            let large = large(maker, session, &steps[at]);
            steps.insert(at + 1, large);
        }
        Category::OutOfState if maker.sessions[session].protocol != TCP => {}
        Category::OutOfState => {
            let wild = wild(maker, session);
            // Often before there is any session.
            let at = if maker.random.percent(50) { 0 } else { at };
            steps.insert(at, wild);
        }
        Category::Unsolicited => {
            let step = unsolicited(maker, session, &steps[at]);
            let at = maker.random.usize(0..=steps.len());
            steps.insert(at, step);
        }
        // Neither makes a packet larger than a NIC sends.
        Category::Padding => {
            let trailer = Damage::Trailer(maker.random.usize(1..=30));
            if steps[at].body.length() < ROOMY {
                steps[at].damage = Some(trailer);
            }
        }
        Category::IpOptions => {
            let options = options(maker);
            if steps[at].body.length() < ROOMY {
                let by = perhaps_outsider(maker, session, &steps[at]);
                again(maker, &mut steps, at, |copy| {
                    copy.options = options;
                    (copy.source, copy.destination) = by;
                });
            }
        }
        Category::Local => {
            let local = local(maker, session);
            steps.insert(at, local);
        }
        Category::Outsider => {
            let outsider = Some(SocketAddrV4::new(maker.client(Network::Outsiders, 0), 5555));
            let destination = Some(maker.sessions[session].listen);
            if let Some(like) = steps.iter().find(|step| step.from == Side::Client) {
                let like = like.clone();
                let step = Step { number: maker.number(), source: outsider, destination, ..like };
                steps.insert(at, step);
            }
        }
        Category::Protocol => {
            let body = Body::Other {
                protocol: maker.random.pick(&[2, 4, 41, 47, 50, 132, 253]),
                length: maker.random.usize(0..=60),
            };
            let from = maker.random.pick(&Side::BOTH);
            let mut step = maker.step(session, from, body);
            // Without ports, sessions of several clients with one server cannot be told apart.
            let server = Some(SocketAddrV4::new(maker.own_server(), 0));
            let Session { listen, server: masqueraded, .. } = &maker.sessions[session];
            match from {
                Side::Client if listen == masqueraded => step.destination = server,
                Side::Client => {}
                Side::Server => step.source = server,
            }
            steps.insert(at, step);
        }
        Category::Martian => {
            let martian = martian(maker, session, &steps[at]);
            steps.insert(at, martian);
        }
        Category::Late
        | Category::Tcp
        | Category::Udp
        | Category::Echo
        | Category::ZeroChecksum
        | Category::Collision => {}
    }
    for step in steps.iter_mut().filter(|step| !known.contains(&step.number)) {
        step.spice = Some(spice);
    }
    steps
}

/// Sends a step once more, with something about it that may keep it from getting through: the talk
/// goes on as if it had not. Only what opens a session may come with that before it comes without;
/// a reset never does, since it would end in one router what goes on in the other.
fn again(maker: &mut Maker<'_>, steps: &mut Vec<Step>, at: usize, change: impl FnOnce(&mut Step)) {
    let opens = match steps[at].body {
        Body::Tcp { flags, .. } if flags & RST != 0 => return,
        Body::Tcp { flags, .. } => flags & (SYN | ACK) == SYN,
        Body::Udp { .. } | Body::Echo { .. } | Body::Other { .. } | Body::Error(_) => true,
    };
    let before =
        steps[at].cut.is_none() && steps[at].from == Side::Client && opens && maker.random.percent(50);
    if steps[at].cut.is_none() {
        let mut copy = Step { number: maker.number(), ..steps[at].clone() };
        change(&mut copy);
        steps.insert(if before { at } else { at + 1 }, copy);
    }
}

/// Returns the source and destination of a step like this one; sometimes those of a source that no
/// rule allows.
fn perhaps_outsider(
    maker: &mut Maker<'_>,
    session: usize,
    like: &Step,
) -> (Option<SocketAddrV4>, Option<SocketAddrV4>) {
    if like.from == Side::Client && maker.random.percent(15) {
        let source = SocketAddrV4::new(maker.client(Network::Outsiders, 0), 5555);
        (Some(source), Some(maker.sessions[session].listen))
    } else {
        (like.source, like.destination)
    }
}

/// Returns `true` if another step like this one fits into the talk: it has the session's protocol
/// and ends, and TCP has got that far.
fn is_own(maker: &Maker<'_>, session: usize, step: &Step) -> bool {
    let protocol = match step.body {
        Body::Tcp { flags, .. } if flags & (SYN | RST | ACK) != ACK => return false,
        Body::Tcp { .. } => TCP,
        Body::Udp { .. } => UDP,
        Body::Echo { .. } => ICMP,
        Body::Other { .. } | Body::Error(_) => return false,
    };
    protocol == maker.sessions[session].protocol && step.source.is_none() && step.destination.is_none()
}

/// An ICMP error about `about`, from the side where it came out.
fn error(maker: &mut Maker<'_>, session: usize, about: &Step) -> Step {
    let random = &mut maker.random;
    let from = about.from.other();
    let mtu = |mtu: u16| {
        let [a, b] = mtu.to_be_bytes();
        [0, 0, a, b]
    };
    let (kind, code, rest) = match random.usize(..8) {
        0..=1 => (UNREACHABLE, random.pick(&[0, 1, 2, 3, 9, 10, 13]), [0; 4]),
        2..=4 => (UNREACHABLE, 4, mtu(random.pick(&[1400, 1280, 576, 68, 0]))),
        5..=6 => (TIME_EXCEEDED, random.pick(&[0, 0, 1]), [0; 4]),
        _ => (PARAMETER_PROBLEM, random.pick(&[0, 1, 2]), [random.pick(&[0, 9, 20]), 0, 0, 0]),
    };
    let reporter = match (random.usize(..3), from) {
        (0, _) => None,
        (_, Side::Client) => Some(CLIENT_SIDE_ROUTER),
        (_, Side::Server) => Some(SERVER_SIDE_ROUTER),
    };
    let wrong = match random.usize(..10) {
        0 => {
            random.pick(&[Wrong::Port, Wrong::Address, Wrong::IpChecksum, Wrong::L4Checksum, Wrong::Protocol])
        }
        _ => Wrong::Nothing,
    };
    let quote = Quote {
        kind,
        code,
        rest,
        of: about.number,
        reporter,
        // The length that RFC 792 asks for, too little, a TCP header, and the limit of RFC 1812:
        // 576 bytes.
        length: random.pick(&[8, 8, 8, 20, 28, 528, 528, 4, 0, 13]),
        options: random.pick(&[0, 0, 0, 0, 4, 40]),
        wrong,
    };
    Step { dont_fragment: false, ..maker.step(session, from, Body::Error(quote)) }
}

/// A datagram of a session with this much in it.
fn datagram(maker: &mut Maker<'_>, session: usize, like: &Step, length: usize) -> Step {
    let body = match &like.body {
        Body::Tcp { sequence, acknowledgement, window, .. } => Body::Tcp {
            sequence: *sequence,
            acknowledgement: *acknowledgement,
            flags: ACK | PSH,
            window: *window,
            options: Vec::new(),
            length,
        },
        Body::Udp { checksum, .. } => Body::Udp { length, checksum: *checksum },
        Body::Echo { reply, sequence, .. } => Body::Echo { reply: *reply, sequence: *sequence, length },
        Body::Other { .. } | Body::Error(_) => like.body.clone(),
    };
    maker.step(session, like.from, body)
}

/// Returns a packet as large as the NIC takes, or of about the MTU of a narrow way.
fn large(maker: &mut Maker<'_>, session: usize, like: &Step) -> Step {
    let narrow = usize::from(match like.from {
        Side::Client => NARROW_SERVER_MTU,
        Side::Server => NARROW_CLIENT_MTU,
    });
    let size = match maker.random.usize(..4) {
        0 => narrow,
        1 => narrow + 1,
        _ => maker.random.usize(narrow + 2..=MTU),
    };
    let headers = IP_HEADER + if maker.sessions[session].protocol == TCP { 20 } else { 8 };
    let mut step = datagram(maker, session, like, size - headers);
    step.dont_fragment = maker.random.percent(60);
    step
}

/// A datagram in two to four fragments: in order, in another order, one missing, one twice, one
/// that overlaps.
fn fragment(maker: &mut Maker<'_>, session: usize, steps: &mut Vec<Step>, at: usize) {
    let length = maker.random.usize(40..=1100);
    let mut whole = datagram(maker, session, &steps[at], length);
    whole.dont_fragment = false;
    let pieces = maker.random.usize(2..=4);
    // Room for the transport header; a piece's length is a multiple of 8.
    let size = (length + 20).div_ceil(pieces).next_multiple_of(8).max(24);
    let mut cuts: Vec<Cut> = (0..pieces).map(|piece| Cut { offset: piece * size, length: size }).collect();
    match maker.random.usize(..13) {
        0..=3 => {}
        4..=6 => cuts.reverse(),
        7 => cuts.rotate_left(1),
        8 => {
            cuts.remove(0);
        }
        9 => {
            cuts.pop();
        }
        10 => cuts.insert(1, cuts[0]),
        // Not all of a TCP header (RFC 1858).
        11 => cuts = vec![Cut { offset: 0, length: 16 }, Cut { offset: 16, length: 1200 }],
        // Its second half is in the next one as well.
        _ => cuts[0].length = size + 8,
    }
    // While the connection is what it was.
    let changes =
        |step: &Step| matches!(step.body, Body::Tcp { flags, .. } if flags & (SYN | FIN | RST) != 0);
    let end = steps[at + 1..].iter().position(changes).map_or(steps.len(), |after| at + 1 + after);
    let place = maker.random.usize(at + 1..=end);
    // Past the end of a short datagram there is nothing to send.
    let end = length + if maker.sessions[session].protocol == TCP { 20 } else { 8 };
    let fragments: Vec<Step> = cuts
        .into_iter()
        .filter(|cut| cut.offset < end)
        .map(|cut| Step { cut: Some(cut), ..whole.clone() })
        .collect();
    steps.splice(place..place, fragments);
}

fn damage(maker: &mut Maker<'_>, step: &Step) -> Damage {
    let random = &mut maker.random;
    let common = [
        Damage::IpChecksum,
        Damage::L4Checksum,
        Damage::LengthTooLong,
        Damage::LengthTooShort,
        Damage::HeaderTooShort,
        Damage::Version,
        Damage::Cut(random.usize(1..=IP_HEADER + 7)),
        Damage::ShortL4(random.usize(..8)),
    ];
    let own: &[Damage] = match step.body {
        Body::Tcp { .. } => {
            &[Damage::TcpOffset(0), Damage::TcpOffset(4), Damage::TcpOffset(15), Damage::ShortL4(19)]
        }
        Body::Udp { .. } => &[Damage::UdpLength(8), Damage::UdpLength(-4)],
        Body::Echo { .. } | Body::Other { .. } | Body::Error(_) => &[],
    };
    if random.percent(35) && !own.is_empty() { random.pick(own) } else { random.pick(&common) }
}

/// Flags and numbers of any kind.
fn wild(maker: &mut Maker<'_>, session: usize) -> Step {
    let random = &mut maker.random;
    let flags = random.pick(&[
        0,
        ACK,
        ACK | PSH,
        SYN | ACK,
        SYN,
        RST,
        RST | ACK,
        FIN,
        FIN | ACK,
        SYN | FIN,
        SYN | RST,
        FIN | PSH | URG,
        0xff,
    ]);
    let body = Body::Tcp {
        sequence: random.u32(..),
        acknowledgement: random.u32(..),
        flags,
        window: random.u16(..),
        options: Vec::new(),
        length: random.pick(&[0, 0, 1, 9]),
    };
    let from = random.pick(&Side::BOTH);
    maker.step(session, from, body)
}

/// Returns a packet of a server that was not asked, or to an unused port.
fn unsolicited(maker: &mut Maker<'_>, session: usize, like: &Step) -> Step {
    let server = maker.sessions[session].server;
    let length = maker.random.usize(0..=40);
    let body = match maker.random.usize(..3) {
        0 => Body::Udp { length, checksum: true },
        1 => Body::Tcp {
            sequence: 1,
            acknowledgement: maker.random.u32(..),
            flags: maker.random.pick(&[SYN, SYN | ACK, ACK, RST, FIN | ACK]),
            window: 1000,
            options: Vec::new(),
            length: 0,
        },
        _ => like.body.clone(),
    };
    let own_protocol = match body {
        Body::Tcp { .. } => maker.sessions[session].protocol == TCP,
        Body::Udp { .. } => maker.sessions[session].protocol == UDP,
        Body::Echo { .. } | Body::Other { .. } | Body::Error(_) => true,
    };
    let mut step = maker.step(session, Side::Server, body);
    step.source = Some(match maker.random.usize(..3) {
        0 => SocketAddrV4::new(*server.ip(), server.port() ^ 1),
        1 => SocketAddrV4::new(Ipv4Addr::new(198, 19, 7, maker.random.u8(1..=250)), server.port()),
        _ => server,
    });
    // To the session's port only with the session's protocol: the routers may have chosen different
    // ones, and other rules may be for one of them.
    if step.source == Some(server) || !own_protocol {
        let port = UNUSED_PORTS.0 + maker.random.usize(..usize::from(UNUSED_PORTS.1)) as u16;
        step.destination = Some(SocketAddrV4::new(ROUTER, port));
    }
    step
}

fn options(maker: &mut Maker<'_>) -> Vec<u8> {
    match maker.random.usize(..6) {
        // No-operations; record route; timestamps without room for another one, since that would
        // tell the time; router alert; loose source route; nonsense.
        0 => vec![1, 1, 1, 1],
        1 => vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        2 => vec![68, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        3 => vec![148, 4, 0, 0],
        4 => vec![131, 7, 4, 198, 18, 0, 1, 0],
        _ => vec![7, 200, 4, 0],
    }
}

/// Returns a packet to a closed port of the router.
fn local(maker: &mut Maker<'_>, session: usize) -> Step {
    let port = maker.random.pick(&[22, 81, 7777, 54]);
    let body = match maker.random.usize(..3) {
        0 => Body::Udp { length: 12, checksum: true },
        1 => Body::Echo { reply: false, sequence: 5, length: 20 },
        _ => {
            let flags = maker.random.pick(&[SYN, ACK, SYN | ACK, FIN | ACK]);
            let acknowledgement = if flags & ACK == 0 { 0 } else { maker.random.u32(..) };
            Body::Tcp { sequence: 77, acknowledgement, flags, window: 500, options: Vec::new(), length: 0 }
        }
    };
    let echo = matches!(body, Body::Echo { .. });
    let mut step = maker.step(session, Side::Client, body);
    let network = maker.random.pick(&[Network::Clients, Network::Outsiders]);
    let source = SocketAddrV4::new(maker.client(network, 2), 4000 + maker.number());
    step.source = Some(source);
    step.destination = Some(SocketAddrV4::new(ROUTER, if echo { 0 } else { port }));
    step
}

/// Returns a packet with a martian source or destination.
fn martian(maker: &mut Maker<'_>, session: usize, like: &Step) -> Step {
    let Session { client, listen, .. } = maker.sessions[session];
    // The packet is part of the session even if the other end has sent the original.
    let mut step = Step { number: maker.number(), from: Side::Client, source: None, ..like.clone() };
    if let Body::Error(_) = step.body {
        step.body = Body::Udp { length: 5, checksum: true };
    }
    let port = maker.port(0);
    let source = |address: [u8; 4]| Some(SocketAddrV4::new(address.into(), port));
    let destination = |address: [u8; 4]| Some(SocketAddrV4::new(address.into(), listen.port()));
    step.destination = Some(listen);
    match maker.random.usize(..10) {
        0 => step.source = source([127, 0, 0, 1]),
        1 => step.source = source([0, 0, 0, 0]),
        2 => step.source = source([255, 255, 255, 255]),
        3 => step.source = source([224, 0, 0, 5]),
        4 => step.source = source([240, 0, 0, 1]),
        // The router's own address, and LAND: from a port to itself.
        5 => step.source = source(ROUTER.octets()),
        6 => {
            let both = Some(SocketAddrV4::new(ROUTER, maker.random.pick(&[OPEN_PORT, listen.port()])));
            (step.source, step.destination) = (both, both);
            return step;
        }
        7 => step.destination = destination([255, 255, 255, 255]),
        8 => step.destination = destination([10, 0, 2, 127]),
        _ => step.destination = destination([224, 0, 0, 9]),
    }
    match step.source {
        None => step.source = Some(client),
        // To a service whose rule lets them in.
        Some(_) if maker.random.percent(60) => {
            step.destination = Some(SocketAddrV4::new(ROUTER, OPEN_PORT));
        }
        Some(_) => {}
    }
    step
}
