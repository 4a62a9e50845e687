//! Neighbours, as the programs know them: those that do not answer, and those that sessions have
//! for next hops.

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use router_common::maps::{punt::Neighbour, route::InUse};

use super::flows::now;

/// Neighbours that nothing waits for, since they have been found not to answer.
pub struct FailedNeighbours {
    map: HashMap<MapData, Neighbour, u32>,
}

impl FailedNeighbours {
    pub(super) fn new(map: Map) -> Result<Self> {
        Ok(Self { map: map.try_into()? })
    }

    /// Drops packets to a neighbour without waiting for it, for this time.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn add(&mut self, neighbour: &Neighbour, time: Duration) -> Result<()> {
        let until = now().0.saturating_add(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        self.map
            .insert(neighbour, until, 0)
            .with_context(|| format!("cannot note that {} does not answer", neighbour.ip()))
    }

    /// Lets packets wait for a neighbour again.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn remove(&mut self, neighbour: &Neighbour) -> Result<()> {
        remove(&mut self.map, neighbour)
            .with_context(|| format!("cannot note that {} may answer again", neighbour.ip()))
    }
}

/// The next hops that sessions have.
pub struct NextHopsInUse {
    map: HashMap<MapData, Neighbour, InUse>,
}

impl NextHopsInUse {
    pub(super) fn new(map: Map) -> Result<Self> {
        let mut table = Self { map: map.try_into()? };
        table.show_room()?;
        Ok(table)
    }

    /// Returns the record of a neighbour; `None` if it is no session's next hop. If there was no
    /// room for a record, it may be one anyway.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read.
    pub fn get(&self, neighbour: &Neighbour) -> Result<Option<InUse>> {
        match self.look_up(neighbour)? {
            None if !self.has_room()? => Ok(Some(InUse::MIXED)),
            known => Ok(known),
        }
    }

    /// Returns all records.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read.
    pub fn all(&self) -> Result<Vec<(Neighbour, InUse)>> {
        let all = self.map.iter().filter(|known| !matches!(known, Ok((Neighbour::NONE, _))));
        all.collect::<Result<_, MapError>>().context("cannot read the next hops in use")
    }

    /// Returns `true` unless there was no room to note a next hop.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read.
    pub fn has_room(&self) -> Result<bool> {
        Ok(self.look_up(&Neighbour::NONE)? == Some(InUse::HAS_ROOM))
    }

    /// Forgets a next hop. Sessions note it again when they resolve it, so their next hops have to
    /// be invalidated afterwards.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn forget(&mut self, neighbour: &Neighbour) -> Result<()> {
        remove(&mut self.map, neighbour)
            .with_context(|| format!("cannot forget the next hop {}", neighbour.ip()))
    }

    /// Forgets all next hops, likewise.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read or written.
    pub fn forget_all(&mut self) -> Result<()> {
        for (neighbour, _) in self.all()? {
            self.forget(&neighbour)?;
        }
        self.show_room()
    }

    fn look_up(&self, neighbour: &Neighbour) -> Result<Option<InUse>> {
        match self.map.get(neighbour, 0) {
            Ok(known) => Ok(Some(known)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("cannot read the next hops in use"),
        }
    }

    fn show_room(&mut self) -> Result<()> {
        self.map.insert(Neighbour::NONE, InUse::HAS_ROOM, 0).context("cannot write the next hops in use")
    }
}

/// Removes an entry that may be gone already.
fn remove<V: Pod>(map: &mut HashMap<MapData, Neighbour, V>, neighbour: &Neighbour) -> Result<(), MapError> {
    match map.remove(neighbour) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        // It may have made room for another.
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
