//! The count of a source's sessions that are still opening, and the one of them that makes room for
//! another, see [`router_common::maps::openings`].

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

/// Notes of sessions that have been opened, by ring: 8 MiB. Written by whoever has taken the place,
/// read by whoever looks for a session to make room; what a note says is believed only where the
/// flow table says the same.
#[map]
static OPENINGS: Array<Shared<u64>> = Array::with_max_entries(RINGS * NOTES, 0);

/// The two ends of each ring. Changed atomically.
#[map]
static OPENINGS_ENDS: Array<Ends> = Array::with_max_entries(RINGS, 0);

/// One: how many sessions may still make room for others. Taken from atomically.
#[map]
static ROOM: Array<TokenBucket> = Array::with_max_entries(1, 0);

/// A search for a session to make room.
struct Search {
    /// The place where the source's half-open sessions are counted.
    counted: Cell<u32>,
    ring: Cell<u32>,
    /// The place to look at next, and the one behind the last.
    at: Cell<u32>,
    end: Cell<u32>,
    /// 1 while all that was looked at need not be looked at again.
    in_vain: Cell<u32>,
    /// The number of those that have been answered; the oldest of these, and its tag.
    answered: Cell<u32>,
    fallback: Cell<u32>,
    tag: Cell<u32>,
    /// 1 when a session has made room.
    made: Cell<u32>,
}

/// The search of each CPU, which makes one at a time.
#[map]
// SAFETY: numbers.
static ROOM_SEARCH: Scratch<Search> = unsafe { Scratch::new() };

/// The way in which a session came to be counted.
#[derive(Clone, Copy)]
pub(crate) enum Entered {
    /// There was room.
    Room,
    /// Another of its source's made room.
    InPlace,
}

/// Counts one more. Where a source has as many as it may, the oldest that nobody has answered makes
/// room, or else the oldest of all that are still opening; `None` if there is none, and nothing was
/// counted.
#[inline(always)]
pub(crate) fn enter(settings: &Live, source: Ipv4) -> Option<Entered> {
    if flows::half_open(settings, source)?.enter(settings.half_open_per_source()) {
        Some(Entered::Room)
    } else if make_room(u32::from_ne_bytes(source.0)) != 0 {
        // The new one is counted in its place.
        Some(Entered::InPlace)
    } else {
        None
    }
}

/// Counts one less.
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

/// Notes a source's session that opens, whose client's flow is in this slot.
#[inline(always)]
pub(crate) fn note(settings: &Live, source: Ipv4, slot: u32) {
    let Some(forward) = flows::at_index(slot) else { return };
    put(ring_of(settings, source), Note::new(slot, forward.entry.opened()));
}

/// A note that is to be put into a ring.
struct Noting {
    ring: u32,
    note: u64,
}

/// Puts a note into a ring, where there is none of a session that still opens.
#[inline(always)]
fn put(ring: u32, note: Note) {
    let mut noting = Noting { ring, note: note.number() };
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature that takes this context.
    unsafe { bpf_loop(PUSH_ATTEMPTS, try_to_put as *const () as *mut c_void, (&raw mut noting).cast(), 0) };
}

/// Tries the next place of a ring. A callback of `bpf_loop`; 1 if the note is there.
unsafe extern "C" fn try_to_put(number: u32, context: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let noting = unsafe { &*context.cast::<Noting>() };
    let (ring, note) = (noting.ring, noting.note);
    let Some(ends) = OPENINGS_ENDS.get(ring) else { return 1 };
    let Some(place) = OPENINGS.get(index(ring, ends.push())) else { return 1 };
    let earlier = place.get();
    // What is passed over is one of the newest from now on.
    if number + 1 < PUSH_ATTEMPTS
        && earlier != note
        && !matches!(found(Note::from_number(earlier), None).1, NoteState::Gone)
    {
        return 0;
    }
    place.set(note);
    1
}

/// The tag of the slot that a note names, and what has become of the session, for who looks for one
/// that is counted in this place.
#[inline(always)]
fn found(note: Note, counted: Option<(&Live, u32)>) -> (Tag, NoteState) {
    let Some(slot) = flows::at_index(note.slot()) else { return (Tag::EMPTY, NoteState::Gone) };
    // The tag first: what it is the tag of is what is compared.
    let tag = slot.tag();
    let is_noted = slot.entry.opened() == note.opened();
    let is_theirs = match counted {
        Some((settings, place)) => half_open_slot(&settings.seeds(), slot.key().source) == place,
        None => false,
    };
    (tag, note_state(tag, is_noted, is_theirs))
}

/// Has a session of this source make room: 1 if one has, which is gone, and is still counted as
/// half-open. A global function: the verifier looks at it apart from its callers.
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
    // Whoever may not is not to search. SAFETY: takes nothing and always answers.
    if !room.has_token(unsafe { bpf_ktime_get_ns() }, openings::rate(occupancy.capacity.get())) {
        return 0;
    }
    let Some(search) = ROOM_SEARCH.get() else { return 0 };
    let (at, end) = ends.places();
    search.counted.set(half_open_slot(&settings.seeds(), source));
    search.ring.set(ring);
    search.at.set(at);
    search.end.set(end);
    search.in_vain.set(1);
    search.answered.set(0);
    search.made.set(0);
    // SAFETY: the callback is a BPF subprogram of `bpf_loop`'s signature, and wants no context.
    unsafe { bpf_loop(MAX_NOTES, look as *const () as *mut c_void, core::ptr::null_mut(), 0) };
    if search.made.get() == 0 && search.answered.get() != 0 {
        search.made.set(give_way(search.fallback.get(), search.tag.get()));
    }
    search.made.get()
}

/// Has a session that was found make room, if one may yet: 1 if it has. Inlined: calls are as deep
/// as they may be.
#[inline(always)]
fn give_way(slot: u32, tag: u32) -> u32 {
    let (Some(occupancy), Some(room)) = (flows::occupancy(), ROOM.get(0)) else { return 0 };
    // SAFETY: takes nothing and always answers.
    if !room.take(unsafe { bpf_ktime_get_ns() }, openings::rate(occupancy.capacity.get())) {
        return 0;
    }
    removal::session_gives_way(slot, tag)
}

/// Looks at one note. A callback of `bpf_loop`, so that the verifier looks at it once; 1 ends the
/// search.
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
            if search.in_vain.get() != 0
                && let Some(ends) = OPENINGS_ENDS.get(search.ring.get())
            {
                // This overwrites none of them: as many places as are taken at the end have been
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
            search.in_vain.set(0);
            search.made.set(give_way(note.slot(), tag.0));
            // If not, another CPU was at it, or took the last of the rate. It is 0 or 1, but not as
            // far as the verifier sees.
            i64::from(bounds::opaque(search.made.get()) & 1)
        }
        NoteState::Answered => {
            search.in_vain.set(0);
            if search.answered.get() == 0 {
                search.fallback.set(note.slot());
                search.tag.set(tag.0);
            }
            search.answered.set(search.answered.get() + 1);
            i64::from(search.answered.get() >= MAX_ANSWERED)
        }
    }
}
