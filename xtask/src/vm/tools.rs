//! The programs that a virtual machine needs: this machine's own, or else those of Debian's
//! packages, which are unpacked and not installed.
//!
//! Debian's qemu may conflict with other installed packages, so it is not installed.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use harness::packages::{Package, Sign};

use crate::packages::{Use, apt};
use crate::{system, workspace};

/// A kind of machine that is emulated.
#[derive(Debug)]
pub(super) struct Emulation {
    /// The program.
    qemu: &'static str,
    /// The name of the directory in which packages are unpacked.
    folder: &'static str,
    /// The machine, its processors and its memory. Not by KVM: in a virtual machine there often is
    /// one that starts and then stops in the middle, and this is fast enough.
    pub(super) arguments: &'static [&'static str],
    /// The kernel's name of the serial line.
    pub(super) console: &'static str,
}

/// This machine's kind.
pub(super) const PC: Emulation = Emulation {
    qemu: "qemu-system-x86_64",
    folder: "tools",
    arguments: &["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "3G"],
    console: "ttyS0",
};

/// The other kind that there are packages for.
pub(super) const ARM64: Emulation = Emulation {
    qemu: "qemu-system-aarch64",
    folder: "tools-arm64",
    arguments: &["-M", "virt", "-accel", "tcg", "-cpu", "cortex-a72", "-smp", "2", "-m", "1G"],
    console: "ttyAMA0",
};

/// The beginning of the names of all emulators.
const QEMU: &str = "qemu-system-";

/// The directories of the firmware that qemu loads, in its packages.
const FIRMWARE: &[&str] = &["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// The directory of the parts of qemu itself, in its packages.
const MODULES: &str = "usr/lib/x86_64-linux-gnu/qemu";

/// The directories in which packages have programs, and those in which they have libraries.
const PROGRAMS: &[&str] = &["usr/bin", "bin", "usr/sbin", "sbin"];
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib"];

/// The dynamic loader.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The programs, ready to be run.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The directory in which packages have been unpacked.
    root: PathBuf,
    /// The machine that they are for.
    pub(super) emulation: &'static Emulation,
}

impl Tools {
    /// Sees to it that all programs are there.
    pub(crate) fn ready() -> Result<Self> {
        Self::ready_for(&PC)
    }

    /// Same as [`Self::ready`], for a machine of any kind.
    pub(super) fn ready_for(emulation: &'static Emulation) -> Result<Self> {
        let tools = Self { root: workspace::target_dir().join("vm").join(emulation.folder), emulation };
        let is_needed = |package: &&Package| match package.sign {
            Sign::Programs(names) => {
                names.iter().all(|name| !name.starts_with(QEMU) || *name == emulation.qemu)
            }
            Sign::File(_) | Sign::Versioned(..) => true,
        };
        let missing = [Use::Vm, Use::Arm].into_iter().flat_map(harness::packages::missing);
        let missing: Vec<_> = missing.filter(is_needed).collect();
        let is_unpacked = |package: &&Package| match package.sign {
            Sign::Programs(names) => names.iter().all(|name| tools.unpacked(name).is_some()),
            Sign::File(_) | Sign::Versioned(..) => false,
        };
        if !missing.iter().all(is_unpacked) {
            let names: Vec<_> = missing.iter().map(|package| package.name).collect();
            eprintln!(
                "Fetching {} by apt-get, with all that belongs to it, into {}. About 45 MB. Nothing is installed.",
                names.join(", "),
                tools.root.display()
            );
            apt::unpack_with_dependencies(&names, &tools.root)?;
            ensure!(
                missing.iter().all(is_unpacked),
                "the packages {} have other programs than expected",
                names.join(", ")
            );
        }
        Ok(tools)
    }

    /// The path of a program.
    pub(super) fn file(&self, name: &str) -> Result<PathBuf> {
        let file = system::find_program(name).or_else(|| self.unpacked(name));
        file.with_context(|| format!("there is no {name} here, nor in {}", self.root.display()))
    }

    /// A command that runs a program.
    pub(super) fn command(&self, name: &str) -> Result<Command> {
        let words = self.words(name)?;
        let (program, arguments) = words.split_first().context("a command has no words")?;
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(command)
    }

    /// The words that such a command begins with.
    pub(super) fn words(&self, name: &str) -> Result<Vec<OsString>> {
        let file = self.file(name)?;
        let loader = if file.starts_with(&self.root) { self.loader() } else { None };
        // An unpacked program is run by the loader that it came with: this machine's may be of
        // another version than its libraries.
        let Some(loader) = loader else { return Ok(vec![file.into()]) };
        let libraries = LIBRARIES.iter().map(|directory| self.root.join(directory));
        let libraries = std::env::join_paths(libraries).context("the path of the repository has a colon")?;
        Ok(vec![loader.into(), "--library-path".into(), libraries, file.into()])
    }

    /// The words that a command begins with that runs qemu.
    pub(super) fn qemu(&self) -> Result<Vec<OsString>> {
        let qemu = self.emulation.qemu;
        let words = self.words(qemu)?;
        if !self.file(qemu)?.starts_with(&self.root) {
            return Ok(words);
        }
        let mut modules = OsString::from("QEMU_MODULE_DIR=");
        modules.push(self.root.join(MODULES));
        let firmware = FIRMWARE.iter().flat_map(|directory| ["-L".into(), self.root.join(directory).into()]);
        Ok(["env".into(), modules].into_iter().chain(words).chain(firmware).collect())
    }

    fn unpacked(&self, name: &str) -> Option<PathBuf> {
        self.first(PROGRAMS, name)
    }

    fn loader(&self) -> Option<PathBuf> {
        // Elsewhere packages have links to it, which lead to this machine's.
        self.first(LIBRARIES, LOADER)
    }

    fn first(&self, directories: &[&str], name: &str) -> Option<PathBuf> {
        let paths = directories.iter().map(|directory| self.root.join(directory).join(name));
        paths.into_iter().find(|path| is_file(path))
    }
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file(self.emulation.qemu) {
            Ok(file) => write!(f, "{}", file.display()),
            Err(error) => write!(f, "{error:#}"),
        }
    }
}

/// Returns `true` if a path is a file itself. A link may lead out of the folder.
fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Tools with a tree of packages that is made up.
    fn tools(test: &str, files: &[&str]) -> Tools {
        let root = std::env::temp_dir().join(format!("xtask-tools-{test}-{}", std::process::id()));
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        Tools { root, emulation: &PC }
    }

    fn text(words: &[OsString]) -> String {
        words.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn an_unpacked_program_is_run_by_its_own_loader() {
        let tools =
            tools("loader", &["usr/bin/no-such-program", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"]);
        let root = tools.root.display();
        let words = text(&tools.words("no-such-program").unwrap());
        assert!(words.starts_with(&format!(
            "{root}/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path {root}/usr/lib/"
        )));
        assert!(words.ends_with(&format!(" {root}/usr/bin/no-such-program")), "{words}");
        fs::remove_dir_all(&tools.root).unwrap();
    }

    #[test]
    fn what_is_installed_is_preferred() {
        let tools = tools("installed", &["usr/bin/sh", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"]);
        assert_eq!(tools.words("sh").unwrap(), [system::find_program("sh").unwrap()]);
        fs::remove_dir_all(&tools.root).unwrap();
    }

    #[test]
    fn a_link_out_of_the_tree_is_no_program() {
        let tools = tools("link", &["usr/bin/other"]);
        std::os::unix::fs::symlink("/bin/sh", tools.root.join("usr/bin/no-such-program")).unwrap();
        let error = tools.words("no-such-program").unwrap_err().to_string();
        assert!(error.contains("there is no no-such-program here"), "{error}");
        fs::remove_dir_all(&tools.root).unwrap();
    }
}
