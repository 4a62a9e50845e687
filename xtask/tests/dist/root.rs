//! A small Debian in a directory, to install the package in.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result};

use crate::{Packages, package::program, run};

/// The dependencies of the package, and the programs that its scripts use.
const INCLUDED: &str = "systemd,passwd";

/// A Debian of a test's own.
pub(crate) struct Root {
    /// With the packages and the directory of the root in it.
    packages: Packages,
}

impl Root {
    /// Makes one.
    pub(crate) fn new() -> Result<Self> {
        let archive = archive()?;
        let root = Self { packages: Packages::new()? };
        fs::create_dir(root.path(""))?;
        run(Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(root.path("")))?;
        Ok(root)
    }

    /// The path of a file, from here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.packages.place.path().join("root").join(path)
    }

    /// Puts a program in the place of one of the system's.
    pub(crate) fn replace(&self, path: &str, script: &str) -> Result<()> {
        let path = self.path(path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Installs a package of that version. dpkg cannot ask anything.
    pub(crate) fn install(&self, version: &str) -> Result<Output> {
        let deb = self.packages.make(version, version)?;
        fs::copy(deb, self.path("package.deb"))?;
        self.inside(&["dpkg", "--install", "/package.deb"])
    }

    /// Runs a command there.
    pub(crate) fn inside(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new("chroot");
        command
            .arg(self.path(""))
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        command.stdin(std::process::Stdio::null()).output().context("cannot start chroot")
    }
}

/// Returns the archive of a minimal Debian, which is made once and kept below `target`.
fn archive() -> Result<PathBuf> {
    let mmdebstrap = program("mmdebstrap")?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dist");
    fs::create_dir_all(&folder)?;
    // Tests run beside each other, and one of them makes it.
    let lock = fs::File::create(folder.join("lock"))?;
    lock.lock()?;
    let archive = folder.join(format!("debian-{}.tar", INCLUDED.replace(',', "-")));
    if archive.is_file() {
        return Ok(archive);
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let (Some(codename), true) = (codename, release.lines().any(|line| line == "ID=debian")) else {
        harness::skip("this machine is no Debian, whose mirror could be used");
    };
    let partial = folder.join("partial.tar");
    let mut make = Command::new(mmdebstrap);
    make.args(["--quiet", "--mode=root", "--variant=minbase"]).arg(format!("--include={INCLUDED}"));
    let output = make.arg(codename).arg(&partial).output().context("cannot start mmdebstrap")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        harness::skip(format!(
            "mmdebstrap cannot make a Debian: {}",
            said.lines().last().unwrap_or_default()
        ));
    }
    fs::rename(&partial, &archive)?;
    Ok(archive)
}
