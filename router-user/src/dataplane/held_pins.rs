//! The pinned objects, held open: a pin that is removed under a running daemon loses nothing, and
//! can be made again.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::pins::{Pins, STAGES_PIN};
use crate::sys::bpf;

/// The pinned maps, each with its pin. Attachments hold their own.
#[derive(Debug)]
pub struct HeldPins {
    pins: Pins,
    /// Each with the name of its pin.
    objects: Vec<(&'static str, OwnedFd)>,
}

impl HeldPins {
    /// Opens the maps that are pinned by these names, and the program array that is pinned at
    /// `stages` until it is in force.
    pub(super) fn hold(pins: Pins, maps: impl Iterator<Item = &'static str>, stages: &Path) -> Result<Self> {
        let open = |(name, path): (_, PathBuf)| {
            let object = bpf::open_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
            Ok((name, object))
        };
        let paths = maps.map(|name| (name, pins.map(name))).chain([(STAGES_PIN, stages.to_owned())]);
        let objects = paths.map(open).collect::<Result<_>>()?;
        Ok(Self { pins, objects })
    }

    /// Notes that the directory of the pins has another name.
    pub(super) fn move_to(&mut self, pins: Pins) {
        self.pins = pins;
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The directory that everything is pinned in.
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }

    /// Returns `true` if every pin is there.
    pub fn are_complete(&self) -> bool {
        self.objects.iter().all(|(name, _)| self.pins.map(name).symlink_metadata().is_ok())
    }

    /// Makes this program array the pinned one again, after another one was.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub(super) fn restore_stages(&self) -> Result<()> {
        let held = self.objects.iter().find(|(name, _)| *name == STAGES_PIN);
        let (_, array) = held.context("the program array is not held")?;
        let new = self.pins.new_stages();
        bpf::pin(array.as_fd(), &new).with_context(|| format!("cannot pin {}", new.display()))?;
        self.pins.keep_stages(&new)
    }

    /// Makes missing pins again. Locks a directory that had to be made for this process, as
    /// [`Pins::lock`] does; the caller keeps the file open.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses, or there is no BPF file system.
    pub fn restore(&self) -> Result<Option<File>> {
        let is_new = !self.directory().exists();
        self.pins.make()?;
        let lock = is_new.then(|| self.pins.lock()).transpose()?;
        for (name, object) in &self.objects {
            let path = self.pins.map(name);
            if path.symlink_metadata().is_err() {
                bpf::pin(object.as_fd(), &path).with_context(|| format!("cannot pin {}", path.display()))?;
            }
        }
        Ok(lock)
    }
}
