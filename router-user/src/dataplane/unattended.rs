//! A data plane that a daemon has left: it forwards without one.

use std::{os::fd::AsFd as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    flows::now,
    pins::{Pins, entries, read_link_name},
    settings,
};
use crate::sys::{bpf, interface::interface_name, xdp::Mode};

/// A data plane that forwards without a daemon.
#[derive(Clone, Debug)]
pub struct Unattended {
    /// The interfaces that it is attached to, by the names that they have now.
    pub interfaces: Vec<String>,
    /// The time since its daemon was last alive, to within two seconds.
    pub silence: Duration,
}

/// Returns the data plane of this version that is pinned below `root`, as a process finds it that
/// is not its daemon; `None` if there is none.
///
/// # Errors
/// Returns an error if the pins cannot be read.
pub fn unattended(root: &Path) -> Result<Option<Unattended>> {
    let pins = Pins::at(root);
    if !pins.are_there() {
        return Ok(None);
    }
    let seen = settings::daemon_seen(&pins.map("SETTINGS"))?;
    let mut interfaces = Vec::new();
    for path in entries(&pins.links())? {
        let (kind, _) = read_link_name(&path.file_name().unwrap_or_default().to_string_lossy());
        // Other attachments than those of XDP are pinned there, too.
        if !Mode::ALL.iter().any(|mode| mode.as_str() == kind) {
            continue;
        }
        let failed = || format!("cannot read {}", path.display());
        let link = bpf::open_pin(&path).with_context(failed)?;
        let info = bpf::xdp_link_info(link.as_fd()).with_context(failed)?;
        // One that was detached, or whose interface is gone, has none.
        interfaces.extend(interface_name(info.interface));
    }
    interfaces.sort_unstable();
    let silence = Duration::from_nanos(now().nanoseconds_since(seen));
    Ok(Some(Unattended { interfaces, silence }))
}
