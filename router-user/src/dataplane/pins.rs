//! Where everything is pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use router_common::LAYOUT;

use super::{
    ensure_bpffs,
    forwarding::{kernel_forwards, switch_route_lookups},
    own_traffic, reserved_ports,
    settings::route_lookups_were_off,
    sys,
};

/// The directory of pins of this layout: `<admin.pins>/v<layout>`.
///
/// Inside: a file a map, `stages` (the program array of the programs in force), and in `links/` a file an attachment, named
/// `<mode>-<interface>`.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// The pins below `root`, whose directories are made if they are not there.
    ///
    /// # Errors
    /// When that is not on a BPF file system, or cannot be written.
    pub fn open(root: &Path) -> Result<Self> {
        let pins = Self::at(root);
        pins.make()?;
        Ok(pins)
    }

    /// Makes the directories that are not there.
    pub(super) fn make(&self) -> Result<()> {
        ensure_bpffs(&self.root)?;
        let links = self.links();
        fs::create_dir_all(&links).with_context(|| format!("cannot make {}", links.display()))
    }

    /// The pins below `root`, whether there are any or not.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), directory: root.join(format!("v{LAYOUT}")) }
    }

    /// Makes this process the only one that works with these pins, for as long as the file that comes back is open.
    ///
    /// # Errors
    /// When another process has done so.
    pub fn lock(&self) -> Result<fs::File> {
        let file = fs::File::open(&self.directory)
            .with_context(|| format!("cannot open {}", self.directory.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                bail!(
                    "another pls-router works with {}: stop it first (systemctl stop pls-router)",
                    self.root.display()
                )
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", self.directory.display()))
            }
        }
    }

    /// Whether an earlier daemon has left maps here.
    pub fn are_there(&self) -> bool {
        self.map("FLOWS").exists()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    pub(super) fn link(&self, interface: &str, mode: super::Mode) -> PathBuf {
        self.links().join(link_name(interface, mode.as_str()))
    }

    /// Where the program array of the programs in force is pinned.
    pub(super) fn stages(&self) -> PathBuf {
        self.directory.join("stages")
    }

    /// The pin of the link by which an interface's way out is watched, see `own_traffic`.
    pub(super) fn own_traffic(&self, interface: &str) -> PathBuf {
        self.links().join(link_name(interface, "own"))
    }

    /// The pin that stands for a filter.
    pub(super) fn filter(&self, interface: &str, kind: &str) -> PathBuf {
        self.links().join(link_name(interface, kind))
    }

    /// Where the program array of new programs is pinned until they are in force.
    pub(super) fn new_stages(&self) -> PathBuf {
        self.directory.join(format!("stages-{}", std::process::id()))
    }

    /// Makes a new program array the one in force, and lets go of the one before.
    pub(super) fn keep_stages(&self, new: &Path) -> Result<()> {
        let stages = self.stages();
        fs::rename(new, &stages).with_context(|| format!("cannot rename a pin to {}", stages.display()))
    }

    /// Removes link pins by interface name, which detaches the program; the interfaces it was detached from.
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
                sys::remove_link(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            if !removed.contains(&name) {
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Removes everything: programs are detached first, then maps and programs go. The interfaces that were detached from.
    ///
    /// # Errors
    /// When a pin cannot be read or removed.
    pub fn remove(&self) -> Result<Vec<String>> {
        let interfaces = self.remove_links(|_| true)?;
        let settings = self.map("SETTINGS");
        if settings.exists() && route_lookups_were_off(&settings)? {
            switch_route_lookups(kernel_forwards()?)?;
        }
        reserved_ports::release(self)?;
        let failed = |path: &Path| format!("cannot remove {}", path.display());
        for path in entries(&self.directory)? {
            if path.is_dir() {
                fs::remove_dir(&path).with_context(|| failed(&path))?;
            } else {
                fs::remove_file(&path).with_context(|| failed(&path))?;
            }
        }
        if self.directory.exists() {
            fs::remove_dir(&self.directory).with_context(|| failed(&self.directory))?;
        }
        // Other layouts' pins, or the mount point itself, may keep it.
        let _ = fs::remove_dir(&self.root);
        Ok(interfaces)
    }
}

/// Detaches the router from every interface and removes all that it has pinned below `root`; the interfaces it was detached
/// from. Nothing to detach is no error.
///
/// # Errors
/// When a pin cannot be read or removed.
pub fn detach(root: &Path) -> Result<Vec<String>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    Pins::at(root).remove()
}

/// The name of a link's pin. A BPF file system allows no dots (`bpf_lookup`, kernel/bpf/inode.c); interfaces' names do.
fn link_name(interface: &str, mode: &str) -> String {
    format!("{mode}-{}", interface.replace('%', "%25").replace('.', "%2e"))
}

/// What a link's pin is named for: how it is attached, and the interface.
fn read_link_name(pin: &str) -> (String, String) {
    let (kind, interface) = pin.split_once('-').unwrap_or(("", pin));
    (kind.to_owned(), interface.replace("%2e", ".").replace("%25", "%"))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()
            .with_context(|| format!("cannot read {}", directory.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_have_no_dots_and_come_back() {
        for interface in ["eth0", "eth0.100", "a-b", "50%", "%2e"] {
            let name = link_name(interface, "native");
            assert!(!name.contains('.'), "{name}");
            assert_eq!(read_link_name(&name), ("native".to_owned(), interface.to_owned()));
        }
    }
}
