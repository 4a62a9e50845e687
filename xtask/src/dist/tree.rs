//! The files of a package, in a directory to be packed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The modes of programs and of other files.
pub(super) const PROGRAM: u32 = 0o755;
pub(super) const FILE: u32 = 0o644;

/// A directory with the files of a package.
pub(super) struct Tree {
    root: PathBuf,
    /// The sum of their sizes in KiB, as Debian counts it: each rounded up.
    size: u64,
}

impl Tree {
    /// Makes it anew.
    pub(super) fn new(root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        let mut tree = Self { root, size: 0 };
        tree.directory(Path::new(""))?;
        Ok(tree)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Result<()> {
        self.directory(Path::new(path).parent().unwrap_or(Path::new("")))?;
        let path = self.root.join(path);
        fs::write(&path, contents.as_ref()).with_context(|| format!("cannot write {}", path.display()))?;
        set_mode(&path, mode)?;
        self.size += (contents.as_ref().len() as u64).div_ceil(1024);
        Ok(())
    }

    /// Adds a copy of a file.
    pub(super) fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<()> {
        self.file(path, mode, read(from)?)
    }

    /// Adds a compressed file, without a name and a time in it; `path` does not end in `.gz`.
    pub(super) fn compressed(&mut self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        self.file(path, FILE, contents)?;
        let file = self.root.join(path);
        let status = Command::new("gzip").args(["-9", "--no-name"]).arg(&file).status();
        let status = status.context("cannot start gzip")?;
        ensure!(status.success(), "gzip cannot compress {} ({status})", file.display());
        Ok(())
    }

    /// The checksums of all files but those for dpkg itself, as md5sum(1) prints them.
    pub(super) fn checksums(&self) -> Result<String> {
        let mut command = Command::new("sh");
        command
            .args(["-c", "find * -type f ! -path 'DEBIAN/*' -print0 | LC_ALL=C sort -z | xargs -0 md5sum"]);
        let output = command.current_dir(&self.root).output().context("cannot start sh")?;
        ensure!(output.status.success(), "md5sum failed ({})", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a directory and those above it, with a mode that does not depend on the umask.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let whole = self.root.join(path);
        if whole.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        fs::create_dir_all(&whole).with_context(|| format!("cannot make {}", whole.display()))?;
        set_mode(&whole, PROGRAM)?;
        self.size += 1;
        Ok(())
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
