//! The flow table.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use router_common::{
    address::Ipv4,
    flow::{Direction, FlowEntry, FlowKey, Protocol},
    session::{DirectionRecord, State, Ticks},
};

use super::sys::BatchReader;

/// Entries read by one system call: enough to make the call's own cost disappear, few enough to stay in cache.
const BATCH: usize = 4096;

/// A session: its two flows.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The tuple that the client's packets arrive with.
    pub key: FlowKey<Ipv4>,
    /// The client's direction.
    pub forward: FlowEntry<Ipv4>,
    /// The target's direction.
    pub reply: FlowEntry<Ipv4>,
}

impl Session {
    /// The protocol.
    pub fn protocol(&self) -> Option<Protocol> {
        self.key.protocol()
    }

    /// How far it is.
    pub fn state(&self) -> Option<State> {
        let record = |entry: &FlowEntry<Ipv4>| DirectionRecord { seen: entry.seen, packets: entry.packets };
        Some(State::of(self.protocol()?, record(&self.forward), record(&self.reply)))
    }

    /// When a packet was last seen in either direction.
    pub fn last_seen(&self) -> Ticks {
        self.forward.last_seen.max(self.reply.last_seen)
    }
}

/// The flow table, from user space.
pub struct FlowTable {
    map: HashMap<MapData, FlowKey<Ipv4>, FlowEntry<Ipv4>>,
    /// The same map, for what aya has no function for.
    fd: OwnedFd,
    capacity: u32,
}

impl FlowTable {
    pub(super) fn new(map: Map) -> Result<Self> {
        let Map::HashMap(data) = map else { bail!("the flow table is not a hash map") };
        let capacity = data.info().context("cannot examine the flow table")?.max_entries() / 2;
        let fd = data.fd().as_fd().try_clone_to_owned().context("cannot open the flow table")?;
        Ok(Self { map: Map::HashMap(data).try_into()?, fd, capacity })
    }

    /// Another handle to the same table.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context("cannot open the flow table once more")?;
        Self::new(Map::HashMap(MapData::from_fd(fd)?))
    }

    /// How many sessions there is room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Shows every session to `each`, in no order, until it answers `false`. Sessions that are opened or removed meanwhile may or may
    /// not be among them.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn for_each(&self, mut each: impl FnMut(&Session) -> bool) -> Result<()> {
        let mut reader = self.batches();
        while let Some(batch) = reader.next().context("cannot read the flow table")? {
            for (key, forward) in batch.filter(|(_, entry)| entry.direction() == Direction::Forward) {
                // Without its twin it has been removed in between.
                if let Some(session) = self.session(key, forward)?
                    && !each(&session)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Shows the client's direction of every session to `each`: one system call for thousands of them.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn for_each_forward(&self, mut each: impl FnMut(&FlowKey<Ipv4>, &FlowEntry<Ipv4>)) -> Result<()> {
        let mut reader = self.batches();
        while let Some(batch) = reader.next().context("cannot read the flow table")? {
            for (key, forward) in batch.filter(|(_, entry)| entry.direction() == Direction::Forward) {
                each(key, forward);
            }
        }
        Ok(())
    }

    /// The session of a client's tuple, as it is now.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get_session(&self, key: &FlowKey<Ipv4>) -> Result<Option<Session>> {
        match self.get(key)? {
            Some(forward) => self.session(key, &forward),
            None => Ok(None),
        }
    }

    fn session(&self, key: &FlowKey<Ipv4>, forward: &FlowEntry<Ipv4>) -> Result<Option<Session>> {
        let reply = self.get(&key.twin(&forward.rewrite))?;
        Ok(reply.map(|reply| Session { key: *key, forward: *forward, reply }))
    }

    /// Removes a session: the client's direction first, the one that holds the SNAT port last.
    ///
    /// # Errors
    /// When the map cannot be written. A session that is gone already is no error.
    pub fn remove(&mut self, session: &Session) -> Result<()> {
        for key in [session.key, session.key.twin(&session.forward.rewrite)] {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error).context("cannot remove a session"),
            }
        }
        Ok(())
    }

    /// How many entries the table has, of both directions.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<usize> {
        let mut count = 0;
        let mut reader = self.batches();
        while let Some(batch) = reader.next().context("cannot read the flow table")? {
            count += batch.count();
        }
        Ok(count)
    }

    /// The entry of one direction, by the tuple its packets arrive with.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self, key: &FlowKey<Ipv4>) -> Result<Option<FlowEntry<Ipv4>>> {
        match self.map.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("cannot read the flow table"),
        }
    }

    fn batches(&self) -> BatchReader<'_, FlowKey<Ipv4>, FlowEntry<Ipv4>> {
        BatchReader::new(self.fd.as_fd(), BATCH)
    }
}

/// The time now, in the programs' ticks.
pub fn now() -> Ticks {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Ticks::from_nanoseconds(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
