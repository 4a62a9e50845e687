//! TCP connections as they may go, beside the usual three steps (RFC 5382 REQ-2, RFC 7857 section
//! 2).

use router_common::{
    reason::Reason,
    session::{RESYNCHRONISES_AFTER, State},
};

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::{
    packets::{PLS, ROUTER, Spec, TARGET, read, tcp, tcp_packet},
    world::{Program, Setup, Verdict, World, stay_on},
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;

/// One connection through the router, and what is expected of every segment: it comes out at the
/// other end, whole, with the same addresses and ports as all others.
struct Connection {
    world: World,
}

impl Connection {
    /// A connection of which nothing has been said.
    fn new() -> Self {
        Self { world: World::new() }
    }

    /// A connection after the usual three steps: the client's numbers start at 1000, the server's
    /// at 5000.
    fn established() -> Self {
        let mut connection = Self::new();
        connection.client(tcp::SYN, 1000, 0, b"");
        connection.server(SYN_ACK, 5000, 1001, b"");
        connection.client(tcp::ACK, 1001, 5001, b"");
        connection.is(State::Established);
        connection
    }

    fn client(&mut self, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) {
        let segment = tcp_packet((PLS, 40_000), (ROUTER, 443), flags).numbers(sequence, acknowledgement);
        self.goes_through(&segment.payload(payload), (ROUTER, 40_000), (TARGET, 8443));
    }

    fn server(&mut self, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) {
        let segment = tcp_packet((TARGET, 8443), (ROUTER, 40_000), flags).numbers(sequence, acknowledgement);
        self.goes_through(&segment.payload(payload), (ROUTER, 443), (PLS, 40_000));
    }

    #[track_caller]
    fn goes_through(&mut self, segment: &Spec, source: ([u8; 4], u16), destination: ([u8; 4], u16)) {
        let sent = segment.build();
        // A SYN of the client's opens a connection where there is none, or none any more.
        let is_clients_syn = destination.0 == TARGET && sent[47] & (tcp::SYN | tcp::ACK) == tcp::SYN;
        let opens = is_clients_syn && self.state().is_none_or(|state| state == State::Closed);
        let expected = if opens { Reason::Opened } else { Reason::Forwarded };
        let ran = self.world.run(&sent);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, expected));
        let seen = read(&ran.frame);
        assert_eq!((seen.source, seen.destination), (source, destination));
        // Numbers, flags, window, and what follows the checksum and the urgent pointer.
        assert_eq!(ran.frame[38..50], sent[38..50], "what the ends say to each other");
        assert_eq!(ran.frame[54..], sent[54..], "the payload");
        assert_eq!((self.world.sessions(), self.world.entries()), (1, 2));
    }

    #[track_caller]
    fn is(&self, expected: State) {
        assert_eq!(self.state(), Some(expected));
    }

    /// The numbers that the client and the server expect next.
    fn expected(&self) -> Option<(u32, u32)> {
        let mut expected = None;
        self.world.dataplane.flows.for_each(|session| {
            expected = Some((session.forward.entry.expects, session.reply.entry.expects));
            false
        });
        expected
    }

    /// The state of the connection's session, if it has one.
    fn state(&self) -> Option<State> {
        let mut state = None;
        self.world.dataplane.flows.for_each(|session| {
            state = session.state();
            false
        });
        state
    }
}

/// Data whose sender says nothing of what it has got, which none does: it goes through, and the
/// next segment, too.
#[test]
fn segments_without_acknowledgement_go_through() {
    let mut connection = Connection::established();
    for flags in [0, tcp::PSH, tcp::ACK] {
        connection.client(flags, 1001, 5001, b"data");
        connection.server(flags, 5001, 1001, b"more");
        connection.is(State::Established);
    }
}

/// RFC 9293 3.5, figure 8: both send a SYN, and answer the other's.
#[test]
fn both_ends_open_at_once() {
    let mut connection = Connection::new();
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.server(tcp::SYN, 5000, 0, b"");
    connection.client(SYN_ACK, 1000, 5001, b"");
    connection.server(SYN_ACK, 5000, 1001, b"");
    connection.is(State::Opening);
    connection.client(tcp::ACK, 1001, 5001, b"hello");
    connection.is(State::Established);
    connection.server(tcp::ACK, 5001, 1006, b"hello to you");
    connection.is(State::Established);
}

/// A client that has started over, and does not know any more what it said first.
#[test]
fn a_syn_with_another_sequence_number_is_accepted() {
    let mut connection = Connection::new();
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.client(tcp::SYN, 0x8000_0000, 0, b"");
    connection.is(State::Opening);
    // The server answers the first, which the client resets, then the second (RFC 9293 3.5, figure
    // 9).
    connection.server(SYN_ACK, 5000, 1001, b"");
    connection.client(tcp::RST, 1001, 0, b"");
    connection.client(tcp::SYN, 0x8000_0000, 0, b"");
    connection.server(SYN_ACK, 6000, 0x8000_0001, b"");
    connection.client(tcp::ACK, 0x8000_0001, 6001, b"");
    connection.is(State::Established);
}

/// RFC 5961 section 4: the server answers such a SYN, and the client its answer. The session is not
/// the client's to end by it.
#[test]
fn a_syn_on_an_open_connection_changes_nothing() {
    let mut connection = Connection::established();
    for sequence in [1001, 0x8000_0000] {
        connection.client(tcp::SYN, sequence, 0, b"");
        connection.is(State::Established);
        connection.server(tcp::ACK, 5001, 1001, b"");
        connection.is(State::Established);
    }
}

/// One end has said all it has to say, and the other goes on for as long as it likes.
#[test]
fn one_end_closes_and_the_other_goes_on() {
    let mut connection = Connection::established();
    connection.client(FIN_ACK, 1001, 5001, b"");
    connection.is(State::Closing);
    let mut sequence = 5001;
    for _ in 0..20 {
        connection.server(tcp::ACK, sequence, 1002, &[7; 1400]);
        sequence += 1400;
        connection.client(tcp::ACK, 1002, sequence, b"");
        connection.is(State::Closing);
    }
    connection.server(FIN_ACK, sequence, 1002, b"");
    connection.is(State::Closed);
    connection.client(tcp::ACK, 1002, sequence + 1, b"");
    // The last acknowledgement was lost.
    connection.server(FIN_ACK, sequence, 1002, b"");
    connection.client(tcp::ACK, 1002, sequence + 1, b"");
    connection.is(State::Closed);
}

#[test]
fn the_server_closes_first_or_both_at_once() {
    let mut connection = Connection::established();
    connection.server(FIN_ACK, 5001, 1001, b"");
    connection.is(State::Closing);
    connection.client(tcp::ACK, 1001, 5002, b"the rest");
    connection.client(FIN_ACK, 1009, 5002, b"");
    connection.is(State::Closed);
    connection.server(tcp::ACK, 5002, 1010, b"");
    drop(connection);

    let mut connection = Connection::established();
    connection.client(FIN_ACK, 1001, 5001, b"");
    connection.server(FIN_ACK, 5001, 1001, b"");
    connection.is(State::Closed);
    connection.client(tcp::ACK, 1002, 5002, b"");
    connection.server(tcp::ACK, 5002, 1002, b"");
    connection.is(State::Closed);
}

/// The client's next connection uses the port of its last one, which the server has in TIME-WAIT
/// (RFC 9293 3.6.1): with the same SNAT port, so that the server sees the reuse too.
#[test]
fn a_closed_connection_is_opened_again() {
    let mut connection = Connection::established();
    connection.server(FIN_ACK, 5001, 1001, b"");
    connection.client(FIN_ACK, 1001, 5002, b"");
    connection.server(tcp::ACK, 5002, 1002, b"");
    connection.is(State::Closed);

    connection.client(tcp::SYN, 70_000, 0, b"");
    connection.is(State::Opening);
    connection.server(SYN_ACK, 90_000, 70_001, b"");
    connection.is(State::Opening);
    connection.client(tcp::ACK, 70_001, 90_001, b"again");
    connection.is(State::Established);
    connection.client(FIN_ACK, 70_006, 90_001, b"");
    connection.is(State::Closing);
}

/// RFC 7857 section 2.2: a reset is translated, and the session stays for a while: its receiver may
/// not have taken it for genuine.
#[test]
fn a_reset_goes_through_and_the_session_stays() {
    for by_client in [false, true] {
        let mut connection = Connection::established();
        if by_client {
            connection.client(tcp::RST, 1001, 0, b"");
        } else {
            connection.server(tcp::RST | tcp::ACK, 5001, 1001, b"");
        }
        connection.is(State::Closed);
        // Segments that were on their way.
        if by_client {
            connection.server(tcp::ACK, 5001, 1001, b"late");
        } else {
            connection.client(tcp::ACK, 1001, 5001, b"late");
        }
        connection.is(State::Closed);
        // An end that has sent a reset does not go on. If segments still come, the reset was
        // forged.
        if by_client {
            connection.client(tcp::ACK, 1001, 5005, b"");
        } else {
            connection.server(tcp::ACK, 5001, 1005, b"");
        }
        connection.is(State::Established);
    }
}

/// RFC 5961 3.2: a reset counts at exactly what its receiver expects. Another one is its receiver's
/// to judge.
#[test]
fn a_reset_out_of_sequence_changes_nothing() {
    let mut connection = Connection::established();
    for offset in [0x8000_0000_u32, 1 << 24, 1, 1448, u32::MAX] {
        connection.server(tcp::RST, 5001_u32.wrapping_add(offset), 0, b"");
        connection.is(State::Established);
        connection.client(tcp::RST, 1001_u32.wrapping_add(offset), 0, b"");
        connection.is(State::Established);
    }
}

/// An end gives up with data under way: the data is never acknowledged, and the reset comes after
/// it.
#[test]
fn a_reset_after_data_ends_a_connection_unless_its_receiver_goes_on() {
    let mut connection = Connection::established();
    connection.server(tcp::ACK, 5001, 1001, &[7; 1000]);
    connection.server(tcp::RST | tcp::ACK, 6001, 1001, b"");
    connection.is(State::Closed);
    connection.client(tcp::ACK, 1001, 5001, b"");
    connection.is(State::Established);
    connection.server(tcp::RST, 5001, 0, b"");
    connection.is(State::Closed);
}

/// A forger who knows the addresses and ports but not the numbers: an acknowledgement that says
/// where a reset is to be, the reset, a FIN as if of either end; then the same all over the
/// sequence space.
#[test]
fn forged_segments_change_nothing() {
    let mut connection = Connection::established();
    for step in 0..512_u32 {
        let number = 0x1234_5678_u32.wrapping_add(step << 23);
        connection.client(tcp::ACK, 0x7000_0000, number, b"");
        connection.server(tcp::RST, number, 0, b"");
        connection.server(tcp::ACK, 0x7000_0000, number, b"");
        connection.client(tcp::RST, number, 0, b"");
        connection.server(FIN_ACK, number, !number, b"");
        connection.client(FIN_ACK, !number, number, b"");
        connection.is(State::Established);
        // The client's answer to what it cannot accept.
        connection.client(tcp::ACK, 1001, 5001, b"");
    }
    // A forger who walks through the whole of it in small steps.
    for step in 0..65_536_u32 {
        let segment = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).numbers(0x7000_0000, step << 16);
        assert_eq!(connection.world.run_quietly(&segment.build()).0, Verdict::Tx);
    }
    connection.world.moved();
    connection.server(tcp::RST, 65_535 << 16, 0, b"");
    connection.is(State::Established);
    // The ends have not been lost sight of.
    connection.client(tcp::ACK, 1001, 5001, b"hello");
    connection.server(tcp::RST, 5001, 0, b"");
    connection.is(State::Closed);
}

/// Both ends have forgotten the connection in silence, and the client's port is used again. The
/// segments are forwarded all the time, and after a while they are followed.
#[test]
fn a_connection_that_both_ends_restart_is_followed() {
    const CLIENT: u32 = 0x4000_0000;
    const SERVER: u32 = 0x9000_0000;
    let mut connection = Connection::established();
    connection.client(tcp::SYN, CLIENT - 1, 0, b"");
    connection.server(SYN_ACK, SERVER - 1, CLIENT, b"");
    let start = Instant::now();
    while connection.expected() != Some((SERVER, CLIENT)) {
        assert!(start.elapsed() < Duration::from_secs(20), "{:x?}", connection.expected());
        connection.server(tcp::RST, SERVER, 0, b"");
        connection.is(State::Established);
        connection.client(tcp::ACK, CLIENT, SERVER, b"");
        if connection.expected() != Some((SERVER, CLIENT)) {
            connection.server(tcp::ACK, SERVER, CLIENT, b"");
        }
    }
    let ticks = u64::from(RESYNCHRONISES_AFTER);
    assert!(start.elapsed() > Duration::from_nanos((ticks - 2) << 30), "{:?}", start.elapsed());
    // Neither direction is the slow path's any more.
    connection.client(tcp::ACK, CLIENT, SERVER, b"question");
    connection.server(tcp::ACK, SERVER, CLIENT + 8, b"answer");
    connection.world.dataplane.flows.for_each(|session| {
        for flow in [&session.forward, &session.reply] {
            assert_ne!(flow.entry.next_hop.generation, 0, "{flow:?}");
        }
        true
    });
    // Any host may have sent all this, so nothing of it ends the session.
    connection.client(tcp::RST, CLIENT + 8, 0, b"");
    connection.server(tcp::RST, SERVER, 0, b"");
    connection.is(State::Established);
}

/// A forger who sees the connection. Its ends discard the forged segments and show that by going on
/// before the session is over.
#[test]
fn a_connection_that_goes_on_is_not_over() {
    let mut connection = Connection::established();
    connection.server(FIN_ACK, 5001, 1001, b"");
    connection.client(FIN_ACK, 1001, 5001, b"");
    connection.is(State::Closed);
    connection.client(tcp::ACK, 1001, 5001, b"more");
    connection.is(State::Closing);
    connection.server(tcp::ACK, 5001, 1005, b"and more");
    connection.client(tcp::ACK, 1005, 5009, b"");
    connection.server(tcp::RST, 5009, 0, b"");
    connection.is(State::Closed);
    connection.server(tcp::ACK, 5009, 1005, b"");
    connection.is(State::Closing);
}

/// A forged SYN and a forged answer.
#[test]
fn a_forged_handshake_does_not_disturb_an_opening_connection() {
    let mut connection = Connection::new();
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.client(tcp::SYN, 0x4000_0000, 0, b"");
    connection.server(SYN_ACK, 0x2000_0000, 0x3000_0000, b"");
    connection.is(State::Opening);
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.server(SYN_ACK, 5000, 1001, b"");
    connection.client(tcp::ACK, 1001, 5001, b"hello");
    connection.server(tcp::ACK, 5001, 1006, b"hello");
    connection.client(tcp::ACK, 1006, 5006, b"");
    connection.is(State::Established);
}

/// Neither a broadcast nor a frame for another machine, which a switch has flooded to all, is sent
/// on a second time.
#[test]
fn frames_of_a_session_that_are_for_others_are_not_forwarded() {
    let mut connection = Connection::established();
    let segment = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::ACK).numbers(1001, 5001).payload(b"data");
    let of_client = [2, 0, 0, 0, 0, 1];
    for (mac, expected) in [
        ([2, 0, 0, 0, 0, 3], (Verdict::Pass, Reason::OtherHost)),
        ([0xff; 6], (Verdict::Drop, Reason::LocalDenied)),
        ([1, 0, 0x5e, 0, 0, 1], (Verdict::Drop, Reason::LocalDenied)),
    ] {
        let ran = connection.world.run(&segment.build_between(of_client, mac));
        assert_eq!((ran.verdict, ran.reason), expected, "{mac:02x?}");
        assert_eq!(ran.frame, segment.build_between(of_client, mac), "as it was");
    }
    connection.client(tcp::ACK, 1001, 5001, b"data");
}

/// The server refuses; the client tries again from the same port.
#[test]
fn a_refused_connection_may_be_tried_again() {
    let mut connection = Connection::new();
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.server(tcp::RST | tcp::ACK, 0, 1001, b"");
    connection.is(State::Closed);
    connection.client(tcp::SYN, 2000, 0, b"");
    connection.is(State::Opening);
    connection.server(SYN_ACK, 5000, 2001, b"");
    connection.client(tcp::ACK, 2001, 5001, b"");
    connection.is(State::Established);
}

/// A source that sends a SYN and an acknowledgement without having seen the answer (a flood, with
/// any source address) has not shown that it exists. Its session must not stay for as long as a
/// connection's, nor stop counting as half-open.
#[test]
fn a_blind_acknowledgement_does_not_finish_the_handshake() {
    let mut connection = Connection::new();
    connection.client(tcp::SYN, 1000, 0, b"");
    connection.server(SYN_ACK, 5000, 1001, b"");
    connection.client(tcp::ACK, 1001, 0x1234_5678, b"");
    connection.is(State::Opening);
    connection.client(tcp::ACK, 1001, 5001, b"");
    connection.is(State::Established);
}

/// The client's next connection from the same port is refused: what was acknowledged in the last
/// one does not count.
#[test]
fn a_reopened_connection_may_be_refused() {
    let mut connection = Connection::established();
    connection.server(FIN_ACK, 5001, 1001, b"");
    connection.client(FIN_ACK, 1001, 5002, b"");
    connection.is(State::Closed);
    connection.client(tcp::SYN, 70_000, 0, b"");
    connection.is(State::Opening);
    connection.server(tcp::RST | tcp::ACK, 0, 70_001, b"");
    connection.is(State::Closed);
}

/// Runs two packets a round, one on each CPU, as nearly at the same moment as can be. `pair` makes
/// a round's.
pub(crate) fn at_once(program: &Program, rounds: u16, pair: impl Fn(u16) -> [Vec<u8>; 2] + Sync) {
    let turn = AtomicU32::new(0);
    let cpu = |number: usize| {
        stay_on(number);
        for round in 0..rounds {
            let packet = &pair(round)[number];
            turn.fetch_add(1, Ordering::SeqCst);
            while turn.load(Ordering::SeqCst) < 2 * (u32::from(round) + 1) {
                std::hint::spin_loop();
            }
            // One is a little later than the other, by another time each round.
            for _ in 0..usize::from(round) % [89, 97][number] * 4 {
                std::hint::spin_loop();
            }
            program.run(packet);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| cpu(1));
        cpu(0);
    });
}

fn connections() -> World {
    World::with(Setup { sessions: 100_000, ..Setup::default() })
}

const PORTS: u16 = 54_000;

/// A client's port that is kept: any but those between, of which a source may use one of two
/// (`router_common::ports::SourcePorts`).
fn port_of(number: u16) -> u16 {
    if number < 9000 { 2000 + number } else { 11_000 + number }
}

fn of_client(number: u16, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    tcp_packet((PLS, port_of(number)), (ROUTER, 443), flags).numbers(sequence, acknowledgement).build()
}

fn of_server(number: u16, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    tcp_packet((TARGET, 8443), (ROUTER, port_of(number)), flags).numbers(sequence, acknowledgement).build()
}

/// The client's SYN comes again while the answer to the first is on its way through another CPU.
/// Neither is forgotten.
#[test]
fn a_retransmitted_syn_may_cross_its_answer() {
    let mut world = connections();
    let program = world.program();
    for number in 0..PORTS {
        program.run(&of_client(number, tcp::SYN, 1000, 0));
    }
    let pair = |number| [of_client(number, tcp::SYN, 1000, 0), of_server(number, SYN_ACK, 5000, 1001)];
    at_once(&program, PORTS, pair);
    for number in 0..PORTS {
        program.run(&of_client(number, tcp::ACK, 1001, 5001));
    }
    let mut opening = 0;
    world.dataplane.flows.for_each(|session| {
        opening += u32::from(session.forward.is_opening() || session.state() != Some(State::Established));
        true
    });
    assert_eq!(opening, 0, "of {PORTS} are not established");
}

/// Both ends close at the same moment, through two CPUs. Neither's FIN is forgotten, nor what tells
/// the sweep of it.
#[test]
fn two_cpus_close_both_ends_at_once() {
    let mut world = connections();
    let program = world.program();
    for number in 0..PORTS {
        program.run(&of_client(number, tcp::SYN, 1000, 0));
        program.run(&of_server(number, SYN_ACK, 5000, 1001));
        program.run(&of_client(number, tcp::ACK, 1001, 5001));
    }
    let pair = |number| [of_client(number, FIN_ACK, 1001, 5001), of_server(number, FIN_ACK, 5001, 1001)];
    at_once(&program, PORTS, pair);
    let (mut open, mut unmarked) = (0, 0);
    world.dataplane.flows.for_each(|session| {
        open += u32::from(session.state() != Some(State::Closed));
        unmarked += u32::from(!session.forward.seen().is_over());
        true
    });
    assert_eq!((open, unmarked), (0, 0), "of {PORTS}");
}

/// Its target will not look at it, so it is not to take a port, nor to make the target look dead.
#[test]
fn a_damaged_syn_opens_no_session() {
    let mut world = World::new();
    let syn = tcp_packet((PLS, 40_000), (ROUTER, 443), tcp::SYN);
    for at in [34, 38, 48, 51] {
        let mut frame = syn.build();
        frame[at] ^= 0x10;
        let ran = world.run(&frame);
        assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, Reason::BadChecksum), "byte {at}");
    }
    assert_eq!(world.sessions(), 0);
    assert_eq!(world.run(&syn.build()).reason, Reason::Opened);
}
