//! The Azure templates (`deploy/azure`), checked offline: Terraform itself validates and tests them
//! against the providers' schemas, and what they render is given to cloud-init and to pls-router.
//!
//! The checks are in Python, since Terraform is a Python package here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::libtest;
use super::report::{self, Outcome, Report};
use crate::packages::apt;
use crate::terraform::{self, Obstacle};
use crate::workspace;

/// Runs all checks as one step. `router` is the program that checks configurations.
pub(super) fn run(report: &mut Report, router: Option<&Path>) {
    const NAME: &str = "azure";
    report::title("azure: Python with Terraform");
    let start = Instant::now();
    let folder = terraform::folder();
    let python = match terraform::python() {
        Ok(python) => python,
        Err(Obstacle::Lacking(reason)) => return report.skip(NAME, &reason),
        Err(Obstacle::Wrong(reason)) => return report.add(NAME, start.elapsed(), Outcome::failed(reason)),
    };
    let mut command = Command::new(python);
    command
        .arg(workspace::root().join("deploy/azure/tests/offline/run.py"))
        .arg(folder.join("run"))
        // Leaves no __pycache__ beside the sources.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    match cloud_init(&folder) {
        Ok(unpacked) => command.arg("--cloud-init").arg(unpacked),
        Err(error) => command.arg("--no-cloud-init").arg(format!("there is no cloud-init: {error:#}")),
    };
    if let Some(router) = router {
        command.arg("--router").arg(router);
    }
    libtest::run(report, NAME, &mut command, None);
}

/// Unpacks Debian's cloud-init, which is not installed: it would configure this machine at the next
/// boot. Returns where.
fn cloud_init(folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("cloud-init");
    let package = unpacked.join("usr/lib/python3/dist-packages/cloudinit");
    if !package.is_dir() {
        apt::unpack("cloud-init", &unpacked)?;
    }
    ensure!(package.is_dir(), "its package has no {}", package.display());
    Ok(unpacked)
}
