//! The directory of pins.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use router_common::limits::LAYOUT;

use crate::{
    private::{self, Holder},
    sys::{bpf, bpffs, xdp::Mode},
};

/// The directory of pins of this layout: `<admin.pins>/v<layout>`.
///
/// Inside: a file a map, `stages` (the program array of the programs in force), and in `links/` a
/// file an attachment, named `<mode>-<interface>`.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// Opens the pins below `root`. Makes missing directories, and closes all of them to other
    /// users.
    ///
    /// # Errors
    /// Returns an error if that is not on a BPF file system, cannot be written, or another user may
    /// change its contents.
    pub fn open(root: &Path) -> Result<Self> {
        let pins = Self::at(root);
        pins.make()?;
        Ok(pins)
    }

    /// Makes missing directories, and closes the others: a user who can open one can hold its
    /// [lock](Self::lock).
    pub(super) fn make(&self) -> Result<()> {
        bpffs::ensure(&self.root)?;
        private::make(&self.links())?;
        close_root(&self.root)?;
        private::close(&self.directory)?;
        private::close(&self.links())
    }

    /// Checks that no other user can change the contents of the directories that exist.
    ///
    /// # Errors
    /// Returns an error as [`private::examine`] does.
    pub(crate) fn examine(&self) -> Result<()> {
        private::examine(&self.root)?;
        private::examine(&self.links())
    }

    /// Returns the pins below `root`, which need not exist.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self::of_layout(root, LAYOUT)
    }

    /// Returns the pins in this directory of a layout.
    pub(super) fn in_directory(directory: &Path) -> Self {
        let root = directory.parent().unwrap_or(directory).to_owned();
        Self { root, directory: directory.to_owned() }
    }

    fn of_layout(root: &Path, layout: u32) -> Self {
        Self { root: root.to_owned(), directory: root.join(format!("v{layout}")) }
    }

    /// Returns the pins that other versions have left below `root`, oldest first.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read, or another user may change its contents.
    pub fn others(root: &Path) -> Result<Vec<Self>> {
        private::examine(root)?;
        let layout = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix('v')?.parse::<u32>().ok();
        let mut layouts: Vec<u32> = entries(root)?.into_iter().filter_map(layout).collect();
        layouts.sort_unstable();
        let others = layouts.into_iter().filter(|layout| *layout != LAYOUT);
        Ok(others.map(|layout| Self::of_layout(root, layout)).collect())
    }

    /// Makes this process the only one that works with these pins, for as long as the file that
    /// comes back is open.
    ///
    /// # Errors
    /// Returns an error if another process has done so.
    pub fn lock(&self) -> Result<fs::File> {
        let file = private::open(&self.directory)
            .with_context(|| format!("cannot open {}", self.directory.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => match private::holder(&file) {
                // It may have opened the directory when that was not closed yet.
                Some(Holder { pid, user, name }) if user != 0 && user != private::own_user() => bail!(
                    "{name} (process {pid} of user {user}) holds the lock on {}, and is no pls-router\n  fix: end it \
                     (kill {pid}); no other user can take the lock again",
                    self.directory.display()
                ),
                _ => bail!(
                    "another pls-router works with {}: stop it first (systemctl stop pls-router)",
                    self.root.display()
                ),
            },
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", self.directory.display()))
            }
        }
    }

    /// Returns `true` if an earlier daemon has left maps here.
    pub fn are_there(&self) -> bool {
        self.map("FLOWS").exists()
    }

    /// Returns the directory of all layouts.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of this layout.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    pub(super) fn link(&self, interface: &str, mode: Mode) -> PathBuf {
        self.links().join(link_name(interface, mode.as_str()))
    }

    /// Returns the pin of the root program that is attached to an interface. Only with it can a
    /// later daemon run that very program: to open a program by its id takes CAP_SYS_ADMIN.
    pub(super) fn root_program(&self, interface: &str) -> PathBuf {
        self.directory.join(link_name(interface, "root"))
    }

    /// Returns the pin of the program array in force.
    pub(super) fn stages(&self) -> PathBuf {
        self.directory.join("stages")
    }

    /// Returns the pin of the link that watches an interface's egress, see `own_traffic`.
    pub(super) fn own_traffic(&self, interface: &str) -> PathBuf {
        self.links().join(link_name(interface, "own"))
    }

    /// Returns the pin that stands for a filter.
    pub(super) fn filter(&self, interface: &str, kind: &str) -> PathBuf {
        self.links().join(link_name(interface, kind))
    }

    /// Returns the pin of a new program array until it is in force.
    pub(super) fn new_stages(&self) -> PathBuf {
        self.directory.join(format!("stages-{}", std::process::id()))
    }

    /// Makes a new program array the one in force, and lets go of the one before.
    pub(super) fn keep_stages(&self, new: &Path) -> Result<()> {
        let stages = self.stages();
        fs::rename(new, &stages).with_context(|| format!("cannot rename a pin to {}", stages.display()))
    }

    /// Returns the XDP links on the interface with this index.
    pub(super) fn links_on(&self, index: u32) -> Result<Vec<LinkPin>> {
        let mut links = Vec::new();
        for path in entries(&self.links())? {
            let (kind, _) = read_link_name(&path.file_name().unwrap_or_default().to_string_lossy());
            // Other attachments than those of XDP are pinned there, too.
            let Some(mode) = Mode::ALL.iter().copied().find(|mode| mode.as_str() == kind) else {
                continue;
            };
            let link = bpf::open_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let info = bpf::xdp_link_info(link.as_fd())
                .with_context(|| format!("{} is no XDP link", path.display()))?;
            if info.interface == index {
                links.push(LinkPin { mode, program: info.program, path });
            }
        }
        Ok(links)
    }

    /// Returns the interfaces that links are pinned for.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let name = |path: PathBuf| read_link_name(&path.file_name().unwrap_or_default().to_string_lossy()).1;
        let names: BTreeSet<String> = entries(&self.links())?.into_iter().map(name).collect();
        Ok(names.into_iter().collect())
    }
}

/// Closes the directory that layouts are in, unless it is where a file system is mounted: that
/// others use as well.
fn close_root(root: &Path) -> Result<()> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let is_mount_point = root.parent().is_none_or(|parent| device(parent) != device(root));
    if is_mount_point { private::examine(root) } else { private::close(root) }
}

/// A pinned XDP link.
pub(super) struct LinkPin {
    pub(super) path: PathBuf,
    /// As its name says it.
    pub(super) mode: Mode,
    /// The id of the program that it holds.
    pub(super) program: u32,
}

/// Returns the name of a link's pin. A BPF file system allows no dots (`bpf_lookup`,
/// kernel/bpf/inode.c); interfaces' names do.
fn link_name(interface: &str, mode: &str) -> String {
    format!("{mode}-{}", interface.replace('%', "%25").replace('.', "%2e"))
}

/// Splits the name of a link's pin into the kind of attachment and the interface.
pub(super) fn read_link_name(pin: &str) -> (String, String) {
    let (kind, interface) = pin.split_once('-').unwrap_or(("", pin));
    (kind.to_owned(), interface.replace("%2e", ".").replace("%25", "%"))
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
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
    fn link_names_have_no_dots_and_can_be_read_back() {
        for interface in ["eth0", "eth0.100", "a-b", "50%", "%2e"] {
            let name = link_name(interface, "native");
            assert!(!name.contains('.'), "{name}");
            assert_eq!(read_link_name(&name), ("native".to_owned(), interface.to_owned()));
        }
    }
}
