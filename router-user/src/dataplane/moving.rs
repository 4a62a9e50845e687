//! Sessions that come from another table: inserted by the daemon, by the protocol by which the
//! programs insert, and brought up to date while the programs may already forward their packets.

use std::collections::HashMap;

use anyhow::Result;
use router_common::{
    entry::{FlowEntry, FlowRecord},
    ports::PoolKey,
    session::Seen,
    table::{BUCKET, InsertError, NO_SLOT, Search, Slot, SlotState, Tag},
    time::Ticks,
    tuple::{Direction, FlowKey, Protocol},
};

use super::flows::{FlowTable, now};

/// The sessions of a target that gets a pool: one port in 32 of all, about as many as after which
/// the programs make one.
const CROWD: usize = 2048;

/// The attempts to insert a flow while programs insert in the same place.
const ATTEMPTS: u32 = 8;

/// A flow as it was in another table, or a held key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MovedFlow {
    pub(crate) key: FlowKey,
    /// `true` for a held key.
    pub(crate) is_held: bool,
    pub(crate) direction: Direction,
    pub(crate) rule: u16,
    /// `true` if the session counts as half-open.
    pub(crate) is_opening: bool,
    /// `true` if its packets come in by the clients' side only.
    pub(crate) is_for_clients_side: bool,
    /// The TCP flags that it has shown, without marks of the other direction's.
    pub(crate) seen: Seen,
    /// Its record, without a next hop.
    pub(crate) record: FlowRecord,
}

impl MovedFlow {
    /// Returns what tells the flow from every other one that is in the same slot before or after.
    pub(crate) fn identity(&self) -> (FlowKey, Ticks, bool) {
        (self.key, self.record.opened, self.is_held)
    }

    /// Returns the key of the session's other direction.
    pub(crate) fn twin(&self) -> FlowKey {
        self.key.twin(&self.record.rewrite)
    }

    /// Returns the flags to note for it, beside the other direction's.
    fn seen_beside(&self, twin: &Self) -> Seen {
        match (self.key.protocol(), self.direction) {
            (Some(Protocol::Tcp), Direction::Forward) => self.seen.with_other(twin.seen),
            _ => self.seen,
        }
    }

    fn tag(&self, seen: Seen) -> Tag {
        Tag::pending(self.key.protocol_number(), self.direction, self.rule, self.is_opening)
            .for_clients_side(self.is_for_clients_side)
            .with_seen(seen)
    }
}

/// A session as it was in another table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MovedSession {
    pub(crate) forward: MovedFlow,
    pub(crate) reply: MovedFlow,
}

/// The slots of a session that was inserted: the forward flow's and the reply flow's.
pub(crate) type Slots = [u32; 2];

/// The counters of packets while a session is in two tables: one packet, so that the session is
/// none whose first packet is still to come. What the other table has counted is added at the end.
const ONE_PACKET: u64 = 1;

impl FlowTable {
    /// Inserts a session. `is_copy`: the other table is still in use for it, and counts its
    /// packets; [`catch_up`](Self::catch_up) follows.
    ///
    /// The session is counted, also if there are more than there may be: it exists.
    ///
    /// # Errors
    /// Returns an error if one of its keys is taken, or there is no room.
    pub(crate) fn insert_session(&self, session: &MovedSession, is_copy: bool) -> Result<Slots, InsertError> {
        let MovedSession { forward, reply } = session;
        // In this order: the reply flow's key is the claim of the SNAT port.
        let reply_slot = self.insert_flow(reply, reply.seen_beside(forward), is_copy)?;
        let source = forward.key.source;
        if let Some(occupancy) = self.0.occupancy.get(0) {
            occupancy.add();
        }
        if forward.is_opening
            && let Some(counter) = self.half_open_counter(source)
        {
            counter.enter(u32::MAX);
        }
        match self.insert_flow(forward, forward.seen_beside(reply), is_copy) {
            Ok(forward_slot) => {
                self.note_peer(forward.record.rewrite.destination, now());
                Ok([forward_slot, reply_slot])
            }
            Err(error) => {
                if let Some(slot) = self.0.slots.get(reply_slot) {
                    slot.retire(&reply.key, now());
                }
                if let Some(occupancy) = self.0.occupancy.get(0) {
                    occupancy.leave();
                }
                if forward.is_opening
                    && let Some(counter) = self.half_open_counter(source)
                {
                    counter.leave();
                }
                Err(error)
            }
        }
    }

    /// Inserts a held key: no packet matches it, and no session gets its port.
    ///
    /// # Errors
    /// Returns an error if the key is taken, or there is no room.
    pub(crate) fn insert_held(&self, held: &MovedFlow) -> Result<(), InsertError> {
        let index = self.insert_flow(held, held.seen, false)?;
        if let Some(slot) = self.0.slots.get(index)
            && slot.hold(&held.key)
            && let Some(occupancy) = self.0.occupancy.get(0)
        {
            // The next sweep counts them anyway.
            occupancy.hold();
        }
        Ok(())
    }

    fn insert_flow(&self, flow: &MovedFlow, seen: Seen, is_copy: bool) -> Result<u32, InsertError> {
        let mut record = flow.record;
        if is_copy {
            record.packets = ONE_PACKET;
            record.bytes = 0;
        }
        let entry = FlowEntry::default();
        entry.restore(&flow.key, &record);
        for _ in 0..ATTEMPTS {
            let vacancy = self.walk(&flow.key, NO_SLOT).vacancy();
            let vacancy = match vacancy {
                Ok(vacancy) => vacancy,
                Err(InsertError::Contended) => continue,
                Err(error) => return Err(error),
            };
            let slot = self.0.slots.get(vacancy.index).ok_or(InsertError::Full)?;
            let search = Search::default();
            let walk = |mine| {
                self.walk_in(&search, &flow.key, mine);
                Some(&search)
            };
            match slot.insert(vacancy, (&flow.key, flow.tag(seen), &entry), walk, now) {
                Ok(()) => return Ok(vacancy.index),
                Err(InsertError::Contended) => {}
                Err(error) => return Err(error),
            }
        }
        Err(InsertError::Contended)
    }

    fn walk(&self, key: &FlowKey, mine: u32) -> Search {
        let search = Search::default();
        self.walk_in(&search, key, mine);
        search
    }

    /// Walks along a key's chains, as the programs do.
    fn walk_in(&self, search: &Search, key: &FlowKey, mine: u32) {
        let regions = self.regions();
        search.start(key, &regions, self.0.seeds.homes(key, &regions), mine);
        loop {
            let buckets =
                (search.home()..search.home().saturating_add(search.length())).step_by(BUCKET as usize);
            for index in buckets.flat_map(|first| first..first + BUCKET) {
                if self.0.slots.get(index).is_none_or(|slot| search.look_at_slot(index, slot)) {
                    break;
                }
            }
            if !search.next_chain() {
                return;
            }
        }
    }

    /// Brings a session that was inserted as a copy up to date, when the other table is not in use
    /// any more: `last` is the session as that table has it in the end. What these programs have
    /// found out since goes before it. Returns `false` if the session has left these slots.
    pub(crate) fn catch_up(&self, slots: Slots, last: &MovedSession) -> bool {
        let MovedSession { forward, reply } = last;
        let [Some(to_forward), Some(to_reply)] = slots.map(|index| self.0.slots.get(index)) else {
            return false;
        };
        if !to_forward.is_flow(&forward.key)
            || !to_reply.is_flow(&reply.key)
            || to_forward.entry.opened() != forward.record.opened
        {
            return false;
        }
        let now_seen = [to_forward.tag().seen(), to_reply.tag().seen()];
        let both = [(to_forward, forward), (to_reply, reply)].map(|(to, last)| (to, last, is_untouched(to)));
        let is_untouched = both.iter().all(|(.., is_untouched)| *is_untouched);
        let [of_forward, of_reply] =
            [(both[0], now_seen[0]), (both[1], now_seen[1])].map(|((_, last, is_untouched), now)| {
                if is_untouched { last.seen } else { now.united(last.seen) }
            });
        for (to, last, is_untouched) in both {
            if is_untouched {
                to.entry.set_expects(last.record.expects);
                to.entry.set_sent(last.record.sent);
            }
            // The entry's own packet was none. Sums wrap, as these numbers do.
            to.entry.credit(last.record.packets.wrapping_sub(ONE_PACKET), last.record.bytes);
            to.entry.set_last_seen(to.entry.last_seen().max(last.record.last_seen));
        }
        let is_tcp = forward.key.protocol() == Some(Protocol::Tcp);
        to_reply.note_seen(now_seen[1], of_reply);
        to_forward.note_seen(now_seen[0], if is_tcp { of_forward.with_other(of_reply) } else { of_forward });
        let Some(counter) = self.half_open_counter(forward.key.source) else { return true };
        if !forward.is_opening {
            if to_forward.end_opening() {
                counter.leave();
            }
        } else if is_untouched && to_forward.begin_opening() {
            // It has started over in the tick in which it was opened.
            counter.enter(u32::MAX);
        }
        true
    }

    /// Removes a session that was inserted as a copy and has left the other table since, unless its
    /// packets have come here meanwhile. Returns `true` if this call removed it.
    pub(crate) fn remove_copy(&self, slots: Slots) -> bool {
        let [Some(forward), Some(reply)] = slots.map(|index| self.0.slots.get(index)) else { return false };
        if [forward, reply].iter().any(|slot| slot.tag().state() != SlotState::Live || !is_untouched(slot)) {
            return false;
        }
        let (key, reply_key) = (forward.key(), reply.key());
        if key.twin(&forward.entry.rewrite()) != reply_key {
            return false;
        }
        // No pool marks its port: pools are made by the programs for what they open themselves, and
        // a mark that is too much goes when the sweep next compares.
        let was_there = forward.is_flow(&key);
        self.retire_slot(forward, &key);
        self.retire_slot(reply, &reply_key);
        was_there
    }

    /// Gives targets with many sessions their pools of ports, as the programs do when they open
    /// that many, so that the next session does not have to find each taken port.
    ///
    /// # Errors
    /// Returns an error if the pools cannot be read or written.
    pub(crate) fn make_pools(&self) -> Result<()> {
        let mut by_target: HashMap<PoolKey, Vec<FlowKey>> = HashMap::new();
        for flow in self.flows().filter(|flow| flow.direction() == Direction::Reply) {
            by_target.entry(PoolKey::of(&flow.key)).or_default().push(flow.key);
        }
        let mut pools = self.pools();
        for (target, replies) in by_target.iter().filter(|(_, replies)| replies.len() >= CROWD) {
            pools.mark(target, replies, |reply| self.is_taken(reply))?;
        }
        Ok(())
    }

    /// Removes what has a session's keys, so that the session itself can be inserted.
    pub(crate) fn make_way(&self, session: &MovedSession) {
        for key in [session.forward.key, session.reply.key] {
            if let Some(flow) = self.get(&key) {
                self.retire(&flow.twin());
            }
            self.retire(&key);
        }
    }
}

/// Returns `true` if no packet of the flow has been counted since it was inserted as a copy.
fn is_untouched(slot: &Slot) -> bool {
    slot.entry.packets() <= ONE_PACKET
}
