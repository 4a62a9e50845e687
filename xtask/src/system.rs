//! This machine: who we are on it, its kernel, and running commands.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
pub(crate) use harness::packages::find_program;

/// The kernel type information that BPF programs are checked against.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The oldest kernel that the router is made for; the daemon's preflight says the same.
pub(crate) const OLDEST_KERNEL: (u32, u32) = (6, 1);

pub(crate) fn is_root() -> bool {
    // The owner of a process's own directory is its effective user.
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}

/// Fails, with what to do instead, unless we are root.
pub(crate) fn require_root(verb: &str, why: &str) -> Result<()> {
    ensure!(
        is_root(),
        "`cargo xtask {verb}` has to run as root: {why}\n\n    run: sudo -E env \"PATH=$PATH\" cargo xtask {verb}"
    );
    Ok(())
}

/// Fails, with the reason, unless this kernel can run the router. Returns what to say of it.
pub(crate) fn check_kernel() -> Result<String> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let release = release.trim();
    let (major, minor) = OLDEST_KERNEL;
    match kernel_version(release) {
        Some(version) if version < OLDEST_KERNEL => {
            bail!("kernel {release} is too old: the router needs {major}.{minor} or newer")
        }
        Some(_) => {}
        None => bail!("cannot tell the kernel's version from `{release}`"),
    }
    if !Path::new(BTF).is_file() {
        bail!(
            "kernel {release} does not tell its types: there is no {BTF}, so it was built without CONFIG_DEBUG_INFO_BTF"
        );
    }
    Ok(format!("{release}, with BTF"))
}

pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Runs a command with its output shown, after showing the command itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("  $ {}", display(command));
    let status =
        command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(status.success(), "`{}` failed ({status})", display(command));
    Ok(())
}

/// The command as one would type it.
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    words.map(quote).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        assert_eq!(kernel_version("6.1.0-13-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.15-azure"), Some((5, 15)));
        assert_eq!(kernel_version("6.18"), Some((6, 18)));
        assert_eq!(kernel_version("next"), None);
    }

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "--", "a name", ""]);
        assert_eq!(display(&command), "cargo test -- 'a name' ''");
    }
}
