//! The paths of the workspace, and cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    // Cargo says at run time where the package is; the place at compile time serves a binary that
    // is run by hand.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_path_buf)
}

/// The folder of a package of the workspace.
pub(crate) fn folder(package: &str) -> PathBuf {
    root().join(match package {
        "lab" => "tests",
        "labtools" => "tests/labtools",
        "harness" => "tests/harness",
        "harness-macros" => "tests/harness/macros",
        _ => package,
    })
}

/// The directory in which cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The directory in which the objects for BPF are built.
pub(crate) fn bpf_target_dir() -> PathBuf {
    bpf_build::target_dir(&root(), None)
}

/// A cargo command in the root of the repository, free of what the cargo that started us set for
/// itself.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command.arg(verb).current_dir(root());
    command
}
