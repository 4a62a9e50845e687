//! Neighbours that do not answer, as the programs know them.

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use router_common::punt::Neighbour;

use super::now;

/// Neighbours that nothing waits for, since they have been found not to answer.
pub struct FailedNeighbours {
    map: HashMap<MapData, Neighbour, u32>,
}

impl FailedNeighbours {
    pub(super) fn new(map: Map) -> Result<Self> {
        Ok(Self { map: map.try_into()? })
    }

    /// Has nothing wait for a neighbour, for so long.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn add(&mut self, neighbour: &Neighbour, time: Duration) -> Result<()> {
        let until = now().0.saturating_add(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        self.map
            .insert(neighbour, until, 0)
            .with_context(|| format!("cannot note that {} does not answer", neighbour.ip()))
    }

    /// Has packets wait for a neighbour again.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, neighbour: &Neighbour) -> Result<()> {
        match self.map.remove(neighbour) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            // It may have made room for another.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot note that {} may answer again", neighbour.ip()))
            }
        }
    }
}
