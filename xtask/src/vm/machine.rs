//! The image of a virtual machine with a whole Debian 12, made once, and the tests in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::Tools;
use crate::packages::{self, Use};
use crate::terraform::{self, Obstacle};
use crate::{dist, system, toolchain, workspace};

/// Names the directory of the image to the tests; see `lab::machine`.
const VARIABLE: &str = "LAB_MACHINE";

/// Names the package to install to the tests.
const PACKAGE_VARIABLE: &str = "LAB_PACKAGE";

/// Names a program to the tests that takes Terraform's arguments.
const TERRAFORM_VARIABLE: &str = "LAB_TERRAFORM";

/// The file of the image's directory in which tests tell what they have done.
const SCENES: &str = "scenes";

/// The test binary.
pub(crate) const TARGET: &str = "machine";

/// The script that makes an image.
const RECIPE: &str = include_str!("machine.sh");

/// Where Debian's packages come from.
const MIRROR: &str = "http://deb.debian.org/debian";

/// The copy of the recipe that an image was made by, beside it.
const MADE_BY: &str = "recipe";

/// Makes the image unless it is there already, made by the same recipe. Returns its directory.
pub(crate) fn image() -> Result<PathBuf> {
    if let Some(obstacle) = super::obstacle() {
        bail!("{obstacle}");
    }
    let tools = Tools::ready()?;
    let directory = workspace::target_dir().join("vm/machine");
    let is_current = fs::read_to_string(directory.join(MADE_BY)).is_ok_and(|recipe| recipe == RECIPE);
    if !is_current {
        make(&directory)?;
    }
    // Always: where qemu is found may have changed.
    write_script(&directory.join("qemu"), &tools.qemu()?)?;
    Ok(directory)
}

/// Runs the tests on the machine.
pub(super) fn test(full: bool, ready: Option<&Path>, filter: Option<&OsStr>) -> Result<ExitCode> {
    system::require_root("vm", "the machine stands in network namespaces")?;
    toolchain::bpf()?;
    packages::install(&[Use::Lab, Use::Deploy]);
    if full {
        // Clients that cannot be had are skipped.
        packages::install(&[Use::Clients]);
    }
    let package = match ready {
        Some(ready) => ready.canonicalize().with_context(|| format!("cannot find {}", ready.display()))?,
        None => {
            let mut build = workspace::cargo("build");
            system::run(build.args(["--package", "router-user", "--bin", "pls-router"]))?;
            package(&workspace::target_dir().join("debug/pls-router"))?
        }
    };
    let place = image()?;
    let mut command = tests(&place, &package, full)?;
    command.arg("--").args(arguments(full)).args(filter);
    eprintln!("  $ {}", system::display(&command));
    let status = command.status().context("cannot start cargo")?;
    print!("{}", scenes(&place));
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the command that runs the tests on the machine of an image, without the arguments of the
/// test binary. They install this package.
pub(crate) fn tests(image: &Path, package: &Path, full: bool) -> Result<Command> {
    let mut command = workspace::cargo("test");
    command.args(["--no-fail-fast", "--package", "lab", "--test", TARGET]);
    command.env(VARIABLE, image).env(PACKAGE_VARIABLE, package);
    if full {
        match terraform::program() {
            Ok(words) => {
                let script = image.join("terraform");
                write_script(&script, &words.map(PathBuf::into_os_string))?;
                command.env(TERRAFORM_VARIABLE, script);
            }
            // The test of the templates is skipped.
            Err(Obstacle::Lacking(reason)) => eprintln!("there is no Terraform: {reason}"),
            Err(Obstacle::Wrong(reason)) => bail!("Terraform: {reason}"),
        }
    }
    // Of earlier runs; there may be none.
    _ = fs::remove_file(image.join(SCENES));
    Ok(command)
}

/// Makes a package of this daemon.
pub(crate) fn package(daemon: &Path) -> Result<PathBuf> {
    let wanted = dist::Wanted {
        architecture: dist::Architecture::native()?,
        binary: Some(daemon.to_owned()),
        version: Some("0.0.0~test".to_owned()),
        folder: dist::folder(),
    };
    Ok(dist::package(&wanted)?.deb)
}

/// The scenes that the tests have played, with the time that each took.
pub(crate) fn scenes(place: &Path) -> String {
    fs::read_to_string(place.join(SCENES)).unwrap_or_default()
}

/// The arguments of the test binary.
pub(crate) fn arguments(full: bool) -> Vec<&'static OsStr> {
    // One machine takes all CPUs.
    let mut arguments = vec![OsStr::new("--test-threads=1")];
    if full {
        arguments.push(OsStr::new("--include-ignored"));
    }
    arguments
}

fn make(directory: &Path) -> Result<()> {
    system::require_root("vm", "it unpacks and configures a system, for the image of a machine")?;
    if let Some(shortfall) = packages::install(&[Use::Machine]).first() {
        bail!("there is no {shortfall}");
    }
    let start = Instant::now();
    eprintln!("Making the image of a machine with Debian 12, once, in {}: two minutes.", directory.display());
    // Of an interrupted run.
    let partial = directory.with_extension("partial");
    for leftover in [&partial, directory] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let mut recipe = Command::new("sh");
    recipe.args(["-c", RECIPE, "machine.sh"]).arg(&partial).arg(MIRROR);
    let status = recipe.status().context("cannot start sh")?;
    ensure!(status.success(), "the image cannot be made ({status}); see above");
    fs::write(partial.join(MADE_BY), RECIPE).context("cannot note by which recipe it was made")?;
    // Under this name only when it is whole.
    fs::rename(&partial, directory).with_context(|| format!("cannot make {}", directory.display()))?;
    eprintln!("  made in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Writes a script that runs a command with further arguments: tests know nothing of unpacked
/// packages.
fn write_script(path: &Path, words: &[OsString]) -> Result<()> {
    let words: Vec<_> = words.iter().map(|word| super::quoted(&word.to_string_lossy())).collect();
    fs::write(path, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}
