//! The kernels of Debian's packages.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::tools::Tools;
use crate::packages::apt;
use crate::workspace;

/// A series of releases, such as 6.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kernel {
    series: &'static str,
}

/// Of Debian 12 and 13: the oldest that the router is made for, and one in between.
pub(crate) const ALL: &[Kernel] = &[Kernel { series: "6.1" }, Kernel { series: "6.12" }];

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
const UNPACKED: &str = "unpacked";

/// Modules that the tests need, and that the kernels do not have built in.
const MODULES: &[&str] = &["veth", "sch_ingress", "cls_bpf"];

impl Kernel {
    pub(super) fn named(series: &str) -> Result<Self, String> {
        ALL.iter().find(|kernel| kernel.series == series).copied().ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(Self::to_string).collect();
            format!("no kernel `{series}`; there are {}", known.join(", "))
        })
    }

    /// The newest package of this series that apt knows: those for clouds are the smallest.
    pub(crate) fn package(self) -> Result<String> {
        let pattern =
            format!("^linux-image-{}\\.[0-9].*-cloud-amd64(-unsigned)?$", self.series.replace('.', "\\."));
        let names = apt::named(&pattern)?;
        names.into_iter().max_by_key(|name| numbers(name)).with_context(|| {
            format!("apt knows no package of Linux {self} (linux-image-{self}.*-cloud-amd64)")
        })
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
fn unpacked_files(folder: &Path, tools: &Tools) -> Result<Files> {
    let unpacked = folder.join(UNPACKED);
    let image = file_named(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let modules =
        MODULES.iter().map(|module| plain_module(&unpacked, module, folder, tools)).collect::<Result<_>>()?;
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

/// A module as a file that is not compressed.
fn plain_module(unpacked: &Path, name: &str, folder: &Path, tools: &Tools) -> Result<PathBuf> {
    let found = Command::new("find")
        .arg(unpacked)
        .args(["-name", &format!("{name}.ko*")])
        .output()
        .context("cannot start find")?;
    let found = String::from_utf8_lossy(&found.stdout);
    let path = found
        .lines()
        .next()
        .with_context(|| format!("there is no module {name} in {}", unpacked.display()))?;
    if !path.ends_with(".xz") {
        return Ok(path.into());
    }
    let plain = folder.join(format!("{name}.ko"));
    let output = tools.command("xz")?.args(["--decompress", "--stdout", path]).output();
    let output = output.context("cannot start xz")?;
    ensure!(output.status.success(), "xz cannot read {path}");
    std::fs::write(&plain, output.stdout).with_context(|| format!("cannot write {}", plain.display()))?;
    Ok(plain)
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
