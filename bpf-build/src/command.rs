//! The second cargo, which compiles for BPF, and its environment.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result};

use crate::paths::path_remapping;
use crate::toolchain::{TARGET, Toolchain};

/// The task of the second cargo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// `cargo build`.
    Build,
    /// `cargo clippy`, with the compiler's own clippy (see [`Toolchain::clippy`]).
    Clippy,
}

/// Returns the directory of BPF builds, which all packages share. It is not the outer cargo's,
/// whose lock that cargo holds while it waits for this one; a build script's `OUT_DIR` tells where
/// that is. Within it, a directory for another target (`--target`) is marked as it is itself.
pub fn target_dir(workspace: &Path, out_dir: Option<&Path>) -> PathBuf {
    let is_marked = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    let nearest = out_dir.and_then(|out| out.ancestors().find(is_marked));
    let outer = nearest.map(|dir| dir.parent().filter(is_marked).unwrap_or(dir));
    let own = || workspace.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    outer.map_or_else(own, Path::to_path_buf).join("bpf")
}

/// Returns a cargo command for the BPF target, up to and including its target options.
///
/// # Errors
///
/// Returns an error if the directory for the linker's LLVM cannot be made.
pub fn cargo(toolchain: &Toolchain, action: Action, target_dir: &Path) -> Result<Command> {
    // The outer cargo by its full path: rustup's proxy would put its own libraries before ours.
    let outer = env::var_os("CARGO").map(PathBuf::from);
    let own = toolchain.cargo.clone();
    // Building core needs the cargo that fits its sources.
    let program = if toolchain.builds_core { own.or(outer) } else { outer.or(own) };
    let mut command = Command::new(program.unwrap_or_else(|| "cargo".into()));
    forget_outer_build(&mut command);
    command
        .env("RUSTC", &toolchain.rustc)
        // The intrinsics of aya-ebpf and `-Z build-std` are not stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain).join("\u{1f}"));
    if let Some(llvm) = &toolchain.llvm {
        command.env("LD_LIBRARY_PATH", llvm_dir(llvm, target_dir)?);
    }
    match action {
        Action::Build => command.arg("build"),
        // `cargo clippy` would look for its driver beside the outer cargo.
        Action::Clippy => {
            command.envs(toolchain.clippy().map(|clippy| ("RUSTC_WORKSPACE_WRAPPER", clippy))).arg("check")
        }
    };
    command.args(["--release", "--target", TARGET, "--target-dir"]).arg(target_dir);
    if toolchain.builds_core {
        command.args(["-Z", "build-std=core"]);
    }
    Ok(command)
}

/// Returns the flags for the BPF target only: with `--target`, cargo keeps them from build scripts
/// and macros.
fn rustflags(toolchain: &Toolchain) -> Vec<String> {
    let mut flags = vec![
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit registers and atomic operations on them (Linux 5.12).
        "-Ctarget-cpu=v3".to_owned(),
        // Tells aya-ebpf which registers the probed machine has.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
    ];
    // Debug information becomes part of the object.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let sysroot = toolchain.rustc.parent().and_then(Path::parent);
    if let (Some(workspace), Some(sysroot)) = (workspace, sysroot) {
        flags.extend(path_remapping(workspace, sysroot, &toolchain.version));
    }
    flags
}

/// Makes a directory with nothing but a link to `llvm`, for the linker to find. There is one for
/// each LLVM, since two compilers may run at the same time.
fn llvm_dir(llvm: &Path, target_dir: &Path) -> Result<PathBuf> {
    let dir = target_dir.join("llvm").join(llvm.to_string_lossy().replace('/', "-"));
    let link = dir.join("libLLVM.so");
    match fs::create_dir_all(&dir).and_then(|()| symlink(llvm, &link)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", link.display()))
        }
        _ => Ok(dir),
    }
}

/// Removes from `command` the variables that an outer cargo or rustup has set for its own build.
///
/// Otherwise a `clippy-driver` would wrap the BPF compiler, the host's flags would reach the BPF
/// target, and the object would be rebuilt whenever the outer command changes.
pub(crate) fn forget_outer_build(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_outer_build(name)) {
        command.env_remove(name);
    }
    // Empty means none, also where the user's cargo configuration names one.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

fn is_of_outer_build(name: &OsStr) -> bool {
    // The user's settings of the network, registries, terminal and home stay. So does the
    // jobserver, through which both cargos share one limit of jobs.
    const KEPT: &str = "CARGO_HOME CARGO_MAKEFLAGS CARGO_NET_ CARGO_HTTP_ CARGO_REGISTR CARGO_TERM_";
    // LD_LIBRARY_PATH leads to libraries of rustup and cargo, among them another LLVM.
    const REMOVED: &str = "CARGO DEBUG HOST LD_LIBRARY_PATH NUM_JOBS OPT_LEVEL OUT_DIR PROFILE RUSTC RUSTDOC \
        RUSTFLAGS RUSTDOCFLAGS RUSTUP_TOOLCHAIN RUST_RECURSION_COUNT TARGET";
    const REMOVED_PREFIXES: [&str; 4] = ["CARGO_", "CLIPPY_", "RUSTC_", "DEP_"];
    let Some(name) = name.to_str() else { return false };
    let kept = KEPT.split_whitespace().any(|kept| name.starts_with(kept));
    let removed = REMOVED.split_whitespace().any(|removed| name == removed);
    !kept && (removed || REMOVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_scripts_share_one_directory() {
        let target = env::temp_dir().join(format!("bpf-build-target-{}", std::process::id()));
        let out = target.join("debug/build/router-user-0123/out");
        fs::create_dir_all(&out).unwrap();
        fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(target_dir(Path::new("/w"), Some(&out)), target.join("bpf"));
        let triple = target.join("x86_64-unknown-linux-musl");
        let out = triple.join("release/build/router-user-0123/out");
        fs::create_dir_all(&out).unwrap();
        fs::write(triple.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(target_dir(Path::new("/w"), Some(&out)), target.join("bpf"));
        fs::remove_dir_all(&target).unwrap();
    }

    #[test]
    fn flags_name_the_architecture_and_not_this_directory() {
        let toolchain = Toolchain {
            rustc: "/opt/rust/bin/rustc".into(),
            version: "rustc 1.96.0".to_owned(),
            builds_core: true,
            linker: "bpf-linker".into(),
            llvm: None,
            cargo: None,
        };
        let flags = rustflags(&toolchain);
        assert!(flags[3].ends_with(&format!("\"{}\"", env::consts::ARCH)));
        assert!(flags.iter().any(|flag| flag.ends_with("=/pls-router")), "{flags:?}");
    }

    #[test]
    fn the_outer_build_is_forgotten() {
        let names = "CARGO CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET \
            CARGO_PROFILE_RELEASE_LTO CARGO_CFG_TARGET_ARCH CLIPPY_ARGS DEP_Z_ROOT LD_LIBRARY_PATH OUT_DIR \
            RUSTC RUSTC_BOOTSTRAP RUSTC_WORKSPACE_WRAPPER RUSTFLAGS TARGET";
        for name in names.split_whitespace() {
            assert!(is_of_outer_build(OsStr::new(name)), "{name} would reach the inner cargo");
        }
    }

    #[test]
    fn the_users_own_settings_stay() {
        let names = "CARGO_HOME CARGO_HTTP_PROXY CARGO_MAKEFLAGS CARGO_NET_OFFLINE \
            CARGO_REGISTRIES_INNER_TOKEN CARGO_REGISTRY_DEFAULT CARGO_TERM_COLOR HOME PATH RUSTUP_HOME \
            RUST_BACKTRACE https_proxy";
        for name in names.split_whitespace() {
            assert!(!is_of_outer_build(OsStr::new(name)), "{name} would be lost");
        }
    }
}
