//! The router's interfaces.

use crate::{config::Config, dataplane::Attachment};

/// An interface that the program is attached to.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) attachment: Attachment,
    pub(crate) roles: Vec<String>,
}

impl Attached {
    /// Returns the index of the interface as it is now; the last one that it had if it is gone, so
    /// that there still are two where there were two.
    pub(crate) fn index(&self) -> u32 {
        self.attachment.place().index().unwrap_or(self.attachment.index)
    }
}

/// Returns the roles of the interface of this name.
pub(crate) fn roles(config: &Config, name: &str) -> Vec<String> {
    [("pls", &config.interfaces.pls), ("firewall", &config.interfaces.firewall)]
        .into_iter()
        .filter(|(_, interface)| *interface == name)
        .map(|(role, _)| role.to_owned())
        .collect()
}
