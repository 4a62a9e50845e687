//! The pins, by which the next daemon finds the data plane. Packets do not need them.

use std::fs::File;

use anyhow::{Context as _, Result};

use super::kept::{Kept, Look};
use crate::{
    daemon::state::Attachments,
    dataplane::{Dataplane, HeldPins},
    health::Id,
};

pub(super) struct KeptPins {
    directory: String,
    /// The lock on a directory that was made anew.
    _lock: Option<File>,
}

impl KeptPins {
    pub(super) fn new(pins: &HeldPins) -> Self {
        Self { directory: pins.directory().display().to_string(), _lock: None }
    }
}

impl Kept for KeptPins {
    fn what(&self) -> &'static str {
        "pins"
    }

    fn trouble(&self) -> Id {
        Id::PinsLost
    }

    fn name(&self) -> &str {
        &self.directory
    }

    fn is_vital(&self) -> bool {
        false
    }

    fn look(&self, attachments: &Attachments, plane: &Dataplane) -> Result<Look> {
        let held = plane.pins().context("nothing is pinned")?;
        // Of an interface that is gone there is nothing to pin.
        let lacks_pin = |attachment: &crate::dataplane::Attachment| {
            attachment.loss().is_none() && !attachment.is_pinned()
        };
        let is_complete = held.are_complete()
            && !attachments.attached.iter().any(|attached| lacks_pin(&attached.attachment));
        Ok(if is_complete {
            Look::Good
        } else {
            Look::Changed(format!(
                "the pins at {} were removed; without them, a crash of the daemon loses all sessions",
                self.directory
            ))
        })
    }

    fn restore(&mut self, attachments: &mut Attachments, plane: &mut Dataplane) -> Result<&'static str> {
        let held = plane.pins().context("nothing is pinned")?;
        if let Some(lock) = held.restore()? {
            self._lock = Some(lock);
        }
        for attached in &attachments.attached {
            let attachment = &attached.attachment;
            if attachment.loss().is_none() && !attachment.is_pinned() {
                attachment.pin_again()?;
            }
        }
        Ok("it is pinned again")
    }

    fn suspects(&self) -> String {
        format!("find what removes files below {}", self.directory)
    }
}
