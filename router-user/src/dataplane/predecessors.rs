//! The data planes that daemons of other versions have left, pinned under another layout. This one
//! takes the place of the latest of them ([`super::succession`]).

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tracing::warn;

use crate::private;

use super::{migration, pins::Pins, reserved_ports};

/// The data planes of other versions, locked for this process.
#[derive(Debug, Default)]
pub struct Predecessors {
    found: Vec<(Pins, File)>,
}

impl Predecessors {
    /// Looks for them below `root`.
    ///
    /// # Errors
    /// Returns an error if a daemon works with one of them, or another user may change their
    /// contents.
    pub fn find(root: &Path) -> Result<Self> {
        let lock = |pins: Pins| {
            private::close(pins.directory())?;
            pins.lock().map(|lock| (pins, lock))
        };
        Ok(Self { found: Pins::others(root)?.into_iter().map(lock).collect::<Result<_>>()? })
    }

    /// Returns `true` if none of them has been in force.
    pub fn is_empty(&self) -> bool {
        !self.found.iter().any(|(pins, _)| pins.is_ready())
    }

    /// Returns the directories of the pins, and the layouts, of those whose sessions cannot be
    /// read.
    pub fn unknown(&self) -> impl Iterator<Item = (PathBuf, u32)> {
        let is_unknown = |pins: &Pins| pins.is_ready() && !migration::knows_layout(pins.layout());
        let unknown = self.found.iter().filter(move |(pins, _)| is_unknown(pins));
        unknown.map(|(pins, _)| (pins.directory().to_owned(), pins.layout()))
    }

    /// Removes all that they have left, except for attachments that `ours` has as well.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be removed.
    pub fn remove(self, ours: &Pins) -> Result<()> {
        for (pins, _) in self.found {
            // What this version needs of these ports it has reserved itself by now.
            if let Err(error) = reserved_ports::release_to(&pins, ours) {
                warn!("cannot give back ports that {} has reserved: {error:#}", pins.directory().display());
            }
            pins.remove_beside(ours)?;
        }
        Ok(())
    }
}
