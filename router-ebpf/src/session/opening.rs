//! The session that a CPU is opening: scratch that the stages `slow`, `open` and `claim` hand on to
//! each other.

use core::cell::Cell;

use aya_ebpf::macros::map;
use router_common::{
    address::{Ipv4, Port},
    entry::NextHop,
    maps::stages::Stage,
    packet::Packet,
    policy::matching::Match,
    ports::{PoolKey, SourcePorts},
    reason::Reason,
    table::{NO_SLOT, SETTLED, Slot, Vacancy},
    tuple::FlowKey,
};

use crate::{
    maps::{flows, scratch::Scratch},
    work::Exit,
};

/// A session that is being opened.
///
/// Lives in a map and not on the stack: a program has a stack of 512 bytes, and the verifier takes
/// a value from a map for any value, so it does not follow every combination of inputs. In cells,
/// since all functions that open the session hold a reference to it.
pub(crate) struct Opening {
    pub(crate) rule: Cell<u16>,
    pub(crate) snat: Cell<Ipv4>,
    pub(crate) target: Cell<Ipv4>,
    pub(crate) target_port: Cell<Port>,
    pub(crate) ports: Cell<SourcePorts>,
    pub(crate) random: Cell<u32>,
    /// The next hop of the client's packets. It does not depend on the SNAT address and port, see
    /// [`router_common::maps::route::Query`].
    pub(crate) next_hop: Cell<NextHop>,
    /// The client's tuple; the vacancy for its flow, which [`request_opening`] sets before all
    /// else; and the slot that the flow was put into.
    pub(crate) key: Cell<FlowKey>,
    pub(crate) vacancy: Cell<Vacancy>,
    pub(crate) slot: Cell<u32>,
    /// 1 if another session of the source has made room for this one.
    pub(crate) in_place: Cell<u32>,
    /// The history of the client's tuple, an [`Earlier`] as its number; and the destination of its
    /// last session.
    pub(crate) earlier: Cell<u32>,
    pub(crate) last: Cell<Destination>,
    pub(crate) reply_key: Cell<FlowKey>,
    /// The target's pool, or [`NO_POOL`].
    pub(crate) pool: Cell<u32>,
    /// The word of the pool to look at next.
    pub(crate) word: Cell<u32>,
    /// The number of words in a row without a free port.
    pub(crate) empty_words: Cell<u32>,
    /// A [`Claim`], as its number.
    pub(crate) claim: Cell<u32>,
    /// A [`Phase`], as its number.
    pub(crate) phase: Cell<u32>,
    /// The number of ports that have been guessed.
    pub(crate) guesses: Cell<u32>,
    /// The number of SNAT addresses that have been searched without success.
    pub(crate) addresses: Cell<u32>,
    /// 1 if all SNAT addresses have been searched.
    pub(crate) searched_all: Cell<u32>,
    /// The number of ports that have been tried in order.
    pub(crate) in_turn: Cell<u32>,
    /// Of the pool, see [`router_common::ports::Pool::frees`].
    pub(crate) frees: Cell<u32>,
}

impl Opening {
    #[inline(always)]
    pub(crate) fn pool_key(&self) -> PoolKey {
        PoolKey {
            snat: self.snat.get(),
            target: self.target.get(),
            target_port: self.target_port.get(),
            protocol: self.key.get().protocol_number(),
            zero: 0,
        }
    }
}

pub(crate) const NO_POOL: u32 = u32::MAX;

/// The way in which the next port is chosen.
#[repr(u32)]
pub(crate) enum Phase {
    /// The client's own port, then random ones.
    Guess = 0,
    /// In order.
    InTurn,
    /// A port that the pool has not marked.
    Pool,
}

/// The history of a client's tuple.
#[repr(u32)]
pub(crate) enum Earlier {
    /// There was no session.
    Nothing = 0,
    /// The session is over.
    Ended,
    /// The session is over, and keeps its target if the rules still lead there: it was opened
    /// moments ago, or its end is not certain, so that the connection may be alive.
    Stays,
}

/// The progress of claiming a SNAT port.
#[repr(u32)]
pub(crate) enum Claim {
    /// No free port yet.
    Searching = 0,
    /// The reply flow is in the table.
    Claimed,
    /// The table has no room.
    Full,
}

/// Per-CPU scratch: the session that is being opened.
#[map]
// SAFETY: numbers and bytes.
pub(crate) static OPENING: Scratch<Opening> = unsafe { Scratch::new() };

/// Sends a packet without a session to the stage `open`, with the vacancy that the look-up of its
/// flow has found. This is the only way there, so that the stage `claim` never sees the vacancy of
/// an earlier packet.
#[inline(always)]
pub(crate) fn request_opening(vacancy: Vacancy) -> Exit {
    // A late packet of a session that is over and has moved: it matches no session and must not
    // open one.
    if vacancy.is_held() {
        return Exit::To(Stage::Local);
    }
    match OPENING.get() {
        Some(opening) => {
            opening.vacancy.set(vacancy);
            opening.earlier.set(Earlier::Nothing as u32);
            Exit::To(Stage::Open)
        }
        None => Reason::Internal.into(),
    }
}

/// Sends a client's SYN to the stage `open` whose session is over, but still in the table. The
/// session stays untouched until the current rules have admitted the SYN.
#[inline(always)]
pub(crate) fn request_reopening(forward: &Slot, is_certain: bool) -> Exit {
    let Some(opening) = OPENING.get() else { return Reason::Internal.into() };
    let rewrite = forward.entry.rewrite();
    opening.vacancy.set(Vacancy::UNKNOWN);
    opening.last.set(Destination {
        target: rewrite.destination,
        target_port: rewrite.destination_port,
        snat: rewrite.source,
    });
    let age = flows::now().0.wrapping_sub(forward.entry.opened().0);
    opening.earlier.set(if age < SETTLED || !is_certain { Earlier::Stays } else { Earlier::Ended } as u32);
    Exit::To(Stage::Open)
}

/// Returns the destination of the tuple's last session, and `true` if the session that is opened
/// again is to keep it. `None` never happens, but the verifier cannot know.
///
/// Both are read in any case: of an `Option` the compiler would also move what is not there, which
/// the verifier of Linux 6.1 refuses.
#[inline(always)]
pub(crate) fn last_destination() -> Option<(bool, Destination)> {
    let opening = OPENING.get()?;
    Some((opening.earlier.get() == Earlier::Stays as u32, opening.last.get()))
}

/// The destination of the last session of a tuple, which a session that was opened moments ago
/// keeps, see [`SETTLED`].
#[derive(Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) target: Ipv4,
    pub(crate) target_port: Port,
    pub(crate) snat: Ipv4,
}

/// Prepares the session that is to be opened, for the stage `claim`.
#[inline(always)]
pub(crate) fn prepare(
    packet: &Packet,
    found: &Match,
    snat: Ipv4,
    ports: SourcePorts,
    random: u32,
    next_hop: NextHop,
) -> Option<()> {
    let opening = OPENING.get()?;
    opening.rule.set(found.rule);
    opening.snat.set(snat);
    opening.target.set(found.target);
    opening.target_port.set(found.target_port);
    opening.ports.set(ports);
    opening.random.set(random);
    opening.next_hop.set(next_hop);
    opening.key.set(packet.key);
    opening.slot.set(NO_SLOT);
    opening.in_place.set(0);
    opening.pool.set(NO_POOL);
    opening.word.set(ports.range().any_word(random));
    opening.empty_words.set(0);
    opening.claim.set(Claim::Searching as u32);
    opening.phase.set(Phase::Guess as u32);
    opening.guesses.set(0);
    opening.in_turn.set(0);
    opening.frees.set(0);
    opening.addresses.set(0);
    opening.searched_all.set(0);
    Some(())
}

/// Returns the next hop of the session that this CPU has opened last, if it has this tuple.
#[inline(always)]
pub(crate) fn next_hop_of(key: &FlowKey) -> Option<NextHop> {
    let opening = OPENING.get()?;
    (opening.key.get() == *key).then_some(opening.next_hop.get())
}

/// Returns the reason that the first packet of a session is counted under, if this CPU has opened
/// it last.
#[inline(always)]
pub(crate) fn opened_as(key: &FlowKey) -> Reason {
    match OPENING.get() {
        Some(opening) if opening.key.get() == *key && opening.in_place.get() != 0 => Reason::OpenedInPlace,
        _ => Reason::Opened,
    }
}

/// Returns the client's flow of the session that this CPU has opened last, if it has this tuple.
#[inline(always)]
pub(crate) fn slot_of(key: &FlowKey) -> Option<&'static Slot> {
    flows::at(OPENING.get()?.slot.get(), key)
}
