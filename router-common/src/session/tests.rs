use proptest::prelude::*;

use super::*;
use crate::{
    effort::tries,
    tcp,
    tuple::{
        Direction::{self, Forward, Reply},
        Protocol,
    },
};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
const RST_ACK: u8 = tcp::RST | tcp::ACK;

/// The initial sequence numbers of the client and the target: one of them wraps soon.
const CLIENT: u32 = 0xffff_ff00;
const TARGET: u32 = 0x8000_0000;

/// The data path's view of a connection: the fast path, and the slow path.
#[derive(Clone, Copy)]
struct Middle(Track, Notes);

/// Notes on the connection in its two entries, the client's first.
#[derive(Clone, Copy, Debug, Default)]
struct Notes {
    now: u32,
    /// The next hop is known: packets take the fast path.
    known: [bool; 2],
    /// The number of ticks with segments out of window, and the last of them.
    ticks: [u32; 2],
    last: [u32; 2],
}

impl Middle {
    fn new() -> Self {
        let client = End { seen: Seen::SYN, ..End::default() };
        Self(Track { client, opening: true, ..Track::default() }, Notes::default())
    }

    fn see(&mut self, segment: &Segment) {
        let Self(track, notes) = self;
        let is_client = matches!(segment.direction, Forward);
        let own = usize::from(!is_client);
        let is_fast = segment.flags & (Seen::FLAGS | tcp::ACK) == tcp::ACK && notes.known[own];
        let end = if is_client { &mut track.client } else { &mut track.target };
        if is_fast && End::continues(end.expects, end.sent, segment.sequence, segment.acknowledgement) {
            (end.expects, end.sent) = (segment.acknowledgement, (segment.sequence >> 16) as u16);
            return;
        }
        let mut step = track.after(segment);
        if matches!(step.window, Window::Outside)
            && notes.ticks.iter().all(|ticks| *ticks >= RESYNCHRONISES_AFTER)
        {
            step = Step::into_new_connection();
        }
        *track = step.track.moved(segment, step.moves);
        track.client.seen = track.client.seen.with_other(track.target.seen);
        let is_outside = matches!(step.window, Window::Outside);
        match step.window {
            Window::Inside => notes.ticks = [0; 2],
            Window::Outside if notes.ticks[own] == 0 || notes.last[own] != notes.now => {
                notes.ticks[own] += 1;
                notes.last[own] = notes.now;
            }
            Window::Outside | Window::Unknown => {}
        }
        let is_over = track.connection().is_over();
        if is_over || is_outside {
            notes.known = [false; 2];
        }
        notes.known[own] = !is_over && !is_outside && (!track.opening || !is_client) && notes.ticks == [0; 2];
    }

    fn state(&self) -> State {
        self.0.connection().state()
    }
}

const fn segment(direction: Direction, flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
    Segment { direction, flags, sequence, acknowledgement, carries_data: false }
}

/// Two ends that behave as they should, and the router between them.
#[derive(Clone, Copy)]
struct Talk {
    middle: Middle,
    /// The numbers that the client and the target send next.
    next: [u32; 2],
}

impl Talk {
    fn new() -> Self {
        Self { middle: Middle::new(), next: [CLIENT, TARGET] }
    }

    fn established() -> Self {
        let mut talk = Self::new();
        talk.open();
        talk
    }

    fn open(&mut self) {
        self.say(Forward, tcp::SYN, 0);
        self.say(Reply, SYN_ACK, 0);
        self.say(Forward, tcp::ACK, 0);
        assert_eq!(self.middle.state(), State::Established);
    }

    /// Returns a genuine segment with this many bytes of data, of an end that has received all that
    /// the other end has sent.
    fn genuine(&self, direction: Direction, flags: u8, data: u32) -> Segment {
        let own = usize::from(matches!(direction, Reply));
        let acknowledgement = if flags & tcp::ACK == 0 { 0 } else { self.next[1 - own] };
        Segment { carries_data: data > 0, ..segment(direction, flags, self.next[own], acknowledgement) }
    }

    fn say(&mut self, direction: Direction, flags: u8, data: u32) {
        let segment = self.genuine(direction, flags, data);
        let own = usize::from(matches!(direction, Reply));
        let length = data + u32::from(flags & (tcp::SYN | tcp::FIN) != 0);
        self.next[own] = self.next[own].wrapping_add(length);
        self.middle.see(&segment);
    }

    /// So much data, in segments as they are on wires; and what acknowledges it.
    fn transfer(&mut self, direction: Direction, data: u32) {
        let mut left = data;
        while left > 0 {
            let now = left.min(1448);
            self.say(direction, tcp::ACK, now);
            left -= now;
        }
        self.say(if matches!(direction, Forward) { Reply } else { Forward }, tcp::ACK, 0);
    }

    fn after(mut self, segments: &[(Direction, u8)]) -> State {
        for (direction, flags) in segments {
            self.say(*direction, *flags, 0);
        }
        self.middle.state()
    }
}

fn after_open(segments: &[(Direction, u8)]) -> State {
    Talk::established().after(segments)
}

#[test]
fn tcp_opens_by_three_steps() {
    let new = Talk::new();
    assert_eq!(new.after(&[(Forward, tcp::SYN)]), State::Opening);
    assert_eq!(new.after(&[(Forward, tcp::SYN), (Reply, SYN_ACK)]), State::Opening, "a flood gets this far");
    assert_eq!(new.after(&[(Forward, tcp::SYN), (Forward, tcp::ACK)]), State::Opening, "to nothing");
    assert_eq!(after_open(&[]), State::Established);
    let mut blind = new;
    blind.say(Forward, tcp::SYN, 0);
    blind.say(Reply, SYN_ACK, 0);
    blind.middle.see(&segment(Forward, tcp::ACK, CLIENT + 1, TARGET - 1));
    assert_eq!(blind.middle.state(), State::Opening, "to what has not been sent");
}

#[test]
fn a_refused_connection_is_not_opening() {
    let mut talk = Talk::new();
    talk.say(Forward, tcp::SYN, 0);
    for (direction, flags, sequence, acknowledgement) in [
        (Reply, RST_ACK, 0, CLIENT),
        (Reply, RST_ACK, 0, TARGET),
        (Reply, tcp::RST, 0, 0),
        (Forward, tcp::RST, 7, 0),
    ] {
        talk.middle.see(&segment(direction, flags, sequence, acknowledgement));
        assert_eq!(talk.middle.state(), State::Opening, "blind");
    }
    let mut refused = talk;
    refused.middle.see(&segment(Reply, RST_ACK, 0, CLIENT + 1));
    assert_eq!(refused.middle.state(), State::Closed);
    assert!(!refused.middle.0.opening);
    talk.say(Forward, tcp::RST, 0);
    assert_eq!(talk.middle.state(), State::Closed);
    assert!(talk.middle.0.opening, "a flood may send that as well");
}

#[test]
fn tcp_opens_from_both_sides_at_once() {
    let mut middle = Middle::new();
    middle.see(&segment(Forward, tcp::SYN, 1000, 0));
    middle.see(&segment(Reply, tcp::SYN, 5000, 0));
    middle.see(&segment(Forward, SYN_ACK, 1000, 5001));
    middle.see(&segment(Reply, SYN_ACK, 5000, 1001));
    assert_eq!(middle.state(), State::Opening);
    middle.see(&segment(Forward, tcp::ACK, 1001, 5001));
    assert_eq!(middle.state(), State::Established);
}

/// Forged segments at any moment of a handshake, up to three at once.
#[test]
fn forged_handshakes_do_not_keep_a_connection_from_opening() {
    let forged = [
        segment(Forward, tcp::SYN, 0x4000_0000, 0),
        segment(Reply, SYN_ACK, 0x2000_0000, 0x4000_0001),
        segment(Reply, SYN_ACK, 0x2000_0000, 0x6000_0000),
        segment(Reply, RST_ACK, 0, 0x4000_0001),
        segment(Reply, tcp::RST, 0x2000_0001, 0),
        segment(Forward, tcp::RST, 0x4000_0001, 0),
        segment(Forward, tcp::ACK, 0x4000_0001, 0x2000_0001),
    ];
    let some = || std::iter::once(None).chain(forged.into_iter().map(Some));
    let orders = some().flat_map(|a| some().flat_map(move |b| some().map(move |c| (a, b, c))));
    for (first, second, third) in orders.step_by(tries(1, 97) as usize) {
        for at in 0..3 {
            let what = format!("{first:?} {second:?} {third:?} at {at}");
            let mut talk = Talk::new();
            for (turn, (direction, flags)) in
                [(Forward, tcp::SYN), (Reply, SYN_ACK), (Forward, tcp::ACK)].into_iter().enumerate()
            {
                talk.say(direction, flags, 0);
                if turn == at {
                    [first, second, third].iter().flatten().for_each(|one| talk.middle.see(one));
                }
            }
            for _ in 0..2 {
                talk.transfer(Forward, 100);
                talk.transfer(Reply, 100);
            }
            assert_eq!(talk.middle.state(), State::Established, "{what}");
            // If a whole handshake was forged, its numbers stay.
            let is_whole =
                third.is_some() || [first, second].iter().flatten().any(|one| one.flags == tcp::ACK);
            if is_whole {
                continue;
            }
            for direction in [Forward, Reply] {
                let reset = talk.genuine(direction, RST_ACK, 0);
                let mut talk = talk;
                talk.middle.see(&reset);
                assert_eq!(talk.middle.state(), State::Closed, "{what}");
            }
        }
    }
}

/// Some megabytes are lost before they come here, what follows them is not, and they come
/// again.
#[test]
fn a_large_hole_is_filled() {
    let segments = tries(4096, 64);
    for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
        let mut talk = Talk::established();
        let own = usize::from(matches!(direction, Reply));
        let start = talk.next[own];
        talk.next[own] = start.wrapping_add(segments * 1024);
        for _ in 0..segments / 2 {
            talk.say(direction, tcp::ACK, 1024);
        }
        let end = talk.next[own];
        talk.next[own] = start;
        for _ in 0..segments {
            talk.say(direction, tcp::ACK, 1024);
        }
        talk.next[own] = end;
        talk.say(other, tcp::ACK, 0);
        talk.transfer(direction, 100_000);
        talk.say(direction, tcp::RST, 0);
        assert_eq!(talk.middle.state(), State::Closed);
    }
}

#[test]
fn tcp_closes_by_two_fins_or_one_reset() {
    assert_eq!(after_open(&[(Forward, FIN_ACK)]), State::Closing);
    assert_eq!(after_open(&[(Reply, FIN_ACK)]), State::Closing);
    assert_eq!(after_open(&[(Forward, FIN_ACK), (Reply, tcp::ACK), (Reply, FIN_ACK)]), State::Closed);
    assert_eq!(after_open(&[(Forward, tcp::RST)]), State::Closed);
    assert_eq!(after_open(&[(Reply, RST_ACK)]), State::Closed);
}

#[test]
fn a_syn_does_not_change_a_connection() {
    assert_eq!(after_open(&[(Forward, tcp::SYN)]), State::Established);
    assert_eq!(after_open(&[(Forward, FIN_ACK), (Forward, tcp::SYN)]), State::Closing);
    assert_eq!(after_open(&[(Reply, tcp::RST), (Forward, tcp::SYN)]), State::Closed);
}

#[test]
fn a_reset_is_forgotten_if_its_sender_goes_on() {
    assert_eq!(after_open(&[(Reply, tcp::RST), (Forward, tcp::ACK)]), State::Closed, "still on its way");
    assert_eq!(after_open(&[(Reply, tcp::RST), (Reply, tcp::ACK)]), State::Established);
}

/// RFC 5961 3.2: exactly there.
#[test]
fn a_reset_counts_at_what_its_receiver_expects() {
    for (offset, expected) in [
        (0, State::Closed),
        (1, State::Established),
        (-1_i32, State::Established),
        (1 << 16, State::Established),
        (1 << 24, State::Established),
    ] {
        for direction in [Forward, Reply] {
            let mut talk = Talk::established();
            let genuine = talk.genuine(direction, tcp::RST, 0);
            let sequence = genuine.sequence.wrapping_add_signed(offset);
            talk.middle.see(&Segment { sequence, ..genuine });
            assert_eq!(talk.middle.state(), expected, "{direction:?} {offset}");
        }
    }
}

/// Both ends have started a new connection with these numbers, which the router has not seen.
fn begun_anew(mut talk: Talk, numbers: [u32; 2]) -> Talk {
    talk.next = numbers;
    talk.say(Forward, tcp::SYN, 0);
    talk.say(Reply, SYN_ACK, 0);
    talk.say(Forward, tcp::ACK, 0);
    talk
}

#[test]
fn an_unseen_new_connection_is_followed_after_a_while() {
    let mut half_closed = Talk::established();
    half_closed.say(Reply, FIN_ACK, 0);
    for old in [Talk::established(), half_closed] {
        let mut talk = begun_anew(old, [0x1234_5678, 0xfedc_ba98]);
        for _ in 0..RESYNCHRONISES_AFTER {
            let mut reset = talk;
            reset.say(Forward, tcp::RST, 0);
            assert_eq!(reset.middle.0, talk.middle.0, "it may still be forged");
            talk.transfer(Forward, 3000);
            talk.transfer(Reply, 3000);
            talk.middle.1.now += 1;
        }
        talk.transfer(Forward, 300_000);
        talk.transfer(Reply, 300_000);
        assert_eq!(talk.middle.1.known, [true; 2], "it takes the fast path");
        // It may still be forged.
        for direction in [Forward, Reply] {
            let mut talk = talk;
            talk.say(direction, tcp::RST, 0);
            assert_eq!(talk.middle.state(), State::Established);
            talk.say(Forward, FIN_ACK, 0);
            talk.say(Reply, FIN_ACK, 0);
            assert_eq!(talk.middle.state(), State::Established);
            assert!(!talk.middle.0.connection().is_over());
        }
    }
}

/// Segments that no end takes for its own, and so answers none: whatever they make of an idle
/// connection, they cannot end it, and its ends are followed again when they go on.
#[test]
fn an_idle_connection_is_not_ended_by_unanswered_segments() {
    let mut talk = Talk::established();
    let (client, target) = (0x1234_5678, 0xfedc_ba98);
    for tick in 0..=RESYNCHRONISES_AFTER {
        talk.middle.1.now = tick;
        talk.middle.see(&segment(Reply, tcp::ACK, target, client));
        talk.middle.see(&segment(Forward, tcp::ACK, client, target));
    }
    for flags in [tcp::RST, RST_ACK, FIN_ACK] {
        talk.middle.see(&segment(Forward, flags, client, target));
        talk.middle.see(&segment(Reply, flags, target, client));
        assert_eq!(talk.middle.state(), State::Established);
        assert!(!talk.middle.0.connection().is_over());
    }
    for tick in 10..16 {
        talk.middle.1.now = tick;
        talk.transfer(Forward, 3000);
        talk.transfer(Reply, 3000);
    }
    assert_eq!(talk.middle.1.known, [true; 2]);
}

/// An answer counts wherever it takes its way: a reset that is none does not have it
/// overlooked.
#[test]
fn an_answer_after_resets_is_seen() {
    let mut talk = Talk::established();
    talk.transfer(Forward, 3000);
    talk.transfer(Reply, 3000);
    let before = talk.middle.0;
    let (client, target) = (0x1234_5678, 0xfedc_ba98);
    for tick in 0..3 * RESYNCHRONISES_AFTER {
        talk.middle.1.now = tick;
        if tick < 2 * RESYNCHRONISES_AFTER {
            talk.middle.see(&segment(Reply, tcp::ACK, target, client));
            talk.middle.see(&segment(Forward, tcp::RST, 7, 0));
            talk.say(Forward, tcp::ACK, 0);
        } else {
            talk.middle.see(&segment(Forward, tcp::ACK, client, target));
        }
    }
    assert_eq!(talk.middle.0, before);
}

/// A SYN that was not the client's has made the router start a live connection over.
#[test]
fn a_connection_older_than_its_session_is_established() {
    let mut talk = Talk::established();
    talk.transfer(Forward, 3000);
    talk.middle = Middle::new();
    talk.middle.see(&segment(Forward, tcp::SYN, 0x4000_0000, 0));
    talk.transfer(Forward, 3000);
    talk.transfer(Reply, 3000);
    assert_eq!(talk.middle.state(), State::Established);
    talk.transfer(Forward, 3000);
    assert_eq!(talk.middle.1.known, [true; 2]);
    talk.say(Reply, tcp::RST, 0);
    assert_eq!(talk.middle.state(), State::Closed);
}

/// One segment that has guessed right is far ahead of the others.
#[test]
fn a_segment_far_ahead_does_not_keep_the_others_in_the_slow_path() {
    for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
        let mut talk = Talk::established();
        let next = talk.genuine(direction, tcp::ACK, 100);
        talk.middle.see(&Segment { sequence: next.sequence.wrapping_add(12 << 20), ..next });
        talk.transfer(direction, 1000);
        talk.transfer(other, 1000);
        let Track { client, target, .. } = talk.middle.0;
        let sender = if matches!(direction, Forward) { client } else { target };
        let own = usize::from(matches!(direction, Reply));
        assert_eq!(sender.sent, (talk.next[own] >> 16) as u16, "{direction:?}");
    }
}

#[test]
fn one_end_alone_does_not_start_a_new_connection() {
    for direction in [Forward, Reply] {
        let mut talk = Talk::established();
        let before = talk.middle.0;
        for tick in 0..100 {
            talk.middle.1.now = tick;
            talk.middle.see(&segment(direction, tcp::ACK, 0x1234_5678 + tick, 0xfedc_ba98));
        }
        assert_eq!(talk.middle.0, before);
    }
}

/// RFC 5961 3.2: what is ahead is not known to be genuine.
#[test]
fn a_reset_ahead_of_data_is_not_certain() {
    for direction in [Forward, Reply] {
        let mut talk = Talk::established();
        let ahead = talk.genuine(direction, tcp::RST, 0);
        talk.middle.see(&Segment {
            sequence: ahead.sequence.wrapping_add(1000),
            flags: RST_ACK,
            acknowledgement: talk.genuine(direction, tcp::ACK, 0).acknowledgement,
            ..ahead
        });
        let connection = talk.middle.0.connection();
        assert!(connection.is_over() && !connection.is_certainly_over(), "{direction:?}");
        talk.say(direction, tcp::RST, 0);
        assert!(talk.middle.0.connection().is_certainly_over());
    }
    let mut talk = Talk::established();
    talk.say(Forward, FIN_ACK, 0);
    assert!(!talk.middle.0.connection().is_over());
    talk.say(Reply, FIN_ACK, 0);
    assert!(talk.middle.0.connection().is_certainly_over());
}

/// Data that its receiver has acknowledged is no evidence against the FIN after it.
#[test]
fn retransmitted_data_after_both_fins_is_no_new_data() {
    for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
        let mut talk = Talk::established();
        let data = talk.genuine(direction, tcp::ACK, 1000);
        talk.transfer(direction, 1000);
        talk.say(direction, FIN_ACK, 0);
        talk.say(other, FIN_ACK, 0);
        talk.say(direction, tcp::ACK, 0);
        assert_eq!(talk.middle.state(), State::Closed);
        talk.middle.see(&data);
        assert_eq!(talk.middle.state(), State::Closed, "{direction:?}");
        talk.say(direction, tcp::ACK, 1000);
        assert_eq!(talk.middle.state(), State::Closing, "the FIN was another's");
    }
}

/// An end that gives up with data on the way: its reset comes after that data, and neither end
/// acknowledges the other.
#[test]
fn a_reset_after_data_counts_until_its_receiver_goes_on() {
    for (direction, other) in [(Forward, Reply), (Reply, Forward)] {
        let mut talk = Talk::established();
        talk.say(direction, tcp::ACK, 1000);
        talk.say(direction, RST_ACK, 0);
        assert_eq!(talk.middle.state(), State::Closed);
        talk.say(other, tcp::ACK, 0);
        assert_eq!(talk.middle.state(), State::Established, "it was not taken for genuine");
        talk.say(direction, tcp::RST, 0);
        assert_eq!(talk.middle.state(), State::Closed, "that answers");
        talk.say(other, tcp::ACK, 0);
        assert_eq!(talk.middle.state(), State::Closed);
    }
}

#[test]
fn udp_and_icmp_are_established_by_a_reply() {
    for protocol in [Protocol::Udp, Protocol::Icmp] {
        assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, true), State::Opening);
        assert_eq!(State::of(protocol, Seen::NOTHING, Seen::NOTHING, false), State::Established);
    }
}

/// A forged segment, with numbers at these distances from the right ones.
fn forged() -> impl Strategy<Value = (bool, u8, bool, Option<i32>, Option<i32>)> {
    let offset = || {
        prop_oneof![Just(None), prop_oneof![-3..3_i32, any::<i32>(), -200_000..200_000_i32].prop_map(Some)]
    };
    (any::<bool>(), any::<u8>(), any::<bool>(), offset(), offset())
}

proptest! {
    #![proptest_config(crate::effort::cases())]

    /// Any segments may be injected between those of two ends. If the ends go on sending, the
    /// session stays.
    #[test]
    fn injected_segments_do_not_end_an_active_connection(
        rounds in proptest::collection::vec((proptest::collection::vec(forged(), 0..20), 0..tries(200_000, 5000), 0..tries(200_000, 5000)), 1..tries(10, 3) as usize),
    ) {
        let mut talk = Talk::established();
        for (forgeries, asked, answered) in rounds {
            for (is_reply, flags, carries_data, sequence, acknowledgement) in forgeries {
                let direction = if is_reply { Reply } else { Forward };
                let right = talk.genuine(direction, tcp::ACK, 0);
                let off = |right: u32, offset: Option<i32>| offset.map_or(7, |offset| right.wrapping_add_signed(offset));
                talk.middle.see(&Segment {
                    direction,
                    flags,
                    sequence: off(right.sequence, sequence),
                    acknowledgement: off(right.acknowledgement, acknowledgement),
                    carries_data,
                });
            }
            talk.transfer(Forward, asked + 1);
            talk.transfer(Reply, answered + 1);
            let state = talk.middle.state();
            prop_assert!(matches!(state, State::Established | State::Closing), "{state:?}");
        }
    }

    /// A forged segment with the right addresses and ports, but wrong numbers, changes nothing.
    #[test]
    fn blind_segments_change_nothing(
        segments in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<bool>()), 0..200),
        talked in 0..tries(100_000, 5000),
    ) {
        let mut talk = Talk::established();
        talk.transfer(Forward, talked);
        talk.transfer(Reply, talked);
        let before = talk.middle.0;
        for (is_reply, flags, sequence, acknowledgement, carries_data) in segments {
            let direction = if is_reply { Reply } else { Forward };
            talk.middle.see(&Segment { direction, flags, sequence, acknowledgement, carries_data });
        }
        prop_assert_eq!(talk.middle.0, before);
    }

    /// Any segments change nothing, for any time, while one of the two ends answers those that it
    /// cannot accept, once a tick.
    #[test]
    fn an_end_that_answers_keeps_its_connection(
        segments in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<bool>()), 0..200),
        target_answers in any::<bool>(),
    ) {
        let mut talk = Talk::established();
        let before = talk.middle.0;
        for (is_reply, flags, sequence, acknowledgement, carries_data) in segments {
            let direction = if is_reply { Reply } else { Forward };
            talk.middle.see(&Segment { direction, flags, sequence, acknowledgement, carries_data });
            // It receives the segments from the other end's side, and answers no resets (RFC 9293
            // 3.10.7.4).
            if is_reply != target_answers && flags & tcp::RST == 0 {
                talk.say(if target_answers { Reply } else { Forward }, tcp::ACK, 0);
                talk.middle.1.now += 1;
            }
        }
        prop_assert_eq!(talk.middle.0, before);
    }

    /// For any segments that the two sides send, an open connection never counts as opening again,
    /// and only resets and FINs of both sides end one.
    #[test]
    fn segments_in_any_order_keep_the_state_valid(segments in proptest::collection::vec(forged(), 0..40)) {
        let mut talk = Talk::new();
        talk.say(Forward, tcp::SYN, 0);
        for (is_reply, flags, carries_data, sequence, acknowledgement) in segments {
            let direction = if is_reply { Reply } else { Forward };
            let before = talk.middle.0;
            let right = talk.genuine(direction, tcp::ACK, 0);
            talk.middle.see(&Segment {
                direction,
                flags,
                sequence: sequence.map_or(7, |offset| right.sequence.wrapping_add_signed(offset)),
                acknowledgement: acknowledgement.map_or(7, |offset| right.acknowledgement.wrapping_add_signed(offset)),
                carries_data,
            });
            let next = talk.middle.0;
            prop_assert!(before.opening || !next.opening);
            if next.connection().is_over() && !before.connection().is_over() {
                prop_assert!(flags & (tcp::FIN | tcp::RST) != 0);
            }
        }
    }

    /// The fast path, or else the slow path, follows data of any size in either direction.
    #[test]
    fn the_numbers_follow_data_of_any_size(sizes in proptest::collection::vec((any::<bool>(), 1..tries(1_000_000, 5000)), 1..tries(200, 20) as usize)) {
        let mut talk = Talk::established();
        for (is_reply, size) in sizes {
            talk.transfer(if is_reply { Reply } else { Forward }, size);
            let Track { client, target, .. } = talk.middle.0;
            let receiver = if is_reply { client } else { target };
            prop_assert_eq!(receiver.expects, talk.next[usize::from(is_reply)]);
        }
        for direction in [Forward, Reply] {
            let mut talk = talk;
            talk.say(direction, tcp::RST, 0);
            prop_assert_eq!(talk.middle.state(), State::Closed);
        }
    }
}
