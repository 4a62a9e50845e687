//! The removal of what is pinned: programs off their interfaces, then the pins, then the system
//! settings that the router has changed.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    forwarding::restore_route_lookups,
    own_traffic,
    pins::{Pins, entries, read_link_name},
    reserved_ports,
    settings::route_lookups_were_off,
};
use crate::{private, sys::bpf};

impl Pins {
    /// Removes link pins by interface name, which detaches the program; the interfaces it was
    /// detached from.
    pub(super) fn remove_links(&self, remove: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for path in entries(&self.links())? {
            let (kind, name) = read_link_name(&path.file_name().unwrap_or_default().to_string_lossy());
            if !remove(&name) {
                continue;
            }
            if own_traffic::is_filter(&kind) {
                own_traffic::remove_pinned_filter(&path, &kind, &name)?;
            } else {
                bpf::remove_link(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            if !removed.contains(&name) {
                // Best effort: a program that is nowhere attached does no harm.
                let _ = fs::remove_file(self.root_program(&name));
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Removes everything, after `ours` has come into force in its place: programs are detached
    /// only if they are not attached by a link of `ours`.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be read or removed.
    pub(super) fn remove_beside(&self, ours: &Self) -> Result<()> {
        let id = |path: &Path| Some(bpf::xdp_link_info(bpf::open_pin(path).ok()?.as_fd()).ok()?.id);
        let used_on: Vec<u32> = entries(&ours.links())?.iter().filter_map(|path| id(path)).collect();
        for path in entries(&self.links())? {
            let name = path.file_name().unwrap_or_default();
            let (kind, _) = read_link_name(&name.to_string_lossy());
            // There is one filter on an interface: the one that has come last.
            let is_used_on = if own_traffic::is_filter(&kind) {
                ours.links().join(name).exists()
            } else {
                id(&path).is_some_and(|id| used_on.contains(&id))
            };
            if is_used_on {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        self.remove_all().map(drop)
    }

    /// Removes everything: programs are detached first, then maps and programs go. Returns the
    /// interfaces that were detached from.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be read or removed.
    pub fn remove(&self) -> Result<Vec<String>> {
        let settings = self.map("SETTINGS");
        let were_off = settings.exists() && route_lookups_were_off(&settings)?;
        reserved_ports::release(self)?;
        let interfaces = self.remove_all()?;
        if were_off {
            restore_route_lookups()?;
        }
        Ok(interfaces)
    }

    /// Removes everything, and leaves system settings alone. Returns the interfaces that were
    /// detached from.
    ///
    /// # Errors
    /// Returns an error as [`remove`](Self::remove).
    pub fn remove_all(&self) -> Result<Vec<String>> {
        let interfaces = self.remove_links(|_| true)?;
        let failed = |path: &Path| format!("cannot remove {}", path.display());
        for path in entries(self.directory())? {
            if path.is_dir() {
                fs::remove_dir(&path).with_context(|| failed(&path))?;
            } else {
                fs::remove_file(&path).with_context(|| failed(&path))?;
            }
        }
        if self.directory().exists() {
            fs::remove_dir(self.directory()).with_context(|| failed(self.directory()))?;
        }
        self.discard_root();
        Ok(interfaces)
    }
}

/// The result of a removal.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// The interfaces that programs were detached from.
    pub interfaces: Vec<String>,
    /// The directories that were removed, of this version's layout and of others'.
    pub directories: Vec<PathBuf>,
}

/// Detaches the router from every interface and removes all that it, or another version of it, has
/// pinned below `root`. Nothing to detach is no error.
///
/// # Errors
/// Returns an error if a pin cannot be read or removed.
pub fn detach(root: &Path) -> Result<Removed> {
    // As root, through another user's symbolic links, this could remove anything.
    private::examine(root)?;
    let mut removed = Removed::default();
    let own = Pins::at(root);
    if own.directory().exists() {
        removed.interfaces = own.remove()?;
        removed.directories.push(own.directory().to_owned());
    }
    let mut others = Pins::others(root)?;
    // What a start has left that was killed while sessions moved.
    others.extend(Some(own.next()).filter(|next| next.directory().exists()));
    for other in &others {
        // In a layout that cannot be read they stay reserved until the next boot.
        let _ = reserved_ports::release(other);
        let interfaces = other.remove_all()?;
        let new = interfaces.into_iter().filter(|interface| !removed.interfaces.contains(interface));
        let new: Vec<String> = new.collect();
        removed.interfaces.extend(new);
        removed.directories.push(other.directory().to_owned());
    }
    if !others.is_empty() {
        restore_route_lookups()?;
    }
    Ok(removed)
}
