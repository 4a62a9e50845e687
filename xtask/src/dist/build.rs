//! Builds the static programs.

use std::path::PathBuf;

use anyhow::Result;

use super::architecture::Architecture;
use crate::{program, system, toolchain, workspace};

/// The profile that is shipped (see the workspace's `Cargo.toml`).
const PROFILE: &str = "shipping";

/// Builds the router for machines of one kind, if that is not up to date, and makes sure that it
/// needs nothing of theirs.
pub(super) fn router(architecture: Architecture, version: &str) -> Result<PathBuf> {
    let router = static_program(architecture, version, "router-user", "pls-router")?;
    program::require_static(&router)?;
    Ok(router)
}

/// Builds the program that writes manual pages and completions, with the same dependencies as the
/// static router.
pub(super) fn documents(version: &str) -> Result<PathBuf> {
    static_program(Architecture::native()?, version, "cli-documents", "cli-documents")
}

/// Builds it quickly, with what the tests have built.
pub(super) fn quick_documents() -> Result<PathBuf> {
    toolchain::bpf()?;
    system::run(workspace::cargo("build").args(["--quiet", "--package", "cli-documents"]))?;
    Ok(workspace::target_dir().join("debug/cli-documents"))
}

/// Builds a program of this version that needs no shared library, by the linker that comes with
/// Rust: neither a C compiler nor libraries of this machine take part.
fn static_program(
    architecture: Architecture,
    version: &str,
    package: &str,
    program: &str,
) -> Result<PathBuf> {
    toolchain::bpf()?;
    let target = architecture.target();
    toolchain::add_target(target)?;
    let (sysroot, compiler) = (toolchain::rustc(&["--print", "sysroot"])?, toolchain::rustc(&["-vV"])?);
    let mut flags = vec!["-Clinker=rust-lld".to_owned()];
    flags.extend(bpf_build::path_remapping(&workspace::root(), sysroot.trim().as_ref(), &compiler));
    let mut build = workspace::cargo("build");
    build.args(["--profile", PROFILE, "--target", target, "--package", package, "--bin", program]);
    // See `router_user::VERSION`.
    build.env("PLS_ROUTER_VERSION", version);
    // Comes before any other flags of the user's. With --target it is for this target only.
    system::run(build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    Ok(workspace::target_dir().join(target).join(PROFILE).join(program))
}
