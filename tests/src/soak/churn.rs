//! Sessions that come and go, in every way that they can.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use super::{
    place::{ROUTER, TARGET},
    report::Tally,
};
use crate::{
    packet::{ACK, ECHO_REPLY, ECHO_REQUEST, FIN, ICMP, PSH, RST, SYN, Segment, TCP, UDP, icmp, ipv4, udp},
    random::{Draw as _, Random},
    view::{Tuple, View},
};

/// The course of a short session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    /// UDP, answered.
    Datagram,
    /// UDP, not answered.
    UnansweredDatagram,
    /// A SYN without an answer.
    UnansweredSyn,
    /// A SYN whose answer the client does not acknowledge.
    HalfOpen,
    /// The client resets it after the handshake.
    ResetByClient,
    /// Both sides close it.
    Closed,
    /// The target resets it.
    ResetByTarget,
    /// A handshake, and nothing more.
    Abandoned,
    /// A ping through the masquerade.
    Ping,
}

impl Fate {
    const ALL: [Self; 9] = [
        Self::Datagram,
        Self::UnansweredDatagram,
        Self::UnansweredSyn,
        Self::HalfOpen,
        Self::ResetByClient,
        Self::Closed,
        Self::ResetByTarget,
        Self::Abandoned,
        Self::Ping,
    ];

    /// The port tells both sides what to do, so that neither has to remember anything.
    const fn service(self) -> u16 {
        FIRST_SERVICE + self as u16
    }

    fn of(tuple: &Tuple, service: u16) -> Option<Self> {
        if tuple.protocol == ICMP {
            return Some(Self::Ping);
        }
        Self::ALL.into_iter().find(|fate| fate.service() == service)
    }
}

const FIRST_SERVICE: u16 = 7100;

/// Few enough not to fill the table: under pressure the sweep removes ended connections early, and
/// one of the streams may be among them whose last bytes have to be sent again because a neighbour
/// was away.
const TIMEOUTS: &str = "timeouts = { tcp_established = \"10s\", tcp_transitory = \"8s\", udp = \"10s\", udp_unreplied = \"5s\" }\n";

/// The most that are begun at a time.
const BURST: u64 = 256;

/// The router's rules for them.
pub(super) fn rules() -> String {
    let last = FIRST_SERVICE + Fate::ALL.len() as u16 - 1;
    let forwards = ["udp", "tcp"].map(|protocol| {
        format!(
            "[[forward]]\nname = \"churn-{protocol}\"\nprotocol = \"{protocol}\"\nlisten = \"{FIRST_SERVICE}-{last}\"\n\
             target = \"{TARGET}\"\nsources = [\"10.65.0.0/16\"]\n{TIMEOUTS}"
        )
    });
    format!(
        "{}[[masquerade]]\nname = \"churn-icmp\"\nsources = [\"10.66.0.0/16\"]\ndestinations = [\"{TARGET}/32\"]\n\
         timeouts = {{ icmp = \"5s\" }}\n",
        forwards.concat()
    )
}

/// The TCP fields that matter here.
struct Tcp<'a> {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    fn new(view: View<'a>) -> Option<Self> {
        let (header, payload) = view.payload().split_first_chunk::<20>()?;
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Some(Self { sequence: number(4), acknowledgement: number(8), flags: header[13], payload })
    }

    /// An answer that acknowledges all of it.
    fn answer(&self, tuple: &Tuple, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let counted =
            self.payload.len() as u32 + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        let acknowledgement = self.sequence.wrapping_add(counted);
        segment(tuple.destination, tuple.source, flags, [sequence, acknowledgement], payload)
    }
}

fn segment(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    flags: u8,
    [sequence, acknowledgement]: [u32; 2],
    payload: &[u8],
) -> Vec<u8> {
    let segment = Segment {
        sequence,
        acknowledgement,
        flags,
        window: 0xffff,
        options: Vec::new(),
        payload: payload.to_vec(),
    };
    ipv4(TCP, source, destination, &segment.bytes(source, destination))
}

/// A client's message, by which it recognises the answer.
fn words(client: SocketAddrV4) -> [u8; 6] {
    let [a, b, c, d] = client.ip().octets();
    let [e, f] = client.port().to_be_bytes();
    [a, b, c, d, e, f]
}

/// The sequence number that a client begins with, likewise.
fn first_sequence(client: SocketAddrV4, service: u16) -> u32 {
    Random::with_seed(
        u64::from(client.ip().to_bits()) << 32 | u64::from(client.port()) << 16 | u64::from(service),
    )
    .u32(..)
}

/// The clients' side.
pub(super) struct Churn<'a> {
    per_second: u32,
    began: Option<Instant>,
    sessions: u64,
    random: Random,
    tally: &'a Tally,
}

impl<'a> Churn<'a> {
    pub(super) fn new(per_second: u32, seed: u64, tally: &'a Tally) -> Self {
        Self { per_second, began: None, sessions: 0, random: Random::with_seed(seed), tally }
    }

    /// The first packets of the sessions that are due now.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let began = *self.began.get_or_insert(now);
        let due = (now - began).as_micros() as u64 * u64::from(self.per_second) / 1_000_000;
        let count = due.saturating_sub(self.sessions).min(BURST);
        self.sessions += count;
        self.tally.begun.add(count);
        (0..count).map(|_| self.first()).collect()
    }

    fn first(&mut self) -> Vec<u8> {
        let fate = self.random.pick(&Fate::ALL);
        let [a, b] = [self.random.u8(..4), self.random.u8(1..=250)];
        let net = if fate == Fate::Ping { 66 } else { 65 };
        let client = SocketAddrV4::new(Ipv4Addr::new(10, net, a, b), self.random.u16(1024..=65_535));
        let service = SocketAddrV4::new(ROUTER, fate.service());
        match fate {
            Fate::Datagram | Fate::UnansweredDatagram => {
                ipv4(UDP, client, service, &udp(client, service, &words(client), true))
            }
            Fate::Ping => {
                let target = SocketAddrV4::new(TARGET, 0);
                let [high, low] = client.port().to_be_bytes();
                ipv4(ICMP, client, target, &icmp(ECHO_REQUEST, 0, [high, low, 0, 1], &words(client)))
            }
            Fate::UnansweredSyn
            | Fate::HalfOpen
            | Fate::ResetByClient
            | Fate::Closed
            | Fate::ResetByTarget
            | Fate::Abandoned => {
                segment(client, service, SYN, [first_sequence(client, service.port()), 0], &[])
            }
        }
    }

    /// Returns a client's response to a packet.
    pub(super) fn hear(&mut self, view: View<'_>, tuple: &Tuple) -> Option<Vec<u8>> {
        let heard = self.understand(view, tuple);
        if heard.is_err() {
            self.tally
                .mistakes
                .add(|| format!("{tuple:?} has brought what it should not: {:02x?}", view.payload()));
        }
        self.tally.answered.add(1);
        heard.ok().flatten()
    }

    fn understand(&self, view: View<'_>, tuple: &Tuple) -> Result<Option<Vec<u8>>, ()> {
        let Tuple { protocol, source, destination: client } = *tuple;
        let fate = Fate::of(tuple, source.port()).ok_or(())?;
        let as_said = |from: Ipv4Addr| {
            let fits = *source.ip() == from && view.payload().get(8..) == Some(words(client).as_slice());
            if fits { Ok(None) } else { Err(()) }
        };
        match protocol {
            ICMP => return as_said(TARGET),
            UDP if fate == Fate::Datagram => return as_said(ROUTER),
            TCP if *source.ip() == ROUTER => {}
            _ => return Err(()),
        }
        let tcp = Tcp::new(view).ok_or(())?;
        let first = first_sequence(client, source.port());
        let begins = tcp.flags & (SYN | ACK) == SYN | ACK;
        if begins && tcp.acknowledgement != first.wrapping_add(1) {
            return Err(());
        }
        let answer = |flags, payload: &[u8]| Some(tcp.answer(tuple, flags, tcp.acknowledgement, payload));
        let [ends, resets] = [FIN, RST].map(|flag| tcp.flags & flag != 0);
        Ok(match (fate, begins) {
            (Fate::HalfOpen, true) => None,
            (Fate::ResetByClient, true) => Some(segment(client, source, RST, [tcp.acknowledgement, 0], &[])),
            (Fate::Closed, true) => answer(PSH | FIN | ACK, &words(client)),
            (Fate::Closed, false) if ends => answer(ACK, &[]),
            (Fate::ResetByTarget, true) => answer(PSH | ACK, &words(client)),
            (Fate::ResetByTarget, false) if resets => None,
            (Fate::Abandoned, true) => answer(ACK, &[]),
            _ => return Err(()),
        })
    }
}

/// Returns a target's response to a packet.
pub(super) fn answer(view: View<'_>, tuple: &Tuple) -> Option<Vec<u8>> {
    let Tuple { protocol, source, destination } = *tuple;
    let fate = Fate::of(tuple, destination.port())?;
    match protocol {
        UDP if fate == Fate::Datagram => {
            let payload = view.payload().get(8..)?;
            return Some(ipv4(UDP, destination, source, &udp(destination, source, payload, true)));
        }
        ICMP => {
            let (header, payload) = view.payload().split_first_chunk::<8>()?;
            let [kind, _, _, _, rest @ ..] = *header;
            let answer = icmp(ECHO_REPLY, 0, rest, payload);
            return (kind == ECHO_REQUEST).then(|| ipv4(ICMP, destination, source, &answer));
        }
        TCP => {}
        _ => return None,
    }
    let tcp = Tcp::new(view)?;
    let opens = tcp.flags & (SYN | ACK) == SYN;
    match (fate, opens) {
        (Fate::UnansweredSyn, _) => None,
        (_, true) => Some(tcp.answer(tuple, SYN | ACK, !tcp.sequence, &[])),
        (Fate::Closed, false) if tcp.flags & FIN != 0 => {
            Some(tcp.answer(tuple, FIN | ACK, tcp.acknowledgement, &[]))
        }
        (Fate::ResetByTarget, false) if !tcp.payload.is_empty() => {
            Some(tcp.answer(tuple, RST | ACK, tcp.acknowledgement, &[]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 65, 1, 2), 3456);

    /// Begins a session without a router between the ends, and passes packets on until no end sends
    /// any. Returns the packets that the client got.
    fn play(fate: Fate, tally: &Tally) -> Vec<u8> {
        let service = SocketAddrV4::new(ROUTER, fate.service());
        let mut heard = Vec::new();
        let churn = Churn::new(1, 1, tally);
        let mut next = segment(CLIENT, service, SYN, [first_sequence(CLIENT, service.port()), 0], &[]);
        loop {
            let view = View::new(&next).unwrap();
            let Some(answer) = answer(view, &view.tuple()) else { return heard };
            let view = View::new(&answer).unwrap();
            heard.push(view.payload()[13]);
            let Ok(Some(packet)) = churn.understand(view, &view.tuple()) else { return heard };
            next = packet;
        }
    }

    #[test]
    fn every_fate_comes_to_its_end() {
        let tally = Tally::default();
        assert!(play(Fate::UnansweredSyn, &tally).is_empty());
        for fate in [Fate::HalfOpen, Fate::ResetByClient, Fate::Abandoned] {
            assert_eq!(play(fate, &tally), [SYN | ACK], "{fate:?}");
        }
        assert_eq!(play(Fate::Closed, &tally), [SYN | ACK, FIN | ACK]);
        assert_eq!(play(Fate::ResetByTarget, &tally), [SYN | ACK, RST | ACK]);
    }

    #[test]
    fn a_packet_for_another_session_is_a_mistake() {
        let tally = Tally::default();
        let mut churn = Churn::new(1, 1, &tally);
        let service = SocketAddrV4::new(ROUTER, Fate::Datagram.service());
        let other = SocketAddrV4::new(*CLIENT.ip(), CLIENT.port() + 1);
        for (words_of, mistakes) in [(CLIENT, 0), (other, 1)] {
            let packet = ipv4(UDP, service, CLIENT, &udp(service, CLIENT, &words(words_of), true));
            let view = View::new(&packet).unwrap();
            assert_eq!(churn.hear(view, &view.tuple()), None);
            assert_eq!(tally.mistakes.count(), mistakes);
        }
    }
}
