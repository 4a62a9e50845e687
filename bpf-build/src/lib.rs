//! Finds a toolchain that can compile for BPF, and compiles packages of BPF programs with it.
//!
//! A build script needs one call, `bpf_build::build_script("router-ebpf", "router", &[])`, and its
//! crate then finds the object at `concat!(env!("OUT_DIR"), "/router")`. `cargo xtask setup` uses
//! the same search, so the build uses the toolchain that it reports as ready.
//!
//! `aya_build::build_ebpf` needs rustup's nightly. A machine without access to rustup's servers can
//! use a distribution's compiler with a prebuilt `core` for BPF here.

mod btf;
mod command;
mod find;
mod paths;
mod probe;
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

pub use command::{Action, cargo, target_dir};
pub use find::{Missing, find, private_tools};
pub use paths::path_remapping;
pub use toolchain::{LINKER, LINKER_VARIABLE, LINKER_VERSION, RUSTC_VARIABLE, TARGET, Toolchain};

/// Compiles the binary `bin` of the package in the directory `package` of the workspace, which has
/// the package's name, and puts the object at `$OUT_DIR/<bin>`. For build scripts.
///
/// Those of `features` that the package of the build script is built with are the BPF package's as
/// well.
///
/// Tells cargo exactly which files the object depends on, so that an unchanged tree rebuilds
/// nothing. Writes the reason of a failure to standard error, where cargo shows it.
pub fn build_script(package: &str, bin: &str, features: &[&str]) -> ExitCode {
    match try_build_script(package, bin, features) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}\n");
            ExitCode::FAILURE
        }
    }
}

fn try_build_script(package: &str, bin: &str, features: &[&str]) -> anyhow::Result<()> {
    let variable =
        |name| env::var_os(name).with_context(|| format!("{name} is not set: is this run by cargo?"));
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let workspace = workspace_above(variable("CARGO_MANIFEST_DIR")?.as_ref())?;
    for variable in [RUSTC_VARIABLE, LINKER_VARIABLE] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Whole directories: cargo looks for the newest file below them. Not the workspace itself,
    // where anything else would count too.
    for dir in [package, "router-common"].map(|dir| workspace.join(dir)) {
        println!("cargo:rerun-if-changed={}", dir.join("Cargo.toml").display());
        println!("cargo:rerun-if-changed={}", dir.join("src").display());
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(file).display());
    }

    let name = package.rsplit('/').next().unwrap_or(package);
    let target_dir = target_dir(&workspace, Some(&out_dir));
    let toolchain = find(&target_dir)?;
    let is_on = |feature: &&&str| {
        env::var_os(format!("CARGO_FEATURE_{}", feature.to_uppercase().replace('-', "_"))).is_some()
    };
    let features: Vec<&str> = features.iter().filter(is_on).copied().collect();
    // Builds with other features may run at the same time, and write a binary of the same name.
    let target_dir = features.iter().fold(target_dir, |dir, feature| dir.join(feature));
    let status = cargo(&toolchain, Action::Build, &target_dir)?
        .args(["--package", name, "--bin", bin])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .current_dir(&workspace)
        // A build script's standard output is for instructions to cargo.
        .stdout(std::io::stderr())
        .status()
        .context("cannot start cargo for the BPF target")?;
    if !status.success() {
        bail!("the BPF program `{bin}` of {name} does not compile (with {toolchain}); see above");
    }
    install(&target_dir.join(TARGET).join("release").join(bin), &out_dir.join(bin))
}

/// Returns the root of the workspace: the nearest directory above `start` with a `Cargo.lock`.
fn workspace_above(start: &Path) -> anyhow::Result<PathBuf> {
    let root = start.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    root.map(Path::to_path_buf).with_context(|| format!("no Cargo.lock in {} or above it", start.display()))
}

/// Copies the object and makes its type names ones that the kernel accepts. Does not touch a copy
/// that is the same already.
fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
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
    fn the_workspace_is_found_from_a_package() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(workspace_above(package).ok().as_deref(), package.parent());
        workspace_above(Path::new("/")).unwrap_err();
    }
}
