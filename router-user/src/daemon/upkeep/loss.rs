//! Words for what has happened to an interface or its program.

use crate::dataplane::{Attachment, Loss, Place};

/// Returns the words for what has happened to an interface or its program.
pub(crate) fn lost(attachment: &Attachment, loss: Loss) -> String {
    let name = &attachment.interface;
    match (loss, attachment.place()) {
        (Loss::InterfaceGone, Place::Gone) => {
            format!("{name}: the interface was removed; the router attaches again when it returns")
        }
        (Loss::InterfaceGone, _) => format!("{name} was removed and is there again"),
        (Loss::Detached, _) => format!("{name}: the program was taken off"),
        (Loss::Replaced(by), _) => format!("{name}: the program was replaced by another (id {by})"),
    }
}
