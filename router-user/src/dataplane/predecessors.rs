//! The data planes that daemons of other versions have left: pinned under another layout, so
//! nothing in their maps can be read.
//!
//! A daemon takes their place. Its programs go into the links that are there, which neither
//! detaches anything nor lets a packet by, and which can be turned back as long as the start may
//! fail. Sessions cannot be taken along.

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use tracing::warn;

use crate::{
    private,
    sys::{bpf, xdp::Mode},
};

use super::{pins::Pins, reserved_ports};

/// The data planes of other versions, locked for this process.
#[derive(Debug, Default)]
pub struct Predecessors {
    found: Vec<(Pins, File)>,
    taken: Vec<Taken>,
}

/// A link that holds our program now.
#[derive(Debug)]
struct Taken {
    link: OwnedFd,
    /// The program that it held, if this process may have it: that takes CAP_SYS_ADMIN.
    program: Option<OwnedFd>,
    old_pin: PathBuf,
    new_pin: PathBuf,
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
        let found = Pins::others(root)?.into_iter().map(lock).collect::<Result<_>>()?;
        Ok(Self { found, taken: Vec::new() })
    }

    /// Returns `true` if there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the directories of their pins.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.found.iter().map(|(pins, _)| pins.directory())
    }

    /// Puts the program into the link that one of them has on this interface, and pins that as an
    /// attachment of ours. In another mode the link cannot be used on, and is removed.
    pub(super) fn take_over(
        &mut self,
        root: &Xdp,
        pins: &Pins,
        interface: &str,
        index: u32,
        mode: Mode,
    ) -> Result<()> {
        for (theirs, _) in &self.found {
            for old_pin in theirs.links_on(index)? {
                if old_pin.mode != mode {
                    bpf::remove_link(&old_pin.path)
                        .with_context(|| format!("cannot remove {}", old_pin.path.display()))?;
                    continue;
                }
                let failed = || format!("cannot take over {}", old_pin.path.display());
                let program = bpf::program_by_id(old_pin.program).ok();
                let link = bpf::open_pin(&old_pin.path).with_context(failed)?;
                bpf::update_link(link.as_fd(), root.fd()?.as_fd()).with_context(failed)?;
                let new_pin = pins.link(interface, mode);
                // First, since it is to be turned back also if the pin fails.
                let is_pinned = new_pin.exists();
                self.taken.push(Taken { link, program, old_pin: old_pin.path, new_pin });
                let taken = self.taken.last().context("it has just been taken")?;
                // A start that was killed in the middle of this has pinned it already.
                if is_pinned {
                    continue;
                }
                bpf::pin(taken.link.as_fd(), &taken.new_pin)
                    .with_context(|| format!("cannot pin {}", taken.new_pin.display()))?;
            }
        }
        Ok(())
    }

    /// Undoes everything after a failed start. Returns `false` if a link could not be given back:
    /// it holds the new program, and taking that off would leave the interface without one.
    pub fn give_back(self) -> bool {
        let mut all = true;
        for Taken { link, program, old_pin, new_pin } in self.taken {
            let Some(program) = program else {
                warn!("cannot give {} its program back: CAP_SYS_ADMIN is needed", old_pin.display());
                all = false;
                continue;
            };
            let turned_back = bpf::update_link(link.as_fd(), program.as_fd());
            // Not by way of `Pins::remove`, which would take the program off with it.
            if let Err(error) = turned_back.and_then(|()| fs::remove_file(&new_pin)) {
                warn!("cannot give {} its program back: {error}", old_pin.display());
                all = false;
            }
        }
        all
    }

    /// Removes all that they have left, except for the links that were taken over.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be removed.
    pub fn remove(self) -> Result<()> {
        for Taken { old_pin, .. } in &self.taken {
            fs::remove_file(old_pin).with_context(|| format!("cannot remove {}", old_pin.display()))?;
        }
        for (pins, _) in self.found {
            // What this version needs of these ports it reserves again, when it next looks.
            if let Err(error) = reserved_ports::release(&pins) {
                warn!("cannot give back ports that {} has reserved: {error:#}", pins.directory().display());
            }
            pins.remove_all()?;
        }
        Ok(())
    }
}
