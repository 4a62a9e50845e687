//! Counts each source's half-open sessions, and removes the oldest one to make room for another,
//! see [`router_common::maps::openings`].

use core::cell::Cell;

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_ktime_get_ns, bpf_loop},
    macros::map,
    maps::Array,
};
use router_common::{
    address::Ipv4,
    bounds,
    maps::{
        half_open::half_open_slot,
        openings::{
            self, Ends, MAX_ANSWERED, MAX_NOTES, NOTES, Note, NoteState, PUSH_ATTEMPTS, RINGS, index,
            note_state,
        },
        settings::Live,
    },
    rate::TokenBucket,
    shared::Shared,
    table::{Tag, source_hash},
};

use crate::maps::{flows, removal, scratch::Scratch, settings};

/// Notes of opened sessions, by ring: 8 MiB. A CPU writes the places that it has taken; searches
/// for a session to remove read them, and believe a note only if the flow table agrees.
#[map]
static OPENINGS: Array<Shared<u64>> = Array::with_max_entries(RINGS * NOTES, 0);

/// The two ends of each ring. Changed atomically.
#[map]
static OPENINGS_ENDS: Array<Ends> = Array::with_max_entries(RINGS, 0);

/// One record: the number of sessions that may still be removed. Taken from atomically.
#[map]
static ROOM: Array<TokenBucket> = Array::with_max_entries(1, 0);

/// A search for a session to remove.
struct Search {
    /// The counter of the source's half-open sessions.
    counted: Cell<u32>,
    ring: Cell<u32>,
    /// The next place to look at, and the end of the range.
    at: Cell<u32>,
    end: Cell<u32>,
    /// 1 while every note that was looked at can be forgotten.
    all_gone: Cell<u32>,
    /// The number of answered sessions among them; the oldest of these, and its tag.
    answered: Cell<u32>,
    fallback: Cell<u32>,
    tag: Cell<u32>,
    /// 1 if a session was removed.
    made: Cell<u32>,
}

/// Per-CPU scratch: the search that is going on.
#[map]
// SAFETY: numbers.
static ROOM_SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// The way in which a session was admitted.
#[derive(Clone, Copy)]
pub(crate) enum Admitted {
    /// The source was below its limit.
    Room,
    /// Another session of the source was removed.
    InPlace,
}

/// Counts one more half-open session. At the source's limit, the oldest unanswered one is removed
/// to make room, or else the oldest half-open one. Returns `None` if there is none; nothing is
/// counted then.
#[inline(always)]
pub(crate) fn enter(settings: &Live, source: Ipv4) -> Option<Admitted> {
    if flows::half_open(settings, source)?.enter(settings.half_open_per_source()) {
        Some(Admitted::Room)
    } else if make_room(u32::from_ne_bytes(source.0)) != 0 {
        // The new one takes its place in the counter.
        Some(Admitted::InPlace)
    } else {
        None
    }
}

/// Counts one half-open session less.
#[inline(always)]
pub(crate) fn leave(settings: &Live, source: Ipv4) {
    if let Some(counter) = flows::half_open(settings, source) {
        counter.leave();
    }
}

#[inline(always)]
fn ring_of(settings: &Live, source: Ipv4) -> u32 {
    source_hash(&settings.seeds(), source) % RINGS
}

/// Notes a half-open session of a source, with its forward flow in this slot.
#[inline(always)]
pub(crate) fn note(settings: &Live, source: Ipv4, slot: u32) {
    let Some(forward) = flows::at_index(slot) else { return };
    put(ring_of(settings, source), Note::new(slot, forward.entry.opened()));
}

/// A note to be written into a ring.
struct Noting {
    ring: u32,
    note: u64,
}

/// Writes a note into a ring, not over that of a session that is still half-open.
#[inline(always)]
fn put(ring: u32, note: Note) {
    let mut noting = Noting { ring, note: note.number() };
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature that takes this context.
    unsafe { bpf_loop(PUSH_ATTEMPTS, try_to_put as *const () as *mut c_void, (&raw mut noting).cast(), 0) };
}

/// Tries the next place of a ring. A callback of `bpf_loop`; returns 1 if the note is written.
unsafe extern "C" fn try_to_put(number: u32, context: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let noting = unsafe { &*context.cast::<Noting>() };
    let (ring, note) = (noting.ring, noting.note);
    let Some(ends) = OPENINGS_ENDS.get(ring) else { return 1 };
    let Some(place) = OPENINGS.get(index(ring, ends.push())) else { return 1 };
    let earlier = place.get();
    // A note that is passed over counts as one of the newest from now on.
    if number + 1 < PUSH_ATTEMPTS
        && earlier != note
        && !matches!(found(Note::from_number(earlier), None).1, NoteState::Gone)
    {
        return 0;
    }
    place.set(note);
    1
}

/// Returns the tag of the slot that a note names, and the state of the session, for a search in the
/// sessions of this counter.
#[inline(always)]
fn found(note: Note, counted: Option<(&Live, u32)>) -> (Tag, NoteState) {
    let Some(slot) = flows::at_index(note.slot()) else { return (Tag::EMPTY, NoteState::Gone) };
    // The tag first, since the key and entry that belong to it are compared.
    let tag = slot.tag();
    let is_noted = slot.entry.opened() == note.opened();
    let is_theirs = match counted {
        Some((settings, place)) => half_open_slot(&settings.seeds(), slot.key().source) == place,
        None => false,
    };
    (tag, note_state(tag, is_noted, is_theirs))
}

/// Removes a half-open session of this source. Returns 1 if it did; the session is still counted
/// then. A global function: the verifier looks at it apart from its callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room(source: u32) -> u32 {
    let (Some(settings), Some(occupancy), Some(room)) = (settings::get(), flows::occupancy(), ROOM.get(0))
    else {
        return 0;
    };
    let source = Ipv4(source.to_ne_bytes());
    let ring = ring_of(settings, source);
    let Some(ends) = OPENINGS_ENDS.get(ring) else { return 0 };
    // No search beyond the rate. SAFETY: takes nothing and always answers.
    if !room.has_token(unsafe { bpf_ktime_get_ns() }, openings::rate(occupancy.capacity.get())) {
        return 0;
    }
    let Some(search) = ROOM_SEARCH.get() else { return 0 };
    let (at, end) = ends.places();
    search.counted.set(half_open_slot(&settings.seeds(), source));
    search.ring.set(ring);
    search.at.set(at);
    search.end.set(end);
    search.all_gone.set(1);
    search.answered.set(0);
    search.made.set(0);
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(MAX_NOTES, look as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    if search.made.get() == 0 && search.answered.get() != 0 {
        search.made.set(remove_for_room(search.fallback.get(), search.tag.get()));
    }
    search.made.get()
}

/// Removes a session that was found, if the rate allows it. Returns 1 if it did. Inlined: calls are
/// as deep as they may be.
#[inline(always)]
fn remove_for_room(slot: u32, tag: u32) -> u32 {
    let (Some(occupancy), Some(room)) = (flows::occupancy(), ROOM.get(0)) else { return 0 };
    // SAFETY: takes nothing and always answers.
    if !room.take(unsafe { bpf_ktime_get_ns() }, openings::rate(occupancy.capacity.get())) {
        return 0;
    }
    removal::session_gives_way(slot, tag)
}

/// Looks at one note. A callback of `bpf_loop`, so that the verifier looks at it once; returns 1 to
/// end the search.
unsafe extern "C" fn look(_number: u32, _context: *mut c_void) -> i64 {
    let (Some(search), Some(settings)) = (ROOM_SEARCH.get(), settings::get()) else { return 1 };
    if search.at.get() == search.end.get() {
        return 1;
    }
    let Some(place) = OPENINGS.get(index(search.ring.get(), search.at.get())) else { return 1 };
    let note = Note::from_number(place.get());
    search.at.set(search.at.get().wrapping_add(1));
    let (tag, note_state) = found(note, Some((settings, search.counted.get())));
    match note_state {
        NoteState::Gone | NoteState::OtherSource => {
            if search.all_gone.get() != 0
                && let Some(ends) = OPENINGS_ENDS.get(search.ring.get())
            {
                // This overwrites no other note: as many places as are taken at the end have been
                // forgotten.
                if matches!(note_state, NoteState::OtherSource)
                    && let Some(place) = OPENINGS.get(index(search.ring.get(), ends.push()))
                {
                    place.set(note.number());
                }
                ends.forget_before(search.at.get());
            }
            0
        }
        NoteState::Unanswered => {
            search.all_gone.set(0);
            search.made.set(remove_for_room(note.slot(), tag.0));
            // If not, another CPU was faster, or took the last of the rate. The result is 0 or 1,
            // which the verifier does not see.
            i64::from(bounds::opaque(search.made.get()) & 1)
        }
        NoteState::Answered => {
            search.all_gone.set(0);
            if search.answered.get() == 0 {
                search.fallback.set(note.slot());
                search.tag.set(tag.0);
            }
            search.answered.set(search.answered.get() + 1);
            i64::from(search.answered.get() >= MAX_ANSWERED)
        }
    }
}
