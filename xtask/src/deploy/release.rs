//! The release that a deploy installs: a package or a binary for each kind of machine, and the
//! units.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::remote::Machine;
use crate::{program, workspace};

/// The directory of units on a machine without a package.
const UNITS: &str = "/etc/systemd/system";

/// The form in which a machine gets the router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// The program alone; deploy brings the units.
    Binary,
    /// A Debian package, for machines with dpkg.
    Package,
}

/// A file to install.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Artifact {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// The machine that it is for, as `uname -m` names it.
    pub(super) machine: String,
    pub(super) bytes: u64,
}

impl Artifact {
    /// A binary or a package, by what the file is.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let (kind, machine) = match path.extension() {
            Some(extension) if extension == "deb" => (Kind::Package, package_machine(path)?),
            _ => (Kind::Binary, program::machine(path)?),
        };
        let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), kind, machine, bytes: metadata.len() })
    }

    /// The bytes that it needs in the directory of copies; a package is unpacked there as well.
    fn room(&self) -> u64 {
        match self.kind {
            Kind::Binary => self.bytes,
            Kind::Package => self.bytes * 5,
        }
    }
}

/// Returns the machine that a package is for, by its name; dpkg will compare with what is in it.
fn package_machine(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.rsplit('_').next() {
        Some("amd64") => Ok("x86_64".to_owned()),
        Some("arm64") => Ok("aarch64".to_owned()),
        _ => bail!(
            "{}: the name does not say which machine this package is for\n  fix: keep the name that it was built \
             with, such as pls-router_0.1.0_amd64.deb",
            path.display()
        ),
    }
}

/// All that there is to install.
#[derive(Debug)]
pub(super) struct Release {
    artifacts: Vec<Artifact>,
    units: Vec<PathBuf>,
}

impl Release {
    /// The given files, and the units of this repository.
    pub(super) fn of(files: &[PathBuf]) -> Result<Self> {
        let mut artifacts: Vec<Artifact> = Vec::new();
        for path in files {
            let artifact = Artifact::of(path)?;
            let same = |other: &&Artifact| other.kind == artifact.kind && other.machine == artifact.machine;
            if let Some(other) = artifacts.iter().find(same) {
                bail!(
                    "{} and {} are both for {}\n  fix: give one of them",
                    other.path.display(),
                    path.display(),
                    artifact.machine
                );
            }
            artifacts.push(artifact);
        }
        let directory = workspace::root().join("deploy");
        let units: Vec<_> = ["pls-router.service", "pls-router.socket"]
            .iter()
            .map(|name| directory.join(name))
            .filter(|path| path.is_file())
            .collect();
        ensure!(!units.is_empty(), "there is no pls-router.service in {}", directory.display());
        Ok(Self { artifacts, units })
    }

    /// The bytes that a machine needs for copies.
    pub(super) fn room(&self) -> u64 {
        self.artifacts.iter().map(Artifact::room).max().unwrap_or_default()
    }

    /// Returns the file for a machine: a package where there is dpkg, so that apt knows of it.
    pub(super) fn choose(&self, host: &str, machine: &Machine) -> Result<&Artifact> {
        let fits = |kind| {
            let fits =
                |artifact: &&Artifact| artifact.kind == kind && artifact.machine == machine.architecture;
            self.artifacts.iter().find(fits)
        };
        let package = fits(Kind::Package);
        if let Some(package) = package.filter(|_| machine.dpkg) {
            return Ok(package);
        }
        if let Some(binary) = fits(Kind::Binary) {
            return Ok(binary);
        }
        if package.is_some() {
            bail!(
                "{host}: there is no dpkg there to install a package with\n  fix: name the program itself with \
                 --binary FILE"
            );
        }
        let offered: Vec<_> = self
            .artifacts
            .iter()
            .map(|artifact| format!("{} is for {}", artifact.path.display(), artifact.machine))
            .collect();
        bail!(
            "{host}: this machine is {}, and {}\n  fix: add one that was built for {0} machines, with --package \
             FILE or --binary FILE",
            machine.architecture,
            offered.join(", ")
        )
    }

    /// The units that go with a binary: the file here, and the path there.
    pub(super) fn units(&self) -> impl Iterator<Item = (&Path, String)> {
        self.units.iter().map(|unit| {
            let name = unit.file_name().unwrap_or_default().to_string_lossy();
            (unit.as_path(), format!("{UNITS}/{name}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(name: &str, kind: Kind, machine: &str) -> Artifact {
        Artifact { path: name.into(), kind, machine: machine.to_owned(), bytes: 1 }
    }

    fn machine(architecture: &str, dpkg: bool) -> Machine {
        Machine { architecture: architecture.to_owned(), dpkg, ..Machine::default() }
    }

    #[test]
    fn a_machine_gets_what_fits_it() {
        let artifacts = vec![
            artifact("x", Kind::Binary, "x86_64"),
            artifact("x.deb", Kind::Package, "x86_64"),
            artifact("arm.deb", Kind::Package, "aarch64"),
        ];
        let release = Release { artifacts, units: Vec::new() };
        let chosen = |architecture, dpkg| {
            let chosen = release.choose("h", &machine(architecture, dpkg));
            chosen.map(|artifact| artifact.path.display().to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(chosen("x86_64", true).unwrap(), "x.deb");
        assert_eq!(chosen("x86_64", false).unwrap(), "x");
        assert_eq!(chosen("aarch64", true).unwrap(), "arm.deb");
        let error = chosen("aarch64", false).unwrap_err();
        assert!(error.contains("no dpkg") && error.contains("--binary FILE"), "{error}");
        let error = chosen("riscv64", true).unwrap_err();
        assert!(
            error.contains("h: this machine is riscv64") && error.contains("x.deb is for x86_64"),
            "{error}"
        );
        assert!(error.contains("\n  fix: add one that was built for riscv64"), "{error}");
    }

    #[test]
    fn two_files_for_one_machine_are_refused() {
        let this = std::env::current_exe().unwrap();
        let error = Release::of(&[this.clone(), this]).unwrap_err().to_string();
        assert!(error.contains("are both for") && error.contains("\n  fix: "), "{error}");
    }

    #[test]
    fn the_name_of_a_package_says_the_machine() {
        assert_eq!(package_machine(Path::new("a/pls-router_0.1.0-1_arm64.deb")).unwrap(), "aarch64");
        let error = package_machine(Path::new("new.deb")).unwrap_err().to_string();
        assert!(error.contains("keep the name"), "{error}");
    }
}
