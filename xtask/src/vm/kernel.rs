//! The kernels of Debian's packages.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::tools::Tools;
use crate::packages::apt::{self, KEYRING, Source};
use crate::workspace;

/// A series of releases, such as 6.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kernel {
    series: &'static str,
}

/// Of Debian 12 and 13: the oldest that the router is made for, and one in between.
pub(crate) const ALL: &[Kernel] = &[Kernel { series: "6.1" }, Kernel { series: "6.12" }];

/// Those of the table: one that is too old, those of Debian's releases, and the newest of all.
pub(super) const TABLE: &[Kernel] = &[
    Kernel { series: "5.10" },
    Kernel { series: "6.1" },
    Kernel { series: "6.12" },
    Kernel { series: "6.18" },
    // The newest of these. Debian keeps no modules of 6.19 to 7.1.
    Kernel { series: "7" },
];

/// All releases of Debian that have one of them, from the oldest on.
const RELEASES: &[(&str, &str)] = &[
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie"),
    ("debian", "trixie-backports"),
];

/// Fetches the package lists of all of [`RELEASES`].
pub(super) fn all_releases() -> Result<Source> {
    apt::require_keyring()?;
    let line = |(archive, suite): &(&str, &str)| {
        format!("deb [signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main\n")
    };
    let lines: String = RELEASES.iter().map(line).collect();
    Source::fetch(&workspace::target_dir().join("vm/apt"), &lines)
}

/// The files of a package that are used.
pub(super) struct Files {
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// The modules that the tests need, uncompressed.
    pub(super) modules: Vec<PathBuf>,
    /// The folder in which all of it is kept.
    pub(super) folder: PathBuf,
}

/// The folder of a package's files, within the package's folder.
pub(super) const UNPACKED: &str = "unpacked";

/// Modules that the tests need, and that the kernels do not have built in.
const MODULES: &[&str] = &["veth", "sch_ingress", "cls_bpf"];

/// Modules that the NIC of a virtual machine needs. What a kernel does not have as a module is
/// built in, or of another release.
const NIC_MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

impl Kernel {
    pub(super) fn named(series: &str) -> Result<Self, String> {
        ALL.iter().find(|kernel| kernel.series == series).copied().ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(Self::to_string).collect();
            format!("no kernel `{series}`; there are {}", known.join(", "))
        })
    }

    /// The newest package of this series that apt knows: those for clouds are the smallest.
    pub(crate) fn package(self) -> Result<String> {
        self.newest(apt::named(&self.pattern())?)
    }

    fn pattern(self) -> String {
        self.pattern_for("amd64")
    }

    /// Returns what its packages are called, where Debian calls the machines `architecture`.
    pub(super) fn pattern_for(self, architecture: &str) -> String {
        let series = self.series.replace('.', "\\.");
        format!("^linux-image-{series}\\.[0-9].*-cloud-{architecture}(-unsigned)?$")
    }

    pub(super) fn newest(self, names: Vec<String>) -> Result<String> {
        names
            .into_iter()
            .max_by_key(|name| numbers(name))
            .with_context(|| format!("apt knows no package of Linux {self} (linux-image-{self}.*-cloud-*)"))
    }

    /// Same as [`Self::files`], of whatever release has the newest. Returns its package as well.
    pub(super) fn files_of_any_release(self, tools: &Tools, source: &Source) -> Result<(String, Files)> {
        let package = self.newest(source.named(&self.pattern())?)?;
        let folder = workspace::target_dir().join("vm").join(&package);
        if let Ok(files) = unpacked_files(&folder, tools) {
            return Ok((package, files));
        }
        // From 6.19 on its content is in others.
        let mut names = vec![package.clone()];
        for part in ["binary", "modules"] {
            let other = package.replace("linux-image-", &format!("linux-{part}-"));
            names.extend(source.named(&format!("^{}$", other.replace('.', "\\.").replace('+', "\\+")))?);
        }
        source.unpack(&names, &folder.join(UNPACKED))?;
        Ok((package, unpacked_files(&folder, tools)?))
    }

    /// Fetches the package and unpacks it, unless what is used of it is there.
    pub(super) fn files(self, tools: &Tools) -> Result<Files> {
        let package = self.package()?;
        let folder = workspace::target_dir().join("vm").join(&package);
        if let Ok(files) = unpacked_files(&folder, tools) {
            return Ok(files);
        }
        apt::unpack(&package, &folder.join(UNPACKED))?;
        unpacked_files(&folder, tools)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.series)
    }
}

/// Finds the files of a package that was unpacked in its folder.
pub(super) fn unpacked_files(folder: &Path, tools: &Tools) -> Result<Files> {
    let unpacked = folder.join(UNPACKED);
    let image = file_named(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
        .or_else(|_| found(&unpacked, "vmlinuz")?.context("there is no vmlinuz"))?;
    let mut modules = Vec::new();
    for name in MODULES {
        let module = plain_module(&unpacked, name, folder, tools)?;
        modules.push(module.with_context(|| format!("there is no module {name} in {}", unpacked.display()))?);
    }
    for name in NIC_MODULES {
        modules.extend(plain_module(&unpacked, name, folder, tools)?);
    }
    Ok(Files { image, modules, folder: folder.to_owned() })
}

/// The numbers in a name, to tell the newer of two.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// A file of a folder, by its name.
fn file_named(folder: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let files = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = files.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.file_name().is_some_and(|name| is_it(&name.to_string_lossy())))
        .with_context(|| format!("what should be in {} is not there", folder.display()))
}

/// A module as a file that is not compressed, if there is such a module.
fn plain_module(unpacked: &Path, name: &str, folder: &Path, tools: &Tools) -> Result<Option<PathBuf>> {
    let Some(path) = found(unpacked, &format!("{name}.ko*"))? else { return Ok(None) };
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(Some(path));
    }
    let plain = folder.join(format!("{name}.ko"));
    let output = tools.command("xz")?.args(["--decompress", "--stdout"]).arg(&path).output();
    let output = output.context("cannot start xz")?;
    ensure!(output.status.success(), "xz cannot read {}", path.display());
    std::fs::write(&plain, output.stdout).with_context(|| format!("cannot write {}", plain.display()))?;
    Ok(Some(plain))
}

/// The first file below a folder whose name matches a pattern.
fn found(folder: &Path, pattern: &str) -> Result<Option<PathBuf>> {
    let found = Command::new("find").arg(folder).args(["-type", "f", "-name", pattern]).output();
    let found = found.context("cannot start find")?;
    Ok(String::from_utf8_lossy(&found.stdout).lines().next().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_packages_have_greater_numbers() {
        let newest = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-53-cloud-amd64-unsigned"];
        assert_eq!(newest.iter().max_by_key(|name| numbers(name)), Some(&newest[1]));
        assert_eq!(numbers("linux-image-6.12.117+deb12-cloud-amd64"), [6, 12, 117, 12, 64]);
    }
}
