//! The flow table, in the daemon's memory: see [`router_common::table`] for the protocol that it
//! follows.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};
use router_common::{
    address::Ipv4,
    entry::FlowRecord,
    maps::{
        half_open::{HALF_OPEN_SLOTS, HalfOpen, half_open_slot},
        peers::{PEER_SLOTS, Peer, peer_slot},
        settings::Settings,
    },
    ports::PoolKey,
    session::{Seen, State},
    table::{BUCKET, HashSeeds, NO_SLOT, Occupancy, Regions, Slot, SlotState, Tag},
    time::Ticks,
    tuple::{Direction, FlowKey, Protocol},
};

use super::{pools::PoolTable, shared_memory::SharedArray};

/// A target that uses at most one port in this many needs no pool. A target gets one when at least
/// half of its ports are in use ([`router_common::ports::GUESSES_BEFORE_POOL`]), so the pool does
/// not come and go.
const FEW_PORTS: u32 = 64;

/// A sweep shows one in this many flows of the targets' direction.
pub const REPLY_SHARE: u32 = 16;

/// One direction of a session.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The tuple that its packets arrive with.
    pub key: FlowKey,
    tag: Tag,
    /// Its record.
    pub entry: FlowRecord,
}

impl Flow {
    /// The number of the rule that opened the session.
    pub fn rule(&self) -> u16 {
        self.tag.rule()
    }

    /// The protocol.
    pub fn protocol(&self) -> Option<Protocol> {
        self.key.protocol()
    }

    /// The key of the session's other direction.
    pub fn twin(&self) -> FlowKey {
        self.key.twin(&self.entry.rewrite)
    }

    /// Returns the direction of the session that this is.
    pub fn direction(&self) -> Direction {
        self.tag.direction()
    }

    /// Returns `true` if the session counts as half-open. Only the client's direction knows.
    pub fn is_opening(&self) -> bool {
        self.tag.is_opening()
    }

    /// Returns the TCP flags that its packets have shown.
    pub fn seen(&self) -> Seen {
        self.tag.seen()
    }

    /// Returns `true` for a held key: its session is over and moved to another target, and the port
    /// stays taken.
    pub fn is_held(&self) -> bool {
        self.tag.state() == SlotState::Held
    }
}

/// A session: its two flows.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The client's direction.
    pub forward: Flow,
    /// The target's direction.
    pub reply: Flow,
}

impl Session {
    /// The protocol.
    pub fn protocol(&self) -> Option<Protocol> {
        self.forward.protocol()
    }

    /// Returns the state of the session.
    pub fn state(&self) -> Option<State> {
        let Self { forward, reply } = self;
        Some(State::of(self.protocol()?, forward.seen(), reply.seen(), forward.is_opening()))
    }

    /// When a packet was last seen in either direction.
    pub fn last_seen(&self) -> Ticks {
        self.forward.entry.last_seen.max(self.reply.entry.last_seen)
    }
}

/// The flow table, and what is counted and kept beside it. A clone is another handle to the same.
#[derive(Clone)]
pub struct FlowTable(pub(super) Arc<Inner>);

/// The shared memory, for this module and for the one that moves sessions.
pub(super) struct Inner {
    pub(super) slots: SharedArray<Slot>,
    pub(super) occupancy: SharedArray<Occupancy>,
    pub(super) half_open: SharedArray<HalfOpen>,
    pub(super) peers: SharedArray<Peer>,
    pub(super) pools: Mutex<PoolTable>,
    pub(super) seeds: HashSeeds,
}

/// The maps that make up a [`FlowTable`].
pub(super) struct FlowMaps {
    pub(super) slots: Map,
    pub(super) occupancy: Map,
    pub(super) half_open: Map,
    pub(super) peers: Map,
    pub(super) pools: Map,
    pub(super) pool_bits: Map,
}

/// Maps an array, each of whose entries holds `each` of what is shared.
fn share<T: super::shared_memory::Shared>(map: &Map, what: &str, each: u32) -> Result<SharedArray<T>> {
    let Map::Array(data) = map else { bail!("{what}: not an array") };
    let length = data.info().with_context(|| format!("cannot examine {what}"))?.max_entries() * each;
    SharedArray::map(MapData::fd(data).as_fd(), length).with_context(|| format!("cannot map {what}"))
}

impl FlowTable {
    pub(super) fn new(maps: FlowMaps, settings: &Settings) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            slots: share(&maps.slots, "the flow table", BUCKET)?,
            occupancy: share(&maps.occupancy, "the flow table's occupancy", 1)?,
            half_open: share(&maps.half_open, "the counters of half-open sessions", 1)?,
            peers: share(&maps.peers, "the addresses that sessions lead to", 1)?,
            pools: Mutex::new(PoolTable::new(maps.pools, maps.pool_bits)?),
            seeds: settings.seeds,
        })))
    }

    /// Returns the limit of sessions.
    pub fn capacity(&self) -> u32 {
        self.0.occupancy.get(0).map_or(0, |occupancy| occupancy.capacity.load())
    }

    /// Returns the regions in which chains start.
    pub(super) fn regions(&self) -> Regions {
        Regions::of_slots(self.0.slots.len())
    }

    /// Returns the number of sessions that the memory is for.
    pub fn largest_capacity(&self) -> u32 {
        self.regions().sessions()
    }

    /// Says how many sessions there may be; at most what there is memory for. Sessions beyond stay.
    pub(super) fn set_capacity(&self, sessions: u32) {
        if let Some(occupancy) = self.0.occupancy.get(0) {
            occupancy.set_capacity(sessions.min(self.largest_capacity()));
        }
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> u32 {
        self.0.occupancy.get(0).map_or(0, |occupancy| occupancy.sessions.load())
    }

    fn flow_at(&self, index: u32) -> Option<Flow> {
        self.at(index, SlotState::Live)
    }

    /// The flow in a slot, if it is in this state.
    fn at(&self, index: u32, state: SlotState) -> Option<Flow> {
        let (key, tag, entry) = self.0.slots.get(index)?.read(state)?;
        Some(Flow { key, tag, entry })
    }

    /// Returns `true` if a reply flow's key, and so its port, is taken: by a flow, or because it is
    /// held.
    pub(super) fn is_taken(&self, reply: &FlowKey) -> bool {
        let has_it = |index| {
            [SlotState::Live, SlotState::Held]
                .into_iter()
                .any(|state| self.at(index, state).is_some_and(|flow| flow.key == *reply))
        };
        self.chains(reply).any(has_it)
    }

    /// Shows every session to `each`, in no order, until it answers `false`.
    pub fn for_each(&self, each: impl FnMut(&Session) -> bool) {
        self.for_each_from(0, each);
    }

    /// Shows sessions to `each`, in no order, from the slot `start` on until it answers `false`;
    /// the slot to go on from, or `None` after the last. Sessions that are opened or removed
    /// meanwhile may or may not be among them.
    pub fn for_each_from(&self, start: u32, mut each: impl FnMut(&Session) -> bool) -> Option<u32> {
        for index in start..self.0.slots.len() {
            if let Some(flow) = self.flow_at(index)
                && flow.direction() == Direction::Forward
                // Without its twin it has been removed in between.
                && let Some(session) = self.session_of(&flow)
                && !each(&session)
            {
                return Some(index + 1);
            }
        }
        None
    }

    /// Every flow of both directions.
    pub fn flows(&self) -> impl Iterator<Item = Flow> {
        (0..self.0.slots.len()).filter_map(|index| self.flow_at(index))
    }

    /// Returns the numbers of the rules that flows and held keys are of.
    pub(super) fn rules(&self) -> HashSet<u16> {
        let rule = |index| {
            let tag = self.0.slots.get(index)?.tag();
            matches!(tag.state(), SlotState::Live | SlotState::Held).then(|| tag.rule())
        };
        (0..self.0.slots.len()).filter_map(rule).collect()
    }

    /// The session of a client's direction; `None` if it has no other.
    pub fn session_of(&self, forward: &Flow) -> Option<Session> {
        self.get(&forward.twin()).map(|reply| Session { forward: *forward, reply })
    }

    /// One direction, by the tuple its packets arrive with.
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.find(key).and_then(|index| self.flow_at(index)).filter(|flow| flow.key == *key)
    }

    fn find(&self, key: &FlowKey) -> Option<u32> {
        let is_there = |index: &u32| self.0.slots.get(*index).is_some_and(|slot| slot.is_flow(key));
        self.chains(key).find(is_there)
    }

    /// The slots of a key's chains, as far as anything is there.
    fn chains(&self, key: &FlowKey) -> impl Iterator<Item = u32> {
        let regions = self.regions();
        let homes = self.0.seeds.homes(key, &regions).into_iter().filter(|home| *home != NO_SLOT);
        let is_used = |index: &u32| self.0.slots.get(*index).is_some_and(|slot| slot.tag() != Tag::EMPTY);
        homes.flat_map(move |home| (home..home + regions.chain(home)).take_while(is_used))
    }

    /// Removes a session: the client's direction first, the one that holds the SNAT port last. One
    /// that is gone already is no error.
    ///
    /// # Errors
    /// Returns an error if the pools of ports cannot be read.
    pub fn remove(&self, session: &Session) -> Result<()> {
        let ports = [self.retire(&session.forward.key), self.retire(&session.reply.key)];
        self.pools().clear(ports.into_iter().flatten())
    }

    /// Retires one flow, with its counters but without the mark of its port. Returns the key of
    /// that mark if this direction has one.
    pub(super) fn retire(&self, key: &FlowKey) -> Option<FlowKey> {
        let slot = self.find(key).and_then(|index| self.0.slots.get(index))?;
        self.retire_slot(slot, key)
    }

    pub(super) fn half_open_counter(&self, source: Ipv4) -> Option<&HalfOpen> {
        self.0.half_open.get(half_open_slot(&self.0.seeds, source))
    }

    /// Tells the programs that a session leads to an address, see
    /// [`PEER_TIMEOUT`](router_common::maps::peers::PEER_TIMEOUT).
    pub(super) fn note_peer(&self, address: Ipv4, now: Ticks) {
        if let Some(place) = self.0.peers.get(peer_slot(&self.0.seeds, address)) {
            place.note(now);
        }
    }

    /// Has the programs take no address for one that a session leads to, until the next sweep.
    pub fn forget_peers(&self) {
        for place in (0..PEER_SLOTS).filter_map(|slot| self.0.peers.get(slot)) {
            place.forget();
        }
    }

    /// Returns the number of half-open sessions of a source.
    pub fn half_open(&self, source: Ipv4) -> u32 {
        self.half_open_counter(source).map_or(0, HalfOpen::count)
    }

    pub(super) fn retire_slot(&self, slot: &Slot, key: &FlowKey) -> Option<FlowKey> {
        let tag = slot.retire(key, now())?;
        match tag.direction() {
            Direction::Forward => {
                if let Some(occupancy) = self.0.occupancy.get(0) {
                    occupancy.leave();
                }
                if tag.is_opening()
                    && let Some(counter) = self.half_open_counter(key.source)
                {
                    counter.leave();
                }
                None
            }
            Direction::Reply => Some(*key),
        }
    }

    pub(super) fn pools(&self) -> std::sync::MutexGuard<'_, PoolTable> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks through the table once. Passes the client's direction of every session, and every held
    /// key, to `each`, which decides about it, and makes quarantined slots usable again. Of the
    /// targets' directions, each round passes one in [`REPLY_SHARE`]. Only one walk may run at a
    /// time.
    ///
    /// # Errors
    /// Returns an error if the pools of ports cannot be read or written.
    pub fn sweep(&self, generation: u32, round: u32, mut each: impl FnMut(&Flow) -> Verdict) -> Result<()> {
        let now = now();
        let slots = &self.0.slots;
        // Chains end where a slot is empty, so a slot may become empty only if the next one is:
        // from the end on.
        let mut freed = Vec::new();
        let mut held = 0;
        for index in (0..slots.len()).rev() {
            let Some(slot) = slots.get(index) else { continue };
            let tag = slot.tag();
            match tag.state() {
                SlotState::Empty | SlotState::Busy | SlotState::Pending => {}
                SlotState::Held => {
                    let Some(flow) = self.at(index, SlotState::Held) else { continue };
                    if each(&flow) == Verdict::Keep {
                        held += 1;
                    } else if slot.release_key(tag, now) {
                        freed.push(flow.key);
                    }
                }
                SlotState::Retired => {
                    if slot.is_out_of_quarantine(now) {
                        slot.free(tag, now);
                    }
                }
                SlotState::Free => {
                    if slot.is_out_of_quarantine(now) {
                        slot.empty(slots.get(index + 1));
                    }
                }
                SlotState::Live => {
                    if slot.has_stale_next_hop(generation) {
                        slot.entry.forget_next_hop();
                    }
                    let is_shown =
                        tag.direction() == Direction::Forward || index % REPLY_SHARE == round % REPLY_SHARE;
                    if is_shown && let Some(flow) = self.flow_at(index) {
                        match each(&flow) {
                            Verdict::Keep if tag.direction() == Direction::Forward => {
                                self.note_peer(flow.entry.rewrite.destination, now);
                            }
                            Verdict::Keep => {}
                            Verdict::Remove => {
                                freed.extend(self.retire_slot(slot, &flow.key));
                                // Where half a session is left, the other direction's key may be a
                                // later session's.
                                if self.get(&flow.twin()).is_some_and(|twin| twin.twin() == flow.key) {
                                    freed.extend(self.retire(&flow.twin()));
                                }
                            }
                        }
                    }
                }
            }
        }
        if let Some(occupancy) = self.0.occupancy.get(0) {
            occupancy.set_held(held);
        }
        self.pools().clear(freed)
    }

    /// Returns the number of port pools that targets may use before ports are crowded.
    pub fn pools_to_spare(&self) -> u32 {
        self.pools().to_spare()
    }

    /// Gives back port pools that are not needed any more, and marks of ports that no flow has. To
    /// be called once a sweep.
    ///
    /// `taken` returns the known number of a target's sessions. Its pool may not have marked them
    /// all yet.
    ///
    /// # Errors
    /// Returns an error if they cannot be read or written.
    pub fn clean_pools(&self, range_size: u32, taken: impl Fn(&PoolKey) -> u32) -> Result<()> {
        let mut pools = self.pools();
        let few = range_size / FEW_PORTS;
        pools.clean(|target, marked| marked.max(taken(target)) <= few)?;
        pools.reconcile(|reply| self.is_taken(reply))
    }

    /// Returns how far counters exceed the table, before and after a walk through it. Programs that
    /// open or establish sessions meanwhile change that a little. No session may be removed
    /// meanwhile.
    pub fn surplus(&self) -> Surplus {
        let before = self.counted();
        let mut there = Counted { sessions: 0, half_open: vec![0; HALF_OPEN_SLOTS as usize] };
        for flow in self.flows().filter(|flow| flow.direction() == Direction::Forward) {
            there.sessions += 1;
            let slot = half_open_slot(&self.0.seeds, flow.key.source) as usize;
            if let Some(count) = there.half_open.get_mut(slot)
                && flow.is_opening()
            {
                *count += 1;
            }
        }
        before.beyond(&there).common(&self.counted().beyond(&there))
    }

    fn counted(&self) -> Counted {
        let half_open =
            (0..HALF_OPEN_SLOTS).map(|slot| self.0.half_open.get(slot).map_or(0, HalfOpen::count));
        Counted { sessions: self.sessions(), half_open: half_open.collect() }
    }

    /// Takes from the counters what is too much.
    pub fn take_back(&self, surplus: &Surplus) {
        if let Some(occupancy) = self.0.occupancy.get(0) {
            (0..surplus.sessions).for_each(|_| occupancy.leave());
        }
        for (slot, count) in &surplus.half_open {
            if let Some(counter) = self.0.half_open.get(*slot) {
                (0..*count).for_each(|_| counter.leave());
            }
        }
    }

    /// Looks for faults of the table: flows without their twin, duplicate keys, and counters and
    /// marks that differ from the table. Checks again what may be changing at the moment.
    ///
    /// # Errors
    /// Returns an error if the pools cannot be read.
    pub fn audit(&self) -> Result<Audit> {
        let mut audit = Audit::default();
        let mut suspects = Vec::new();
        let mut keys = HashSet::new();
        for flow in self.flows() {
            audit.flows += 1;
            if !keys.insert(flow.key) {
                audit.twice.push(flow);
            }
            let twin = self.get(&flow.twin());
            if twin.is_none_or(|twin| twin.twin() != flow.key) {
                suspects.push(flow);
            }
        }
        audit.half_sessions = suspects
            .into_iter()
            .filter(|flow| {
                self.get(&flow.key).is_some()
                    && self.get(&flow.twin()).is_none_or(|twin| twin.twin() != flow.key)
            })
            .collect();
        audit.twice.retain(|flow| {
            let is_there = |index: &u32| self.0.slots.get(*index).is_some_and(|slot| slot.is_flow(&flow.key));
            self.chains(&flow.key).filter(is_there).count() > 1
        });
        audit.sessions = self.sessions();
        let pools = self.pools();
        for (key, _) in pools.marked()? {
            audit.leaked_ports.extend(pools.taken_by(&key).iter().filter(|reply| !self.is_taken(reply)));
        }
        let slots = (0..self.0.slots.len()).filter_map(|index| self.0.slots.get(index));
        for state in slots.map(|slot| slot.tag().state()) {
            match state {
                SlotState::Held => audit.held += 1,
                SlotState::Retired => audit.retired += 1,
                SlotState::Empty
                | SlotState::Busy
                | SlotState::Pending
                | SlotState::Live
                | SlotState::Free => {}
            }
        }
        Ok(audit)
    }
}

/// The values of counters, as they are or as they should be.
struct Counted {
    sessions: u32,
    /// By the slot of a source's counter.
    half_open: Vec<u32>,
}

impl Counted {
    /// Returns the difference to `there`.
    fn beyond(&self, there: &Self) -> Surplus {
        let half_open = (0..).zip(self.half_open.iter().zip(&there.half_open));
        Surplus {
            sessions: self.sessions.saturating_sub(there.sessions),
            half_open: half_open
                .filter(|(_, (counted, there))| counted > there)
                .map(|(slot, (counted, there))| (slot, counted - there))
                .collect(),
        }
    }
}

/// The excess of counters over the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surplus {
    /// Sessions.
    pub sessions: u32,
    /// Half-open ones, by the slot of their source's counter.
    pub half_open: BTreeMap<u32, u32>,
}

impl Surplus {
    /// Returns the excess that both have found.
    pub fn common(mut self, other: &Self) -> Self {
        self.sessions = self.sessions.min(other.sessions);
        self.half_open.retain(|slot, count| {
            *count = (*count).min(other.half_open.get(slot).copied().unwrap_or(0));
            *count > 0
        });
        self
    }
}

/// The decision about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// Its session goes, both directions of it.
    Remove,
}

/// The result of an audit of the whole table.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Flows of both directions.
    pub flows: u64,
    /// Sessions, as counted.
    pub sessions: u32,
    /// Flows whose other direction is not there.
    pub half_sessions: Vec<Flow>,
    /// Flows that are there more than once.
    pub twice: Vec<Flow>,
    /// Ports that are held, for sessions that were over and have moved.
    pub held: u64,
    /// Slots that are in quarantine.
    pub retired: u64,
    /// Ports that are marked as taken, by the key of the reply flow that is not there.
    pub leaked_ports: Vec<FlowKey>,
}

/// Returns the pool that a session's port is counted in. `flow` is the client's direction, or the
/// held key of a session that has moved.
pub fn port_pool(flow: &Flow) -> PoolKey {
    match flow.direction() {
        Direction::Forward => PoolKey::of(&flow.twin()),
        Direction::Reply => PoolKey::of(&flow.key),
    }
}

/// Returns the source that a session's port is counted for; `flow` is as in [`port_pool`].
pub fn port_source(flow: &Flow) -> Ipv4 {
    match flow.direction() {
        Direction::Forward => flow.key.source,
        Direction::Reply => flow.twin().source,
    }
}

/// The time now, in the programs' ticks.
pub fn now() -> Ticks {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Ticks::from_nanoseconds(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
