//! The program on an interface, and the interface itself: it may be removed and made again, or get
//! another name.

use anyhow::{Context as _, Result};

use super::{
    kept::{Kept, Look},
    loss::lost,
};
use crate::{
    daemon::state::Attachments,
    dataplane::{Attachment, Dataplane, Loss, Place},
    health::Id,
};

pub(super) struct KeptAttachment {
    slot: u32,
    name: String,
}

impl KeptAttachment {
    pub(super) fn new(slot: u32, name: &str) -> Self {
        Self { slot, name: name.to_owned() }
    }

    fn attachment<'a>(&self, attachments: &'a Attachments) -> Result<&'a Attachment> {
        let attached = attachments.attached.get(self.slot as usize).context("the interface has no slot")?;
        Ok(&attached.attachment)
    }
}

impl Kept for KeptAttachment {
    fn what(&self) -> &'static str {
        "attachment"
    }

    fn trouble(&self) -> Id {
        Id::ProgramLost
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn is_vital(&self) -> bool {
        true
    }

    fn look(&self, attachments: &Attachments, plane: &Dataplane) -> Result<Look> {
        let attachment = self.attachment(attachments)?;
        let name = &self.name;
        let place = attachment.place();
        let Some(index) = place.index() else {
            return Ok(Look::Missing(lost(attachment, Loss::InterfaceGone)));
        };
        Ok(if let Some(loss) = attachment.loss() {
            Look::Changed(lost(attachment, loss))
        } else if attachment.index != index {
            Look::Changed(format!("{name}: another interface has this name now"))
        } else if !plane.has_egress(self.slot, index) {
            Look::Changed(format!(
                "{name}: the interface was missing from the map EGRESS: packets could not be sent through it"
            ))
        } else if let Place::Renamed { name: now, .. } = place {
            Look::Flawed(
                Id::InterfaceRenamed,
                format!(
                    "interface {name} is called {now} now: this daemon goes on with it, the next one will not find it; \
                 fix: write \"{now}\" in [interfaces], or give the name back: ip link set dev {now} name {name}"
                ),
            )
        } else {
            Look::Good
        })
    }

    fn restore(&mut self, attachments: &mut Attachments, plane: &mut Dataplane) -> Result<&'static str> {
        let lost = self.attachment(attachments)?.clone();
        let index = lost.place().index().context("the interface is gone")?;
        let attachment = plane.attach_again(self.slot, &lost, index)?;
        // Entries know slots and MAC addresses, and the interface may have another now.
        plane.settings.invalidate_next_hops()?;
        let attached =
            attachments.attached.get_mut(self.slot as usize).context("the interface has no slot")?;
        attached.attachment = attachment;
        Ok("the program is attached again")
    }

    fn suspects(&self) -> String {
        format!(
            "each time, no packets are forwarded until the repair; find what removes {0} or its program \
             (`ip monitor link` and `bpftool net` show it, `pls-router check` names another program)",
            self.name
        )
    }
}
