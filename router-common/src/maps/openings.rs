//! Notes of opening sessions, which find the oldest one of a source. If the source has too many of
//! them, that one makes room for another.
//!
//! Opening sessions are noted in a ring, which all sources share whose addresses hash to it. A note
//! stays when its session has opened or ended: a search for one that makes room, from the oldest
//! on, finds out what has become of it. So a note costs one write and is read once. Two things keep
//! the notes of sessions that are still opening. A full ring leaves them where they are and goes on
//! to the next place, which makes them its newest. And a search puts the notes of other sources at
//! the end of the ring before it forgets their places.

use core::mem::size_of;

use crate::{
    rate::Rate,
    shared::AtomicU32,
    table::{SlotState, Tag},
    time::Ticks,
    tuple::{Direction, Protocol},
};

/// The number of rings.
pub const RINGS: u32 = 64;
/// The number of notes of a ring.
pub const NOTES: u32 = 1 << 14;

/// The maximum number of notes that are read for one session to make room. They are not read again.
pub const MAX_NOTES: u32 = 128;
/// The maximum number of these notes that are of answered sessions. After that, the oldest answered
/// one makes room.
pub const MAX_ANSWERED: u32 = 8;

/// The maximum number of places that are tried for a new note. A place whose note is of a session
/// that is still opening is passed over, except for the last.
pub const PUSH_ATTEMPTS: u32 = 32;

/// One in this many of the sessions that there is room for may make room for others each second.
/// Their slots are in quarantine for a while, and must not fill the table.
const SHARE_OF_THE_TABLE: u64 = 16;

/// Returns the rate at which sessions may make room for others, in a table for `capacity` sessions.
#[inline(always)]
pub const fn rate(capacity: u32) -> Rate {
    // The verifier accepts only a division that cannot panic.
    let interval = match (SHARE_OF_THE_TABLE * 1_000_000_000).checked_div(capacity as u64) {
        Some(interval) => interval,
        None => 1_000_000_000,
    };
    Rate { burst: 16 + capacity as u64 / 256, interval }
}

/// A note of an opening session: the slot of its client's flow, and the tick in which it was
/// opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Note(u64);

impl Note {
    /// Creates the note of a session.
    #[inline(always)]
    pub const fn new(slot: u32, opened: Ticks) -> Self {
        Self((opened.0 as u64) << u32::BITS | slot as u64)
    }

    /// Returns the note as a number, for a map.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Restores a note from [`number`](Self::number).
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns the slot of the client's flow.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Returns the tick in which the session was opened.
    #[inline(always)]
    pub const fn opened(self) -> Ticks {
        Ticks((self.0 >> u32::BITS) as u32)
    }
}

/// The two ends of a ring's notes, in memory that all CPUs share. Both only go up, and wrap at
/// 2^32.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Ends {
    next: AtomicU32,
    oldest: AtomicU32,
    zero: [u32; 14],
}

const _: () = assert!(cfg!(model) || size_of::<Ends>() == 64);

impl Ends {
    /// Takes the place for one more note. No other CPU gets the same place.
    #[inline(always)]
    pub fn push(&self) -> u32 {
        self.next.add(1)
    }

    /// Returns the places of the oldest note that is still there and of the next one to come.
    #[inline(always)]
    pub fn places(&self) -> (u32, u32) {
        let oldest = self.oldest.load();
        let next = self.next.load();
        // Earlier notes have been overwritten.
        (if next.wrapping_sub(oldest) > NOTES { next.wrapping_sub(NOTES) } else { oldest }, next)
    }

    /// Forgets the notes before this place.
    #[inline(always)]
    pub fn forget_before(&self, place: u32) {
        let seen = self.oldest.load();
        // Another CPU may have come further. If it has at this moment, some notes are read again,
        // which does no harm.
        if place.wrapping_sub(seen) < 1 << 31 {
            self.oldest.change(seen, place);
        }
    }
}

/// Returns the index of a ring's place among those of all rings.
#[inline(always)]
pub const fn index(ring: u32, place: u32) -> u32 {
    (ring % RINGS) * NOTES + place % NOTES
}

/// The state of a session that was noted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoteState {
    /// It has opened or ended: its note is obsolete.
    Gone,
    /// It is still opening, and belongs to another source.
    OtherSource,
    /// It is still opening, and its target has answered: the client may be about to acknowledge
    /// that.
    Answered,
    /// It is still opening, and its target has not answered.
    Unanswered,
}

/// Returns the state of a noted session, by the tag of its slot. `is_noted`: the flow in the slot
/// was opened at the time of the note. `is_theirs`: its client is the source that is searched for.
#[inline(always)]
pub const fn note_state(tag: Tag, is_noted: bool, is_theirs: bool) -> NoteState {
    if !is_noted
        || !matches!(tag.state(), SlotState::Live)
        || !matches!(tag.direction(), Direction::Forward)
        || !tag.is_opening()
    {
        return NoteState::Gone;
    }
    if !is_theirs {
        return NoteState::OtherSource;
    }
    let seen = tag.seen();
    if tag.protocol_number() == Protocol::Tcp as u8 && !seen.is_unanswered() && !seen.is_over() {
        NoteState::Answered
    } else {
        NoteState::Unanswered
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{effort::tries, session::Seen};

    #[test]
    fn notes_round_trip() {
        let note = Note::from_number(Note::new(0xfedc_ba98, Ticks(0x8765_4321)).number());
        assert_eq!((note.slot(), note.opened()), (0xfedc_ba98, Ticks(0x8765_4321)));
    }

    #[test]
    fn only_opening_sessions_make_room() {
        let tag = |direction, opening| Tag::pending(6, direction, 3, opening).with_seen(Seen::SYN);
        let live = |direction, opening| tag(direction, opening).in_state(SlotState::Live);
        let opening = live(Direction::Forward, true);
        assert_eq!(note_state(opening, true, false), NoteState::OtherSource);
        for is_theirs in [false, true] {
            let gone = |tag, what: &str| {
                assert_eq!(note_state(tag, true, is_theirs), NoteState::Gone, "{what}, {is_theirs}");
            };
            assert_eq!(note_state(opening, false, is_theirs), NoteState::Gone, "opened since");
            gone(live(Direction::Forward, false), "established");
            gone(live(Direction::Reply, true), "a target's flow");
            for state in
                [SlotState::Empty, SlotState::Busy, SlotState::Pending, SlotState::Retired, SlotState::Held]
            {
                gone(tag(Direction::Forward, true).in_state(state), &format!("{state:?}"));
            }
        }
        let (client, silent, server) = (Seen::SYN, Seen::NOTHING, Seen::SYN);
        for (seen, wanted) in [
            (client.with_other(silent), NoteState::Unanswered),
            (client.with_other(server), NoteState::Answered),
            (client.with_reset().with_other(server), NoteState::Unanswered),
            (client.with_other(server.with_reset()), NoteState::Unanswered),
        ] {
            assert_eq!(note_state(opening.with_seen(seen), true, true), wanted, "{seen:?}");
        }
        let udp = Tag::pending(17, Direction::Forward, 3, true).in_state(SlotState::Live);
        assert_eq!(note_state(udp, true, true), NoteState::Unanswered);
    }

    #[test]
    fn slots_in_quarantine_leave_most_of_the_table() {
        for capacity in [1, 16, 1024, 65_536, 1 << 20, 1 << 24] {
            let Rate { burst, interval } = rate(capacity);
            // The most that is in quarantine: for two ticks, and two seconds until the next sweep.
            let slots = 2 * (burst + 4_300_000_000 / interval);
            assert!(slots <= 2 * 16 + u64::from(capacity) * 4 / 7, "{capacity}: {slots}");
        }
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// Rotating a ring's notes, full or not, overwrites none of them: a note that is put at the
        /// end goes to a free place.
        #[test]
        fn rotation_overwrites_nothing(start: u32, pushes in 1..tries(NOTES * 2, 100), steps in 1..tries(300, 30)) {
            let ends = Ends { next: AtomicU32::new(start), oldest: AtomicU32::new(start), ..Ends::default() };
            let mut places = HashMap::new();
            let mut push = |note| _ = places.insert(index(0, ends.push()), note);
            (0..pushes).for_each(&mut push);
            for step in 0..steps {
                let (at, _) = ends.places();
                // The number of the oldest one is the number of notes before it.
                push(pushes.saturating_sub(NOTES) + step % pushes.min(NOTES));
                ends.forget_before(at.wrapping_add(1));
            }
            let mut there: Vec<_> = places.into_values().collect();
            there.sort_unstable();
            there.dedup();
            prop_assert_eq!(there.len() as u32, pushes.min(NOTES));
        }

        /// Compares a ring with a plain queue, also where the numbers wrap.
        #[test]
        fn a_ring_is_a_queue_that_forgets(start: u32, steps in proptest::collection::vec((0..tries(NOTES * 2, 100), 0..NOTES), 1..20)) {
            let ends = Ends { next: AtomicU32::new(start), oldest: AtomicU32::new(start), ..Ends::default() };
            let mut queue = (0_u64, 0_u64);
            for (pushes, pops) in steps {
                for _ in 0..pushes {
                    prop_assert_eq!(ends.push(), start.wrapping_add(queue.1 as u32));
                    queue.1 += 1;
                }
                queue.0 = queue.0.max(queue.1.saturating_sub(u64::from(NOTES)));
                let (oldest, next) = ends.places();
                prop_assert_eq!(oldest, start.wrapping_add(queue.0 as u32));
                prop_assert_eq!(next, start.wrapping_add(queue.1 as u32));
                queue.0 = (queue.0 + u64::from(pops)).min(queue.1);
                ends.forget_before(start.wrapping_add(queue.0 as u32));
                // A late call changes nothing.
                ends.forget_before(oldest);
                prop_assert_eq!(ends.places().0, start.wrapping_add(queue.0 as u32));
            }
        }
    }
}
