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
    sys::{bpf, bpffs, files, xdp::Mode},
};

/// The directory of pins of this layout: `<admin.pins>/v<layout>`.
///
/// Inside: a file a map, `stages` (the program array of the programs in force), `root-<interface>`
/// (the program that is attached there), and in `links/` a file an attachment, named
/// `<mode>-<interface>`.
///
/// While sessions move to another table of the same layout, there are two directories: the one in
/// force, and beside it `v<layout>-next`. The new one is made there, and takes the
/// other's place by one rename that exchanges both. A directory without `stages` was never in
/// force, so what a killed daemon leaves can be told apart ([`claim`](Self::claim)).
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
    layout: u32,
}

/// The name of the pin of the program array in force.
pub(super) const STAGES_PIN: &str = "stages";

/// The end of the name of the directory beside the one in force.
const NEXT: &str = "-next";

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
        Self { root, directory: directory.to_owned(), layout: LAYOUT }
    }

    fn of_layout(root: &Path, layout: u32) -> Self {
        Self { root: root.to_owned(), directory: root.join(format!("v{layout}")), layout }
    }

    /// Returns the pins beside these, of another table of the same layout.
    pub(super) fn next(&self) -> Self {
        let directory = self.root.join(format!("v{}{NEXT}", self.layout));
        Self { root: self.root.clone(), directory, layout: self.layout }
    }

    /// Returns the pins in force of the same layout, which these are beside.
    pub(super) fn in_force(&self) -> Self {
        Self::of_layout(&self.root, self.layout)
    }

    /// Exchanges the directories of these pins and of those beside them, at once.
    pub(super) fn exchange(&self) -> Result<()> {
        let next = self.next();
        files::exchange(&next.directory, &self.directory).with_context(|| {
            format!("cannot exchange {} and {}", next.directory.display(), self.directory.display())
        })
    }

    /// Makes this process the only one that works with these pins, as [`lock`](Self::lock) does,
    /// and clears up after a daemon that was killed while sessions moved.
    ///
    /// # Errors
    /// Returns an error if another process has the lock, or the pins cannot be read or written.
    pub fn claim(&self) -> Result<fs::File> {
        let lock = self.lock()?;
        let next = self.next();
        if !next.directory.exists() {
            return Ok(lock);
        }
        private::close(&next.directory)?;
        // If it is locked, it is being prepared.
        let Ok(_next_lock) = next.lock() else { return Ok(lock) };
        if next.is_ready() && !self.is_ready() {
            // The new one was not in force yet.
            self.exchange()?;
            next.discard()?;
            return self.lock();
        }
        if !next.is_ready() {
            next.discard()?;
        }
        Ok(lock)
    }

    /// Removes these pins and their directory if they have never been in force.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be removed.
    pub fn discard_unused(&self) -> Result<()> {
        if self.is_ready() { Ok(()) } else { self.discard() }
    }

    /// Removes these pins and their directory. What is pinned elsewhere as well stays as it is,
    /// attached programs too.
    pub(super) fn discard(&self) -> Result<()> {
        self.discard_contents()?;
        let links = self.links();
        for directory in [&links, &self.directory] {
            if directory.exists() {
                fs::remove_dir(directory)
                    .with_context(|| format!("cannot remove {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// Removes the directory of all layouts if it is empty. Other layouts' pins, or the mount point
    /// itself, may keep it.
    pub(super) fn discard_root(&self) {
        let _ = fs::remove_dir(&self.root);
    }

    pub(super) fn discard_contents(&self) -> Result<()> {
        for directory in [self.links(), self.directory.clone()] {
            for path in entries(&directory)?.into_iter().filter(|path| !path.is_dir()) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Returns the pins that other versions have left below `root`, oldest first. Those of one
    /// layout that are beside others come before them.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read, or another user may change its contents.
    pub fn others(root: &Path) -> Result<Vec<Self>> {
        private::examine(root)?;
        let layout = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix('v')?;
            let (number, is_next) = match name.strip_suffix(NEXT) {
                Some(number) => (number, true),
                None => (name, false),
            };
            Some((number.parse::<u32>().ok()?, !is_next))
        };
        let mut layouts: Vec<(u32, bool)> = entries(root)?.into_iter().filter_map(layout).collect();
        layouts.sort_unstable();
        let others = layouts.into_iter().filter(|(layout, _)| *layout != LAYOUT);
        let pins = |(layout, is_main)| {
            let pins = Self::of_layout(root, layout);
            if is_main { pins } else { pins.next() }
        };
        Ok(others.map(pins).collect())
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
        self.map("FLOWS").exists() && self.is_ready()
    }

    /// Returns `true` if these pins are, or were, those of a data plane in force.
    pub(super) fn is_ready(&self) -> bool {
        self.stages().exists()
    }

    /// Returns the directory of all layouts.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the number of the layout of what is pinned here.
    pub(crate) fn layout(&self) -> u32 {
        self.layout
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
        self.directory.join(STAGES_PIN)
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

    /// Makes the new program array the one in force, and then has packets reach the programs by
    /// `swap`. Undoes the first if the second fails.
    pub(super) fn put_stages_in_force(&self, swap: impl FnOnce() -> Result<()>) -> Result<()> {
        // Held open until packets go to the new programs: an array that nobody holds forgets its
        // programs.
        let before = bpf::open_pin(&self.stages()).ok();
        let new = self.new_stages();
        self.keep_stages(&new)?;
        let swapped = swap();
        if swapped.is_err()
            && let Some(before) = &before
        {
            bpf::pin(before.as_fd(), &new).with_context(|| format!("cannot pin {}", new.display()))?;
            self.keep_stages(&new)?;
        }
        swapped
    }

    /// Removes the program arrays of processes that were killed before theirs came into force. Best
    /// effort: they take memory only.
    pub(super) fn discard_stages_of_the_dead(&self) {
        let is_of_the_dead = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let process = name.and_then(|name| name.strip_prefix("stages-"));
            process.is_some_and(|process| !Path::new("/proc").join(process).exists())
        };
        for path in entries(&self.directory).unwrap_or_default().into_iter().filter(is_of_the_dead) {
            let _ = fs::remove_file(path);
        }
    }

    /// Makes a new program array the one in force, and lets go of the one before.
    pub(super) fn keep_stages(&self, new: &Path) -> Result<()> {
        let stages = self.stages();
        fs::rename(new, &stages).with_context(|| format!("cannot rename a pin to {}", stages.display()))
    }

    /// Pins an object that is pinned at `from` at `to` as well.
    pub(super) fn pin_again(from: &Path, to: &Path) -> Result<()> {
        let object = bpf::open_pin(from).with_context(|| format!("cannot open {}", from.display()))?;
        bpf::pin(object.as_fd(), to).with_context(|| format!("cannot pin {}", to.display()))
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
