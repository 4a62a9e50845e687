//! Moves the pins of a running data plane to another directory (`admin.pins`).
//!
//! Everything is pinned at the new place as well, the program array last, and only then removed at
//! the old one. Nothing of it concerns packets. If the daemon is killed in between, the objects are
//! pinned at the old place, or at both.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, ensure};
use tracing::warn;

use super::{
    Attachment, Dataplane,
    pins::{Pins, STAGES_PIN, entries},
};

impl Dataplane {
    /// Moves the pins to `root`, those of `attachments` as well. Returns the lock on the new
    /// directory, as [`Pins::lock`] does.
    ///
    /// # Errors
    /// Returns an error if there are pins at `root` already, or another daemon's, and if a pin is
    /// missing or cannot be made. All pins are then where they were.
    pub fn move_pins<'a>(
        &mut self,
        root: &Path,
        attachments: impl Iterator<Item = &'a mut Attachment>,
    ) -> Result<File> {
        let held = self.pins.as_mut().context("nothing is pinned")?;
        let from = held.pins().clone();
        ensure!(
            held.are_complete(),
            "some pins at {} are missing\n  fix: try again in a moment, when they are pinned again",
            from.directory().display()
        );
        let to = Pins::open(root)?;
        let lock = to.claim()?;
        ensure!(
            !to.is_ready() && Pins::others(root)?.is_empty(),
            "there is a data plane at {}\n  fix: name another directory, or remove that one: `pls-router detach` with \
             a configuration that names it",
            root.display()
        );
        copy(&from, &to)?;
        held.move_to(to.clone());
        for attachment in attachments {
            attachment.move_to(&to);
        }
        if let Err(error) = from.discard() {
            warn!("cannot remove the pins at the place before: {error:#}");
        }
        from.discard_root();
        Ok(lock)
    }
}

/// Pins everything that is pinned at `from` at `to` as well, or nothing.
fn copy(from: &Pins, to: &Pins) -> Result<()> {
    // What a start has left that was killed.
    to.discard_contents()?;
    let copied = try_copy(from, to);
    if copied.is_err() {
        // Best effort: what matters is the error.
        let _ = to.discard();
        to.discard_root();
    }
    copied
}

fn try_copy(from: &Pins, to: &Pins) -> Result<()> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    for (from, to) in [(from.links(), to.links()), (from.directory().to_owned(), to.directory().to_owned())] {
        for path in entries(&from)?.into_iter().filter(|path| !path.is_dir()) {
            let name = name(&path);
            // One array is in force; others are of processes that were killed.
            if !name.starts_with(STAGES_PIN) {
                Pins::pin_again(&path, &to.join(name))?;
            }
        }
    }
    Pins::pin_again(&from.stages(), &to.stages())
}
