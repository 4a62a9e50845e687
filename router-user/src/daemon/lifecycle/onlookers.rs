//! The group whose members may look at the daemon: its API's socket is theirs to ask.
//!
//! What they ask for must not change anything: the API decides that by the user at the other end
//! (`serve::api`), not by the file's mode.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    private::{self, ONLOOKERS},
    sys::groups,
};

/// Gives the API's socket to the group, if this machine has it. That it cannot be given keeps only
/// onlookers out.
pub(crate) fn admit(socket: &Path) {
    let Some(group) = groups::number(ONLOOKERS) else { return };
    let name = ONLOOKERS.to_string_lossy();
    match give(socket, group) {
        Ok(()) => info!("members of the group {name} may look (status, counters, flows, rules)"),
        Err(error) => warn!("members of the group {name} cannot look: {error:#}"),
    }
}

fn give(socket: &Path, group: u32) -> Result<()> {
    // A member may give its files to the group without a capability, also later.
    groups::join(group).context("this process cannot join the group: it takes CAP_SETGID")?;
    let shown = socket.display();
    std::os::unix::fs::chown(socket, None, Some(group))
        .with_context(|| format!("cannot give {shown} to it"))?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    private::open_to(socket.parent().unwrap_or(Path::new("/")), group)
}
