//! Notes of sessions that open, by which the oldest of a source is found: it makes room for another
//! where the source has too many of them.
//!
//! Sessions that open are noted in a ring, one for all sources whose addresses lead to it. Nobody
//! takes a note out when its session has opened or ended: whoever looks for one to make room, from
//! the oldest on, finds out what became of it. So a note costs a write, and is looked at
//! once. Two things keep the notes of sessions that still open. A ring that is full leaves them
//! where they are and goes on to the next place, which makes them its newest. And who searches puts
//! those of other sources behind all others, and only then forgets the place.

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
/// The notes of a ring: the last ones.
pub const NOTES: u32 = 1 << 14;

/// Notes that are looked at, at most, for one session to make room. What is in front of them is not
/// looked at again.
pub const MAX_NOTES: u32 = 128;
/// Of these, how many may be of sessions that have been answered: then the oldest of those goes.
pub const MAX_ANSWERED: u32 = 8;

/// Places that are tried, at most, for a new note: one whose note is of a session that still opens
/// is passed over, but for the last.
pub const PUSH_ATTEMPTS: u32 = 32;

/// One in so many of the sessions that there is room for may make room for others each second:
/// their slots are in quarantine for a while, and are not to become so many that the table has no
/// others.
const SHARE_OF_THE_TABLE: u64 = 16;

/// Returns the rate at which sessions may make room for others, in a table for `capacity` sessions.
#[inline(always)]
pub const fn rate(capacity: u32) -> Rate {
    // A quotient that cannot panic is one that the verifier takes.
    let interval = match (SHARE_OF_THE_TABLE * 1_000_000_000).checked_div(capacity as u64) {
        Some(interval) => interval,
        None => 1_000_000_000,
    };
    Rate { burst: 16 + capacity as u64 / 256, interval }
}

/// A note of a session that opens: where its client's flow is, and since when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Note(u64);

impl Note {
    /// The note of the session whose client's flow is in this slot and was opened then.
    #[inline(always)]
    pub const fn new(slot: u32, opened: Ticks) -> Self {
        Self((opened.0 as u64) << u32::BITS | slot as u64)
    }

    /// As a number, for a map.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The note of a number that [`number`](Self::number) gave.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// The tick in which the session was opened.
    #[inline(always)]
    pub const fn opened(self) -> Ticks {
        Ticks((self.0 >> u32::BITS) as u32)
    }
}

/// The two ends of a ring's notes, in memory that all CPUs share. Both only go up, and round at
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
    /// Takes the place for one more note, of which nobody else has it.
    #[inline(always)]
    pub fn push(&self) -> u32 {
        self.next.add(1)
    }

    /// The places of the oldest note that is still there and of the next one to come.
    #[inline(always)]
    pub fn places(&self) -> (u32, u32) {
        let oldest = self.oldest.load();
        let next = self.next.load();
        // Those in front of it have been overwritten.
        (if next.wrapping_sub(oldest) > NOTES { next.wrapping_sub(NOTES) } else { oldest }, next)
    }

    /// Says that nobody need look at what is in front of this place.
    #[inline(always)]
    pub fn forget_before(&self, place: u32) {
        let seen = self.oldest.load();
        // Another CPU may have come further. If it has this very moment, it is looked at again,
        // which is no harm.
        if place.wrapping_sub(seen) < 1 << 31 {
            self.oldest.change(seen, place);
        }
    }
}

/// In which of all rings' places a place of a ring is.
#[inline(always)]
pub const fn index(ring: u32, place: u32) -> u32 {
    (ring % RINGS) * NOTES + place % NOTES
}

/// The fate of a session that was noted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoteState {
    /// It has opened or ended: its note is of no use any more.
    Gone,
    /// It still opens, and is another source's.
    OtherSource,
    /// It still opens, and its target has answered: the client may yet acknowledge that.
    Answered,
    /// It still opens, and nobody waits for it but its client, if at all.
    Unanswered,
}

/// Returns the fate of a noted session, by the tag of the slot that it was in. `is_noted`: what is
/// there was opened when the note says; `is_theirs`: its client is the source that is looked for.
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
    fn notes_say_what_they_were_made_of() {
        let note = Note::from_number(Note::new(0xfedc_ba98, Ticks(0x8765_4321)).number());
        assert_eq!((note.slot(), note.opened()), (0xfedc_ba98, Ticks(0x8765_4321)));
    }

    #[test]
    fn only_what_opens_makes_room() {
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
        let (client, nobody, server) = (Seen::SYN, Seen::NOTHING, Seen::SYN);
        for (seen, wanted) in [
            (client.with_other(nobody), NoteState::Unanswered),
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
            // What is in quarantine at most: for two ticks, and two seconds until the next sweep.
            let slots = 2 * (burst + 4_300_000_000 / interval);
            assert!(slots <= 2 * 16 + u64::from(capacity) * 4 / 7, "{capacity}: {slots}");
        }
    }

    proptest! {
        #![proptest_config(crate::effort::cases())]

        /// Rotating a ring's notes, full or not, overwrites none of them: what is put behind all others goes to a place that nobody has.
        #[test]
        fn what_is_put_behind_all_others_overwrites_nothing(start: u32, pushes in 1..tries(NOTES * 2, 100), steps in 1..tries(300, 30)) {
            let ends = Ends { next: AtomicU32::new(start), oldest: AtomicU32::new(start), ..Ends::default() };
            let mut places = HashMap::new();
            let mut push = |note| _ = places.insert(index(0, ends.push()), note);
            (0..pushes).for_each(&mut push);
            for step in 0..steps {
                let (at, _) = ends.places();
                // The oldest one's number is how many there were before it.
                push(pushes.saturating_sub(NOTES) + step % pushes.min(NOTES));
                ends.forget_before(at.wrapping_add(1));
            }
            let mut there: Vec<_> = places.into_values().collect();
            there.sort_unstable();
            there.dedup();
            prop_assert_eq!(there.len() as u32, pushes.min(NOTES));
        }

        /// Against a plain queue, over the end of the numbers as well.
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
                // Whoever is late changes nothing.
                ends.forget_before(oldest);
                prop_assert_eq!(ends.places().0, start.wrapping_add(queue.0 as u32));
            }
        }
    }
}
