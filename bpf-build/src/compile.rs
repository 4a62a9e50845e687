//! The second cargo, which compiles for BPF.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::search::{Core, Toolchain};
use crate::{TARGET, btf, env};

/// What the second cargo is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// `cargo build`.
    Build,
    /// `cargo clippy`, with the compiler's own clippy (see [`Toolchain::clippy`]).
    Clippy,
}

/// The directory in which BPF objects are built: one for all packages that want them, so that each
/// is compiled once; and not the outer cargo's, which holds the lock on that one while it waits for
/// us.
///
/// A build script passes its `OUT_DIR`, which tells where the outer cargo builds.
pub fn target_dir(workspace: &Path, out_dir: Option<&Path>) -> PathBuf {
    let from_out_dir = out_dir.and_then(|out| out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()));
    let outer = match from_out_dir {
        Some(dir) => dir.to_path_buf(),
        None => workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())),
    };
    outer.join("bpf")
}

/// A cargo command for the BPF target, up to and including its target options.
///
/// # Errors
///
/// When the directory for the linker's LLVM cannot be made.
pub fn cargo(toolchain: &Toolchain, action: Action, target_dir: &Path) -> Result<Command> {
    // The outer cargo by its full path: rustup's proxy would put its own libraries before ours.
    let outer = std::env::var_os("CARGO").map(PathBuf::from);
    let own = toolchain.cargo.clone();
    // Building core needs the cargo that fits its sources.
    let program = match toolchain.core {
        Core::FromSource => own.or(outer),
        Core::Prebuilt => outer.or(own),
    };
    let mut command = Command::new(program.unwrap_or_else(|| "cargo".into()));
    env::scrub(&mut command);
    command
        .env("RUSTC", &toolchain.rustc)
        // The intrinsics of aya-ebpf and `-Z build-std` are not stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags().join("\u{1f}"));
    if let Some(llvm) = &toolchain.llvm {
        command.env("LD_LIBRARY_PATH", llvm_dir(llvm, target_dir)?);
    }
    match action {
        Action::Build => command.arg("build"),
        Action::Clippy => {
            if let Some(clippy) = toolchain.clippy() {
                command.env("RUSTC_WORKSPACE_WRAPPER", clippy);
            }
            // What `cargo clippy` is; the real one would look for its driver beside the outer
            // cargo.
            command.arg("check")
        }
    };
    command.args(["--release", "--target", TARGET, "--target-dir"]).arg(target_dir);
    if toolchain.core == Core::FromSource {
        command.args(["-Z", "build-std=core"]);
    }
    Ok(command)
}

impl Toolchain {
    /// The clippy that belongs to this compiler, if it is installed.
    pub fn clippy(&self) -> Option<PathBuf> {
        Some(self.rustc.with_file_name("clippy-driver")).filter(|driver| driver.is_file())
    }

    /// Returns rustup's name for this compiler's toolchain, if it is one of rustup's.
    pub fn rustup_name(&self) -> Option<String> {
        let toolchains = env::dir("RUSTUP_HOME", ".rustup")?.join("toolchains");
        let name = self.rustc.strip_prefix(toolchains).ok()?.components().next()?;
        name.as_os_str().to_str().map(str::to_owned)
    }
}

/// For the BPF target only: with `--target`, cargo keeps these flags from build scripts and macros.
fn rustflags() -> [String; 4] {
    [
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit registers and atomic operations on them (Linux 5.12).
        "-Ctarget-cpu=v3".to_owned(),
        // What aya-ebpf asks to know which registers the probed machine has.
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ]
}

/// A directory with nothing in it but a link to `llvm`, for the linker to find. One for each LLVM,
/// since two compilers may be at work at the same time.
fn llvm_dir(llvm: &Path, target_dir: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    llvm.hash(&mut hasher);
    let dir = target_dir.join("llvm").join(format!("{:016x}", hasher.finish()));
    let link = dir.join("libLLVM.so");
    let make = || match std::os::unix::fs::symlink(llvm, &link) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    std::fs::create_dir_all(&dir)
        .and_then(|()| make())
        .with_context(|| format!("cannot make {}", link.display()))?;
    Ok(dir)
}

/// Compiles the binary `bin` of `router-ebpf` and returns the path of the object. Progress and
/// diagnostics go to standard error.
///
/// # Errors
///
/// When it does not compile; the compiler's messages are on standard error by then.
pub(crate) fn compile(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    bin: &str,
) -> Result<PathBuf> {
    let status = cargo(toolchain, Action::Build, target_dir)?
        .args(["--package", "router-ebpf", "--bin", bin])
        .current_dir(workspace)
        // A build script's standard output is for instructions to cargo.
        .stdout(std::io::stderr())
        .status()
        .context("cannot start cargo for the BPF target")?;
    if !status.success() {
        bail!("the BPF program `{bin}` of router-ebpf does not compile (with {toolchain}); see above");
    }
    Ok(target_dir.join(TARGET).join("release").join(bin))
}

/// Installs the object, with type names that the kernel takes; unless that would change nothing but
/// the time.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let mut object = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    btf::sanitize(&mut object).with_context(|| format!("{} is no BPF object", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == object) {
        return Ok(());
    }
    std::fs::write(to, object).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_scripts_share_one_directory() {
        let target = std::env::temp_dir().join(format!("bpf-build-target-{}", std::process::id()));
        let out = target.join("debug/build/router-user-0123/out");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(target_dir(Path::new("/w"), Some(&out)), target.join("bpf"));
        std::fs::remove_dir_all(&target).unwrap();
    }

    #[test]
    fn flags_name_the_architecture() {
        assert!(rustflags()[3].ends_with(&format!("\"{}\"", std::env::consts::ARCH)));
    }
}
