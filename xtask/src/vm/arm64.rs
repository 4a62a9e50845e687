//! A program for arm64 in an emulated machine of that kind, where its BPF programs have to pass the
//! verifier and attach.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use super::kernel::{self, Files, Kernel, UNPACKED};
use super::tools::{ARM64, Tools};
use super::{boot, image};
use crate::packages::apt::{KEYRING, Source, require_keyring};
use crate::{program, workspace};

/// The architecture, as `uname -m` and Debian name it.
const MACHINE: &str = "aarch64";
const DEBIAN: &str = "arm64";

/// The kernel: the oldest that the router is made for.
const SERIES: &str = "6.1";

/// Debian's release that has it.
const RELEASE: &str = "http://deb.debian.org/debian bookworm main";

/// The machine's shell, in a package that needs no other.
const SHELL_PACKAGE: &str = "busybox-static";

/// The script that the machine runs.
const SCRIPT: &str = concat!(include_str!("configuration.sh"), include_str!("arm64.sh"));

/// Boots a machine, and has the program attach there.
pub(super) fn try_program(path: &Path) -> Result<ExitCode> {
    let machine = program::machine(path)?;
    ensure!(machine == MACHINE, "{} is for {machine}, not for {MACHINE}", path.display());
    program::require_static(path)?;
    let tools = Tools::ready_for(&ARM64)?;
    let files = files(&tools)?;
    let shell = files.folder.join(UNPACKED).join("bin").join(image::SHELL);
    let image = image::build_with(&files, &tools, SCRIPT, |root| {
        image::copy(&shell, &root.join("bin").join(image::SHELL))?;
        image::copy(path, &root.join("bin/pls-router"))
    })?;
    let good = boot(&tools, &files.image, &image)?.good;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fetches the kernel and the shell of that architecture, unless they are there.
fn files(tools: &Tools) -> Result<Files> {
    let place = workspace::target_dir().join("vm/arm64");
    let folder = place.join(SERIES);
    if let Ok(files) = kernel::unpacked_files(&folder, tools) {
        return Ok(files);
    }
    require_keyring()?;
    let lines = format!("deb [arch={DEBIAN} signed-by={KEYRING}] {RELEASE}\n");
    let source = Source::fetch_foreign(&place.join("apt"), &lines, DEBIAN)?;
    let kernel = Kernel::named(SERIES).map_err(anyhow::Error::msg)?;
    let package = kernel.newest(source.named(&kernel.pattern_for(DEBIAN))?)?;
    source.unpack(&[package, SHELL_PACKAGE.to_owned()], &folder.join(UNPACKED))?;
    kernel::unpacked_files(&folder, tools).context("the packages have other files than expected")
}
