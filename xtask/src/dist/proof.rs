//! Proofs that what is shipped runs where nothing helps it: on an old system, whose libraries it
//! would not fit, and on a machine of the other kind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{Architecture, Package};
use crate::packages::apt::{KEYRING, Source, require_keyring};
use crate::{system, workspace};

/// The old system: the oldest release of Debian that its mirrors still have. What a usual build
/// needs of its C library is not there.
const OLD: &str = "Debian 11";
const OLD_RELEASE: &str = "http://deb.debian.org/debian bullseye main";
const OLD_PACKAGES: [&str; 2] = ["base-files", "libc6"];

/// The script that runs the program there.
const SCRIPT: &str = concat!(include_str!("../vm/configuration.sh"), include_str!("proof/old_root.sh"));

/// Runs the program of a package, and returns what that has proven. An error if it does not run.
pub(super) fn of(package: &Package) -> Result<Vec<String>> {
    // Otherwise it would not have been packaged.
    let mut proven = vec!["it needs no shared library, and no loader".to_owned(), lintian(&package.deb)?];
    let native = Architecture::native()?;
    if package.architecture == native {
        proven.push(old_root(&package.binary)?);
    } else if (package.architecture, native) == (Architecture::Aarch64, Architecture::X86_64) {
        proven.push(other_machine(&package.binary)?);
    } else {
        proven.push(format!("not run: {} cannot emulate its machine", native.machine()));
    }
    Ok(proven)
}

/// Has Debian's own checks look at the package.
fn lintian(deb: &Path) -> Result<String> {
    let Some(lintian) = system::find_program("lintian") else {
        return Ok("not looked at by lintian, which is not installed".to_owned());
    };
    let mut command = Command::new(lintian);
    command.args(["--allow-root", "--fail-on=error,warning,info", "--display-info", "--tag-display-limit=0"]);
    system::run(command.arg(deb)).with_context(|| format!("lintian refuses {}", deb.display()))?;
    Ok("lintian finds nothing that deploy/debian/lintian-overrides does not explain".to_owned())
}

/// Runs it in the directory of an old system, in namespaces with a network interface.
fn old_root(program: &Path) -> Result<String> {
    if !system::is_root() {
        return Ok("not run in an old root: that needs root".to_owned());
    }
    let root = unpacked()?;
    let inside = root.join("usr/bin/pls-router");
    fs::create_dir_all(root.join("usr/bin"))
        .and_then(|()| fs::copy(program, &inside))
        .with_context(|| format!("cannot write {}", inside.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-ec", SCRIPT, "old_root.sh"]).arg(&root);
    system::run(&mut command).with_context(|| format!("it does not run in a root of {OLD}"))?;
    Ok(format!("`--version` and `check` run in a root of {OLD}"))
}

/// Returns the directory of the old system, which is fetched once.
fn unpacked() -> Result<PathBuf> {
    let place = workspace::target_dir().join("dist/old-root");
    let root = place.join("root");
    if root.join("etc/debian_version").exists() {
        return Ok(root);
    }
    require_keyring()?;
    let lines = format!("deb [signed-by={KEYRING}] {OLD_RELEASE}\n");
    let source = Source::fetch(&place.join("apt"), &lines)?;
    source.unpack(&OLD_PACKAGES.map(str::to_owned), &root)?;
    Ok(root)
}

/// Runs it in an emulated machine.
fn other_machine(program: &Path) -> Result<String> {
    // Not by its path: this may have been compiled anew meanwhile, and what runs here is then no
    // file any more (proc(5)).
    let mut vm = Command::new("/proc/self/exe");
    let status = vm.args(["vm", "--arm64"]).arg(program).status().context("cannot start xtask vm")?;
    ensure!(status.success(), "{} was not tried in an emulated machine, or does not run", program.display());
    Ok("it loads and attaches its programs in an emulated arm64 machine with Linux 6.1".to_owned())
}
