//! The files that a machine starts from.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::variants::beside;

/// An image: the disk, kernel and initial RAM disk of the machine, and the program that emulates
/// it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Has `disk`, `vmlinuz` and `initrd`.
    pub(super) directory: PathBuf,
    /// A script that runs qemu with its arguments.
    pub(super) emulator: PathBuf,
}

impl Image {
    /// Names the directory of the image.
    pub const VARIABLE: &str = "LAB_MACHINE";

    /// The image that `LAB_MACHINE` names, else the one in the directory for build output. An error
    /// says how to get one.
    pub fn find() -> Result<Self> {
        let directory = match std::env::var_os(Self::VARIABLE) {
            Some(directory) => PathBuf::from(directory),
            None => {
                let this = std::env::current_exe().context("cannot tell which binary this is")?;
                beside(&this, "../vm/machine")
            }
        };
        let emulator = directory.join("qemu");
        let files = ["disk", "vmlinuz", "initrd", "qemu"].map(|name| directory.join(name));
        let missing = files.iter().find(|file| !file.is_file());
        match missing {
            None => Ok(Self { directory, emulator }),
            Some(file) => {
                anyhow::bail!("there is no {}; `cargo xtask vm --image` makes it", file.display())
            }
        }
    }
    /// The directory of the image, for what tests note of their runs.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }
}
