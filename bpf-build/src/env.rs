//! The environment of a build script, and what of it must not reach a second cargo.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// What cargo promises to set.
pub(crate) fn required(variable: &str) -> Result<OsString> {
    std::env::var_os(variable).with_context(|| format!("{variable} is not set: is this run by cargo?"))
}

/// The nearest directory above `start` with a `Cargo.lock`: the root of the workspace.
pub(crate) fn workspace_above(start: &Path) -> Result<PathBuf> {
    start
        .ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("no Cargo.lock in {} or above it", start.display()))
}

/// A directory setting such as `CARGO_HOME`, or its default below the home directory.
pub(crate) fn dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(variable).filter(|dir| !dir.is_empty()) {
        return Some(dir.into());
    }
    std::env::var_os("HOME").map(|home| Path::new(&home).join(below_home))
}

/// Every executable file called `name` on the PATH, in its order.
pub(crate) fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).filter(|file| file.is_file()).collect()
}

/// Removes from `command` all that an outer cargo or rustup has set for its own compilation.
///
/// Left in place, a `clippy-driver` would be wrapped around the BPF compiler, the host's flags
/// would go to the BPF target, and the object would be rebuilt whenever the outer command changes.
pub(crate) fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_of_outer_build(&name) {
            command.env_remove(&name);
        }
    }
    // Empty means none, also where the user's cargo configuration names one.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

fn is_of_outer_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    // What the user says about the network, the registries, the terminal and their home stays, and
    // so does the jobserver, through which both cargos share one limit of jobs.
    const KEPT: &[&str] =
        &["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
    const REMOVED: &[&str] = &[
        "DEBUG",
        "HOST",
        // Set by rustup and by cargo for their own libraries, among them another LLVM than the one
        // wanted.
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "TARGET",
    ];
    const REMOVED_PREFIXES: &[&str] = &["CARGO_", "CLIPPY_", "RUSTC_", "DEP_"];
    if KEPT.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    name == "CARGO" || REMOVED.contains(&name) || REMOVED_PREFIXES.iter().any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_build_is_forgotten() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_CFG_TARGET_ARCH",
            "CLIPPY_ARGS",
            "DEP_Z_ROOT",
            "LD_LIBRARY_PATH",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_BOOTSTRAP",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "TARGET",
        ] {
            assert!(is_of_outer_build(OsStr::new(name)), "{name} would reach the inner cargo");
        }
    }

    #[test]
    fn the_users_own_settings_stay() {
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_INNER_TOKEN",
            "CARGO_REGISTRY_DEFAULT",
            "CARGO_TERM_COLOR",
            "HOME",
            "PATH",
            "RUSTUP_HOME",
            "RUST_BACKTRACE",
            "https_proxy",
        ] {
            assert!(!is_of_outer_build(OsStr::new(name)), "{name} would be lost");
        }
    }

    #[test]
    fn the_workspace_is_found_from_a_package() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = workspace_above(package).unwrap();
        assert_eq!(Some(workspace.as_path()), package.parent());
        workspace_above(Path::new("/")).unwrap_err();
    }
}
