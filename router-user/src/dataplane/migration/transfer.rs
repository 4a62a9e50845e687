//! Moves sessions from one table to another while both are in use.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use router_common::{
    table::InsertError,
    tuple::{Direction, FlowKey},
};
use tracing::warn;

use super::source::Source;
use crate::{
    dataplane::{
        flows::FlowTable,
        moving::{MovedFlow, MovedSession, Slots},
    },
    sys::bpf::wait_for_programs,
};

/// The passes before the pause, at most: where sessions come and go all the time, there is always
/// something new.
const MAX_PASSES: u32 = 5;

/// A pass that has found less than one in this many of the sessions is the last before the pause.
const FEW: u32 = 1000;

/// The result of a migration.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// Sessions that were copied before the swap.
    pub copied: u32,
    /// Of these, sessions whose last packets, flags and numbers were carried over after it.
    pub carried_over: u32,
    /// Sessions that had ended, or left the old table otherwise, between copy and swap.
    pub ended: u32,
    /// Sessions that were opened in spite of the pause, and inserted after the swap.
    pub opened_late: u32,
    /// Ports that stay taken for sessions that are over.
    pub held: u32,
    /// Sessions for which there was no room: they are lost.
    pub lost: u32,
    /// Passes before the pause.
    pub passes: u32,
    /// Packets that would have opened a session in the pause, and were dropped.
    pub refused: u64,
    /// The time in which no session could be opened.
    pub paused: Duration,
    /// The time of all of it.
    pub took: Duration,
}

/// A session that is in both tables.
struct Copy {
    from: Slots,
    identities: [u32; 2],
    to: Slots,
}

/// Moves sessions from one table to another.
pub(crate) struct Transfer {
    from: Source,
    to: FlowTable,
    /// By slot of the old table, the identity of the flow there that is done with; 0 is none.
    known: Vec<u32>,
    copies: Vec<Copy>,
    moved: Moved,
}

/// The part of a migration that a pass belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// The old programs forward: no packet finds what is in the new table.
    BeforeSwap,
    /// The new programs forward: what is in the new table goes before what was in the old one.
    AfterSwap,
}

impl Transfer {
    pub(crate) fn new(from: Source, to: FlowTable) -> Self {
        let known = vec![0; from.slots() as usize];
        Self { from, to, known, copies: Vec::new(), moved: Moved::default() }
    }

    /// Returns the data plane that sessions come from.
    pub(crate) fn source(&self) -> &Source {
        &self.from
    }

    /// Copies sessions while the old programs forward, until little is new.
    pub(crate) fn copy_in_passes(&mut self) {
        let began = Instant::now();
        for _ in 0..MAX_PASSES {
            self.moved.passes += 1;
            if self.copy(Part::BeforeSwap) <= self.copies.len() as u32 / FEW {
                break;
            }
        }
        self.moved.took += began.elapsed();
    }

    /// Copies what is left, and moves everything; `swap` has packets reach the programs of the new
    /// table.
    ///
    /// # Errors
    /// Returns an error if the old data plane's counters cannot be read, and if `swap` fails: the
    /// old programs then go on with the old table as if nothing had been.
    pub(crate) fn finish(mut self, swap: impl FnOnce() -> Result<()>) -> Result<Moved> {
        let began = Instant::now();
        let refused = self.from.refused()?;
        let paused = Instant::now();
        let pause = self.from.pause();
        // A program that was about to open a session has done so.
        wait_for_programs();
        self.copy(Part::BeforeSwap);
        swap()?;
        self.moved.paused = paused.elapsed();
        wait_for_programs();
        drop(pause);
        self.moved.refused = self.from.refused().unwrap_or_default().saturating_sub(refused);
        self.catch_up();
        if let Err(error) = self.to.make_pools() {
            // Then the programs find the ports themselves.
            warn!("{error:#}");
        }
        self.moved.took += began.elapsed();
        Ok(self.moved)
    }

    /// Inserts what is only in the old table, whose programs are not in use any more. The sessions
    /// of the new table go before.
    pub(crate) fn complete(mut self) -> Moved {
        self.copy(Part::AfterSwap);
        self.moved
    }

    /// Inserts what is new in the old table. Returns the number of sessions.
    fn copy(&mut self, part: Part) -> u32 {
        let new = self.find_new();
        let before = self.copies.len() as u32 + self.moved.opened_late;
        for (forward_slot, reply_slot) in new.sessions {
            let (Some(forward), Some(reply)) = (self.from.flow(forward_slot), self.from.flow(reply_slot))
            else {
                continue;
            };
            // One or the other has changed since.
            if reply.key != forward.twin() || reply.twin() != forward.key || reply.is_held {
                continue;
            }
            // Its first packet is on its way through the programs, which know by this number that
            // it is the first.
            if part == Part::BeforeSwap && forward.record.packets == 0 {
                continue;
            }
            self.insert([forward_slot, reply_slot], &MovedSession { forward, reply }, part);
        }
        for index in new.held {
            let Some(held) = self.from.flow(index).filter(|flow| flow.is_held) else { continue };
            if self.to.insert_held(&held).is_ok() {
                self.moved.held += 1;
            }
            self.note(index, identity(&held));
        }
        self.copies.len() as u32 + self.moved.opened_late - before
    }

    /// Looks for sessions and held keys in the old table that are new since the last look.
    fn find_new(&self) -> New {
        let (mut forwards, mut replies, mut held) = (Vec::new(), HashMap::new(), Vec::new());
        for index in 0..self.from.slots() {
            let Some(flow) = self.from.flow(index) else { continue };
            if self.known.get(index as usize) == Some(&identity(&flow)) {
                continue;
            }
            match flow.direction {
                _ if flow.is_held => held.push(index),
                Direction::Forward => forwards.push((index, flow.twin())),
                Direction::Reply => {
                    replies.insert(flow.key, index);
                }
            }
        }
        // A flow without its twin is not known, so the next look finds it again.
        let twin = |(index, twin): (u32, FlowKey)| replies.get(&twin).map(|reply| (index, *reply));
        New { sessions: forwards.into_iter().filter_map(twin).collect(), held }
    }

    fn insert(&mut self, from: Slots, session: &MovedSession, part: Part) {
        let is_copy = part == Part::BeforeSwap;
        let mut result = self.to.insert_session(session, is_copy);
        if is_copy && result == Err(InsertError::Exists) {
            // An earlier session of one of the keys, which has left the old table since.
            self.to.make_way(session);
            result = self.to.insert_session(session, is_copy);
        }
        let identities = [identity(&session.forward), identity(&session.reply)];
        match result {
            Ok(to) if is_copy => self.copies.push(Copy { from, identities, to }),
            Ok(_) => self.moved.opened_late += 1,
            // A copy that is gone from the old table, and leaves this one below; or the new
            // programs have opened the same session.
            Err(InsertError::Exists) => return,
            Err(InsertError::Full | InsertError::NoPort | InsertError::Contended) => self.moved.lost += 1,
        }
        for (index, identity) in from.into_iter().zip(identities) {
            self.note(index, identity);
        }
    }

    /// Notes that a flow is done with.
    fn note(&mut self, index: u32, identity: u32) {
        if let Some(known) = self.known.get_mut(index as usize) {
            *known = identity;
        }
    }

    /// Carries over what has happened in the old table between copy and swap.
    fn catch_up(&mut self) {
        self.moved.copied = self.copies.len() as u32;
        // First what has no packets here yet that could be followed.
        self.copy(Part::AfterSwap);
        let mut gone = Vec::new();
        for copy in &self.copies {
            let [forward, reply] = [0, 1].map(|at| {
                let flow = self.from.flow(copy.from[at]);
                flow.filter(|flow| identity(flow) == copy.identities[at])
            });
            match (forward, reply) {
                (Some(forward), Some(reply)) => {
                    let is_there = self.to.catch_up(copy.to, &MovedSession { forward, reply });
                    self.moved.carried_over += u32::from(is_there);
                }
                _ => gone.push(copy.to),
            }
        }
        for slots in gone {
            self.moved.ended += u32::from(self.to.remove_copy(slots));
        }
        // What has the key of one of those.
        if self.moved.ended > 0 {
            self.copy(Part::AfterSwap);
        }
    }
}

/// What a look at the old table has found.
struct New {
    /// Sessions, by the slots of their flows.
    sessions: Vec<(u32, u32)>,
    /// Held keys, by their slots.
    held: Vec<u32>,
}

/// Returns a number that tells flows in one slot apart; never 0.
fn identity(flow: &MovedFlow) -> u32 {
    let (key, opened, is_held) = flow.identity();
    let sum = key
        .addresses()
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(key.ports()).wrapping_mul(0xbf58_476d_1ce4_e5b9))
        .wrapping_add(u64::from(key.protocol_number()).wrapping_mul(0x94d0_49bb_1331_11eb))
        .wrapping_add((u64::from(opened.0) << 1 | u64::from(is_held)).wrapping_mul(0xd6e8_feb8_6659_fd93));
    (sum >> 32) as u32 | 1
}
